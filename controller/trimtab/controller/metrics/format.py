"""The file of a run's metrics: frames, one after another, each a multiple of 4 bytes long. Little endian.

    frame    magic "TTm1" | kind u32 | epoch u32 | length of body u32 | crc32 of all else u32 | body
    KEYS     JSON {"first": id, "names": [...]}: metric `first + i` is called names[i]
    POINTS   head (see `Head`) | id u32 × k | time f32 × n | value f32 × k × n | rest of steps | rest of samples
    REWIND   step i64: every point before this frame that lies at a later step is void
    SUMMARY  n u32 | (length u32 | body as of POINTS) × 3: buckets of 10, 100 and 1000 rows, ascending in step, of the n
             rows of the same metrics in the frames before it that no summary covers yet. Void if its last step is.

A name is that of a metric, or a metric's and a part's with the unit separator (U+001F) between: `min` and `max` over
ranks, or over a bucket's rows and their ranks; `last` of a bucket; the number of a rank. The metric's own column is the
mean. A part that is missing equals it.

A time is `Head.time` plus its offset. Steps and samples are a line, first + i × stride, plus a rest of 0, 1, 2, 4 or 8
bytes a row; consecutive steps have none. What cannot be read to its end, or has a wrong sum, ends the file: a crash
may leave such a torn tail. (Of POINTS that lie far from the end the sum is not looked at: they were on disk long ago.)
Every writer takes an epoch above all before it; frames of an epoch below one that stands before them come from a writer
that was thought dead, and do not count. Kinds that a reader does not know are passed over, so a later version can add
some.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from trimtab.controller.metrics.block import Block
from trimtab.controller.records import Ints


class Kind(IntEnum):
    KEYS = 1
    POINTS = 2
    REWIND = 3
    SUMMARY = 4


class Frame(NamedTuple):
    kind: int
    epoch: int
    body: bytes  # of POINTS that are not looked at to their end what stands before the times
    start: int  # of the body in the file [bytes]
    end: int


class Head(NamedTuple):
    """How a POINTS body begins."""

    rows: int  # n
    keys: int  # k
    time: float  # of the first row [unix s]
    step: int
    step_stride: int
    step_width: int  # bytes a row of the rest
    samples: int
    samples_stride: int
    samples_width: int


CHECKED_BYTES = 64 * 2**20  # before a file's end: more than is written in the half minute that a disk may lag behind
_MAGIC = b"TTm1"
_FRAME = struct.Struct("<4sIII")
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<IIdqqIqqI")
_STEP = struct.Struct("<q")
_COUNT = struct.Struct("<I")
_WIDTHS = (1, 2, 4, 8)


def encode_keys(epoch: int, first: int, names: Sequence[str]) -> bytes:
    return _frame(Kind.KEYS, epoch, json.dumps({"first": first, "names": names}).encode(), fill=b" ")


def encode_rewind(epoch: int, step: int) -> bytes:
    return _frame(Kind.REWIND, epoch, _STEP.pack(step))


def encode_points(epoch: int, ids: Sequence[int], block: Block) -> bytes:
    """The frame of a flat block of at least one row; `ids` are those of its keys, in their order."""
    return _frame(Kind.POINTS, epoch, _points(ids, block))


def encode_summary(epoch: int, rows: int, levels: Sequence[tuple[Sequence[int], Block]]) -> bytes:
    """The frame of a pyramid's levels over so many rows."""
    bodies = [_padded(_points(ids, block)) for ids, block in levels]
    return _frame(Kind.SUMMARY, epoch, _COUNT.pack(rows) + b"".join(_COUNT.pack(len(body)) + body for body in bodies))


