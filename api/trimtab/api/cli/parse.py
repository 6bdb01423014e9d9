"""The small languages of the command line: values, `[FILE.py:]KIND[:k=v,…]` and `name=value[:min:max]`."""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

POLICY = "KIND[:k=v,…]"  # how help shows the language of policies
_NEXT = re.compile(r",(?=\s*\w+\s*=)")  # a comma before another `name=`; others belong to the value


@dataclass(frozen=True, slots=True)
class PolicyArgument:
    """A policy as asked for: its kind, or a class in a file, and the parameters that differ from the defaults."""

    kind: str
    params: dict[str, Any] = field(default_factory=dict)
    file: str = ""  # where `kind` is a class


@dataclass(frozen=True, slots=True)
class HpArgument:
    """A hyper-parameter as asked for: where it starts, and its bounds."""

    name: str
    value: int | float | str
    min: float | None = None
    max: float | None = None


def value(text: str) -> Any:
    """Numbers, true, false, null, and JSON in general; all else is a string."""
    try:
        return json.loads(text, parse_constant=_not_json)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _not_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def policy(text: str) -> PolicyArgument:
    """`plateau:patience=3,metric=val_loss`, `my_policy.py:Cruise:loss=1.5`"""
    file, found, rest = text.partition(".py:")
    file, text = (file + ".py", rest) if found else ("", text)
    kind, colon, rest = text.partition(":")
    if not kind.isidentifier() or (colon and not rest):
        raise ValueError(f"a policy is KIND, KIND:name=value,… or FILE.py:CLASS[:name=value,…]; got {text!r}")
    return PolicyArgument(kind, dict(_assignment(part) for part in _NEXT.split(rest) if rest), file)


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, right = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise ValueError(f"a parameter is name=value; got {text!r}")
    return name.strip(), value(right.strip())


def hp(text: str) -> HpArgument:
    """`lr=0.1`, `batch_size=256:32:4096`, `lr=0.1::1` (only the upper bound)"""
    name, _, right = text.partition("=")
    start, *bounds = right.split(":")
    if not name.isidentifier() or not start or len(bounds) not in (0, 2):
        raise ValueError(f"a hyper-parameter is name=value or name=value:min:max; got {text!r}")
    first = value(start)
    if isinstance(first, bool) or not isinstance(first, int | float | str):
        raise ValueError(f"{name} must be a number or a word; got {start!r}")
    low, high = (_bound(name, bound) for bound in bounds) if bounds else (None, None)
    return HpArgument(name, first, low, high)


def _bound(name: str, text: str) -> float | None:
    if not text:
        return None
    bound = value(text)
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        raise ValueError(f"a bound of {name} must be a number; got {text!r}")
    return float(bound)
