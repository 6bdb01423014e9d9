"""Where in a file of metrics each chunk lies; kept in memory and extended as the file grows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.controller.metrics.block import key_of
from trimtab.controller.metrics.format import (
    Frame,
    Kind,
    decode_ids,
    decode_keys,
    decode_points,
    decode_rewind,
    decode_summary,
    frames,
    last_step,
)

# One record a chunk: rows of the same metrics, as they were appended, or of one level of a summary. Positions count
# words of 4 bytes, the unit in which frames are aligned.
CHUNK = np.dtype(
    [
        ("at", np.int64),  # first time offset [words]; the columns of n values follow
        ("rows", np.int64),
        ("layout", np.int64),  # number of its columns' tuple in `Index.layouts`
        ("limit", np.int64),  # rows at later steps are void
        ("level", np.int64),  # 0: as appended; 1, 2, ...: a summary's
        ("stands_for", np.int64),  # rows as appended
        ("segment", np.int64),  # number of the summary that it belongs to or is covered by; NONE: by no valid one
        ("time", np.float64),  # what the offsets are added to [unix s]
        ("step", np.int64),
        ("step_stride", np.int64),
        ("step_width", np.int64),  # bytes a row of the rest, 0: none
        ("samples", np.int64),
        ("samples_stride", np.int64),
        ("samples_width", np.int64),
    ]
)
Chunks = NDArray[np.void]

NONE = -1
_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Segment:
    """A summary that is valid, and the chunks that it covers."""

    group: tuple[str, ...]
    last: int  # step
    levels: range  # its own chunks
    covers: list[int]


class Index:
    """The chunks, in file order, and the names of columns."""

    def __init__(self) -> None:
        self.end = 0  # of the intact frames [bytes]
        self.epoch = 0  # the highest so far
        self.names: dict[int, str] = {}
        self.layouts: list[tuple[str, ...]] = []
        self.chunks: Chunks = np.empty(0, CHUNK)
        self.segments: dict[int, Segment] = {}
        self.uncovered: dict[tuple[str, ...], list[int]] = {}  # chunks that no summary covers, by their metrics
        self.summaries = 0  # valid or not
        self._known: dict[bytes, tuple[int, tuple[str, ...]]] = {}  # columns' ids -> layout, metrics

    def extend(self, fd: int) -> None:
        """Take in the intact frames that were added to the file since the last call."""
        new: list[tuple[float, ...]] = []
        rewinds: list[tuple[int, int]] = []  # (chunks before it, step)
        known = len(self.chunks)
        changed: dict[int, int] = {}  # chunk -> segment
        void: list[int] = []
        for frame in frames(fd, self.end):
            self.end = frame.end
            if frame.epoch < self.epoch:
                continue
            self.epoch = frame.epoch
            if frame.kind == Kind.KEYS:
                self.names |= decode_keys(frame.body)
            elif frame.kind == Kind.POINTS:
                chunk, group = self._chunk(frame.body, frame.start)
                self.uncovered.setdefault(group, []).append(known + len(new))
                new.append(chunk)
            elif frame.kind == Kind.SUMMARY:
                new += self._summary(frame, known + len(new), changed)
            elif frame.kind == Kind.REWIND:
                step = decode_rewind(frame.body)
                rewinds.append((known + len(new), step))
                void += self._rewind(step, changed)
        if new:
            self.chunks = np.concatenate([self.chunks, np.array(new, CHUNK)])
        limits = self.chunks["limit"]
        for count, step in rewinds:
            limits[:count] = np.minimum(limits[:count], step)
        limits[void] = NONE
        self.chunks["segment"][list(changed)] = list(changed.values())

    def _summary(self, frame: Frame, first: int, changed: dict[int, int]) -> list[tuple[float, ...]]:
        """The chunks of a summary, whose first is number `first`; those that it covers are told so."""
        rows, bodies = decode_summary(frame.body)
        number, self.summaries = self.summaries, self.summaries + 1
        found = []
        for level, (body, start) in enumerate(bodies, 1):
            chunk, group = self._chunk(body, frame.start + start, level, rows, number)
            found.append(chunk)
        covers, last = self.uncovered.pop(group, []), last_step(body)
        self.segments[number] = Segment(group, last, range(first, first + len(found)), covers)
        changed |= dict.fromkeys(covers, number)
        return found

    def _rewind(self, step: int, changed: dict[int, int]) -> list[int]:
        """Void the summaries that reach beyond `step`; their chunks."""
        void: list[int] = []
        for number in [number for number, segment in self.segments.items() if segment.last > step]:
            segment = self.segments.pop(number)
            changed |= dict.fromkeys(segment.covers, NONE)
            self.uncovered[segment.group] = sorted(segment.covers + self.uncovered.get(segment.group, []))
            void += segment.levels
        return void

    def _chunk(
        self, body: bytes, start: int, level: int = 0, stands_for: int | None = None, segment: int = NONE
    ) -> tuple[tuple[float, ...], tuple[str, ...]]:
        """A chunk and its metrics."""
        head, ids, times = decode_points(body)
        if ids not in self._known:
            columns = tuple(self.names[number] for number in decode_ids(ids))
            self._known[ids] = len(self.layouts), tuple(sorted({key_of(column) for column in columns}))
            self.layouts.append(columns)
        layout, group = self._known[ids]
        stands_for = head.rows if stands_for is None else stands_for
        return ((start + times) // 4, head.rows, layout, _NO_LIMIT, level, stands_for, segment, *head[2:]), group
