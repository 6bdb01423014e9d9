"""Commands that look at runs: runs, show, why, changes."""

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from trimtab.api.cli.connection import CommandError, connection, found
from trimtab.api.cli.output import Json, cell, print_json, print_line, print_table, sides

if TYPE_CHECKING:
    from trimtab.controller.listing import Sort
    from trimtab.controller.views import (
        HyperParameterView,
        PolicyView,
        RecordView,
        RecoveryView,
        RunSummary,
        RunView,
    )

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the beginning of it if that is unique.")]
LAST_REASONS = 5
LAST_RECOVERIES = 10


def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    state: Annotated[list[str] | None, typer.Option(help="running, paused, failed, …; more than once.")] = None,
    name: Annotated[str, typer.Option(help="Part of the id or of the name.")] = "",
    owner: Annotated[str, typer.Option(help="Whoever started it.")] = "",
    sort: Annotated[
        str, typer.Option(help="created, updated, name, state or owner; with a - the latest, or greatest, first.")
    ] = "-created",
    as_json: Json = False,
) -> None:
    """List the runs, newest first."""
    shown = list(islice(connection(context).runs(state or (), name, owner, cast("Sort", sort)), limit))
    if as_json:
        print_json(shown)
        return
    columns = ("run", "state", "owner", "workers", "step", "samples", "done", "loss", "version", "policies", "updated")
    print_table(columns, (_line(run) for run in shown))


def _line(run: "RunSummary") -> tuple[Any, ...]:
    done = None if run.fraction is None else f"{run.fraction:.0%}"
    return (
        *(run.id, run.state, run.owner, _size(run), run.progress.steps, run.progress.samples, done),
        *(run.loss, run.version, run.policies, f"{run.updated:%Y-%m-%d %H:%M:%S}"),
    )


def _size(run: "RunSummary") -> str:
    """The ranks that train together, and how many are asked for if that is another number."""
    there, wanted = run.world_size, run.wanted
    return f"{there:,}" if wanted is None or wanted.world_size == there else f"{there:,} → {wanted.world_size:,}"


def show(context: typer.Context, run: Run, as_json: Json = False) -> None:
    """Show one run: where it stands, its hyper-parameters and its policies."""
    from trimtab.controller.sync import counted

    api = connection(context)
    run = found(api, run)
    detail, values = api.run(run), api.hyperparameters(run).hyperparameters
    if as_json:
        print_json(detail.model_dump() | {"hyperparameters": values})
        return
    reason = f" ({detail.state_reason})" if detail.state_reason else ""
    print_line(f"{detail.id}: {detail.state}{reason}, {counted(detail.world_size)}, seed {detail.seed}")
    print_line(_group(detail))
    print_line(_standing(detail))
    if detail.job:
        print_line(f"job {detail.job}")
    if kept := [f"{one.step:,}" for one in detail.checkpoints]:
        print_line(f"checkpoints of steps {', '.join(kept)}")
    if detail.recoveries:
        print_line("")
        columns = ("formation", "cause", "from step", "workers", "lost", "stood still", "steps again")
        print_table(columns, map(_recovery, detail.recoveries[-LAST_RECOVERIES:]))
    print_line("")
    print_table(
        ("parameter", "value", "why", "bounds"),
        ((hp.name, hp.value, hp.text, _bounds(hp)) for hp in values),
    )
    if detail.policies:
        print_line("")
        print_table(
            ("policy", "kind", "mode", "writes", "last decision"),
            ((p.name, p.kind, p.mode, p.writes, last_word(p)) for p in detail.policies),
        )


def last_word(policy: "PolicyView") -> str | None:
    """What was heard of it last."""
    waits = policy.waits and f"waits: {policy.waits}"
    return policy.disabled or "; ".join(filter(None, (policy.last_reason, waits))) or None


def _group(detail: "RunView") -> str:
    from trimtab.controller.sync import counted

    wanted = detail.wanted
    size = "of a size that cannot be changed"
    if wanted is not None:
        learners = f" × {wanted.learners} learners" if wanted.learners > 1 else ""
        size = f"{counted(wanted.workers)}{learners} wanted"
    return f"formation {detail.formation}, {size}; kept together by {detail.sync}"


