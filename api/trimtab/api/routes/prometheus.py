"""What Prometheus scrapes."""

from typing import Annotated

from fastapi import APIRouter, Header, Response

from trimtab.api.context import Ctx
from trimtab.api.health import gather
from trimtab.api.prometheus import render

router = APIRouter()


@router.get("/metrics", include_in_schema=False, name="prometheus")
async def scrape(context: Ctx, accept: Annotated[str, Header()] = "") -> Response:
    """The health of everything in the text format of Prometheus or of OpenMetrics, as asked for."""
    text, content_type = render(await gather(context), accept)
    return Response(text, media_type=content_type)
