"""Commands that look at runs: runs, show, why, changes."""

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Any

import typer

from trimtab.api.cli.connection import CommandError, Connection, connection
from trimtab.api.cli.output import Json, cell, print_json, print_line, print_table

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the beginning of it if that is unique.")]
LAST_REASONS = 5
LAST_RECOVERIES = 10


def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List the runs."""
    pages = connection(context).pages("/runs", "runs", "page_token", "next_page_token", limit=min(limit, 1000))
    found = list(islice(pages, limit))
    if as_json:
        print_json(found)
        return
    columns = ("run", "state", "workers", "step", "samples", "done", "loss", "version", "policies", "updated")
    print_table(columns, (_line(run) for run in found))


def _line(run: dict[str, Any]) -> tuple[Any, ...]:
    done = None if run["fraction"] is None else f"{run['fraction']:.0%}"
    progress = run["progress"]
    updated = run["updated"][:19].replace("T", " ")
    return (
        *(run["id"], run["state"], _size(run), progress["steps"], progress["samples"], done),
        *(run["loss"], run["version"], run["policies"], updated),
    )


def _size(run: dict[str, Any]) -> str:
    """The ranks that train together, and how many are asked for if that is another number."""
    there, wanted = run["world_size"], run["wanted"]
    return f"{there:,}" if wanted is None or wanted["world_size"] == there else f"{there:,} → {wanted['world_size']:,}"


def show(context: typer.Context, run: Run, as_json: Json = False) -> None:
    """Show one run: where it stands, its hyper-parameters and its policies."""
    api = connection(context)
    path = api.run(run)
    detail, values = api.get(path), api.get(f"{path}/hyperparameters")
    if as_json:
        print_json(detail | {"hyperparameters": values["hyperparameters"]})
        return
    reason = f" ({detail['state_reason']})" if detail["state_reason"] else ""
    print_line(f"{detail['id']}: {detail['state']}{reason}, {detail['world_size']} workers, seed {detail['seed']}")
    print_line(_group(detail))
    print_line(_standing(detail))
    if kept := [f"{one['step']:,}" for one in detail["checkpoints"]]:
        print_line(f"checkpoints of steps {', '.join(kept)}")
    if detail["recoveries"]:
        print_line("")
        columns = ("formation", "cause", "from step", "workers", "lost", "stood still", "steps again")
        print_table(columns, map(_recovery, detail["recoveries"][-LAST_RECOVERIES:]))
    print_line("")
    print_table(
        ("parameter", "value", "why", "bounds"),
        ((hp["name"], hp["value"], hp["text"], _bounds(hp)) for hp in values["hyperparameters"]),
    )
    if detail["policies"]:
        print_line("")
        print_table(
            ("policy", "kind", "mode", "writes", "last decision"),
            ((p["name"], p["kind"], p["mode"], p["writes"], p["last_reason"]) for p in detail["policies"]),
        )


def _group(detail: dict[str, Any]) -> str:
    wanted = detail["wanted"]
    size = "of a size that cannot be changed"
    if wanted is not None:
        learners = f" × {wanted['learners']} learners" if wanted["learners"] > 1 else ""
        size = f"{wanted['workers']:,} workers{learners} wanted"
    return f"formation {detail['formation']}, {size}; kept together by {detail['sync']}"


def _recovery(one: dict[str, Any]) -> tuple[Any, ...]:
    stood = None if one["pause_s"] is None else f"{one['pause_s']:.2f} s"
    return (
        *(one["formation"], one["cause"], one["step"], one["world_size"]),
        *(one["lost"] or None, stood, one["redone"] or None),
    )


def _standing(detail: dict[str, Any]) -> str:
    progress, plan = detail["progress"], detail["plan"]
    product = f"{plan['world_size']} workers × {plan['accumulation']} × {plan['micro_batch']}"
    horizon = f" of {detail['horizon']['amount']:,} {detail['horizon']['unit']}" if detail["horizon"] else ""
    return (
        f"step {progress['steps']:,}, {progress['samples']:,} samples{horizon}; loss {cell(detail['loss'])}; "
        f"batch {plan['batch_size']:,} = {product}; version {detail['version']}"
    )


def _bounds(hp: dict[str, Any]) -> str:
    if hp["choices"]:
        return " | ".join(hp["choices"])
    low = "" if hp["min"] is None else cell(hp["min"])
    high = "" if hp["max"] is None else cell(hp["max"])
    return f"{low} … {high}" if low or high else "–"


def why(
    context: typer.Context,
    run: Run,
    param: Annotated[str, typer.Argument(metavar="PARAM", help="A hyper-parameter.")],
    as_json: Json = False,
) -> None:
    """Tell why a hyper-parameter has its value: base × factors, owner, pin, and the last changes with their reasons."""
    api = connection(context)
    path = api.run(run)
    values = {hp["name"]: hp for hp in api.get(f"{path}/hyperparameters")["hyperparameters"]}
    if param not in values:
        raise CommandError(f"no hyper-parameter {param!r}; there are {', '.join(values)}")
    last = deque((one for one in _changes(api, path) if _touches(one, param)), maxlen=LAST_REASONS)
    if as_json:
        print_json({"hyperparameter": values[param], "changes": list(last)})
        return
    _print_provenance(values[param])
    if last:
        print_line("")
        print_table(("step", "from", "to", "by", "reason", "status"), _rows(last, param))


def _print_provenance(hp: dict[str, Any]) -> None:
    print_line(hp["text"])
    owner = f"owned by policy {hp['owner']}" if hp["owner"] else "owned by no policy"
    print_line(f"  base    {cell(hp['base'])}, {owner}")
    for factor in hp["factors"]:
        print_line(f"  factor  {cell(factor['value'])} by {factor['by']}: {factor['text']}")
    if hp["pin"]:
        pin = hp["pin"]
        print_line(f"  pin     {cell(pin['value'])} by {pin['by']}{': ' if pin['reason'] else ''}{pin['reason']}")
    print_line(f"  bounds  {_bounds(hp)}")
    print_line(f"  version {hp['version']}, applied {hp['applied_version']}")


def changes(
    context: typer.Context,
    run: Run,
    last: Annotated[int, typer.Option(min=1, help="How many, the newest of them.")] = 50,
    as_json: Json = False,
) -> None:
    """List what was changed, by whom, why, and what became of it."""
    api = connection(context)
    found = deque(_changes(api, api.run(run)), maxlen=last)
    if as_json:
        print_json(list(found))
        return
    columns = ("step", "version", "parameter", "from", "to", "by", "reason", "status")
    print_table(columns, (row for one in found for row in _audit(one)))


def _changes(api: Connection, path: str) -> Iterable[dict[str, Any]]:
    return api.pages(f"{path}/changes", "changes", "after", "next_after", limit=5000)


def _touches(change: dict[str, Any], param: str) -> bool:
    return any(one["param"] == param for one in change["changes"])


def _rows(changes: Iterable[dict[str, Any]], param: str) -> Iterable[tuple[Any, ...]]:
    for change in changes:
        for one in change["changes"]:
            if one["param"] == param:
                yield change["accepted_at_step"], one["from"], one["to"], one["by"], one["reason"], _status(change)


def _audit(change: dict[str, Any]) -> Iterable[tuple[Any, ...]]:
    step, version = change["accepted_at_step"], change["version"]
    for one in change["changes"]:
        yield step, version, one["param"], one["from"], one["to"], one["by"], one["reason"], _status(change)


def _status(change: dict[str, Any]) -> str:
    if change["kind"] == "notice":
        return "notice"
    if change["status"] == "applied" and change["applied"]:
        return f"applied at step {min(change['applied'].values()):,}"
    return str(change["status"])
