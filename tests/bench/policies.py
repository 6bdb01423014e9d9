"""What a decision costs: each policy alone, and the controller with many runs of several policies.

`slowest_us` is the largest of the kinds' times (`KIND_us`): one `decide`, median over a made-up run with readings,
estimates and blanks in it. A state is carried from one decision to the next, as in a run.

`decisions_per_s` is what a controller makes of `--runs` runs with five active policies each (goodput, warmup, plateau,
early_stop and stragglers): in each round every run gets a message of each of its two ranks and has its control tick,
with guard rails, one durable commit in the SQLite journal and the feed. Counted over the wall time of the ticks;
`arriving_decisions_per_s` over all wall time of `ingest`, so alignment and storage of the records too. `p99_tick_ms` is
a tick's time with the journal's sync; `memory_mb` what all runs add to the process and `memory_kb_per_run` a share of
it, after all rounds. `needed_per_s` is what as many runs ask for, four ticks a second each.

    python tests/bench/policies.py [--runs 100] [--rounds 20] [--repeats 3] [--seed 0]
"""

import argparse
import logging
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from stats import report, say, spread

from trimtab.controller.controller import TICK_S, Controller, PolicySpec
from trimtab.controller.events import RunSpec
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.journal.sqlite import SqliteJournal
from trimtab.controller.policies import Policy, kinds
from trimtab.controller.policies.contract import sample_observations
from trimtab.controller.records import Records
from trimtab.controller.trajectory import Progress

RANKS = 2
BATCH = 64
ROWS = 12  # steps in a message
POLICIES = ("goodput", "warmup", "plateau", "early_stop", "stragglers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of one controller."""

    decisions: int
    decide_s: float
    wall_s: float
    ticks_ms: list[float]
    memory_bytes: int


def main() -> None:
    options = parse()
    logging.disable(logging.WARNING)
    alone = {kind: decision_us(cls(), options.repeats) for kind, cls in kinds().items()}
    slowest = max(alone, key=lambda kind: alone[kind])
    say("policies: " + ", ".join(f"{kind} {took:.1f} µs" for kind, took in alone.items()))
    results = []
    for repeat in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir=options.directory) as directory:
            one = measure(Path(directory), options)
        results.append(one)
        say(f"{repeat + 1}/{options.repeats}: {one.decisions / one.decide_s:,.0f} decisions/s")
    memory = results[0].memory_bytes  # later ones find memory that was given back
    report(
        "policies",
        **spread("decisions_per_s", [one.decisions / one.decide_s for one in results], options.seed),
        arriving_decisions_per_s=float(np.median([one.decisions / one.wall_s for one in results])),
        needed_per_s=options.runs * len(POLICIES) / TICK_S,
        p99_tick_ms=float(np.percentile(np.concatenate([one.ticks_ms for one in results]), 99)),
        memory_mb=memory / 1e6,
        memory_kb_per_run=memory / 1e3 / options.runs,
        runs=options.runs,
        policies=len(POLICIES),
        slowest=slowest,
        slowest_us=alone[slowest],
        **{f"{kind}_us": took for kind, took in alone.items()},
        seed=options.seed,
    )


def decision_us(policy: Policy, repeats: int) -> float:
    """The median time of one decision over a made-up run [µs]."""
    observations = sample_observations(policy, count=200)
    times = []
    for _ in range(repeats):
        state = policy.initial()
        for observation in observations:
            start = time.perf_counter_ns()
            state, _proposals = policy.decide(state, observation)
            times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e3


def measure(home: Path, options: argparse.Namespace) -> Result:
    """One controller from its start to its end."""
    now = 1.7e9
    (home / "metrics").mkdir()
    before = resident()
    controller = Controller(SqliteJournal(home / "journal.sqlite"), home / "metrics", clock=lambda: now)
    runs = [f"run-{i}" for i in range(options.runs)]
    for run in runs:
        begin(controller, run)
    rng = np.random.default_rng(options.seed)
    spent = [decide_s(controller, runs)]
    wall, ticks = 0.0, []
    for i in range(options.rounds):
        messages = [message(rng, run, rank, i, now) for run in runs for rank in range(RANKS)]
        now += TICK_S
        for records in messages:
            start = time.perf_counter()
            controller.ingest(records)
            wall += time.perf_counter() - start
        spent.append(decide_s(controller, runs))
    ticks = [(b - a) * 1e3 for earlier, later in pairwise(spent) for a, b in zip(earlier, later, strict=True)]
    decisions = sum(controller.run(run).overhead.ticks for run in runs) * len(POLICIES)
    memory = resident() - before
    controller.close()
    return Result(
        decisions=decisions,
        decide_s=sum(spent[-1]) - sum(spent[0]),
        wall_s=wall,
        ticks_ms=ticks,
        memory_bytes=memory,
    )


def decide_s(controller: Controller, runs: list[str]) -> list[float]:
    return [controller.run(run).overhead.decide_s for run in runs]


def resident() -> int:
    """Memory of this process [bytes]."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def begin(controller: Controller, run: str) -> None:
    batch = HyperParameter(name="batch_size", kind="integer", default=BATCH, min=BATCH, max=64 * BATCH)
    parameters = (batch, HyperParameter(name="lr", default=0.1, min=0.0, max=10.0))
    policies = [PolicySpec(name=kind, kind=kind, params=PARAMS.get(kind, {})) for kind in POLICIES]
    micro = BATCH // RANKS
    spec = RunSpec(name=run, world_size=RANKS, parameters=parameters, micro_batch=micro, max_micro_batch=micro)
    controller.create_run(run, spec, policies)
    controller.start_formation(run, RANKS, Progress())
    controller.register(run, 1, parameters, "adascale", 50_000)


PARAMS = {
    "warmup": {"samples": 1000},
    "plateau": {"metric": "loss"},
    "early_stop": {"metric": "loss", "patience": 10**9},
}


def message(rng: np.random.Generator, run: str, rank: int, i: int, now: float) -> Records:
    steps = np.arange(i * ROWS + 1, (i + 1) * ROWS + 1, dtype=np.int64)
    times = now + np.arange(ROWS) * TICK_S / ROWS
    even = np.ones(ROWS, np.float32)
    noise = rng.normal(1, 0.05, (5, ROWS)).astype(np.float32)
    columns = {
        "loss": noise[0],
        "grad_norm": noise[1],
        "local_sq": 1.5 * noise[2],
        "local_batch": BATCH / RANKS * even,
        "batch_size": BATCH * even,
        "step_time": 0.02 * noise[3],
        "data_time": 0.001 * even,
        "reduce_time": 0.005 * noise[4],
    }
    if rank == 0:
        columns |= {"hp/batch_size": BATCH * even, "hp/lr": 0.1 * even}
    last = int(steps[-1])
    return Records(run, rank, 1, steps, steps * BATCH, times, columns, held=1, produced=last)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20, help="control ticks of each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the files lie [the system's temporary folder]")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
