"""What outlives a power cut."""

import os
from pathlib import Path


def sync(folder: Path) -> None:
    """Make durable which files it holds; each file's own content is its writer's to sync."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make(folder: Path, mode: int = 0o700) -> None:
    """Make a folder, with those above it that are missing, so that what is synced in it is found after a power cut."""
    if not folder.is_dir():
        make(folder.parent, 0o777)
        folder.mkdir(mode, exist_ok=True)
        sync(folder.parent)
