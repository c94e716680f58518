"""Reading files that may be hostile: plain ones alone, never through a link, never more than a stated number of bytes.

A path's last two parts - folder and file - are opened without following links, so that neither can lead elsewhere. A
file is looked at before it is read, and read once: a FIFO does not block, a device is not touched, a file that is too
large costs nothing. Every refusal is a BundleRefused that names the file.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compile.errors import BundleRefused

CHUNK = 1 << 20


def read(path: Path, limit: int) -> bytes:
    """The whole file, of at most `limit` bytes."""
    with _opened(path) as (handle, size):
        if size > limit:
            raise BundleRefused(f"{path}: has {size} bytes; {limit} are the limit")
        data = _taken(handle, limit + 1)
    if len(data) > limit:
        raise BundleRefused(f"{path}: grew beyond {limit} bytes while it was read")
    return data


def read_optional(path: Path, limit: int) -> bytes | None:
    """As `read`; None where there is nothing of that name."""
    return read(path, limit) if os.path.lexists(path) else None


def read_exactly(path: Path, size: int, sha256: str) -> bytes:
    """The file's content, which has that size and hash."""
    with _opened(path) as (handle, present):
        _refuse_size(path, present, size)
        data = _taken(handle, size + 1)
    _refuse_size(path, len(data), size)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _altered(path)
    return data


def verify(path: Path, size: int, sha256: str) -> None:
    """As `read_exactly`, in a megabyte of memory."""
    digest, seen = hashlib.sha256(), 0
    with _opened(path) as (handle, present):
        _refuse_size(path, present, size)
        while chunk := os.read(handle, min(CHUNK, size - seen + 1)):
            digest.update(chunk)
            seen += len(chunk)
            if seen > size:
                break
    _refuse_size(path, seen, size)
    if digest.hexdigest() != sha256:
        raise _altered(path)


def listed(folder: Path, limit: int) -> list[str]:
    """The names in the folder, sorted; of a folder with more than `limit`, the first ones that were met and one more."""
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > limit:
                    break
    except OSError as failure:
        raise BundleRefused(f"{folder}: {failure.strerror}") from None
    return sorted(names)


def refuse_special(path: Path) -> None:
    """A link, folder, FIFO, socket or device, or nothing at all, is not a plain file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        raise BundleRefused(f"{path}: is missing") from None
    except OSError as failure:
        raise BundleRefused(f"{path}: {failure.strerror}") from None
    if not stat.S_ISREG(mode):
        raise BundleRefused(f"{path}: is not a plain file")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """(descriptor, size) of a plain file."""
    folder = _open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, None)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        refuse_special(path)  # before it is opened: opening a device can have effects
        handle = _open(path, flags, folder)
    finally:
        os.close(folder)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise BundleRefused(f"{path}: is not a plain file")
        yield handle, found.st_size
    except OSError as failure:
        raise BundleRefused(f"{path}: {failure.strerror}") from None
    finally:
        os.close(handle)


def _open(path: Path, flags: int, folder: int | None) -> int:
    try:
        return os.open(path if folder is None else path.name, flags, dir_fd=folder)
    except OSError as failure:
        reason = "is a link" if path.is_symlink() else failure.strerror
        raise BundleRefused(f"{path}: {reason}") from None


def _taken(handle: int, most: int) -> bytes:
    """The rest of the file, but no more than `most` bytes."""
    chunks = []
    while most > 0 and (chunk := os.read(handle, min(CHUNK, most))):
        chunks.append(chunk)
        most -= len(chunk)
    return b"".join(chunks)


def _refuse_size(path: Path, present: int, stated: int) -> None:
    if present != stated:
        raise BundleRefused(f"{path}: has {present} bytes, not {stated}")


def _altered(path: Path) -> BundleRefused:
    return BundleRefused(f"{path}: its content is not what the manifest says")
