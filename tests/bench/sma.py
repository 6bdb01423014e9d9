"""Does model averaging with small batches reach a target in fewer epochs than a global batch that grows?

So says "Crossbow" (Koliousis et al., VLDB 2019) of k learners with b samples each: synchronous model averaging (`sma`)
against the mean of their gradients (`allreduce`), whose global batch is k b. Here for k = 1, 4, 8 and b = 32 and 128,
so from far below the gradient noise scale of the task, a small CNN on Fashion-MNIST, to far above it. `sma` in both
forms: with a central model, which is evaluated, and with the mean alone, which is evaluated then.

All ways have the same schedule and a learning rate of their own, the best of the same grid on two seeds of their own;
they are compared on the seeds 1, 2 and 3. Epochs, steps and modelled time (see `learners`) to the target; within one b
the modelled time is the steps times a constant. `vs_allreduce` are the median ratios of epochs, `allreduce` over `sma`
of the same k and b, seed by seed: above 1 `sma` took fewer. A run that does not arrive counts as infinitely long.

    python tests/bench/sma.py [--full] [--seeds 3] [--jobs 1] [--results FOLDER] [--write]

Without `--full` only the tuned settings are run, as `results/sma-tuning.jsonl` has them. `--full` makes the grid first,
`--write` keeps what the tuned settings showed in `results/sma.jsonl` and draws `docs/synchronisation.svg`. Both leave
out the trials that these files have already.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

from adaptive import between, ratio
from learners import Result, Trial, Way, run
from stats import report, say
from svg import Row, draw
from tasks import TASKS
from trials import DOCS, RESULTS, keep, reached, spread_out

TASK = replace(TASKS["fashion_mnist"], every=3_000)
BATCHES = (32, 128)  # [samples] of each learner
LEARNERS = (1, 4, 8)
WAYS: tuple[Way, ...] = ("allreduce", "sma, centre", "sma, mean")
RATES = tuple(0.0125 * 2**i for i in range(7))
TUNING_SEEDS = (11, 12)
GIVEN_UP = 1.5  # times the samples that the best rate so far took on the same seed
MEASURES = ("epochs_to", "steps_to", "modelled_s_to")
COLUMNS = ("epochs", "steps", "modelled seconds")

Setting = tuple[Way, int, int]  # way, learners, batch of each


def settings() -> list[Setting]:
    """One learner trains alone, whatever would keep it together with others."""
    return [
        (way, learners, batch)
        for batch, learners, way in product(BATCHES, LEARNERS, WAYS)
        if learners > 1 or way == "allreduce"
    ]


def label(setting: Setting) -> str:
    way, learners, batch = setting
    return f"{learners} × {batch}, {way}" if learners > 1 else f"1 × {batch}"


def setting_of(result: Result) -> Setting:
    return result.trial.way, result.trial.learners, result.trial.batch


# ---- trials --------------------------------------------------------------------------------------------------------


def kept(path: Path) -> list[Result]:
    lines = path.read_text().splitlines() if path.is_file() else []
    return [Result(**{**record, "trial": Trial(**record["trial"])}) for record in map(json.loads, lines)]


def make(trial: Trial, path: Path | None, limit: float = math.inf) -> Result:
    """The result, from the file at `path` if that has it, else kept there."""
    for result in kept(path) if path else []:
        if result.trial == trial:
            return result
    result = run(TASK, trial, limit)
    say(told(result))
    if path:
        keep(path, result)
    return result


def told(result: Result) -> str:
    trial = result.trial
    name = f"{label(setting_of(result))}, lr {trial.lr:.4g}, seed {trial.seed}"
    if result.epochs_to is None:
        error = "not finite" if result.best is None else f"best {result.best:.4f}"
        return f"{name}: not reached in {result.samples:,} samples, {error} ({result.cpu_s:.0f} s)"
    return f"{name}: {result.epochs_to:.2f} epochs, {result.steps_to:,} steps ({result.cpu_s:.0f} s)"


def search(setting: Setting, path: Path) -> None:
    """Make the grid of one setting, from the middle; a rate that is lost is given up."""
    best = dict.fromkeys(TUNING_SEEDS, math.inf)  # [samples]
    for rate in sorted(RATES, key=lambda rate: abs(math.log(rate / RATES[len(RATES) // 2]))):
        for seed in TUNING_SEEDS:
            result = make(Trial(*setting, rate, seed), path, GIVEN_UP * best[seed])
            best[seed] = min(best[seed], reached(result, "samples_to"))


def tuned(path: Path) -> dict[Setting, float]:
    """The learning rate that took the fewest samples in the mean over the tuning seeds, of the lowest error if none."""
    tried: dict[Setting, dict[float, list[Result]]] = {}
    for result in kept(path):
        tried.setdefault(setting_of(result), {}).setdefault(result.trial.lr, []).append(result)
    return {setting: min(rates, key=lambda rate: merit(rates[rate])) for setting, rates in tried.items()}


def merit(results: Sequence[Result]) -> tuple[float, float]:
    return mean(reached(r, "samples_to") for r in results), mean(
        math.inf if r.best is None else r.best for r in results
    )


# ---- the comparison ------------------------------------------------------------------------------------------------


def main() -> None:
    options = parse()
    began = time.monotonic()
    tuning = options.results / "sma-tuning.jsonl"
    if options.full:
        for _ in spread_out(partial(search, path=tuning), settings(), options.jobs):
            pass
    rates = tuned(tuning)
    if missing := [label(setting) for setting in settings() if setting not in rates]:
        raise SystemExit(f"{tuning} has no trial of {', '.join(missing)}: run with --full")
    trials = [Trial(*setting, rates[setting], seed) for setting in settings() for seed in range(1, options.seeds + 1)]
    path = options.results / "sma.jsonl" if options.write else None
    by_trial = {result.trial: result for result in spread_out(partial(make, path=path), trials, options.jobs)}
    found: dict[Setting, list[Result]] = {}
    for trial in trials:
        found.setdefault((trial.way, trial.learners, trial.batch), []).append(by_trial[trial])
    say("\n" + table(found))
    if options.write:
        plot(found)
    report(
        "sma",
        target=TASK.target,
        seeds=options.seeds,
        settings={label(setting): figures(results) for setting, results in found.items()},
        vs_allreduce=dict(compared(found)),
        jobs=options.jobs,
        wall_s=time.monotonic() - began,
    )


def figures(results: Sequence[Result]) -> dict[str, Any]:
    values = {measure: [reached(result, measure) for result in results] for measure in MEASURES}
    return {
        "lr": results[0].trial.lr,
        "reached": sum(result.epochs_to is not None for result in results),
        **{measure.removesuffix("_to"): median(values[measure]) for measure in MEASURES},
        "epochs_min": min(values["epochs_to"]),
        "epochs_max": max(values["epochs_to"]),
        "noise_scale": noise_scale(results),
    }


def noise_scale(results: Sequence[Result]) -> float | None:
    scales = [result.noise_scale for result in results if result.noise_scale is not None]
    return median(scales) if scales else None


def compared(found: Mapping[Setting, Sequence[Result]]) -> Iterator[tuple[str, float]]:
    for (way, learners, batch), results in found.items():
        if way != "allreduce":
            pairs = zip(found["allreduce", learners, batch], results, strict=True)
            ratios = [ratio(reached(a, "epochs_to"), reached(b, "epochs_to")) for a, b in pairs]
            yield label((way, learners, batch)), median(ratios)


def table(found: Mapping[Setting, Sequence[Result]]) -> str:
    """In Markdown: medians, and from the least to the most."""
    lines = [
        "| learners × batch | way | lr | reached | epochs | steps | modelled s | lowest error | noise scale |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (way, learners, batch), results in found.items():
        scale = noise_scale(results)
        best = median(math.inf if result.best is None else result.best for result in results)
        cells = [f"{learners} × {batch}", way if learners > 1 else "alone", f"{results[0].trial.lr:.3g}"]
        cells.append(f"{sum(result.epochs_to is not None for result in results)}/{len(results)}")
        cells += [between(results, measure) for measure in MEASURES]  # type: ignore[arg-type]
        lines.append(f"| {' | '.join([*cells, f'{best:.3f}', '' if scale is None else f'{scale:.0f}'])} |")
    return "\n".join(lines)


def plot(found: Mapping[Setting, Sequence[Result]]) -> None:
    bands: dict[str, list[Row]] = {}
    for setting, results in found.items():
        way, _, batch = setting
        values = [[reached(result, measure) for result in results] for measure in MEASURES]
        bands.setdefault(f"{batch} samples a learner", []).append(Row(label(setting), {way: values}))
    title = "Epochs, steps and modelled time to the target: median, least and most of the seeds"
    draw(DOCS / "synchronisation.svg", title, WAYS, COLUMNS, bands)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="search the learning rates first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--write", action="store_true", help="keep the results there too, and draw the plot")
    return parser.parse_args()


if __name__ == "__main__":
    main()
