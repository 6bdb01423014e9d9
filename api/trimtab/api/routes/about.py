"""What this API is: its version, its description, and who it takes the caller for."""

from importlib.metadata import version

from fastapi import APIRouter, Request, Response

from trimtab.api.answers import About
from trimtab.api.auth import Caller
from trimtab.api.responses import StrictJSON

router = APIRouter()


@router.get("/version")
async def about(caller: Caller) -> About:
    """The version of Trimtab, and whom it takes the caller for."""
    return About(version=version("trimtab"), name=caller.name, role=caller.role.word)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    return StrictJSON(request.app.openapi())