def _recovery(one: "RecoveryView") -> tuple[Any, ...]:
    stood = None if one.pause_s is None else f"{one.pause_s:.2f} s"
    lost = one.lost if one.cause == "loss" else 0
    return one.formation, one.cause, one.step, one.world_size, lost or None, stood, one.redone or None


def _standing(detail: "RunView") -> str:
    from trimtab.controller.sync import counted

    progress, plan = detail.progress, detail.plan
    times = plan["accumulation"]
    product = f"{counted(plan['world_size'])} × {times} micro-batch{'es' * (times != 1)} of {plan['micro_batch']}"
    horizon = f" of {detail.horizon.amount:,} {detail.horizon.unit}" if detail.horizon else ""
    return (
        f"step {progress.steps:,}, {progress.samples:,} samples{horizon}; loss {cell(detail.loss)}; "
        f"batch {plan['batch_size']:,} = {product}; version {detail.version}"
    )


def _bounds(hp: "HyperParameterView") -> str:
    if hp.choices:
        return " | ".join(hp.choices)
    low = "" if hp.min is None else cell(hp.min)
    high = "" if hp.max is None else cell(hp.max)
    return f"{low} … {high}" if low or high else "–"


def why(
    context: typer.Context,
    run: Run,
    param: Annotated[str, typer.Argument(metavar="PARAM", help="A hyper-parameter.")],
    as_json: Json = False,
) -> None:
    """Tell why a hyper-parameter has its value: base × factors, owner, pin, and the last changes with their reasons."""
    api = connection(context)
    run = found(api, run)
    values = {hp.name: hp for hp in api.hyperparameters(run).hyperparameters}
    if param not in values:
        raise CommandError(f"no hyper-parameter {param!r}; there are {', '.join(values)}")
    last = deque((one for one in api.changes(run) if _touches(one, param)), maxlen=LAST_REASONS)
    if as_json:
        print_json({"hyperparameter": values[param], "changes": last})
        return
    _print_provenance(values[param])
    if last:
        print_line("")
        print_table(("decided at", "from", "to", "by", "reason", "status"), _rows(last, param))


def _print_provenance(hp: "HyperParameterView") -> None:
    print_line(hp.text)
    owner = f"owned by policy {hp.owner}" if hp.owner else "owned by no policy"
    print_line(f"  base    {cell(hp.base)}, {owner}")
    for factor in hp.factors:
        print_line(f"  factor  {cell(factor.value)} by {factor.by}: {factor.text}")
    if hp.pin:
        print_line(f"  pin     {cell(hp.pin.value)} by {hp.pin.by}{': ' if hp.pin.reason else ''}{hp.pin.reason}")
    print_line(f"  bounds  {_bounds(hp)}")
    print_line(f"  version {hp.version}, applied {hp.applied_version}")


def changes(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning. Default: all.")] = "",
    by: Annotated[str, typer.Option(help="By this person's token, or policy, only.")] = "",
    last: Annotated[int, typer.Option(min=1, help="How many, the newest of them.")] = 50,
    as_json: Json = False,
) -> None:
    """List what was changed, by whom, why, and what became of it; in one run or in all of them."""
    api = connection(context)
    newest = list(islice(api.audit(found(api, run) if run else "", by), last))[::-1]
    if as_json:
        print_json(newest)
        return
    columns = ("decided at", "version", "parameter", "from", "to", "by", "reason", "status")
    shown = ((one.run, row) for one in newest for row in _audit(one))
    print_table(columns if run else ("run", *columns), (row if run else (name, *row) for name, row in shown))


def _touches(change: "RecordView", param: str) -> bool:
    return any(one.param == param for one in change.changes)


def _rows(changes: "Iterable[RecordView]", param: str) -> Iterable[tuple[Any, ...]]:
    for change in changes:
        for one in change.changes:
            if one.param == param:
                yield change.accepted_at_step, *sides(one.from_, one.to), one.by, one.reason, _status(change)


def _audit(change: "RecordView") -> Iterable[tuple[Any, ...]]:
    for one in change.changes:
        yield (
            *(change.accepted_at_step, change.version, one.param, *sides(one.from_, one.to)),
            *(one.by, one.reason, _status(change)),
        )


def _status(change: "RecordView") -> str:
    if change.kind in ("notice", "shadow"):  # nothing comes of it
        return change.kind
    if change.status != "applied":
        return change.status
    return f"applied at step {min(change.applied.values(), default=change.accepted_at_step):,}"
