"""The lake: the traffic log as Parquet, one part for each segment and hour.

    <lake>/model=<name>/date=<YYYY-MM-DD>/hour=<HH>/part-<segment>.parquet       UTC; zstd; a checksum on every page

A part's name is its segment's, so compacting one twice - killed half-way, run from two places - writes the same part
twice and no row twice; rows whose (writer, seq) another part of that writer holds already are left out all the same. A
segment is deleted only after its parts were synced, read back with their checksums, and found to hold every row. One with
a spoiled block in its middle moves to `<traffic>/damaged/` instead: nothing readable is lost, nothing unreadable is hidden.

Columns are those of the log, with what a tag says of many rows spelled out. `scores` holds all scores of a row of a model of
several outputs, in its bundle's order, and is null of a model of one; parts and segments of older releases lack it, and
read as null.

Sealed segments are taken always; open ones when their writer is dead: the page no longer names it, or its process is gone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.ipc
import pyarrow.parquet as pq

from monitoring.errors import LakeRefused
from serving.page import Page
from serving.traffic import COLUMNS, SCORES, Segment, split_payload

PARTITIONS = pa.schema([("model", pa.string()), ("date", pa.string()), ("hour", pa.string())])
NUMBERS = pa.list_(pa.float64())
TYPES = {
    "int32": pa.int32(), "int64": pa.int64(), "double": pa.float64(), "string": pa.string(), "list<double>": NUMBERS,
}  # fmt: skip
SHARED = ("model", "version", "arm", "generation", "role", "schema")  # of a tag
HOUR_US = 3_600_000_000
SCHEMA = pa.schema(
    [(name, TYPES[kind]) for name, kind in (*COLUMNS, SCORES) if name != "tag"]
    + [(name, pa.int64() if name == "generation" else pa.string()) for name in (*SHARED, "writer")]
)


@dataclass
class Compacted:
    """What one run did. `bad_bytes` could not be read; `duplicates` were in the lake already."""

    segments: int = 0
    salvaged: int = 0
    rows: int = 0
    duplicates: int = 0
    bad_bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    parts: list[Path] = field(default_factory=list)


def compact(traffic: Path, lake: Path) -> Compacted:
    """Move every finished segment into the lake. Idempotent; a second run at the same time waits for the first."""
    done = Compacted()
    lake.mkdir(parents=True, exist_ok=True)
    with _alone(lake):
        for path, salvage in _finished(traffic):
            _take(path, lake, done, salvage=salvage)
    return done


def window(
    lake: Path,
    model: str,
    *,
    since_us: int | None = None,
    until_us: int | None = None,
    columns: Sequence[str] | None = None,
    where: pc.Expression | None = None,
) -> pa.Table:
    """The model's rows with since <= ts_us < until. Raises LakeRefused where the lake has none of the model at all."""
    folder = lake / f"model={model}"
    if not folder.is_dir():
        held = sorted(path.name.removeprefix("model=") for path in lake.glob("model=*"))
        raise LakeRefused(
            f"{lake}: holds no traffic of {model!r} (it has: {', '.join(held) or 'none'}); run coppice compact"
        )
    wanted = [ds.field("ts_us") >= since_us] if since_us is not None else []
    wanted += [ds.field("ts_us") < until_us] if until_us is not None else []
    wanted += [where] if where is not None else []
    condition = None
    for each in wanted:
        condition = each if condition is None else condition & each
    try:
        return _dataset(folder).to_table(columns=list(columns) if columns else None, filter=condition)
    except (OSError, pa.ArrowException) as spoiled:
        for part in sorted(folder.rglob("part-*.parquet")):
            _read(part, None)  # refuses the one that is spoiled by its name, which the scan does not tell
        raise LakeRefused(f"{folder}: {spoiled}") from None


def seqs(lake: Path, writer: str) -> pa.ChunkedArray:
    """Every seq of the writer that the lake holds, as often as it holds it."""
    parts = sorted(lake.glob(f"model=*/date=*/hour=*/part-{writer}-*.parquet"))
    tables = [_read(part, ["writer", "seq"]) for part in parts]
    if not tables:
        return pa.chunked_array([], pa.int64())
    table = pa.concat_tables(tables)
    return table.filter(pc.field("writer") == writer).column("seq")


def rows_of(segment: Path) -> tuple[pa.Table | None, int, bool]:
    """(every readable row or None, unreadable bytes, whether those are a torn tail and nothing else)."""
    found = Segment(segment)
    try:
        tables = [_table(payload) for payload in found.payloads()]
    except ValueError as refused:
        raise LakeRefused(str(refused)) from None
    torn_tail = len(found.bad_blocks) <= 1 and _ends_torn(found)
    return (pa.concat_tables(tables) if tables else None), found.bad_bytes, torn_tail


def live_writers(traffic: Path) -> set[str]:
    """Writers that may still append: named by a slot whose process exists on this host."""
    alive = set()
    for path in sorted((traffic / "pages").glob("*.page")):
        for slot in Page.open(path, readonly=True).slots():
            if slot.writer and _exists(slot.pid):
                alive.add(slot.writer)
    return alive


def writer_of(segment: Path) -> str:
    return segment.stem.rpartition("-")[0]


def open_segments(traffic: Path) -> list[Path]:
    return sorted((traffic / "open").glob("*.seg"))


def sealed_segments(traffic: Path) -> list[Path]:
    return sorted((traffic / "sealed").glob("*.seg"))


