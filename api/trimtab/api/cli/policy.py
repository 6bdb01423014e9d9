"""The commands `policy ls | set | rm | kinds`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trimtab.api.cli import parse
from trimtab.api.cli.connection import CommandError, connection, found
from trimtab.api.cli.output import Json, cell, print_json, print_line, print_table
from trimtab.api.cli.runs import Run, last_word

if TYPE_CHECKING:
    from trimtab.controller.views import PolicyView

app = typer.Typer(no_args_is_help=True, help="Policies of a run, and the kinds there are.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The policy's name in this run.")]
Installed = Annotated[parse.PolicyArgument, typer.Argument(parser=parse.policy, metavar=parse.POLICY)]
Reason = Annotated[str, typer.Option(help="Kept in the journal beside the change.")]
Seen = Annotated[int | None, typer.Option("--revision", help="Change only this revision; else whatever is there.")]


@app.command("ls")
def list_policies(context: typer.Context, run: Run, as_json: Json = False) -> None:
    """List a run's policies."""
    api = connection(context)
    policies = api.policies(found(api, run))
    if as_json:
        print_json(policies)
        return
    columns = ("policy", "kind", "mode", "revision", "faults", "writes", "parameters", "last decision")
    print_table(columns, (_line(policy) for policy in policies))


def _line(policy: "PolicyView") -> tuple[Any, ...]:
    params = ", ".join(f"{name}={cell(value)}" for name, value in policy.params.items() if value is not None)
    return (
        *(policy.name, policy.kind, policy.mode, policy.revision, policy.faults, policy.writes),
        *(params, last_word(policy)),
    )


@app.command("set")
def set_policy(
    context: typer.Context,
    run: Run,
    name: Name,
    policy: Annotated[
        parse.PolicyArgument | None,
        typer.Argument(parser=parse.policy, metavar=parse.POLICY, help="Without it only the mode is changed."),
    ] = None,
    mode: Annotated[
        Literal["active", "shadow", "off"] | None,
        typer.Option(
            help="In shadow it decides, and nothing comes of it; the page draws what would have. "
            "Default: as it is; a new one active."
        ),
    ] = None,
    reason: Reason = "",
    revision: Seen = None,
    as_json: Json = False,
) -> None:
    """Install a policy in a run, or edit it."""
    if policy is None and mode is None:
        raise typer.BadParameter("say a KIND, or a --mode for the one that is there", param_hint="KIND")
    if policy is not None:
        check_installed(policy)
    api = connection(context)
    run = found(api, run)
    there = next((one for one in api.policies(run) if one.name == name), None)
    if policy is not None:
        kind, params = policy.kind, policy.params
    elif there is not None:
        kind, params = there.kind, there.params
    else:
        raise CommandError(f"run {run} has no policy {name!r}; to install it say its KIND, too")
    if mode is None:
        mode = "active" if there is None or there.disabled else there.mode
    if revision is None:  # nothing that came meanwhile is replaced
        revision = 0 if there is None else there.revision
    put = api.put_policy(run, name, kind, params, mode, reason, revision)
    if as_json:
        print_json(put)
    else:
        print_line(f"{put.name}: {put.kind}, {put.mode}, revision {put.revision}")


def check_installed(policy: parse.PolicyArgument) -> None:
    """REST takes no code."""
    if policy.file:
        raise CommandError(f"code comes with a job only: trimtab run FILE --policy {policy.file}:{policy.kind}")


@app.command("rm")
def remove_policy(
    context: typer.Context, run: Run, name: Name, reason: Reason = "", revision: Seen = None, as_json: Json = False
) -> None:
    """Remove a policy from a run; its factors are folded into the bases."""
    api = connection(context)
    api.delete_policy(found(api, run), name, reason, revision)
    if as_json:
        print_json({"removed": name})
    else:
        print_line(f"{name} is removed")


@app.command("kinds")
def list_kinds(
    context: typer.Context,
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="Show the parameters of this one.")] = None,
    run: Annotated[str | None, typer.Option(help="Add the kinds that came with this run's job.")] = None,
    as_json: Json = False,
) -> None:
    """List the kinds of policies, or the parameters of one."""
    from trimtab.controller.policies.table import COLUMNS, PARAMETERS, parameters, row

    api = connection(context)
    kinds = {one.kind: one for one in api.policy_kinds(None if run is None else found(api, run))}
    if kind is not None and kind not in kinds:
        raise CommandError(f"no policy of kind {kind!r}; there are {', '.join(kinds)}")
    if as_json:
        print_json(kinds[kind] if kind else list(kinds.values()))
    elif kind is None:
        print_table(COLUMNS, map(row, kinds.values()))
    else:
        print_line(kinds[kind].doc + "\n")
        print_table(PARAMETERS, parameters(kinds[kind]))
