"""The files of blocks that a log appends to, one after the other: in open/ while one grows, in sealed/ once it is full or old.

Traffic and outcomes are kept in such files; what they do about a disk that refuses, and when they sync, is theirs.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic


class Appending:
    """One writer's files `<folder>/open/<writer>-<n><suffix>`. One thread's. What the disk refuses is raised as OSError."""

    def __init__(
        self, folder: Path, writer: str, *, suffix: str, magic: bytes, rotate_bytes: int, rotate_s: float
    ) -> None:
        self.path = Path()
        self.size = 0  # of the present file
        self.written = 0  # bytes, to all of them
        self._folder = folder
        self._writer = writer
        self._suffix = suffix
        self._magic = magic
        self._rotate_bytes = rotate_bytes
        self._rotate_s = rotate_s
        self._number = 0
        self._handle = -1
        self._opened = 0.0

    @property
    def is_open(self) -> bool:
        return self._handle >= 0

    @property
    def is_due(self) -> bool:
        """It is as large or as old as it may become."""
        return self.is_open and (self.size >= self._rotate_bytes or monotonic() - self._opened >= self._rotate_s)

    def append(self, block: bytes) -> None:
        """All of it or, by truncation to where it began, none of it. Not synced."""
        if not self.is_open:
            self._open()
        self._write_whole(block)

    def sync(self) -> None:
        os.fsync(self._handle)

    def sync_name(self) -> None:
        """That there is such a file survives a power cut."""
        _sync_folder(self.path.parent)

    def cut(self, size: int) -> None:
        os.ftruncate(self._handle, size)
        self.size = size

    def close(self) -> None:
        """It is closed even if this raises."""
        handle, self._handle = self._handle, -1
        os.close(handle)

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def seal(self) -> None:
        """Close, rename to sealed/, sync both folders: a file that was synced is then complete, power cut or not."""
        self.close()
        sealed = self._folder / "sealed"
        sealed.mkdir(parents=True, exist_ok=True)
        self.path.rename(sealed / self.path.name)
        for folder in (sealed, self.path.parent):
            _sync_folder(folder)

    def _open(self) -> None:
        self.path = self._folder / "open" / f"{self._writer}-{self._number:06d}{self._suffix}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._number += 1
        self.size = 0
        self._opened = monotonic()
        try:
            self._write_whole(self._magic)
        except OSError:
            self.discard()
            raise

    def _write_whole(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError:
            os.ftruncate(self._handle, self.size)
            raise
        self.size += len(data)
        self.written += len(data)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
