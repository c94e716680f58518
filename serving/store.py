"""The release store: where bundles and routes are, behind one small protocol.

    <store>/bundles/<digest>/...                      immutable, complete or absent
    <store>/routes/<model>/<generation, 8 digits>.json   created exclusively, never changed

A store is a folder, or `s3://bucket/prefix` (`serving.store_s3`, the extra `s3`). A worker only ever reads a folder: the
folder itself, or the local copy that the sync process keeps of what is in S3.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from compile import bundle
from serving.errors import GenerationTaken, SettingsRefused, StoreUnreachable

REMOTE = "s3://"


class Store(Protocol):
    """Raises StoreUnreachable where the store can't be asked: a wrong answer is never made up from a failure."""

    @property
    def name(self) -> str:
        """For people."""

    def models(self) -> list[str]:
        """The models that have a folder of routes, sorted."""

    def generations(self, model: str) -> list[int]:
        """Every generation of the model, ascending; none where it has no routes."""

    def newest(self, model: str, known: int) -> int:
        """The newest generation; `known` exists already, which makes asking cheap. 0 where there is none."""

    def read(self, model: str, generation: int) -> bytes | None:
        """The generation's file; None where there is none."""

    def create(self, model: str, generation: int, content: bytes) -> str:
        """Its name for people, once it exists for good. Raises GenerationTaken where it exists."""

    def holds(self, digest: str) -> bool:
        """Whether the bundle of that digest is there."""

    def put(self, path: Path) -> None:
        """Copy a bundle into the store. Idempotent. Raises compile's BundleRefused."""

    def fetch(self, digest: str, cache: Path, beat: Callable[[], None]) -> Path:
        """The bundle as a folder of this host, verified; `beat` is called now and then. Raises BundleRefused."""


Where = str | Path | Store


def open_store(where: Where) -> Store:
    """Raises SettingsRefused, or ModuleNotFoundError where the extra is not installed."""
    if isinstance(where, Path):
        return FolderStore(where)
    if not isinstance(where, str):
        return where
    if not where.startswith(REMOTE):
        return FolderStore(Path(where))
    bucket, _, prefix = where.removeprefix(REMOTE).partition("/")
    if not bucket:
        raise SettingsRefused(f"COPPICE_STORE: {where!r} names no bucket; s3://BUCKET/PREFIX is the form")
    from serving.store_s3 import S3Store

    return S3Store(bucket, prefix.strip("/"))


def local_folder(where: str, traffic: Path) -> Path:
    """Where workers find routes and bundles: the folder, or the local copy of what is in S3."""
    return traffic / "releases" if where.startswith(REMOTE) else Path(where)


class FolderStore:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)

    def models(self) -> list[str]:
        try:
            with os.scandir(self.folder / "routes") as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        except FileNotFoundError:
            if self.folder.is_dir():
                return []
            raise StoreUnreachable(
                f"{self.folder}: is no folder; `coppice compile NAME@champion`, then `coppice routes publish NAME "
                "--arm champion=DIGEST` make one"
            ) from None
        except OSError as failure:
            raise StoreUnreachable(f"{failure.filename}: {failure.strerror}") from None

    def generations(self, model: str) -> list[int]:
        try:
            with os.scandir(self.folder / "routes" / model) as entries:
                return sorted(number for entry in entries if (number := generation_of(entry.name)))
        except FileNotFoundError:
            return []
        except OSError as failure:
            raise StoreUnreachable(f"{failure.filename}: {failure.strerror}") from None

    def newest(self, model: str, known: int) -> int:
        """One look at the next number, where one is known: a generation is never skipped."""
        if not known or not _is_there(self._path(model, known)):
            return max(self.generations(model), default=0)
        while _is_there(self._path(model, known + 1)):
            known += 1
        return known

    def read(self, model: str, generation: int) -> bytes | None:
        try:
            return self._path(model, generation).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as failure:
            raise StoreUnreachable(f"{failure.filename}: {failure.strerror}") from None

    def create(self, model: str, generation: int, content: bytes) -> str:
        """link(2) is exclusive as O_EXCL is, and gives the name to a file that is already whole and synced."""
        path = self._path(model, generation)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(draft, 0o644)
                os.link(draft, path)
            finally:
                os.unlink(draft)
            directory = os.open(path.parent, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        except FileExistsError:
            raise GenerationTaken(f"{model}: generation {generation} was just published by another") from None
        except OSError as failure:
            raise StoreUnreachable(f"{path}: can't be written: {failure.strerror}") from None
        return str(path)

    def holds(self, digest: str) -> bool:
        return (self._bundle(digest) / bundle.MANIFEST).is_file()

    def put(self, path: Path) -> None:
        bundle.publish(path, self.folder)

    def fetch(self, digest: str, cache: Path, beat: Callable[[], None]) -> Path:  # noqa: ARG002
        """In place: a folder store is served where it is."""
        path = self._bundle(digest)
        bundle.read(path)
        return path

    def _bundle(self, digest: str) -> Path:
        return bundle.locate(self.folder, digest)

    def _path(self, model: str, generation: int) -> Path:
        return self.folder / "routes" / model / file_name(generation)


def file_name(generation: int) -> str:
    return f"{generation:08d}.json"


def generation_of(name: str) -> int:
    """The number that the file's name says; 0 where it is no generation's."""
    stem, dot, ending = name.partition(".")
    return int(stem) if (dot, ending) == (".", "json") and stem.isascii() and stem.isdigit() else 0


def _is_there(path: Path) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as failure:
        raise StoreUnreachable(f"{path}: {failure.strerror}") from None
    return True
