"""Runs: list, detail, audit, and the commands that take effect at one step on all ranks."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, get_args

from fastapi import APIRouter, Query

from trimtab.api.answers import Accepted, Audit, Changes, Runs
from trimtab.api.auth import Caller
from trimtab.api.context import Ctx
from trimtab.api.forms import AuditQuery, ChangesQuery, CommandForm, RollbackForm, RunId, RunsQuery
from trimtab.controller.listing import ChangesWanted, RunsWanted
from trimtab.controller.observation import Command
from trimtab.controller.views import RecordView, RunView

router = APIRouter()

CommandName = Literal["pause", "resume", "stop", "checkpoint", "decay"]


@router.get("/runs")
async def list_runs(context: Ctx, query: Annotated[RunsQuery, Query()]) -> Runs:
    """The runs, newest first unless sorted otherwise."""
    wanted = RunsWanted(
        states=frozenset(query.state),
        name=query.name,
        owner=query.owner,
        sort=query.sort,
        place=query.page_token,
        limit=query.limit,
    )
    runs, place = await context.gateway.call("runs", wanted)
    return Runs(runs=runs, next_page_token=place)


@router.get("/changes")
async def audit(context: Ctx, query: Annotated[AuditQuery, Query()]) -> Audit:
    """The audit over all runs, newest first: who or which policy changed what, why, and what became of it."""
    wanted = ChangesWanted(run=query.run, by=query.by, place=query.page_token, limit=query.limit)
    changes, place = await context.gateway.call("audit", wanted)
    return Audit(changes=changes, next_page_token=place)


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
