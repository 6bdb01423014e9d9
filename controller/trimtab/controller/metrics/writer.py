"""Writes a run's metrics. Lossy by contract: nothing is synced, and a crash loses what was not flushed."""

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from trimtab.controller.metrics.block import Block, concatenate
from trimtab.controller.metrics.format import encode_keys, encode_points, encode_rewind, encode_summary
from trimtab.controller.metrics.pyramid import SEGMENT_ROWS, summaries
from trimtab.controller.metrics.reader import MetricReader

CHUNK_ROWS = 256  # a chunk's own ~100 bytes are then below 1 % of ten metrics


class MetricWriter:
    """Appends to the file `path`, made (mode 0600) if it is missing; a torn tail is cut off.

    Blocks with the same keys are gathered into chunks of at least `CHUNK_ROWS` rows; `flush`, called every few
    seconds, writes what is there. Once `SEGMENT_ROWS` rows are written they are summarised. OSError (disk full, say)
    leaves the file as it was: the chunk at hand is lost and counted in `lost`, rewinds and later blocks are not.
    """

    def __init__(self, path: str | Path, summarise: bool = True) -> None:
        self.lost = 0  # points that could not be written
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        reader = MetricReader(path)
        os.ftruncate(self._fd, reader.end)
        self._epoch = reader.epoch + 1
        self._ids = {name: number for number, name in reader.names.items()}
        self._next_id = max(reader.names, default=-1) + 1
        self._buffers: dict[tuple[str, ...], list[Block]] = {}
        self._rows: dict[tuple[str, ...], int] = {}
        self._ahead = b""  # definitions and rewinds that must stand before the next chunk
        self._summarises = summarise
        self._uncovered: dict[tuple[str, ...], list[Block]] = {}  # written, not yet summarised
        self._summarised = 0  # the highest step in a summary
        self._stale = False  # a rewind has voided summaries: rows that they covered are covered no more
        if summarise:
            self._recall(reader)
        reader.close()

    def append(self, block: Block) -> None:
        """Take a block; it is written with its chunk. Raises OSError if that fails."""
        keys = block.keys
        self._buffers.setdefault(keys, []).append(block)
        self._rows[keys] = self._rows.get(keys, 0) + len(block)
        if self._rows[keys] >= CHUNK_ROWS:
            self._write_chunk(keys)

    def rewind(self, step: int) -> None:
        """The run went back to its checkpoint at `step`: what was appended before at later steps is void."""
        for blocks in (*self._buffers.values(), *self._uncovered.values()):
            blocks[:] = [block.until(step) for block in blocks]
        self._stale |= self._summarised > step
        self._ahead += encode_rewind(self._epoch, step)
        self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system, from where readers see it."""
        for keys in tuple(self._buffers):
            self._write_chunk(keys)
        self._write(b"")

    def close(self) -> None:
        """Flush and close; closing twice does no harm."""
        if self._fd < 0:
            return
        try:
            self.flush()
        finally:
            os.close(self._fd)
            self._fd = -1

    def _recall(self, reader: MetricReader) -> None:
        """Know what is summarised and what is not, from the file."""
        self._uncovered = {keys: [block] for keys, block in reader.uncovered().items()}
        self._summarised = reader.summarised
        self._stale = False

    def _write_chunk(self, keys: tuple[str, ...]) -> None:
        block = concatenate(self._buffers.pop(keys))
        del self._rows[keys]
        if not len(block):
            return
        flat = block.flat()
        ids = self._define(flat.keys)
        try:
            self._write(encode_points(self._epoch, ids, flat))
        except OSError:
            self.lost += len(block) * len(keys)
            raise
        if not self._summarises:
            return
        self._uncovered.setdefault(keys, []).append(block)
        if sum(map(len, self._uncovered[keys])) >= SEGMENT_ROWS:
            self._summarise(keys)

    def _summarise(self, keys: tuple[str, ...]) -> None:
        """Write the summary of what is written; if that fails it is tried again with the next chunk."""
        if self._stale:
            with closing(MetricReader(self._path)) as reader:
                self._recall(reader)
        block = concatenate(self._uncovered[keys])
        levels = [(self._define(level.keys), level) for level in summaries(block)]
        self._write(encode_summary(self._epoch, len(block), levels))
        del self._uncovered[keys]
        self._summarised = max(self._summarised, int(block.steps.max()))

    def _define(self, columns: Sequence[str]) -> list[int]:
        """The columns' numbers; those that are new are told first."""
        new = [column for column in columns if column not in self._ids]
        if new:
            self._ids |= {column: number for number, column in enumerate(new, self._next_id)}
            self._ahead += encode_keys(self._epoch, self._next_id, new)
            self._next_id += len(new)
        return [self._ids[column] for column in columns]

    def _write(self, chunk: bytes) -> None:
        left = memoryview(self._ahead + chunk)
        if not left:
            return
        end = os.fstat(self._fd).st_size
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            os.ftruncate(self._fd, end)  # readers stop at a torn frame: nothing may follow one
            raise
        self._ahead = b""
