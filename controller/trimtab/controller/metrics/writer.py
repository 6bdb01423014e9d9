"""Writes a run's metrics. Lossy by contract: nothing is synced, and a crash loses what was not flushed."""

import os
from pathlib import Path

from trimtab.controller.metrics.block import Block, concatenate
from trimtab.controller.metrics.format import encode_keys, encode_points, encode_rewind
from trimtab.controller.metrics.index import Index

CHUNK_ROWS = 256  # a chunk's own ~100 bytes are then below 1 % of ten metrics


class MetricWriter:
    """Appends to the file `path`, made (mode 0600) if it is missing; a torn tail is cut off.

    Blocks with the same keys are gathered into chunks of at least `CHUNK_ROWS` rows; `flush`, called every few
    seconds, writes what is there. OSError (disk full, say) leaves the file as it was: the chunk at hand is lost and
    counted in `lost`, rewinds and later blocks are not.
    """

    def __init__(self, path: str | Path) -> None:
        self.lost = 0  # points that could not be written
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        index = Index()
        index.extend(self._fd)
        os.ftruncate(self._fd, index.end)
        self._epoch = index.epoch + 1
        self._ids = {name: number for number, name in index.names.items()}
        self._next_id = max(index.names, default=-1) + 1
        self._buffers: dict[tuple[str, ...], list[Block]] = {}
        self._rows: dict[tuple[str, ...], int] = {}
        self._ahead = b""  # definitions and rewinds that must stand before the next chunk

    def append(self, block: Block) -> None:
        """Take a block; it is written with its chunk. Raises OSError if that fails."""
        keys = block.keys
        self._buffers.setdefault(keys, []).append(block)
        self._rows[keys] = self._rows.get(keys, 0) + len(block)
        if self._rows[keys] >= CHUNK_ROWS:
            self._write_chunk(keys)

    def rewind(self, step: int) -> None:
        """The run went back to its checkpoint at `step`: what was appended before at later steps is void."""
        for keys, blocks in self._buffers.items():
            self._buffers[keys] = [block.until(step) for block in blocks]
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

    def _write_chunk(self, keys: tuple[str, ...]) -> None:
        block = concatenate(self._buffers.pop(keys))
        del self._rows[keys]
        if not len(block):
            return
        self._define(keys)
        chunk = encode_points(self._epoch, [self._ids[key] for key in keys], block)
        try:
            self._write(chunk)
        except OSError:
            self.lost += len(block) * len(keys)
            raise

    def _define(self, keys: tuple[str, ...]) -> None:
        new = [key for key in keys if key not in self._ids]
        if not new:
            return
        self._ids |= {key: number for number, key in enumerate(new, self._next_id)}
        self._ahead += encode_keys(self._epoch, self._next_id, new)
        self._next_id += len(new)

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
