"""Hyper-parameters and policies on the command line: the options of `run` and `submit`, and what they mean."""

from typing import Annotated, Any

import typer

from trimtab.api.cli import parse

HyperParameters = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE[:MIN:MAX]", help="More than once.")]
Policies = Annotated[
    list[str] | None,
    typer.Option(metavar=parse.POLICY, help="A kind, or yours: FILE.py:CLASS[:k=v,…]; more than once."),
]
Shadows = Annotated[
    list[str] | None,
    typer.Option(metavar=parse.POLICY, help="A policy that decides in shadow: nothing comes of it."),
]


def hyper_parameters(texts: list[str]) -> dict[str, Any]:
    """What `--hp` gives, each a value or a whole declaration."""
    from trimtab.controller.hyperparameters import NUMBERS, HyperParameter

    found: dict[str, Any] = {}
    for text in texts:
        try:
            given = parse.hp(text)
            if given.name in NUMBERS and isinstance(given.value, str):
                raise ValueError(f"{given.name} is a number; got {given.value!r}")
            bounded = given.min is not None or given.max is not None
            found[given.name] = (
                HyperParameter(name=given.name, default=given.value, min=given.min, max=given.max)
                if bounded
                else given.value
            )
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--hp") from None
    return found


def policies(active: list[str], shadow: list[str]) -> list[Any]:
    """What `--policy` and `--shadow` give, as PolicySpecs with names of their own."""
    from trimtab.controller.controller import PolicySpec

    given = [*_parsed(active, "active", "--policy"), *_parsed(shadow, "shadow", "--shadow")]
    kinds = [policy.kind for policy, _, _ in given]
    found = []
    for i, (policy, code, mode) in enumerate(given, 1):
        kind = "" if code else policy.kind  # what kind a file's class is, only its own process will know
        name = kind if kinds.count(policy.kind) == 1 else f"{policy.kind}_{i}"
        found.append(PolicySpec(name=name, kind=kind, params=policy.params, mode=mode, code=code))
    return found


def _parsed(texts: list[str], mode: Any, option: str) -> list[tuple[parse.PolicyArgument, Any, Any]]:
    """Each policy that is asked for, with the code of its file, if it is in one, and its mode."""
    from trimtab.controller.policies.code import Code

    try:
        given = [parse.policy(text) for text in texts]
        return [(one, Code.read(one.file, one.kind) if one.file else None, mode) for one in given]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
