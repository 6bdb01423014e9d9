"""How many metric points a second one controller takes in on one core, and what a point costs at rest.

A Controller in this process with its SQLite journal and its metric files on disk; `--runs` runs of two ranks, each
with two active policies. A message is what a rank ships four times a second: `--rows` steps of all its columns and
`--logged` logged metrics a step, pickled as Ray would. Each round delivers one message of every rank of every run and
moves the controller's clock by 0.25 s, so that every run has its control tick, decision and durable commit in it.
Ray's own cost of a call (some 0.1 ms) is not in it.

A point is one number of one step that the controller keeps, ranks already reduced: `points_per_s` counts these over
CPU time, `wall_points_per_s` over wall time (the disk's syncs included) and `arriving_points_per_s` counts every
rank's numbers over CPU time. `bytes_per_point` is the size of the metric files, with their summaries and the lowest and
the highest rank of each metric, over the points kept; the window of the ranks' own values, which does not grow, takes
`rank_bytes_per_step` for each step in it; `journal_bytes_per_tick` is the size of the journal over the ticks. Three
arms in random order, each repeated from nothing: the usual message, the same again (`aa_ratio`), and one of ten times
as many rows (`large_points_per_s`), as after a pause. Target: 100,000.

    python tests/bench/ingest.py [--runs 4] [--rows 12] [--logged 10] [--repeats 5] [--seed 0]
"""

import argparse
import logging
import pickle
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from stats import report, say, spread

from trimtab.controller.controller import Controller, PolicySpec
from trimtab.controller.events import RunSpec
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.journal.sqlite import SqliteJournal
from trimtab.controller.records import Records
from trimtab.controller.trajectory import Progress

