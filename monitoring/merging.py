"""The lake kept small: the parts of an hour that has passed become one file, and what is too old goes.

`merge` writes the many parts of a folder as one `merged-<digest>.parquet`, whose name is that of its sources' names. Before
it appears its `.sources` does, which hides the sources from readers from the moment on at which the merged file is there;
killed at any point, a folder is read right, and the next run ends what this one began. Sources are deleted GRACE_S later,
so that who listed the folder before can still read them. Nothing is merged in folders that rows still come into.

`retire` deletes what is older than a number of days, after it has put down which rows these are, so that `coppice
reconcile` goes on knowing that they were there.

Both are for one process at a time. In a folder a lock sees to it; a lake in S3 is merged from one place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from time import time

import numpy as np
import pyarrow as pa

from monitoring.lake import HOUR_US, OUTCOMES, RETIRED, models, visible
from monitoring.lake_files import LakeFiles, open_files, put_bytes, put_table, read_bytes, read_table

GRACE_S = 600.0
SETTLED_S = 3600.0  # how long after its end an hour gets no more rows but late ones
MOST_BYTES = 512 << 20  # of the parts that are merged into one

Ranges = dict[str, list[tuple[int, int]]]


@dataclass
class Tidied:
    """What one run did: parts that became merged files; those deleted, for being merged and for their age; rows of the last."""

    merged: int = 0
    into: int = 0
    replaced: int = 0
    retired: int = 0
    retired_rows: int = 0


def tidy(
    lake: str | Path,
    *,
    keep_days: float | None = None,
    now: Callable[[], float] = time,
    grace_s: float = GRACE_S,
    settled_s: float = SETTLED_S,
) -> Tidied:
    """End what an earlier run began, retire what is older than `keep_days`, merge what is settled."""
    files, done = open_files(lake), Tidied()
    with files.alone():
        for folder, names in list(_folders(files)):
            if keep_days is not None and _ended(folder) < now() - keep_days * 86_400:
                _retire(files, folder, names, done)
                continue
            left = _replace(files, folder, names, now() - grace_s, done)
            if _ended(folder) + settled_s <= now():
                _merge(files, folder, left, done)
    return done


def retired_rows(files: LakeFiles) -> Ranges:
    """By writer, the ranges of seqs, inclusive, that were deleted for their age."""
    found: Ranges = {}
    for path in files.paths(RETIRED):
        for writer, ranges in json.loads(read_bytes(files, path))["rows"].items():
            found.setdefault(writer, []).extend((first, last) for first, last in ranges)
    return found


def ranges_of(seqs: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[tuple[int, int]]:
    """Of ascending, distinct numbers.

    >>> ranges_of(np.array([1, 2, 3, 7, 9, 10]))
    [(1, 3), (7, 7), (9, 10)]
    """
    if not len(seqs):
        return []
    breaks = np.flatnonzero(np.diff(seqs) > 1)
    first, last = seqs[np.concatenate([[0], breaks + 1])], seqs[np.concatenate([breaks, [len(seqs) - 1]])]
    return list(zip(first.tolist(), last.tolist(), strict=True))


def _folders(files: LakeFiles) -> Iterator[tuple[str, list[str]]]:
    """(folder of an hour of rows or a day of outcomes, its files)."""
    paths = [path for model in models(files) for path in files.paths(f"model={model}")]
    for folder, found in groupby([*paths, *files.paths(OUTCOMES)], key=lambda path: path.rpartition("/")[0]):
        yield folder, list(found)


def _ended(folder: str) -> float:
    """When its hour or day ended, in s since 1970.

    >>> _ended("model=m/date=1970-01-02/hour=01"), _ended("_outcomes/date=1970-01-01")
    (93600.0, 86400.0)
    """
    parts = dict(part.split("=", 1) for part in folder.split("/") if "=" in part)
    day = float(np.datetime64(parts["date"], "s").astype(int))
    return day + (int(parts["hour"]) + 1) * HOUR_US / 1e6 if "hour" in parts else day + 86_400


def _merge(files: LakeFiles, folder: str, names: list[str], done: Tidied) -> None:
    for group in _groups(files, visible(files, names)):
        sources = sorted(path.rpartition("/")[2] for path in group)
        digest = hashlib.sha256("\n".join(sources).encode()).hexdigest()[:32]
        rows = pa.concat_tables([read_table(files, path) for path in group], promote_options="default")
        put_bytes(files, f"{folder}/merged-{digest}.sources", "\n".join(sources).encode())
        put_table(files, f"{folder}/merged-{digest}.parquet", rows)
        done.merged += len(group)
        done.into += 1


def _groups(files: LakeFiles, paths: list[str]) -> Iterator[list[str]]:
    """Of several files each, up to MOST_BYTES; what is large already stays as it is."""
    group: list[str] = []
    size = 0
    for info in files.filesystem.get_file_info(paths):
        if info.size >= MOST_BYTES / 2:
            continue
        if size + info.size > MOST_BYTES and len(group) > 1:
            yield group
            group, size = [], 0
        group.append(info.path)
        size += info.size
    if len(group) > 1:
        yield group


def _replace(files: LakeFiles, folder: str, names: list[str], before: float, done: Tidied) -> list[str]:
    """Delete the sources of files merged before that time, then their `.sources`; what is left of the folder."""
    gone: set[str] = set()
    for path in [name for name in names if name.endswith(".sources")]:
        merged = path.removesuffix(".sources") + ".parquet"
        if merged not in names:
            files.delete(path)  # killed before its merged file was there: it hid nothing yet
            gone.add(path)
        elif files.filesystem.get_file_info(merged).mtime_ns / 1e9 <= before:
            sources = [f"{folder}/{name}" for name in read_bytes(files, path).decode().split()]
            for source in sources:
                files.delete(source)
            files.delete(path)
            gone |= {path, *sources}
            done.replaced += len(sources)
    return [name for name in names if name not in gone]


def _retire(files: LakeFiles, folder: str, names: list[str], done: Tidied) -> None:
    parts = visible(files, names)
    if not folder.startswith(OUTCOMES) and parts:
        rows = pa.concat_tables([read_table(files, path, ["writer", "seq"]) for path in parts])
        told = {"folder": folder, "rows": _by_writer(rows)}
        digest = hashlib.sha256("\n".join([folder, *sorted(parts)]).encode()).hexdigest()[:32]
        put_bytes(files, f"{RETIRED}/{digest}.json", json.dumps(told).encode())
        done.retired_rows += len(rows)
    # a merged file that went before its sources would bring them back into view
    for path in sorted(names, key=lambda name: (name.endswith(".sources"), "/merged-" in name)):
        files.delete(path)
    files.prune(folder)
    done.retired += len(parts)


def _by_writer(rows: pa.Table) -> Ranges:
    writers = np.array(rows.column("writer").to_pylist(), dtype=object)
    seqs = rows.column("seq").to_numpy()
    return {writer: ranges_of(np.unique(seqs[writers == writer])) for writer in sorted(set(writers))}
