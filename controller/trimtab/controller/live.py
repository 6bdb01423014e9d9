"""What the controller holds of a run besides its journaled state: records on their way to metrics and readings."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.controller import views
from trimtab.controller.align import Aligner
from trimtab.controller.events import Event, Stated, Versioned
from trimtab.controller.history import History, Record
from trimtab.controller.metrics import Block, MetricReader, MetricStore
from trimtab.controller.metrics.block import together
from trimtab.controller.noise import Noise, NoiseEstimator
from trimtab.controller.observation import Observation, Reading
from trimtab.controller.records import Records, Times
from trimtab.controller.run import Run, fold
from trimtab.controller.shadow import Overlay
from trimtab.controller.sync import measures_noise
from trimtab.controller.tally import Tally
from trimtab.controller.trajectory import Progress

LOOKS = 11  # about one a second: a run's pace is that of the last ten seconds
TRACE = 60  # points of the loss kept for the list of runs
NO_STEPS = Block(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), {"loss": np.empty(0, np.float32)})


@dataclass(frozen=True, slots=True)
class Question:
    """A control tick under way: what policies in processes of their own have been asked and may yet answer."""

    run: Run
    observation: Observation
    estimator: Mapping[str, Any]
    blocks: tuple[int, ...]  # how much of what was measured the observation holds
    asked: Sequence[Future[Any]]

    def stands(self, run: Run) -> bool:
        """Has nobody changed anything meanwhile? Else it must be asked anew, of what holds now."""
        asked = self.run
        return (run.version, run.policies, run.formation) == (asked.version, asked.policies, asked.formation)


class Live:
    """One run in memory. Nothing here is needed to decide the same again: that is all in `run`."""

    def __init__(self, run: Run, metrics: Path, now: float) -> None:
        self.run = run
        self.history = History()
        self.heartbeat = now
        self.ticked = 0.0
        self.shown = 0.0  # when the values were last published
        self.tally = Tally()
        self.looks: deque[tuple[float, int]] = deque(maxlen=LOOKS)  # (time, steps)
        self.question: Question | None = None
        self.ranks: dict[int, views.RankView]
        self.applied: list[tuple[int, int, int]]  # reports of (rank, version, first step) not yet in the journal
        self.storage = ""  # what is wrong with the metrics' file, if anything is
        self.alarms: set[str] = set()  # places where something has been told to be wrong
        self.losses: deque[float] = deque(_losses(metrics), maxlen=TRACE)
        self.versions = {run.version.number: run.version}
        self.changed = asyncio.Event()  # set and exchanged with every new version, and when the run has ended
        self._path = metrics
        self._metrics: MetricStore | None = None
        self._dense: list[Block] = []  # since the last tick
        self._sparse: list[tuple[str, Block]] = []
        self._own_times: list[Times] = []  # (ranks, n) each [s]
        self._noted = 0  # estimates that the noise scale last stored was made of
        self._shadows: Mapping[str, Overlay] = {}  # as of the would-be values last stored
        self._shadowed = 0.0  # when that was
        self._would_be: Mapping[str, float | None] = {}  # these values, by metric; None: to be stored anew, or ended
        self._recovered = 0  # the formation that an earlier controller saw begin
        self.reform()

    def reform(self) -> None:
        """Begin where the run stands: forget what is on its way."""
        run = self.run
        self._aligner = Aligner(run.version.batching.world_size)
        self.estimator = NoiseEstimator.restore(run.estimator) if run.estimator else NoiseEstimator()
        self.progress = run.progress
        self.ranks = {}
        self.applied = []
        self.question = None
        self._would_be = dict.fromkeys(self._would_be)
        self.observed(self.blocks)

    def recover(self) -> None:
        """The journal has been read: go on with ranks that were there before this controller was."""
        self.reform()
        self._recovered = self.run.formation

    def rewind(self) -> None:
        """A formation begins: void the metrics beyond its first step."""
        self.reform()
        self._rewind()

    def regroup(self) -> None:
        """The ranks have formed another group in place: what was measured counts, but beyond its first step."""
        estimator = self.estimator
        self.reform()
        self.estimator = estimator
        self._rewind()

    def _rewind(self) -> None:
        self._store(lambda store: store.rewind(self.progress.steps))

    @property
    def noise(self) -> Noise | None:
        noise = self.estimator.noise()
        return noise if noise.estimates else None

    def _store(self, action: Callable[[MetricStore], None]) -> None:
        """Metrics are lossy by contract: what the disk does not take is lost, and steers nothing."""
        try:
            if self._metrics is None:
                self._metrics = MetricStore(self._path)
            action(self._metrics)
        except OSError as error:
            self.storage = f"metrics are not stored: {error}"

    def look(self, now: float) -> None:
        """Note where the run stands, for its pace; called about once a second."""
        if self.looks and self.looks[-1][1] > self.progress.steps:
            self.looks.clear()  # it went back to a checkpoint
        self.looks.append((now, self.progress.steps))

    @property
    def steps_per_s(self) -> float:
        if len(self.looks) < 2 or self.looks[-1][0] <= self.looks[0][0]:
            return 0.0
        (start, first), (end, last) = self.looks[0], self.looks[-1]
        return (last - first) / (end - start)

    def _append(self, block: Block) -> None:
        self._store(lambda store: store.append(block))

    def flush(self) -> None:
        self.storage = ""
        if self._metrics is not None:
            self._store(MetricStore.flush)

    def close(self) -> None:
        if self._metrics is not None:
            self._store(MetricStore.close)
            self._metrics = None

    def follow(self, event: Event, time: float) -> list[Record]:
        """Take in what stands in the journal; the records of the audit that are new or have changed."""
        self.run = fold(self.run, event, time)
        if isinstance(event, Versioned):
            self.versions[event.version.number] = event.version
        if isinstance(event, Versioned) or (isinstance(event, Stated) and event.state.ended):
            self.changed.set()
            self.changed = asyncio.Event()
        return self.history.take(event, time)

    def take(self, records: Records | None, final: bool = False) -> list[dict[str, Any]]:
        """Take in a rank's records; the payloads to publish for what has become final."""
        if records is not None:
            taken, late = self._aligner.add(records)
            self._count(records, taken, late)
            self._rank(records)
        aligned = self._aligner.take(final)
        if aligned is None:
            return []
        self.estimator.update(**aligned.measured)
        dense, sparse, noises = aligned.dense, list(aligned.sparse.items()), []
        if len(dense.steps):
            self._append(dense)
            self._dense.append(dense)
            self._own_times.append(aligned.own_times)
            self.progress = Progress(int(dense.steps[-1]), int(dense.samples[-1]))
            self.losses.append(float(dense.columns["loss"][-1]))
            noises = self._note_noise(dense)
        for block in together({id(block): block for block in aligned.sparse.values()}.values()):
            self._append(block)
        for block in aligned.by_rank:
            self._store(partial(MetricStore.append_ranks, block=block))
        self._sparse += sparse
        self.tally.points += len(dense.steps) * len(dense.columns) + sum(len(block.steps) for _, block in sparse)
        return [_payload(self.run.id, dense, sparse + noises)]

    def _count(self, records: Records, taken: int, late: int) -> None:
        """What a rank has counted since its last message; one that comes twice, or late, adds nothing."""
        tally, known = self.tally, self.ranks.get(records.rank)
        tally.stored += taken
        if known is not None:
            tally.produced += max(0, records.produced - known.produced)
            tally.dropped += max(0, records.dropped - known.dropped) + late
            tally.training_s += max(0.0, records.training_s - known.training_s)
            tally.control_s += max(0.0, records.control_s - known.control_s)
        elif records.formation == self._recovered:  # of what it has told before, an earlier controller knew
            tally.produced += taken + late + records.dropped
            tally.dropped += records.dropped + late
        else:
            tally.produced += records.produced
            tally.dropped += records.dropped + late
            tally.training_s += records.training_s
            tally.control_s += records.control_s

    def _rank(self, records: Records) -> None:
        known = self.ranks.get(records.rank)
        has = len(records.steps) > 0
        self.ranks[records.rank] = views.RankView(
            rank=records.rank,
            step=int(records.steps[-1]) if has else known.step if known else 0,
            version=records.held,
            step_time=float(np.median(records.columns["step_time"])) if has else known.step_time if known else 0.0,
            produced=records.produced,
            dropped=records.dropped,
            training_s=records.training_s,
            control_s=records.control_s,
        )

    def _note_noise(self, dense: Block) -> list[tuple[str, Block]]:
        """Store the present estimate at the newest step, if it has moved."""
        noise = self.noise
        if noise is None or noise.estimates == self._noted:
            return []
        self._noted = noise.estimates
        unbounded = np.nan if noise.low is None else np.inf
        drawn = {"": (noise.value, np.nan), "_low": (noise.low, np.nan), "_high": (noise.high, unbounded)}
        columns = {
            f"noise_scale{end}": np.array([missing if value is None else value], np.float32)
            for end, (value, missing) in drawn.items()
        }
        block = Block(dense.steps[-1:], dense.samples[-1:], dense.times[-1:], columns)
        self._append(block)
        return [(name, block) for name in columns]

    def note_shadows(self, now: float, pause_s: float) -> list[dict[str, Any]]:
        """Store the values that policies in shadow would have made, as `shadow/POLICY/PARAM`; the payloads to publish.

        A value that a trajectory moves is stored once in `pause_s`, one that has just been decided at once. NaN ends
        what a policy would have made, when it is in shadow no longer.
        """
        run, progress = self.run, self.progress
        shadows = {name: entry.overlay for name, entry in run.policies.items() if entry.asked and not entry.active}
        decided = shadows != self._shadows
        if not decided and (not shadows or now - self._shadowed < pause_s):
            return []
        self._shadows, self._shadowed = shadows, now
        would_be = {
            f"shadow/{name}/{param}": value
            for name in shadows
            for param, value in run.would_be(name, progress).items()
            if not isinstance(value, str)
        }
        news = {key: value for key, value in would_be.items() if self._would_be.get(key) != value}
        news |= dict.fromkeys((key for key in self._would_be if key not in would_be), np.nan)
        self._would_be = would_be
        steps, samples, times = np.array([progress.steps]), np.array([progress.samples]), np.array([float(now)])
        noted = [(key, Block(steps, samples, times, {key: np.array([v], np.float32)})) for key, v in news.items()]
        for _, block in noted:
            self._append(block)
        self.tally.points += len(noted)
        return [_payload(self.run.id, NO_STEPS, noted)] if noted else []

    def observation(self, run: Run, names: Collection[str]) -> Observation:
        """The readings of the metrics in `names` since the last observation, and where `run` stands."""
        progress = self.progress
        settings = run.version.at(progress)
        metrics: dict[str, tuple[Reading, ...]] = {}
        nonfinite: dict[str, int] = {}
        for name in names:
            readings, lost = reduced(self._dense, self._sparse, name)
            if readings:
                metrics[name] = readings
            if lost:
                nonfinite[name] = lost
        return Observation(
            progress=progress,
            values=settings.values,
            plan=settings.plan,
            rising=run.version.rising(progress),
            horizon=run.horizon,
            dataset_size=run.dataset_size,
            decay_from=run.decay_from,
            metrics=metrics,
            nonfinite=nonfinite,
            noise=self.noise if measures_noise(run.version, progress) else None,
            checkpoints=tuple(one.step for one in run.checkpoints),
            rank_times=_medians(self._own_times) if "rank_times" in names else (),
        )

    @property
    def blocks(self) -> tuple[int, ...]:
        """How much has been measured since the last observation."""
        return len(self._dense), len(self._sparse), len(self._own_times)

    def observed(self, blocks: tuple[int, ...]) -> None:
        """An observation of so much stands in the journal: the next one begins after it."""
        dense, sparse, times = blocks
        self._dense, self._sparse = self._dense[dense:], self._sparse[sparse:]
        self._own_times = self._own_times[times:]


