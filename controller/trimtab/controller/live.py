"""What the controller holds of a run besides its journaled state: records on their way to metrics and readings."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.controller import views
from trimtab.controller.align import Aligner
from trimtab.controller.events import Event, Versioned
from trimtab.controller.history import History, Record
from trimtab.controller.metrics import Block, MetricReader, MetricWriter
from trimtab.controller.noise import Noise, NoiseEstimator
from trimtab.controller.observation import Observation, Reading
from trimtab.controller.records import Records
from trimtab.controller.run import Run, fold
from trimtab.controller.trajectory import Progress

TRACE = 60  # points of the loss kept for the list of runs


class Live:
    """One run in memory. Nothing here is needed to decide the same again: that is all in `run`."""

    def __init__(self, run: Run, metrics: Path, now: float) -> None:
        self.run = run
        self.history = History()
        self.heartbeat = now
        self.ticked = 0.0
        self.shown = 0.0  # when the values were last published
        self.points = 0
        self.ingest_s = 0.0
        self.decide_s = 0.0
        self.ticks = 0
        self.ranks: dict[int, views.RankView]
        self.applied: list[tuple[int, int, int]]  # reports of (rank, version, first step) not yet in the journal
        self.storage = ""  # what is wrong with the metrics' file, if anything is
        self.alarms: set[str] = set()  # places where something has been told to be wrong
        self.losses: deque[float] = deque(_losses(metrics), maxlen=TRACE)
        self.versions = {run.version.number: run.version}
        self.changed = asyncio.Event()  # set and exchanged with every new version
        self._path = metrics
        self._writer: MetricWriter | None = None
        self._dense: list[Block] = []  # since the last tick
        self._sparse: list[tuple[str, Block]] = []
        self._noted = 0  # estimates that the noise scale last stored was made of
        self.reform()

    def reform(self) -> None:
        """Begin where the run stands: forget what is on its way."""
        run = self.run
        self._aligner = Aligner(run.version.batching.world_size)
        self.estimator = NoiseEstimator.restore(run.estimator) if run.estimator else NoiseEstimator()
        self.progress = run.progress
        self.ranks = {}
        self.applied = []
        self.observed()

    def rewind(self) -> None:
        """A formation begins: void the metrics beyond its first step."""
        self.reform()
        self._store(lambda writer: writer.rewind(self.progress.steps))

    @property
    def noise(self) -> Noise | None:
        noise = self.estimator.noise()
        return noise if noise.estimates else None

    def _store(self, action: Callable[[MetricWriter], None]) -> None:
        """Metrics are lossy by contract: what the disk does not take is lost, and steers nothing."""
        try:
            if self._writer is None:
                self._writer = MetricWriter(self._path)
            action(self._writer)
        except OSError as error:
            self.storage = f"metrics are not stored: {error}"

    def _append(self, block: Block) -> None:
        self._store(lambda writer: writer.append(block))

    def flush(self) -> None:
        self.storage = ""
        if self._writer is not None:
            self._store(MetricWriter.flush)

    def close(self) -> None:
        if self._writer is not None:
            self._store(MetricWriter.close)
            self._writer = None

    def follow(self, event: Event, time: float) -> list[Record]:
        """Take in what stands in the journal; the records of the audit that are new or have changed."""
        self.run = fold(self.run, event, time)
        if isinstance(event, Versioned):
            self.versions[event.version.number] = event.version
            self.changed.set()
            self.changed = asyncio.Event()
        return self.history.take(event, time)

    def take(self, records: Records | None, final: bool = False) -> list[dict[str, Any]]:
        """Take in a rank's records; the payloads to publish for what has become final."""
        if records is not None:
            self._aligner.add(records)
            self._rank(records)
        aligned = self._aligner.take(final)
        if aligned is None:
            return []
        self.estimator.update(**aligned.measured)
        dense, sparse, noises = aligned.dense, list(aligned.sparse.items()), []
        if len(dense.steps):
            self._append(dense)
            self._dense.append(dense)
            self.progress = Progress(int(dense.steps[-1]), int(dense.samples[-1]))
            self.losses.append(float(dense.columns["loss"][-1]))
            noises = self._note_noise(dense)
        for name, block in sparse:
            self._append(block)
            self._sparse.append((name, block))
        self.points += len(dense.steps) * len(dense.columns) + sum(len(block.steps) for _, block in sparse)
        return [_payload(self.run.id, dense, sparse + noises)]

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

    def observation(self, run: Run, names: Iterable[str]) -> Observation:
        """The readings of the metrics in `names` since the last observation, and where `run` stands."""
        progress = self.progress
        settings = run.version.at(progress)
        metrics: dict[str, tuple[Reading, ...]] = {}
        for name in names:
            readings = [*_mean_reading(self._dense, name), *_readings(self._sparse, name)]
            if readings:
                metrics[name] = tuple(readings)
        return Observation(
            progress=progress,
            values=settings.values,
            plan=settings.plan,
            rising=run.version.rising(progress),
            horizon=run.horizon,
            metrics=metrics,
            noise=self.noise,
        )

    def observed(self) -> None:
        """The last observation stands in the journal: the next one begins anew."""
        self._dense, self._sparse = [], []


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


def _payload(run: str, dense: Block, sparse: Iterable[tuple[str, Block]]) -> dict[str, Any]:
    def points(block: Block) -> dict[str, Any]:
        return {"step": block.steps.tolist(), "samples": block.samples.tolist(), "time": block.times.tolist()}

    series: Mapping[str, list[float]] = {name: column.tolist() for name, column in dense.columns.items()}
    single = {name: points(block) | {"value": block.columns[name].tolist()} for name, block in sparse}
    return {"run": run} | points(dense) | {"series": series, "sparse": single}