def _finished(traffic: Path) -> Iterator[tuple[Path, bool]]:
    yield from ((path, False) for path in sealed_segments(traffic))
    alive = live_writers(traffic)
    # A live writer may have sealed its file between the two looks; it then has the same name in sealed/ for the next run.
    yield from ((path, True) for path in open_segments(traffic) if writer_of(path) not in alive)


def _take(path: Path, lake: Path, done: Compacted, *, salvage: bool) -> None:
    table, bad_bytes, torn_tail = rows_of(path)
    done.segments += 1
    done.salvaged += salvage
    done.bad_bytes += bad_bytes
    if table is not None:
        fresh = _without_known(table, lake, path)
        done.duplicates += len(table) - len(fresh)
        for folder, rows in _by_hour(fresh):
            part = lake / folder / f"part-{path.stem}.parquet"
            _write_verified(part, rows)
            done.rows += len(rows)
            done.parts.append(part)
    if bad_bytes and not (salvage and torn_tail):
        kept = path.parent.parent / "damaged" / path.name
        kept.parent.mkdir(exist_ok=True)
        path.rename(kept)
        done.damaged.append(str(kept))
    else:
        path.unlink()


def _table(payload: bytes) -> pa.Table:
    """A block's rows with what they share spelled out; a row without a unit of its own has its request id for one."""
    facts, stream = split_payload(payload)
    table = pyarrow.ipc.open_stream(stream).read_all()
    if SCORES[0] not in table.column_names:
        table = table.append_column(SCORES[0], pa.nulls(len(table), NUMBERS))
    tags = table.column("tag").to_numpy()
    for name in SHARED:
        values = pa.array([getattr(tag, name) for tag in facts.tags], SCHEMA.field(name).type)
        table = table.append_column(name, values.take(pa.array(tags)))
    unit = pc.if_else(pc.equal(table.column("unit"), ""), table.column("request_id"), table.column("unit"))
    table = table.set_column(table.column_names.index("unit"), "unit", unit)
    return table.drop_columns(["tag"]).append_column("writer", pa.array([facts.writer] * len(table), pa.string()))


def _without_known(table: pa.Table, lake: Path, path: Path) -> pa.Table:
    """Without rows that other parts hold; the segment's own part is about to be written anew."""
    own = f"part-{path.stem}.parquet"
    fresh = []
    for writer in pc.unique(table.column("writer")).to_pylist():
        rows = table.filter(pc.field("writer") == writer)
        others = [part for part in lake.glob(f"model=*/date=*/hour=*/part-{writer}-*.parquet") if part.name != own]
        if others:
            known = pa.concat_tables([_read(part, ["seq"]) for part in others]).column("seq")
            rows = rows.filter(pc.invert(pc.is_in(rows.column("seq"), value_set=known.combine_chunks())))
        order = pc.sort_indices(rows, [("seq", "ascending")])
        seq = rows.column("seq").take(order).to_numpy()
        first = [True, *(seq[1:] != seq[:-1]).tolist()] if len(seq) else []
        fresh.append(rows.take(order).filter(pa.array(first, pa.bool_())))
    return pa.concat_tables(fresh)


def _by_hour(table: pa.Table) -> Iterator[tuple[Path, pa.Table]]:
    hour = pc.divide(table.column("ts_us"), HOUR_US)
    table = table.append_column("hour_number", hour)
    for pair in table.select(["model", "hour_number"]).group_by(["model", "hour_number"]).aggregate([]).to_pylist():
        model, number = pair["model"], pair["hour_number"]
        rows = table.filter((pc.field("model") == model) & (pc.field("hour_number") == number))
        when = datetime.fromtimestamp(number * 3600, UTC)
        folder = Path(f"model={model}") / f"date={when:%Y-%m-%d}" / f"hour={when:%H}"
        yield folder, rows.drop_columns(["hour_number", "model"])


def _write_verified(part: Path, rows: pa.Table) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    draft = part.with_name(f".{part.name}.draft")
    pq.write_table(rows, draft, compression="zstd", write_page_checksum=True)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    if _read(draft, ["writer", "seq"]) != rows.select(["writer", "seq"]).combine_chunks():
        raise LakeRefused(f"{draft}: does not read back as it was written; its segment is kept")
    draft.rename(part)
    handle = os.open(part.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(part: Path, columns: list[str] | None) -> pa.Table:
    try:
        # by handle: given a path, pyarrow would read partition columns out of the folders' names
        with part.open("rb") as file:
            return pq.read_table(file, columns=columns, page_checksum_verification=True).combine_chunks()
    except (OSError, pa.ArrowException) as spoiled:
        raise LakeRefused(f"{part}: {spoiled}") from None


def _dataset(folder: Path) -> Any:
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    return ds.dataset(
        folder.parent,
        schema=pa.unify_schemas([SCHEMA, PARTITIONS]),  # given, since a dataset's own is the first part's: an old one's
        format=ds.ParquetFileFormat(default_fragment_scan_options=options),
        partitioning=ds.partitioning(PARTITIONS, flavor="hive"),
        exclude_invalid_files=False,
        ignore_prefixes=[".", "_"],
    ).filter(ds.field("model") == folder.name.removeprefix("model="))


def _ends_torn(segment: Segment) -> bool:
    if not segment.bad_blocks:
        return True
    return segment.bad_blocks[-1] + segment.bad_bytes == segment.path.stat().st_size


def _exists(pid: int) -> bool:
    """Whether it may still write: one that has ended, and whose parent has not asked for its status yet, may not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][:1] != "Z"
    except OSError:  # gone meanwhile, or a system without /proc
        return not Path("/proc/self/stat").exists()


@contextmanager
def _alone(lake: Path) -> Iterator[None]:
    with (lake / ".compacting").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
