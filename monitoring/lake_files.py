"""Where a lake is: a folder, or s3://BUCKET/PREFIX. Files appear whole or not at all, and are read with their checksums.

In a folder a file is written as a draft, synced, read back and renamed. In S3 it is one object, which a PUT makes whole.
Address and credentials of S3 are the AWS client's own business: AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE and so on.
Names that begin with a dot are nobody's to read.

Parquet has checksums for pages and none for its footer, in which one flipped bit can hide rows, or end a process that trusts
it. So a file has b"FCRC" and the CRC32 of all that follows, little-endian, between its last page and its footer, and no
footer is parsed before it was compared. Files of older releases have no such mark, and are read as they are.
"""

from __future__ import annotations

import fcntl
import io
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from monitoring.errors import LakeRefused

ROW_GROUP = 131_072
MARK = b"FCRC"
TAIL = 1 << 16  # bytes, which hold most footers


class LakeFiles(Protocol):
    """`name` is for people; `filesystem` for pyarrow, rooted at the lake; paths are relative, with `/`."""

    name: str
    filesystem: Any

    def paths(self, under: str = "") -> list[str]: ...

    def folders(self, under: str = "") -> list[str]:
        """The names of the folders right below."""
        ...

    def put(self, path: str, content: Callable[[Any], None], check: Callable[[Any], bool]) -> None:
        """Whole and safe on its disk, or not there. `content` writes to a binary file; `check` reads what was written."""
        ...

    def delete(self, path: str) -> None:
        """Without complaint where it is gone."""
        ...

    def prune(self, folder: str) -> None:
        """Remove the folder, and those it is in, as far as they are empty."""
        ...

    def alone(self) -> Any:
        """A context that one process has at a time; others wait."""
        ...


def open_files(address: str | Path) -> LakeFiles:
    """Raises LakeRefused for an address that can't be one."""
    text = str(address)
    if "://" not in text:
        return _Folder(Path(text))
    told = urlsplit(text)
    if told.scheme != "s3" or not told.netloc:
        raise LakeRefused(f"{text}: a lake is a folder, or s3://BUCKET/PREFIX")
    return _Bucket(told.netloc, told.path.strip("/"))


def put_table(files: LakeFiles, path: str, rows: pa.Table) -> None:
    """As zstd Parquet with a checksum on every page. Raises LakeRefused where it does not read back as it was written."""

    def content(file: Any) -> None:
        pq.write_table(rows, file, compression="zstd", write_page_checksum=True, row_group_size=ROW_GROUP)
        _mark_footer(file)

    def check(file: Any) -> bool:
        return _same(pq.read_table(file, page_checksum_verification=True), rows)

    files.put(path, content, check)


def put_bytes(files: LakeFiles, path: str, data: bytes) -> None:
    files.put(path, lambda file: file.write(data), lambda file: file.read() == data)