def _points(ids: Sequence[int], block: Block) -> bytes:
    step, step_stride, step_rest = _line(block.steps)
    samples, samples_stride, samples_rest = _line(block.samples)
    n, start = len(block), float(block.times[0])
    head = Head(
        n, len(ids), start, step, step_stride, len(step_rest) // n, samples, samples_stride, len(samples_rest) // n
    )
    offsets = (block.times - start).astype("<f4")
    values = [block.columns[key].astype("<f4", copy=False).tobytes() for key in block.keys]
    parts = [_HEAD.pack(*head), np.array(ids, "<u4").tobytes(), offsets.tobytes(), *values, step_rest, samples_rest]
    return b"".join(parts)


def decode_keys(body: bytes) -> dict[int, str]:
    keys = json.loads(body)
    return dict(enumerate(keys["names"], keys["first"]))


def decode_rewind(body: bytes) -> int:
    return int(_STEP.unpack(body)[0])


def decode_points(body: bytes) -> tuple[Head, bytes, int]:
    """The head, the ids as they stand there, and where in the body the times begin [bytes]."""
    head = Head(*_HEAD.unpack_from(body))
    times = _HEAD.size + 4 * head.keys
    return head, body[_HEAD.size : times], times


def decode_ids(ids: bytes) -> list[int]:
    found: list[int] = np.frombuffer(ids, "<u4").tolist()
    return found


def decode_summary(body: bytes) -> tuple[int, list[tuple[bytes, int]]]:
    """The rows it stands for, and each level's body with where in this one it begins [bytes]."""
    (rows,), at = _COUNT.unpack_from(body), _COUNT.size
    levels = []
    while at < len(body):
        (length,) = _COUNT.unpack_from(body, at)
        at += _COUNT.size
        levels.append((body[at : at + length], at))
        at += length
    return rows, levels


def last_step(body: bytes) -> int:
    """The step of the last row of points."""
    head, _, times = decode_points(body)
    line = head.step + head.step_stride * (head.rows - 1)
    rest = times + 4 * head.rows * (1 + head.keys) + head.step_width * (head.rows - 1)
    return line + int.from_bytes(body[rest : rest + head.step_width], "little", signed=True)


def frames(fd: int, start: int = 0) -> Iterator[Frame]:
    """The intact frames from byte `start` on, in order, up to the first that is not."""
    size = os.fstat(fd).st_size
    while start + _FRAME.size + _CRC.size <= size:
        top = os.pread(fd, _FRAME.size + _CRC.size, start)
        magic, kind, epoch, length = _FRAME.unpack_from(top)
        if magic != _MAGIC or start + len(top) + length > size:
            return
        begin = start + len(top)
        start = begin + length
        if kind == Kind.POINTS and start < size - CHECKED_BYTES:
            head = Head(*_HEAD.unpack(os.pread(fd, _HEAD.size, begin)))
            body = os.pread(fd, _HEAD.size + 4 * head.keys, begin)
        else:
            body = os.pread(fd, length, begin)
            if _CRC.unpack_from(top, _FRAME.size)[0] != _sum(top[: _FRAME.size], body):
                return
        yield Frame(kind, epoch, body, begin, start)


def _frame(kind: Kind, epoch: int, body: bytes, fill: bytes = b"\0") -> bytes:
    body = _padded(body, fill)
    top = _FRAME.pack(_MAGIC, kind, epoch, len(body))
    return top + _CRC.pack(_sum(top, body)) + body


def _padded(body: bytes, fill: bytes = b"\0") -> bytes:
    return body + fill * (-len(body) % 4)


def _sum(top: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(top))


def _line(values: Ints) -> tuple[int, int, bytes]:
    """First, stride and the packed rest of a column that is nearly a line."""
    first, n = int(values[0]), len(values)
    stride = (int(values[-1]) - first) // max(n - 1, 1)
    rest = values - (first + stride * np.arange(n, dtype=np.int64))
    if not rest.any():
        return first, stride, b""
    width = next(w for w in _WIDTHS if -(1 << 8 * w - 1) <= rest.min() and rest.max() < 1 << 8 * w - 1)
    return first, stride, rest.astype(f"<i{width}").tobytes()
