"""Where in a file of metrics each chunk lies; kept in memory and extended as the file grows."""

import numpy as np
from numpy.typing import NDArray

from trimtab.controller.metrics.format import Kind, decode_keys, decode_points, decode_rewind, frames

# One record a chunk. Positions count words of 4 bytes, the unit in which frames are aligned.
CHUNK = np.dtype(
    [
        ("at", np.int64),  # first time offset [words]; the columns of n values follow
        ("rows", np.int64),
        ("layout", np.int64),  # number of its keys' tuple in `Index.layouts`
        ("limit", np.int64),  # rows at later steps are void
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

_NO_LIMIT = np.iinfo(np.int64).max


class Index:
    """The chunks, in file order, and the names of metrics."""

    def __init__(self) -> None:
        self.end = 0  # of the intact frames [bytes]
        self.epoch = 0  # the highest so far
        self.names: dict[int, str] = {}
        self.layouts: list[tuple[str, ...]] = []
        self.chunks: Chunks = np.empty(0, CHUNK)
        self._layout_numbers: dict[tuple[str, ...], int] = {}

    def extend(self, fd: int) -> None:
        """Take in the intact frames that were added to the file since the last call."""
        new: list[tuple[float, ...]] = []
        rewinds: list[tuple[int, int]] = []  # (chunks before it, step)
        for frame in frames(fd, self.end):
            self.end = frame.end
            if frame.epoch < self.epoch:
                continue
            self.epoch = frame.epoch
            if frame.kind == Kind.KEYS:
                self.names |= decode_keys(frame.body)
            elif frame.kind == Kind.POINTS:
                new.append(self._chunk(frame.body, frame.start))
            elif frame.kind == Kind.REWIND:
                rewinds.append((len(self.chunks) + len(new), decode_rewind(frame.body)))
        if new:
            self.chunks = np.concatenate([self.chunks, np.array(new, CHUNK)])
        limits = self.chunks["limit"]
        for count, step in rewinds:
            limits[:count] = np.minimum(limits[:count], step)

    def _chunk(self, body: bytes, start: int) -> tuple[float, ...]:
        head, ids, times = decode_points(body)
        keys = tuple(self.names[number] for number in ids)
        layout = self._layout_numbers.setdefault(keys, len(self.layouts))
        if layout == len(self.layouts):
            self.layouts.append(keys)
        return ((start + times) // 4, head.rows, layout, _NO_LIMIT, *head[2:])