def _losses(metrics: Path) -> list[float]:
    """The trace of the loss, as it was stored before the controller was last started."""
    try:
        reader = MetricReader(metrics)
    except OSError:
        return []  # nothing was stored, or it cannot be read: the run itself stands in the journal
    try:
        found: list[float] = reader.query(["loss"], max_points=TRACE)["loss"].last.tolist()
        return found
    finally:
        reader.close()


def reduced(dense: list[Block], sparse: list[tuple[str, Block]], name: str) -> tuple[tuple[Reading, ...], int]:
    """The readings of a metric, and how many of its values are none because they are not finite."""
    return (*_mean_reading(dense, name), *_readings(sparse, name)), _nonfinite(dense, sparse, name)


def _mean_reading(blocks: list[Block], name: str) -> list[Reading]:
    columns = [block.columns[name] for block in blocks if name in block.columns]
    if not columns:
        return []
    values = np.concatenate(columns).astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return []
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    last = blocks[-1]
    return [Reading(int(last.steps[-1]), int(last.samples[-1]), float(values.mean()), error, len(values))]


def _readings(blocks: list[tuple[str, Block]], name: str) -> list[Reading]:
    return [
        Reading(int(step), int(samples), float(value))
        for key, block in blocks
        if key == name
        for step, samples, value in zip(block.steps, block.samples, block.columns[name], strict=True)
        if np.isfinite(value)
    ]


