"""A grid of dot plots as SVG: workloads below each other, one column a measure, one row an arm; logarithmic axes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

COLOURS = ("#0072b2", "#d55e00", "#009e73")  # Okabe & Ito: told apart by everybody, on white and on black
LABELS, COLUMN, GAP, ROW, HEAD, FOOT = 200, 165, 18, 17, 36, 34  # [px]
NEVER = 40  # [px] at the right of a column, for what was not reached
STYLE = """text{font:11px system-ui,sans-serif;fill:#6b6b6b} .head{font-weight:600;font-size:12px}
.grid{stroke:#999;stroke-opacity:.3} .range{stroke-width:2;stroke-opacity:.55}
@media (prefers-color-scheme:dark){text{fill:#a8a8a8}}"""


@dataclass(frozen=True, slots=True)
class Row:
    """Of each series its values in each column; infinite: not reached."""

    label: str
    values: Mapping[str, Sequence[Sequence[float]]]  # by series: (columns, seeds)


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic axis."""

    low: float
    high: float
    left: float  # [px]
    right: float

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.left + share * (self.right - self.left)

    def ticks(self) -> list[float]:
        """Two to four, mostly."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        inside: list[float] = []
        for digits in ((1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
            every = [digit * 10.0**power for power in powers for digit in digits]
            inside = [tick for tick in every if self.low <= tick <= self.high]
            if len(inside) > 1:
                break
        return inside[:: math.ceil(len(inside) / 4)] if inside else []


def draw(path: Path, title: str, series: Sequence[str], columns: Sequence[str], bands: Mapping[str, list[Row]]) -> None:
    """The median of each as a dot, from the least to the most as a line, and at "never" what did not reach the target.

    The `series`, three at most, are told apart by colour and by shape: square, circle, diamond.
    """
    parts: list[str] = []
    top = 34.0
    for name, rows in bands.items():
        parts += band(name, rows, series, columns, top)
        top += HEAD + ROW * len(rows) + FOOT
    for index, one in enumerate(series):
        x = 12 + 190 * index
        parts += [mark(index, x, 16), text(x + 10, 20, one)]
    width = LABELS + len(columns) * (COLUMN + GAP)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top:.0f}" width="{width}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def band(name: str, rows: list[Row], series: Sequence[str], columns: Sequence[str], top: float) -> list[str]:
    first, last = top + HEAD, top + HEAD + ROW * len(rows)
    parts = [text(8, top + 20, name, "head")]
    parts += [text(8, first + ROW * index + 12, row.label) for index, row in enumerate(rows)]
    for column, measure in enumerate(columns):
        left = LABELS + column * (COLUMN + GAP)
        values = [x for row in rows for found in row.values.values() for x in found[column] if x < math.inf]
        never = any(x == math.inf for row in rows for found in row.values.values() for x in found[column])
        if not values:
            continue
        right = left + COLUMN - (NEVER if never else 0)
        scale = Scale(min(values) / 1.15, max(values) * 1.15, left, right)
        parts.append(text(left, top + 20, measure, "head"))
        for tick in scale.ticks():
            x = scale.at(tick)
            parts += [line(x, first, x, last, "grid"), text(x, last + 14, figure(tick), anchor="middle")]
        if never:
            parts.append(text(left + COLUMN - 8, last + 14, "never", anchor="middle"))
        for index, row in enumerate(rows):
            shift = 0.0 if len(row.values) == 1 else 3.0
            for one, found in row.values.items():
                number = series.index(one)
                y = first + ROW * (index + 0.5) + shift * (2 * number - 1)
                parts += dots(scale, left + COLUMN - 8, found[column], y, number)
    return parts


def dots(scale: Scale, never: float, values: Sequence[float], y: float, number: int) -> list[str]:
    places = sorted(never if value == math.inf else scale.at(value) for value in values)
    colour = COLOURS[number]
    return [
        f'<line x1="{places[0]:.1f}" y1="{y:.1f}" x2="{places[-1]:.1f}" y2="{y:.1f}" class="range" stroke="{colour}"/>',
        mark(number, places[len(places) // 2], y),
    ]


def mark(number: int, x: float, y: float) -> str:
    if number == 0:
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" fill="{COLOURS[0]}"/>'
    if number == 1:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[1]}"/>'
    corners = f"{x:.1f},{y - 5:.1f} {x + 5:.1f},{y:.1f} {x:.1f},{y + 5:.1f} {x - 5:.1f},{y:.1f}"
    return f'<polygon points="{corners}" fill="{COLOURS[2]}"/>'


def line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{name}"/>'


def text(x: float, y: float, words: str, name: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{name}">{escape(words)}</text>'


def figure(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
