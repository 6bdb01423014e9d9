"""How much does the first guess matter? Twelve starts, fixed and steered by one set of policies that nobody tuned.

Each workload is started with batch 16, 64, 256 and 1,024, and with a quarter of the tuned learning rate, with it and
with four times it: a user who guesses. "Tuned" is that of the best fixed batch in modelled time, one value a workload,
from `results/adaptive-tuning.jsonl`. *Fixed* keeps the batch and has a cosine decay over the horizon; *steered* has
that decay too, and the other policies of `STEERED` with their shipped defaults, apart from `shrink`, which a start at
1,024 needs. The set is that of the lowest median modelled time on `digits`, which is not reported; `--choose` makes
those runs.

`fixed_reached` and `steered_reached` are the shares of starts that reach the target within the horizon, and within ten
times the best fixed batch's modelled time. The spreads are
the largest modelled time to the target over the median one, among the starts that reach it: read them beside the
share. `steered_over_best_fixed` is the median over all steered starts (those that do not reach it count as infinite,
shown as null) over the best of the fixed starts; `worst_...` takes the worst steered start in place of the median.
`measures` has the same for steps, samples and processor time.

    python tests/bench/sensitivity.py [--seeds 1] [--jobs 2] [--results FOLDER] [--write] [--choose]
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from adaptive import WORKLOADS, Policies, best_fixed, short
from lockstep import Result, Trial
from stats import report, say
from svg import Row, draw
from trials import COLUMNS, DOCS, MEASURES, RESULTS, make, middle, reached

BATCHES = (16, 64, 256, 1024)
RATIOS = (0.25, 1.0, 4.0)  # of the tuned learning rate
FIXED: Policies = (("schedule", {}),)
STEERED: Policies = (("noise_scale", {"shrink": True}), ("schedule", {}), ("spike_guard", {}))
CANDIDATES: Mapping[str, Policies] = {  # what `STEERED` was chosen from
    "fixed": FIXED,
    "goodput, warmup": (("goodput", {}), ("warmup", {}), ("schedule", {}), ("spike_guard", {})),
    "goodput": (("goodput", {}), ("schedule", {}), ("spike_guard", {})),
    "goodput, short window": (("goodput", {"first_window": 20, "window": 50}), ("schedule", {}), ("spike_guard", {})),
    "noise_scale, shrink": STEERED,
}
DIGITS = (0.05, 1.7)  # tuned learning rate at batch 32, and the modelled time to the target with it [s]
PATIENCE = 10  # times the best fixed modelled time, after which a run is given up

Start = tuple[int, float]


def starts(task: str, lr: float, sets: Mapping[str, Policies], seeds: int) -> list[Trial]:
    return [
        Trial(task, label, batch, lr * ratio, seed, policies)
        for batch, ratio in product(BATCHES, RATIOS)
        for label, policies in sets.items()
        for seed in range(1, seeds + 1)
    ]


def main() -> None:
    options = parse()
    began = time.monotonic()
    if options.choose:
        best, sets = {"digits": DIGITS}, CANDIDATES
    else:
        best, sets = best_fixed(options.results / "adaptive-tuning.jsonl"), {"fixed": FIXED, "steered": STEERED}
        if missing := {*WORKLOADS} - best.keys():
            raise SystemExit(f"{options.results} has no fixed batch on {', '.join(missing)}: run adaptive.py --full")
    lrs = {task: lr for task, (lr, _) in best.items()}
    limits = {task: PATIENCE * took_s for task, (_, took_s) in best.items()}
    trials = [trial for task, lr in lrs.items() for trial in starts(task, lr, sets, options.seeds)]
    path = options.results / ("sensitivity-choice.jsonl" if options.choose else "sensitivity.jsonl")
    results = make(trials, options.jobs, path if options.write else None, limits)
    found = {
        task: {label: by_start(results, task, label, lr) for label in sets}  # label -> start -> results
        for task, lr in lrs.items()
    }
    say("\n" + table(found))
    if options.choose:
        return
    if options.write:
        plot(found)
    report(
        "sensitivity",
        workloads={task: compared(one["fixed"], one["steered"]) for task, one in found.items()},
        lrs=lrs,
        seeds=options.seeds,
        jobs=options.jobs,
        wall_s=time.monotonic() - began,
    )


def by_start(results: Sequence[Result], task: str, label: str, lr: float) -> dict[Start, list[Result]]:
    found: dict[Start, list[Result]] = {start: [] for start in product(BATCHES, RATIOS)}
    for result in results:
        trial = result.trial
        if (trial.task, trial.label) == (task, label):
            found[trial.batch, min(RATIOS, key=lambda ratio: abs(ratio - trial.lr / lr))].append(result)
    return found


def compared(fixed: Mapping[Start, Sequence[Result]], steered: Mapping[Start, Sequence[Result]]) -> dict[str, Any]:
    measures = {measure: figures(fixed, steered, measure) for measure in MEASURES}
    return {**measures["modelled_s_to"], "measures": measures}


def figures(
    fixed: Mapping[Start, Sequence[Result]], steered: Mapping[Start, Sequence[Result]], measure: str
) -> dict[str, float]:
    a, b = ([middle(results, measure) for results in one.values()] for one in (fixed, steered))
    best = min(a)
    return {
        "fixed_reached": share(a),
        "steered_reached": share(b),
        "fixed_spread": spread(a),
        "steered_spread": spread(b),
        "steered_over_best_fixed": median(b) / best,
        "worst_steered_over_best_fixed": max(b) / best,
        "best_fixed": best,
    }


def share(values: Sequence[float]) -> float:
    return sum(value < math.inf for value in values) / len(values)


def spread(values: Sequence[float]) -> float:
    """The largest over the median, of those that reached the target."""
    finite = [value for value in values if value < math.inf]
    return max(finite) / median(finite) if finite else math.nan


def table(found: Mapping[str, Mapping[str, Mapping[Start, Sequence[Result]]]]) -> str:
    """In Markdown: what each start took, and how many it was of."""
    lines = [
        "| workload | batch | lr | set | steps | samples | modelled s | processor s | last batch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, sets in found.items():
        for batch, ratio in product(BATCHES, RATIOS):
            for label, by in sets.items():
                results = by[batch, ratio]
                cells = [task, f"{batch:,}", f"{ratio:g} × tuned", label]
                cells += [short(middle(results, measure)) for measure in MEASURES]
                cells.append(f"{median(result.batches[-1][1] for result in results):.0f}")
                lines.append(f"| {' | '.join(cells)} |")
    for task, sets in found.items():
        for label, by in sets.items():
            times = [middle(results, "modelled_s_to") for results in by.values()]
            lines.append(
                f"\n{task}, {label}: reached from {share(times) * len(times):.0f} of {len(times)} starts, "
                f"modelled time least {min(times):.3g} s, median {median(times):.3g} s, most {max(times):.3g} s"
            )
    return "\n".join(lines)


def plot(found: Mapping[str, Mapping[str, Mapping[Start, Sequence[Result]]]]) -> None:
    bands: dict[str, list[Row]] = {}
    for task, sets in found.items():
        for batch, ratio in product(BATCHES, RATIOS):
            values = {
                label: [[reached(result, measure) for result in by[batch, ratio]] for measure in MEASURES]
                for label, by in sets.items()
            }
            bands.setdefault(task, []).append(Row(f"batch {batch:,}, {ratio:g} × tuned lr", values))
    title = "What each of twelve starts took to the target, fixed and steered"
    draw(DOCS / "sensitivity.svg", title, ("fixed", "steered"), COLUMNS, bands)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="3 is the long form")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the tuning's results")
    parser.add_argument("--write", action="store_true", help="keep the results there and draw docs/sensitivity.svg")
    parser.add_argument("--choose", action="store_true", help="only the sets of policies to choose from, on digits")
    return parser.parse_args()


if __name__ == "__main__":
    main()
