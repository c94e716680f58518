"""Finished segments become parts of the lake: each row once, whenever this is killed and however often it is run.

A part's name is its segment's, so compacting one twice - killed half-way, run from two places - writes the same part twice
and no row twice; rows whose (writer, seq) another part of that hour holds already are left out all the same. A segment is
deleted only after its parts were synced and read back, with their checksums, equal in every column. One with a spoiled block
in its middle moves to `damaged/` instead: nothing readable is lost, nothing unreadable is hidden.

Outcomes go the same way, into folders by the day on which they were received.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monitoring.lake import HOUR_US, OUTCOMES, visible
from monitoring.lake_files import LakeFiles, open_files, put_table, read_table
from monitoring.segments import finished, live_writers, outcomes_of, rows_of, writer_of


@dataclass
class Compacted:
    """What one run did. `bad_bytes` could not be read; `duplicates` were in the lake already. `parts` are paths in the lake."""

    segments: int = 0
    salvaged: int = 0
    rows: int = 0
    duplicates: int = 0
    outcomes: int = 0
    bad_bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def add(self, other: Compacted) -> None:
        for told in fields(self):
            setattr(self, told.name, getattr(self, told.name) + getattr(other, told.name))


def compact(traffic: Path, lake: str | Path) -> Compacted:
    """Move every finished segment into the lake. Idempotent; a second run at the same time waits for the first.

    Writers' segments are taken side by side, a writer's own one after the other: each may hold rows that another has.
    """
    files, done = open_files(lake), Compacted()
    traffic.mkdir(parents=True, exist_ok=True)
    with _alone(traffic), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as several:
        alive = live_writers(traffic)
        segments = sorted(finished(traffic, ".seg", alive), key=lambda found: writer_of(found[0]))
        by_writer = [list(found) for _, found in groupby(segments, key=lambda found: writer_of(found[0]))]
        for taken in several.map(lambda found: [_segment(files, *each) for each in found], by_writer):
            for part in taken:
                done.add(part)
        for path, salvage in finished(traffic / "outcomes", ".out", alive):
            done.add(_outcomes(files, path, salvage))
    return done


def put_outcomes(files: LakeFiles, name: str, outcomes: pa.Table) -> list[str]:
    """Into the folders of the days on which they were received, as parts of this name; the paths."""
    paths = []
    for folder, rows in by_day(outcomes):
        paths.append(f"{folder}/part-{name}.parquet")
        put_table(files, paths[-1], rows)
    return paths


def by_hour(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """(folder of the lake, its rows without the column `model`, in the order in which they were put)."""
    hours = pc.divide(rows.column("ts_us"), HOUR_US).to_numpy()
    models, names = _numbered(rows.column("model"))
    for model, hour in sorted(set(zip(*np.divmod(np.unique(models << 32 | hours), 1 << 32), strict=True))):
        mine = (models == model) & (hours == hour)
        chosen = rows if mine.all() else rows.filter(pa.array(mine))
        when = datetime.fromtimestamp(int(hour) * 3600, UTC)
        yield f"model={names[model]}/date={when:%Y-%m-%d}/hour={when:%H}", chosen.drop_columns(["model"])


def by_day(outcomes: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    days = pc.divide(outcomes.column("received_us"), 24 * HOUR_US)
    for day in sorted(pc.unique(days).to_pylist()):
        when = datetime.fromtimestamp(day * 86_400, UTC)
        yield f"{OUTCOMES}/date={when:%Y-%m-%d}", outcomes.filter(pc.equal(days, day))


def _segment(files: LakeFiles, path: Path, salvage: bool) -> Compacted:
    done = Compacted(segments=1, salvaged=int(salvage))
    rows, bad_bytes, torn_tail = rows_of(path)
    for folder, found in by_hour(rows) if rows is not None else ():
        part = f"{folder}/part-{path.stem}.parquet"
        fresh = _without_known(files, folder, part, found)
        done.duplicates += len(found) - len(fresh)
        if len(fresh):
            put_table(files, part, fresh)
            done.rows += len(fresh)
            done.parts.append(part)
    _end(path, bad_bytes, salvage and torn_tail, done)
    return done


def _outcomes(files: LakeFiles, path: Path, salvage: bool) -> Compacted:
    """A second copy of an outcome would count for no more than the first: none is looked for."""
    outcomes, bad_bytes = outcomes_of(path)
    done = Compacted(outcomes=len(outcomes), parts=put_outcomes(files, path.stem, outcomes))
    _end(path, bad_bytes, salvage, done)
    return done


def _end(path: Path, bad_bytes: int, torn_is_expected: bool, done: Compacted) -> None:
    done.bad_bytes += bad_bytes
    if bad_bytes and not torn_is_expected:
        kept = path.parent.parent / "damaged" / path.name
        kept.parent.mkdir(exist_ok=True)
        path.rename(kept)
        done.damaged.append(str(kept))
    else:
        path.unlink()


def _without_known(files: LakeFiles, folder: str, own: str, rows: pa.Table) -> pa.Table:
    """By seq, each once, and none that another part of the hour holds; the segment's own is about to be written anew."""
    others = [path for path in visible(files, files.paths(folder)) if path != own]
    writers, names = _numbered(rows.column("writer"))
    seqs = rows.column("seq").to_numpy()
    order = np.lexsort((seqs, writers))
    kept = np.ones(len(order), bool)
    kept[1:] = (np.diff(seqs[order]) != 0) | (np.diff(writers[order]) != 0)
    for number, name in enumerate(names):
        # a part's name tells its only writer; a merged one's does not
        asked = [path for path in others if f"/part-{name}-" in path or "/merged-" in path]
        if known := [table.filter(pc.field("writer") == name) for table in _keys(files, asked)]:
            held = pa.concat_tables(known).column("seq").to_numpy()
            kept &= (writers[order] != number) | ~np.isin(seqs[order], held)
    if kept.all() and (order == np.arange(len(order))).all():
        return rows
    return rows.take(pa.array(order[kept]))


def _keys(files: LakeFiles, paths: list[str]) -> Iterator[pa.Table]:
    return (read_table(files, path, ["writer", "seq"]) for path in paths)


def _numbered(column: pa.ChunkedArray) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], list[str]]:
    """(each value's number, the values)."""
    coded = column.combine_chunks().dictionary_encode()
    return coded.indices.to_numpy(zero_copy_only=False).astype(np.int64), coded.dictionary.to_pylist()


@contextmanager
def _alone(traffic: Path) -> Iterator[None]:
    with (traffic / ".compacting").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
