"""The kinds of policies as a table, for the terminal and for docs/policies.md: `make docs` writes it anew."""

import inspect
import sys
from collections.abc import Iterable, Sequence

from trimtab.controller import views
from trimtab.controller.policies.policy import kinds

__all__ = ["COLUMNS", "PARAMETERS", "document", "parameters", "row"]

COLUMNS = ("kind", "what it does", "reads", "writes", "defaults", "source")
PARAMETERS = ("parameter", "default", "unit", "meaning")
HEAD = """# Policies

Made from the code by `make docs`; `trimtab policy kinds` prints the same of what is installed. Every rule is a pure
function of what it remembers and of one observation, and gives a reason with each proposal. A parameter that has no
default here (–) is empty, or depends on the run as its meaning says.

What a policy reads is as of the observation, a quarter of a second long at least: the mean of a metric of every step,
each value that was logged, `noise_scale` with its interval, `rank_times` as the median of each rank's own time a step.
"""


def row(kind: views.PolicyKindView) -> tuple[str, ...]:
    """The line of a kind."""
    defaults = ", ".join(f"{name}={default}" for name, default, *_ in parameters(kind) if default != "–")
    what = kind.doc.strip().partition("\n")[0]
    return kind.kind, what, ", ".join(kind.reads), ", ".join(kind.writes), defaults, kind.source


def parameters(kind: views.PolicyKindView) -> list[tuple[str, ...]]:
    """The lines of a kind's parameters."""
    fields = kind.schema_.get("properties", {})
    return [(name, _shown(f.get("default")), f.get("unit", ""), f.get("description", "")) for name, f in fields.items()]


def document() -> str:
    """docs/policies.md: the kinds that come with Trimtab."""
    own = [views.policy_kind(kind, cls) for kind, cls in kinds().items() if cls.__module__.startswith("trimtab.")]
    parts = [HEAD, _markdown(COLUMNS, map(row, own))]
    for kind in own:
        doc = inspect.cleandoc(kind.doc)
        parts += [f"## {kind.kind}\n", f"{doc}\n", _markdown(PARAMETERS, parameters(kind))]
    return "\n".join(parts)


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _shown(default: object) -> str:
    match default:
        case None:
            return "–"
        case bool():
            return str(default).lower()
        case float():
            return f"{default:g}"
    return str(default)


if __name__ == "__main__":
    sys.stdout.write(document())
