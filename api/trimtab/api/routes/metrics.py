"""Metrics: the names, buckets for a chart, or all points as CSV."""

import csv
import io
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from starlette.responses import StreamingResponse

from trimtab.api.answers import MetricKeys, Metrics
from trimtab.api.context import Ctx
from trimtab.api.forms import MetricsQuery, RunId
from trimtab.api.gateway import Gateway
from trimtab.api.responses import StrictJSON
from trimtab.controller.metrics import Series

router = APIRouter()

CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}


@router.get("/runs/{run}/metrics", response_model=Metrics | MetricKeys, responses=CSV)
async def get_metrics(
    run: RunId,
    context: Ctx,
    query: Annotated[MetricsQuery, Query()],
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Without `key` the names; with keys their points in at most `max_points` buckets; `Accept: text/csv` gives all
    points of the keys, or of every metric, whatever the other parameters say."""
    gateway = context.gateway
    known = await gateway.keys(run)
    if not known:
        await gateway.call("hyperparameters", run)  # no metrics yet, or no such run?
    if "text/csv" in accept:
        name = {"Content-Disposition": f'attachment; filename="{run}.csv"'}
        return StreamingResponse(_csv(gateway, run, query.key or known), media_type="text/csv", headers=name)
    if not query.key:
        return StrictJSON({"keys": known})
    found = await gateway.query(run, query.key, query.x, query.from_, query.to, query.max_points)
    return StrictJSON({"x": query.x, "series": {key: _buckets(found.get(key)) for key in query.key}})


def _buckets(series: Series | None) -> dict[str, list[float]]:
    names = ("x", "last", "min", "max", "mean")
    return {name: getattr(series, name).tolist() if series else [] for name in names}


async def _csv(gateway: Gateway, run: str, keys: Sequence[str]) -> AsyncIterator[str]:
    yield _lines([["step", "samples", "time", *keys]])
    async for page in gateway.table(run, keys):
        yield _lines(
            [row.step, row.samples, row.time, *("" if math.isnan(value) else value for value in row.values)]
            for row in page
        )


def _lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
