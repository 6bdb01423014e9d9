"""Makes trials in processes of their own and keeps what they showed, one line of JSON each, as it comes in."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from lockstep import Result, Trial, run
from stats import say
from tasks import TASKS

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[2] / "docs"
Limits = Mapping[str, float]
MEASURES = ("steps_to", "samples_to", "modelled_s_to", "cpu_s_to")
COLUMNS = ("steps", "samples", "modelled seconds", "processor seconds")  # the same, on a plot


def make(trials: Sequence[Trial], jobs: int, path: Path | None = None, limits: Limits | None = None) -> list[Result]:
    """The results, in the order of the trials; those that the file at `path` has are not made again, others kept there.

    `limits` gives up a trial of a workload after so much modelled time [s].
    """
    known = {identity(result.trial): result for result in (kept(path) if path else [])}
    missing = [trial for trial in trials if identity(trial) not in known]
    work = [(trial, (limits or {}).get(trial.task, math.inf)) for trial in missing]
    for count, result in enumerate(spread_out(_attempt, work, jobs), 1):
        say(f"{count}/{len(missing)} {told(result)}")
        known[identity(result.trial)] = result
        if path:
            keep(path, result)
    return [known[identity(trial)] for trial in trials]


def identity(trial: Trial) -> tuple[Any, ...]:
    return trial.task, trial.label, trial.batch, float(f"{trial.lr:.6g}"), trial.seed, repr(trial.policies)


def _attempt(work: tuple[Trial, float]) -> Result:
    return attempt(*work)


def spread_out(function: Any, items: Iterable[Any], jobs: int) -> Iterator[Any]:
    """`function` of each item, in `jobs` processes; of the items' order only who begins first is sure."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(function, item) for item in items]):
            yield future.result()


def attempt(trial: Trial, limit_s: float = math.inf) -> Result:
    return run(TASKS[trial.task], trial, limit_s)


def told(result: Result) -> str:
    trial = result.trial
    name = f"{trial.task} {trial.label}, batch {trial.batch}, lr {trial.lr:.4g}, seed {trial.seed}"
    if result.steps_to is None:
        error = "not finite" if result.best is None else f"best {result.best:.4f}"
        return f"{name}: not reached in {result.samples:,} samples, {error}"
    return (
        f"{name}: {result.steps_to:,} steps, {result.samples_to:,} samples, {result.modelled_s_to:.2f} s modelled, "
        f"{result.cpu_s_to:.1f} s of the processor, batch {result.batches[-1][1]} at the end"
    )


def keep(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def kept(path: Path) -> list[Result]:
    """What the file holds, none if there is no file."""
    if not path.is_file():
        return []
    return [_read(json.loads(line)) for line in path.read_text().splitlines()]


def _read(record: dict[str, Any]) -> Result:
    trial = record["trial"]
    trial["policies"] = tuple((kind, params) for kind, params in trial["policies"])
    return Result(**{**record, "trial": Trial(**trial), "batches": [(a, b) for a, b in record["batches"]]})


def reached(result: Result, measure: str) -> float:
    """What it took to the target; infinite where it was not reached."""
    value = getattr(result, measure)
    return math.inf if value is None else float(value)


def middle(results: Iterable[Result], measure: str) -> float:
    """The median; infinite where half or more did not reach the target."""
    return median(reached(result, measure) for result in results)
