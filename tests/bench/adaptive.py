"""Does a batch that adapts reach a target sooner than the best fixed one?

On each workload `noise_scale` with each coupling and `plateau` with `instead="batch"` start from batch 32 with a
learning rate of their own. They are compared with fixed batches of 32 to 512, each at its own learning rate. All have
the same cosine decay over the same horizon, apart from `plateau`, whose larger batch stands for the decay. Beside the
comparison, and in no "best": KungFu's rule, which is not one of Trimtab's (published without decay; it is given it
here), and `goodput`, which was added when the others' results had been seen.

Every arm's learning rate is tuned with the same number of trials by the same search, on seed 0; these are compared on
the seeds 1, 2 and 3. Steps, samples, modelled time (see `lockstep`) and processor time to the target are different
questions and are told apart; for each, the best fixed batch stands against the best adaptive arm *in that measure*,
seed by seed; `beside` has the ratios of the arms beside. `best_fixed_s`, `best_adaptive_s` and `speedup_median` are
processor time, of which a CPU spends hardly less on a sample of a large batch; `modelled_...` is the same of modelled
time. Ratios above 1 are wins of the adaptive arm. A run that does not reach the target counts as infinitely long.

    python tests/bench/adaptive.py [--full] [--seeds 3] [--jobs 2] [--results FOLDER] [--write]

Without `--full` only the tuned settings are run, as `results/adaptive-tuning.jsonl` has them. `--full` searches first;
`--write` keeps what the tuned settings showed in `results/adaptive.jsonl` and draws `docs/adaptive.svg`. Both leave out
the trials that these files have already: name an empty folder for `--results` to make all of them anew.
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

from lockstep import Result, Task, Trial
from stats import report, say
from svg import Row, draw
from tasks import TASKS
from trials import (
    COLUMNS,
    DOCS,
    MEASURES,
    RESULTS,
    attempt,
    identity,
    keep,
    kept,
    make,
    middle,
    reached,
    spread_out,
    told,
)

WORKLOADS = ("fashion_mnist", "bytes_lm")
FIXED = (32, 64, 128, 256, 512)
COUPLINGS = ("none", "linear", "sqrt", "adascale")
START = 32  # [samples] of every adaptive arm
FIRST_LR: Mapping[str, Mapping[int, float]] = {  # where the search begins, from a coarser one
    "fashion_mnist": {32: 0.035, 64: 0.05, 128: 0.1, 256: 0.14, 512: 0.2},
    "bytes_lm": {32: 0.008, 64: 0.011, 128: 0.016, 256: 0.022, 512: 0.03},
}
TRIALS = 5  # learning rates tried for each arm
PERIODS = 100  # of KungFu's rule in a horizon, for its epochs

Policies = tuple[tuple[str, Mapping[str, Any]], ...]
Found = Mapping[tuple[str, str], Sequence[Result]]  # of the seeds, by workload and arm


@dataclass(frozen=True, slots=True)
class Arm:
    label: str
    role: Literal["fixed", "adaptive", "beside"]  # what stands beside the comparison enters no best
    batch: int
    policies: Policies


def arms(task: Task) -> list[Arm]:
    decay: Policies = (("schedule", {}),)
    kungfu: Policies = (("kungfu", {"period": task.samples // PERIODS}),)
    raised: Policies = (("plateau", {"instead": "batch", "factor": 0.5, "patience": 2}),)

    def scaled(rule: str) -> Policies:
        return (("noise_scale", {"coupling": rule}), *decay)

    return [
        *(Arm(f"fixed {batch}", "fixed", batch, decay) for batch in FIXED),
        *(Arm(f"noise_scale, {rule}", "adaptive", START, scaled(rule)) for rule in COUPLINGS),
        Arm("plateau, batch", "adaptive", START, raised),
        Arm("KungFu's rule", "beside", START, (*kungfu, *decay)),
        Arm("goodput", "beside", START, (("goodput", {}), *decay)),
    ]


# ---- tuning --------------------------------------------------------------------------------------------------------


def tune(work: tuple[str, Arm], path: Path) -> None:
    """Search the learning rate of one arm, hill climbing; trials that the file has are not made again."""
    name, arm = work
    known = {identity(result.trial): result for result in kept(path)}
    found: dict[float, tuple[float, float]] = {}  # lr -> modelled time to the target, lowest error
    while len(found) < TRIALS:
        lr = following(FIRST_LR[name][arm.batch], found)
        trial = Trial(name, arm.label, arm.batch, lr, 0, arm.policies)
        result = known.get(identity(trial))
        if result is None:
            limit_s = min((time_s for time_s, _ in found.values()), default=math.inf)  # lost already beyond the best
            result = attempt(trial, limit_s)
            keep(path, result)
            say(told(result))
        found[lr] = merit(result)


def following(first: float, found: Mapping[float, tuple[float, float]]) -> float:
    """The next learning rate: the best so far times 2, 1/2, √2 or √1/2, whichever is the first not to be tried yet."""
    best = min(found, key=lambda lr: found[lr], default=first)
    for ratio in (1.0, 2.0, 0.5, math.sqrt(2), math.sqrt(0.5)):
        lr = best * ratio
        if not any(math.isclose(lr, tried) for tried in found):
            return lr
    raise ValueError(f"every learning rate about {best:g} has been tried")


def tuned(path: Path) -> dict[tuple[str, str], Trial]:
    """The trial that reached the target first, by workload and arm; that of the lowest error where none did."""
    best: dict[tuple[str, str], Result] = {}
    for result in kept(path):
        name = result.trial.task, result.trial.label
        if name not in best or merit(result) < merit(best[name]):
            best[name] = result
    return {name: result.trial for name, result in best.items()}


def best_fixed(path: Path) -> dict[str, tuple[float, float]]:
    """Learning rate and modelled time [s] of the fixed batch that was the first in it, by workload."""
    best: dict[str, Result] = {}
    for result in kept(path):
        task = result.trial.task
        if result.trial.label.startswith("fixed") and (task not in best or merit(result) < merit(best[task])):
            best[task] = result
    return {task: (result.trial.lr, reached(result, "modelled_s_to")) for task, result in best.items()}


def merit(result: Result) -> tuple[float, float]:
    return reached(result, "modelled_s_to"), math.inf if result.best is None else result.best


# ---- the comparison ------------------------------------------------------------------------------------------------


def main() -> None:
    options = parse()
    began = time.monotonic()
    tuning = options.results / "adaptive-tuning.jsonl"
    if options.full:
        work = [(name, arm) for name in WORKLOADS for arm in arms(TASKS[name])]
        for _ in spread_out(partial(tune, path=tuning), work, options.jobs):
            pass
    settings = tuned(tuning)
    wanted = [(name, arm.label) for name in WORKLOADS for arm in arms(TASKS[name])]
    if missing := [f"{label} on {name}" for name, label in wanted if (name, label) not in settings]:
        raise SystemExit(f"{tuning} has no trial of {', '.join(missing)}: run with --full")
    trials = [replace(settings[one], seed=seed) for one in wanted for seed in range(1, options.seeds + 1)]
    results = make(trials, options.jobs, options.results / "adaptive.jsonl" if options.write else None)
    found = {one: [r for r in results if (r.trial.task, r.trial.label) == one] for one in wanted}
    say("\n" + table(found))
    if options.write:
        plot(found)
    report(
        "adaptive",
        workloads={name: compared(name, found) for name in WORKLOADS},
        targets={name: TASKS[name].target for name in WORKLOADS},
        trials_per_arm=TRIALS,
        jobs=options.jobs,
        wall_s=time.monotonic() - began,
    )


def compared(name: str, found: Found) -> dict[str, Any]:
    """The figures of one workload; `best` names the two arms that each measure's ratio is of."""
    by_role: dict[str, dict[str, Sequence[Result]]] = {"fixed": {}, "adaptive": {}, "beside": {}}
    for arm in arms(TASKS[name]):
        by_role[arm.role][arm.label] = found[name, arm.label]
    fixed, adaptive, beside = by_role.values()
    best: dict[str, list[str]] = {}
    times: dict[str, list[float]] = {}
    ratios: dict[str, float] = {}
    others: dict[str, dict[str, float]] = {label: {} for label in beside}
    for measure in MEASURES:
        a, b = (min(of, key=lambda label: middle(of[label], measure)) for of in (fixed, adaptive))
        best[measure] = [a, b]
        times[measure] = [middle(fixed[a], measure), middle(adaptive[b], measure)]
        ratios[measure] = paired(fixed[a], adaptive[b], measure)
        for label, results in beside.items():
            others[label][measure] = paired(fixed[a], results, measure)
    return {
        "best_fixed_s": times["cpu_s_to"][0],
        "best_adaptive_s": times["cpu_s_to"][1],
        "speedup_median": ratios["cpu_s_to"],
        "modelled_best_fixed_s": times["modelled_s_to"][0],
        "modelled_best_adaptive_s": times["modelled_s_to"][1],
        "modelled_speedup_median": ratios["modelled_s_to"],
        "steps_ratio_median": ratios["steps_to"],
        "samples_ratio_median": ratios["samples_to"],
        "seeds": len(next(iter(fixed.values()))),
        "best": best,
        "beside": others,
        "reached": {
            label: sum(result.steps_to is not None for result in results)
            for of in by_role.values()
            for label, results in of.items()
        },
        "samples_per_s": {
            label: sum(result.samples for result in results) / sum(result.cpu_s for result in results)
            for label, results in fixed.items()
        },
    }


