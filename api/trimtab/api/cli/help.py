"""Help in the words of manuals: of itself typer names what an option takes by its Python type, `<list[str]>`."""

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

Function = TypeVar("Function", bound=Callable[..., Any])
WORDS = {
    "<bool>": "",  # a flag, which takes nothing
    "<str>": "TEXT",
    "<list[str]>": "TEXT",
    "<int>": "INTEGER",
    "<int range>": "INTEGER",
    "<float>": "NUMBER",
    "<float range>": "NUMBER",
    "<path>": "PATH",
    "<file>": "FILE",
}


class App(typer.Typer):
    """A group of commands whose help is worded so."""

    def __init__(self, **given: Any) -> None:
        super().__init__(cls=_Group, **given)

    def command(self, *name: Any, **given: Any) -> Callable[[Function], Function]:
        return super().command(*name, cls=_Command, **given)


class _Worded:
    def format_help(self, ctx: Any, formatter: Any) -> None:
        for one in self.get_params(ctx):  # type: ignore[attr-defined]
            if isinstance(one, TyperOption) and one.metavar is None:
                shown = one.display_type_rich(ctx) or ""
                one.metavar = WORDS.get(shown, shown)
            elif isinstance(one, TyperArgument):
                vars(one)["display_type_rich"] = lambda **_: None  # its name says it
        super().format_help(ctx, formatter)  # type: ignore[misc]


class _Command(_Worded, TyperCommand): ...


class _Group(_Worded, TyperGroup): ...