def _nonfinite(dense: list[Block], sparse: list[tuple[str, Block]], name: str) -> int:
    """How many values of the metric were not finite; a hyper-parameter that was not reported is none of them."""
    if name.startswith("hp/"):
        return 0
    columns = [block.columns[name] for block in dense if name in block.columns]
    columns += [block.columns[name] for key, block in sparse if key == name]
    return sum(int(np.count_nonzero(~np.isfinite(column))) for column in columns)


def _medians(times: list[Times]) -> tuple[float, ...]:
    """The median of each rank's times; none at all unless every rank has one."""
    if not times:
        return ()
    own = np.concatenate(times, axis=1)
    finite = np.isfinite(own)
    if not finite.any(axis=1).all():
        return ()
    # nanmedian takes 0.7 ms for two ranks, and a time is rarely missing
    medians = np.median(own, axis=1) if finite.all() else np.nanmedian(np.where(finite, own, np.nan), axis=1)
    return tuple(map(float, medians))


def _payload(run: str, dense: Block, sparse: Iterable[tuple[str, Block]]) -> dict[str, Any]:
    def points(block: Block) -> dict[str, Any]:
        return {"step": block.steps.tolist(), "samples": block.samples.tolist(), "time": block.times.tolist()}

    series: Mapping[str, list[float]] = {name: column.tolist() for name, column in dense.columns.items()}
    single = {name: points(block) | {"value": block.columns[name].tolist()} for name, block in sparse}
    return {"run": run} | points(dense) | {"series": series, "sparse": single}