def paired(fixed: Sequence[Result], other: Sequence[Result], measure: str) -> float:
    """The median over the seeds of what the fixed batch took over what the other arm took."""
    pairs = zip(fixed, other, strict=True)
    return median(ratio(reached(a, measure), reached(b, measure)) for a, b in pairs)


def ratio(fixed: float, adaptive: float) -> float:
    """Above 1 where the adaptive one was shorter; 1 where neither reached the target."""
    return 1.0 if fixed == adaptive else fixed / adaptive


def table(found: Found) -> str:
    """In Markdown: medians, and from the least to the most."""
    lines = [
        "| workload | arm | lr at the start | reached | steps | samples | modelled s | processor s | last batch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, label), results in found.items():
        count = sum(result.steps_to is not None for result in results)
        last = median(result.batches[-1][1] for result in results)
        cells = [name, label, f"{results[0].trial.lr:.3g}", f"{count}/{len(results)}"]
        cells += [between(results, measure) for measure in MEASURES]
        lines.append(f"| {' | '.join([*cells, f'{last:.0f}'])} |")
    return "\n".join(lines)


def between(results: Sequence[Result], measure: str) -> str:
    values = [reached(result, measure) for result in results]
    low, mid, high = (short(value) for value in (min(values), median(values), max(values)))
    return mid if low == high else f"{mid} ({low}–{high})"


def short(value: float) -> str:
    if value == math.inf:
        return "never"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(found: Found) -> None:
    series = {"fixed": "fixed batch", "adaptive": "adaptive, from batch 32", "beside": "beside the comparison"}
    bands = {
        name: [
            Row(
                arm.label,
                {series[arm.role]: [[reached(r, measure) for r in found[name, arm.label]] for measure in MEASURES]},
            )
            for arm in arms(TASKS[name])
        ]
        for name in WORKLOADS
    }
    title = "What each arm took to the target: median, least and most of the seeds"
    draw(DOCS / "adaptive.svg", title, list(series.values()), COLUMNS, bands)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="search the learning rates first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--write", action="store_true", help="keep the results there too, and draw the plot")
    return parser.parse_args()


if __name__ == "__main__":
    main()
