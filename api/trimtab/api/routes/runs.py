"""Runs: list, detail, audit, and the commands that take effect at one step on all ranks."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, get_args

from fastapi import APIRouter, Query

from trimtab.api.answers import Accepted, Changes, Runs
from trimtab.api.auth import Caller
from trimtab.api.context import Ctx
from trimtab.api.forms import ChangesQuery, CommandForm, PageQuery, RollbackForm, RunId
from trimtab.api.problems import Failure
from trimtab.controller.observation import Command
from trimtab.controller.views import RecordView, RunSummary, RunView

router = APIRouter()

CommandName = Literal["pause", "resume", "stop", "checkpoint", "decay"]


@router.get("/runs")
async def list_runs(context: Ctx, page: Annotated[PageQuery, Query()]) -> Runs:
    """All runs, newest first."""
    runs: list[RunSummary] = await context.gateway.call("runs")
    start = 0
    if page.page_token is not None:
        ids = [run.id for run in runs]
        if page.page_token not in ids:
            raise Failure(422, "invalid-parameters", "page_token: not one of ours", {"page_token": "not one of ours"})
        start = ids.index(page.page_token) + 1
    shown = runs[start : start + page.limit]
    more = start + page.limit < len(runs)
    return Runs(runs=shown, next_page_token=shown[-1].id if more else None)


@router.get("/runs/{run}")
async def get_run(run: RunId, context: Ctx) -> RunView:
    view: RunView = await context.gateway.call("run", run)
    return view


@router.get("/runs/{run}/changes")
async def list_changes(run: RunId, context: Ctx, query: Annotated[ChangesQuery, Query()]) -> Changes:
    """The audit, oldest first: who or which policy, why, and what became of it."""
    changes: list[RecordView] = await context.gateway.call("changes", run, query.after, query.limit)
    return Changes(changes=changes, next_after=changes[-1].id if len(changes) == query.limit else None)


@router.post("/runs/{run}/rollback", status_code=202, name="rollback_run")
async def roll_back(run: RunId, caller: Caller, context: Ctx, form: RollbackForm | None = None) -> Accepted:
    """Go back to a checkpoint in place: model, optimizer, random states, data and values, at one step on all ranks."""
    form = form or RollbackForm()
    wish = Command("rollback", form.reason, form.step, form.skip_data)
    return Accepted(version=await context.gateway.call("command", run, wish, caller.name))


def _command(name: CommandName) -> Callable[..., Awaitable[Accepted]]:
    async def ask(run: RunId, caller: Caller, context: Ctx, form: CommandForm | None = None) -> Accepted:
        reason = form.reason if form else ""
        return Accepted(version=await context.gateway.call("command", run, Command(name, reason), caller.name))

    return ask


for name in get_args(CommandName):
    router.add_api_route(
        f"/runs/{{run}}/{name}",
        _command(name),
        methods=["POST"],
        status_code=202,
        name=f"{name}_run",
        description=f"The {name} takes effect at one step on all ranks; the version that is answered carries it.",
    )
