"""Where a lake is: a folder, or s3://BUCKET/PREFIX. Files appear whole or not at all, and are read with their checksums.

In a folder a file is written as a draft, synced, read back and renamed. In S3 it is one object, which a PUT makes whole.
Address and credentials of S3 are the AWS client's own business: AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE and so on.
Names that begin with a dot are nobody's to read.
"""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
            wanted = list(columns) if columns is not None else None
            return pq.read_table(file, columns=wanted, page_checksum_verification=True).combine_chunks()
    except (OSError, pa.ArrowException) as spoiled:
        raise LakeRefused(f"{files.name}/{path}: {spoiled}") from None


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
            with draft.open("wb") as file:
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

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Merging is for one place at a time (`monitoring.merging`); taking segments needs no lock in S3."""
        yield


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
    bits = [pc.fill_null(part, 0.0).to_numpy().view(np.int64) for part in (one, other)]
    return one.is_null().equals(other.is_null()) and bool(np.array_equal(*bits))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
