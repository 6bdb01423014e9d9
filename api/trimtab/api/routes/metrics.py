"""Metrics: the names, buckets for a chart, several runs on one grid, or all points as CSV."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from starlette.responses import StreamingResponse

from trimtab.api.answers import Compared, MetricKeys, Metrics
from trimtab.api.context import Ctx
from trimtab.api.forms import CompareForm, MetricsQuery, RunId
from trimtab.api.problems import Failure
from trimtab.api.responses import StrictJSON
from trimtab.controller.metrics import Series
from trimtab.controller.metrics.grid import NAMES, Grid

router = APIRouter()

MAX_CELLS = 200_000  # of a comparison: runs × keys × points

CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}


@router.get("/runs/{run}/metrics", response_model=Metrics | MetricKeys, responses=CSV)
async def get_metrics(
    run: RunId,
    context: Ctx,
    query: Annotated[MetricsQuery, Query()],
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Without `key` the names; with keys their points in at most `max_points` buckets.

    With `rank` those of one rank, whose own values are kept for the newest 5,000 to 10,000 steps, fewer where ranks and
    metrics are very many. `Accept: text/csv` gives all points of the keys, or of every metric, from step `from` on,
    whatever the other parameters say: of each step the mean over ranks and, where they differ, the lowest and the
    highest; of one `rank` its own values, of the steps for which they are kept.
    """
    gateway = context.gateway
    known = await gateway.keys(run)
    if not known:
        await gateway.call("hyperparameters", run)  # no metrics yet, or no such run?
    if "text/csv" in accept:
        name = {"Content-Disposition": f'attachment; filename="{run}.csv"'}
        pages = gateway.csv(run, query.key or known, query.rank, query.from_)
        return StreamingResponse(pages, media_type="text/csv", headers=name)
    if not query.key:
        return StrictJSON({"keys": known})
    found = await gateway.query(run, query.key, query.x, query.from_, query.to, query.max_points, query.rank)
    return StrictJSON({"x": query.x, "series": {key: _buckets(found.get(key)) for key in query.key}})


@router.post("/metrics:query", response_model=Compared, name="compare_metrics")
async def compare(context: Ctx, form: CompareForm) -> Response:
    """Metrics of several runs on one grid, for charts that lay runs beside each other; nothing is changed.

    `null` stands where a run has no point in a cell. A time is in seconds since the run's first point.
    """
    cells = len(form.runs) * len(form.keys) * form.grid.points
    if cells > MAX_CELLS:
        told = (
            f"{len(form.runs)} runs × {len(form.keys)} keys × {form.grid.points:,} points are {cells:,} cells, more "
            f"than {MAX_CELLS:,}: take fewer points, or ask for some runs or keys at a time"
        )
        raise Failure(422, "too-many-points", told, {"grid.points": told})
    for run in form.runs:
        if not await context.gateway.keys(run):
            await context.gateway.call("hyperparameters", run)
    grid = Grid(x=form.grid.x, start=form.grid.from_, end=form.grid.to, points=form.grid.points)
    found = await context.gateway.compare(form.runs, form.keys, grid)
    nothing: dict[str, list[float | None]] = {name: [None] * len(found.grid) for name in NAMES}
    runs = {run: {key: found.runs.get(run, {}).get(key, nothing) for key in form.keys} for run in form.runs}
    return StrictJSON({"x": form.grid.x, "grid": found.grid, "runs": runs})


def _buckets(series: Series | None) -> dict[str, list[float]]:
    return {name: getattr(series, name).tolist() if series else [] for name in ("x", *NAMES)}