def read_table(files: LakeFiles, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Raises LakeRefused, naming the file, where a checksum is wrong or it can't be read."""
    try:
        # by handle: given a path, pyarrow would read partition columns out of the folders' names
        with files.filesystem.open_input_file(path) as file:
            _check_footer(file, f"{files.name}/{path}")
            wanted = list(columns) if columns is not None else None
            return pq.read_table(file, columns=wanted, page_checksum_verification=True).combine_chunks()
    except (OSError, pa.ArrowException) as spoiled:
        raise LakeRefused(f"{files.name}/{path}: {spoiled}") from None


def check_footers(files: LakeFiles, paths: Sequence[str]) -> None:
    """To be asked before a scan of these. Raises LakeRefused, naming the file, where a footer is not what was written."""

    def check(path: str) -> None:
        try:
            with files.filesystem.open_input_file(path) as file:
                _check_footer(file, f"{files.name}/{path}")
        except OSError as refused:
            raise LakeRefused(f"{files.name}/{path}: {refused}") from None

    if "://" in files.name:
        with ThreadPoolExecutor(16) as several:
            list(several.map(check, paths))
    else:
        for path in paths:
            check(path)


def read_bytes(files: LakeFiles, path: str) -> bytes:
    """Raises FileNotFoundError, and LakeRefused for what else is wrong."""
    try:
        with files.filesystem.open_input_file(path) as file:
            return bytes(file.read())
    except FileNotFoundError:
        raise
    except OSError as refused:
        raise LakeRefused(f"{files.name}/{path}: {refused}") from None


class _Listed:
    name: str
    filesystem: Any

    def paths(self, under: str = "") -> list[str]:
        return sorted(info.path for info in self._infos(under, recursive=True) if info.type == pa.fs.FileType.File)

    def folders(self, under: str = "") -> list[str]:
        found = self._infos(under, recursive=False)
        return sorted(info.base_name for info in found if info.type == pa.fs.FileType.Directory)

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(path)

    def _infos(self, under: str, *, recursive: bool) -> list[Any]:
        asked = pa.fs.FileSelector(under, recursive=recursive, allow_not_found=True)
        try:
            found = self.filesystem.get_file_info(asked)
        except OSError as refused:
            raise LakeRefused(f"{self.name}: {refused}") from None
        return [info for info in found if not any(part.startswith(".") for part in info.path.split("/"))]


class _Folder(_Listed):
    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self.root = root
        self.filesystem = pa.fs.SubTreeFileSystem(str(root.absolute()), pa.fs.LocalFileSystem())

    def put(self, path: str, content: Callable[[Any], None], check: Callable[[Any], bool]) -> None:
        whole = self.root / path
        draft = whole.with_name(f".{whole.name}.draft")
        try:
            whole.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb+") as file:
                content(file)
                file.flush()
                os.fsync(file.fileno())
            with draft.open("rb") as file:
                if not check(file):
                    raise LakeRefused(f"{draft}: does not read back as it was written")
            draft.rename(whole)
            _sync_folder(whole.parent)
        except (OSError, pa.ArrowException) as refused:
            raise LakeRefused(f"{draft}: {refused}") from None

    def prune(self, folder: str) -> None:
        with suppress(OSError):  # not empty, or gone
            for place in [folder, *map(str, Path(folder).parents[:-1])]:
                (self.root / place).rmdir()

    @contextmanager
    def alone(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".compacting").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class _Bucket(_Listed):
    def __init__(self, bucket: str, prefix: str) -> None:
        self.name = f"s3://{bucket}/{prefix}".rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        here: Mapping[str, Any] = {}
        if endpoint:
            told = urlsplit(endpoint)
            here = {"endpoint_override": told.netloc, "scheme": told.scheme}
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        store = pa.fs.S3FileSystem(region=region, connect_timeout=5, request_timeout=60, **here)
        self.filesystem = pa.fs.SubTreeFileSystem(f"{bucket}/{prefix}".rstrip("/"), store)

    def put(self, path: str, content: Callable[[Any], None], check: Callable[[Any], bool]) -> None:
        buffer = io.BytesIO()
        content(buffer)
        buffer.seek(0)
        if not check(buffer):
            raise LakeRefused(f"{self.name}/{path}: does not read back as it was written")
        data = buffer.getvalue()
        try:
            with self.filesystem.open_output_stream(path) as out:
                out.write(data)
            with self.filesystem.open_input_file(path) as stored:
                same = check(io.BytesIO(stored.read()))
        except (OSError, pa.ArrowException) as refused:
            raise LakeRefused(f"{self.name}/{path}: {refused}") from None
        if not same:
            raise LakeRefused(f"{self.name}/{path}: S3 gives back what was not put")

    def prune(self, folder: str) -> None:
        """S3 has no folders."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Merging is for one place at a time (`monitoring.merging`); taking segments needs no lock in S3."""
        yield


def _mark_footer(file: Any) -> None:
    """Put the mark between the last page and the footer, where no reader of Parquet looks."""
    file.seek(-8, io.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(-8 - length, io.SEEK_END)
    tail = file.read()
    file.seek(-len(tail), io.SEEK_END)
    file.write(MARK + zlib.crc32(tail).to_bytes(4, "little") + tail)


def _check_footer(file: Any, name: str) -> None:
    size = file.size()
    file.seek(max(0, size - TAIL))
    tail = file.read()
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < min(size, length + len(MARK) + 4):
        file.seek(max(0, size - length - len(MARK) - 4))
        tail = file.read()
    mark, footer = tail[-length - 8 : -length], tail[-length:]
    if mark[:4] == MARK:
        whole = int.from_bytes(mark[4:], "little") == zlib.crc32(footer)
    else:
        whole = tail.endswith(b"PAR1") and MARK not in tail  # of an older release
    if not whole:
        raise LakeRefused(f"{name}: its footer is spoiled, or the file cut short")
    file.seek(0)


def _same(one: pa.Table, other: pa.Table) -> bool:
    """Bit for bit, so that NaN is what NaN was."""
    if one.schema != other.schema or len(one) != len(other):
        return False
    return all(_same_column(one.column(name), other.column(name)) for name in one.column_names)


def _same_column(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    if pa.types.is_list(one.type):
        if not pc.list_value_length(one).equals(pc.list_value_length(other)):
            return False
        one, other = (pa.chunked_array([part.combine_chunks().flatten()]) for part in (one, other))
    if not pa.types.is_floating(one.type):
        return bool(one.equals(other))
    bits = [(pc.fill_null(part, 0.0) if part.null_count else part).to_numpy().view(np.int64) for part in (one, other)]
    return one.is_null().equals(other.is_null()) and bool(np.array_equal(*bits))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
