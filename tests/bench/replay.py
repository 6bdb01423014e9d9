"""How fast a recorded run is decided again: `seconds` from the journal's file to the answer.

The journal is that of a made-up run of `--observations` control ticks under the policies of `make demo` (noise_scale,
warmup, plateau): ten steps a tick, a loss logged at every fourth, gradient norms whose noise scale grows, so that the
batch grows to its largest, and the bounds of the learning rate are reached. It is read from SQLite, decoded, decided
and compared (`equal` must come out true); writing it is not counted. `what_if_s` is the same with three candidates in
place of the recorded policies, one of which reads a metric that only the metric file has. `cpu_s` is the processor's
part of `seconds`: on a machine that others use the difference is theirs.

    python tests/bench/replay.py [--observations 100000] [--repeats 3] [--seed 0]
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from stats import report, say, spread

from trimtab.controller import engine
from trimtab.controller.events import Event, RunSpec, encode
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.journal import SqliteJournal
from trimtab.controller.metrics import Block, MetricWriter
from trimtab.controller.noise import NoiseEstimator
from trimtab.controller.observation import Observation, Reading
from trimtab.controller.recorded import replay_recorded
from trimtab.controller.replayed import Candidate, Replayed
from trimtab.controller.run import Run, begin, fold
from trimtab.controller.trajectory import Progress

RUN = "recorded"
STEPS = 10  # a tick
LOGGED = 4  # ticks between two values of `val_loss`
RANKS = 2
POLICIES = {"noise_scale": {}, "warmup": {"samples": 100_000}, "plateau": {"metric": "val_loss"}}
CANDIDATES = (
    Candidate(name="noise_scale", kind="noise_scale", params={"c": 2.0}),
    Candidate(name="warmup", kind="warmup", params={"samples": 50_000}),
    Candidate(name="plateau", kind="plateau", params={"metric": "loss", "patience": 100}),
)
PARAMETERS = (
    HyperParameter(name="batch_size", kind="integer", default=64, min=16, max=4096),
    HyperParameter(name="lr", default=0.1, min=0.0, max=10.0),
)
SPEC = RunSpec(name=RUN, world_size=RANKS, parameters=PARAMETERS, micro_batch=32, max_micro_batch=64)


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir=options.directory) as directory:
        home = Path(directory)
        size = write(home, options.observations, np.random.default_rng(options.seed))
        say(f"{options.observations:,} observations written")
        seconds, cpu, what_if = [], [], []
        for _ in range(options.repeats):
            took, used, replayed = timed(home, None)
            assert (replayed.equal, replayed.observations) == (True, options.observations)
            seconds.append(took)
            cpu.append(used)
            took, _used, tried = timed(home, CANDIDATES)
            assert tried.unread == {}
            what_if.append(took)
            say(f"replay {seconds[-1]:.2f} s, what-if {what_if[-1]:.2f} s")
    report(
        "replay",
        observations=options.observations,
        policies=len(POLICIES),
        decisions=len(replayed.decisions),
        **spread("seconds", seconds, options.seed),
        observations_per_s=options.observations / float(np.median(seconds)),
        cpu_s=float(np.median(cpu)),
        **spread("what_if_s", what_if, options.seed),
        what_if_decisions=len(tried.decisions),
        journal_bytes_per_observation=size / options.observations,
        seed=options.seed,
    )


def timed(home: Path, candidates: Sequence[Candidate] | None) -> tuple[float, float, Replayed]:
    """Seconds on the clock, seconds of the processor, and the answer."""
    gc.collect()
    start, used = time.perf_counter(), time.process_time()
    replayed = replay_recorded(home, RUN, candidates)
    return time.perf_counter() - start, time.process_time() - used, replayed


def write(home: Path, observations: int, rng: np.random.Generator) -> int:
    """A journal and a metric file in `home`; the journal's bytes."""
    journal = SqliteJournal(home / "journal.sqlite")
    term, size, waiting = journal.take_over(), 0, []
    for event in events(observations, rng):
        waiting.append(encode(event))
        if len(waiting) >= 5000:
            journal.append(term, 0.0, RUN, waiting)
            size, waiting = size + sum(map(len, waiting)), []
    journal.append(term, 0.0, RUN, waiting)
    journal.close()
    (home / "metrics").mkdir()
    steps = np.arange(1, STEPS * observations, dtype=np.int64)
    writer = MetricWriter(home / "metrics" / f"{RUN}.metrics")
    writer.append(Block(steps, 64 * steps, 1e9 + steps, {"loss": rng.normal(1, 0.1, len(steps)).astype(np.float32)}))
    writer.close()
    return size + sum(map(len, waiting))


def events(observations: int, rng: np.random.Generator) -> Iterator[Event]:
    """What a controller would have journaled, made by the engine itself."""
    created = engine.create(SPEC, 1)
    run = begin(RUN, created, 0.0)
    yield created
    for kind, params in POLICIES.items():
        for event in engine.put_policy(run, 1, kind, kind, params, "active", "start", ""):
            run = fold(run, event, 0.0)
            yield event
    for event in engine.form(run, 1, RANKS, Progress()):
        run = fold(run, event, 0.0)
        yield event
    estimator = NoiseEstimator()
    for i in range(observations):
        if i == 0:
            made = engine.register(run, 1, (), "sqrt", 50_000, lambda run: observed(run, run.progress, estimator), None)
        else:
            batch = run.version.at(run.progress).plan.batch_size
            measure(estimator, batch, 100 + i / 10, rng)
            progress = Progress(i * STEPS, run.progress.samples + batch * STEPS)
            losses = [float(rng.normal(1 + 2000 / (1000 + i), 0.05))] if i % LOGGED == 0 else []
            made = engine.observe(run, 1, observed(run, progress, estimator, losses), estimator.state())
        for event in made:
            run = fold(run, event, 0.0)
            yield event


def measure(estimator: NoiseEstimator, batch: int, noise_scale: float, rng: np.random.Generator) -> None:
    """The gradient norms of a tick's steps."""
    wobble = rng.normal(1, 0.05, (2, STEPS))
    local = (1 + noise_scale * RANKS / batch) * wobble[0]
    estimator.update(local, np.full(STEPS, batch / RANKS), (1 + noise_scale / batch) * wobble[1], np.full(STEPS, batch))


def observed(run: Run, progress: Progress, estimator: NoiseEstimator, losses: Sequence[float] = ()) -> Observation:
    settings = run.version.at(progress)
    readings = tuple(Reading(progress.steps - 1, progress.samples, loss) for loss in losses)
    return Observation(
        progress=progress,
        values=settings.values,
        plan=settings.plan,
        rising=run.version.rising(progress),
        dataset_size=run.dataset_size,
        metrics={"val_loss": readings} if readings else {},
        noise=estimator.noise(),
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observations", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the files lie [the system's temporary folder]")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