RANKS = 2
BATCH = 64
MESSAGE_S = 0.25
ARMS = {"usual": 1, "again": 1, "large": 10}  # times the rows
TARGET = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of one arm, once."""

    points: int
    arriving: int
    cpu_s: float
    wall_s: float
    metric_bytes: int
    rank_bytes: int
    steps: int
    journal_bytes: int
    ticks: int


def main() -> None:
    options = parse()
    logging.disable(logging.WARNING)
    say(f"ingest: seed {options.seed}, {options.runs} runs, messages of {options.rows} rows")
    order = random.Random(options.seed)
    results: dict[str, list[Result]] = {arm: [] for arm in ARMS}
    for repeat in range(options.repeats):
        for arm in order.sample(list(ARMS), len(ARMS)):
            with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir=options.directory) as directory:
                one = measure(Path(directory), options, ARMS[arm])
            results[arm].append(one)
            say(f"{repeat + 1}/{options.repeats} {arm}: {one.points / one.cpu_s:,.0f} points/s of CPU time")
    cpu = {arm: np.array([one.points / one.cpu_s for one in found]) for arm, found in results.items()}
    usual, large = results["usual"], results["large"]
    figures = spread("points_per_s", cpu["usual"], options.seed)
    report(
        "ingest",
        **figures,
        **spread("aa_ratio", cpu["again"] / cpu["usual"], options.seed),
        wall_points_per_s=float(np.median([one.points / one.wall_s for one in usual])),
        arriving_points_per_s=float(np.median([one.arriving / one.cpu_s for one in usual])),
        large_points_per_s=float(np.median(cpu["large"])),
        bytes_per_point=float(np.median([one.metric_bytes / one.points for one in usual])),
        large_bytes_per_point=float(np.median([one.metric_bytes / one.points for one in large])),
        rank_bytes_per_step=float(np.median([one.rank_bytes / one.steps for one in usual])),
        journal_bytes_per_tick=float(np.median([one.journal_bytes / one.ticks for one in usual])),
        ms_per_message=float(np.median([one.cpu_s / options.rounds / options.runs / RANKS * 1e3 for one in usual])),
        points=usual[0].points,
        target_met=bool(figures["points_per_s"] >= TARGET),
        seed=options.seed,
    )


def measure(home: Path, options: argparse.Namespace, factor: int) -> Result:
    """One controller from its start to its end."""
    now = 1.7e9
    (home / "metrics").mkdir()
    controller = Controller(SqliteJournal(home / "journal.sqlite"), home / "metrics", clock=lambda: now)
    runs = [f"run-{i}" for i in range(options.runs)]
    for run in runs:
        begin(controller, run)
    rng = np.random.default_rng(options.seed)
    cpu = wall = 0.0
    for i in range(options.rounds):
        messages = [
            pickle.dumps(message(rng, run, rank, i, now, options, factor)) for run in runs for rank in range(RANKS)
        ]
        now += MESSAGE_S
        used, start = time.process_time(), time.perf_counter()
        for blob in messages:
            controller.ingest(pickle.loads(blob))
        if i % 4 == 3:
            for run in runs:
                controller.heartbeat(run)
            controller.expire()
        cpu += time.process_time() - used
        wall += time.perf_counter() - start
    overheads = [controller.run(run).overhead for run in runs]
    controller.close()
    rows = options.rows * factor * options.rounds * options.runs * RANKS
    return Result(
        points=sum(overhead.points for overhead in overheads),
        arriving=rows * (len(columns(rng, 1)) + options.logged),
        cpu_s=cpu,
        wall_s=wall,
        metric_bytes=size(home, "metrics/*.metrics"),
        rank_bytes=size(home, "metrics/*.ranks/*"),
        steps=options.rows * factor * options.rounds * options.runs,
        journal_bytes=size(home, "journal.sqlite*"),
        ticks=sum(overhead.ticks for overhead in overheads),
    )


def size(home: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in home.glob(pattern))


def begin(controller: Controller, run: str) -> None:
    batch = HyperParameter(name="batch_size", kind="integer", default=BATCH, min=BATCH, max=64 * BATCH)
    parameters = (batch, HyperParameter(name="lr", default=0.1, min=0.0, max=10.0))
    policies = [PolicySpec(name=kind, kind=kind, params={}) for kind in ("noise_scale", "warmup")]
    micro = BATCH // RANKS
    spec = RunSpec(name=run, world_size=RANKS, parameters=parameters, micro_batch=micro, max_micro_batch=micro)
    controller.create_run(run, spec, policies)
    controller.start_formation(run, RANKS, Progress())
    controller.register(run, 1, parameters, "adascale", 50_000)


def message(
    rng: np.random.Generator, run: str, rank: int, i: int, now: float, options: argparse.Namespace, factor: int
) -> Records:
    rows = options.rows * factor
    steps = np.arange(i * rows + 1, (i + 1) * rows + 1, dtype=np.int64)
    times = now + np.arange(rows) * MESSAGE_S / rows
    values = {name: column for name, column in columns(rng, rows).items() if rank == 0 or not name.startswith("hp/")}
    logged = {f"metric_{k}": (steps, rng.random(rows, np.float32)) for k in range(options.logged)}
    last = int(steps[-1])
    return Records(run, rank, 1, steps, steps * BATCH, times, values, logged, held=1, produced=last)


def columns(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """What a session ships for every step, and rank 0's hyper-parameters; the noise scale comes out near 60 samples."""
    even = np.ones(rows, np.float32)
    noise = rng.normal(1, 0.05, (6, rows)).astype(np.float32)
    return {
        "loss": noise[0],
        "grad_norm": noise[1],
        "local_sq": 1.5 * noise[2],
        "local_batch": BATCH / RANKS * even,
        "batch_size": BATCH * even,
        "step_time": 0.02 * noise[3],
        "data_time": 0.001 * noise[4],
        "reduce_time": 0.005 * noise[5],
        "hp/batch_size": BATCH * even,
        "hp/lr": 0.1 * even,
        "hp/momentum": 0.9 * even,
        "hp/weight_decay": 0.0 * even,
        "hp/grad_clip": 0.0 * even,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--rows", type=int, default=12, help="steps in a message")
    parser.add_argument("--logged", type=int, default=10, help="metrics that the script logs every step")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where the files lie [the system's temporary folder]")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
