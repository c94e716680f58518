"""The lake: the traffic log and its outcomes as Parquet, in a folder or in S3 (`monitoring.lake_files`).

    <lake>/model=<name>/date=<YYYY-MM-DD>/hour=<HH>/part-<segment>.parquet     scored rows, by ts_us, UTC
    <lake>/_outcomes/date=<YYYY-MM-DD>/part-<file>.parquet                     outcomes, by received_us
    .../merged-<digest>.parquet        many parts of one folder in one (`monitoring.merging`)
    .../merged-<digest>.sources        the names of these parts, a line each, for as long as one of them is still there
    <lake>/_retired/<digest>.json      which rows were deleted for their age, for `coppice reconcile`

Files are zstd, with a checksum on every page, and never change. A part that a `.sources` names beside its merged file is
not read: so the rename that brings the merged file replaces all of its sources at once.

Rows have the columns of the log, with what a tag says of many rows spelled out, and the writer. `scores` holds all scores of
a row of a model of several outputs, in its bundle's order, and is null of a model of one; parts of older releases lack it,
and read as null. Of an outcome, `value_number` holds a number, or true and false as 1 and 0, and `value_text` a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs

from monitoring.errors import LakeRefused
from monitoring.lake_files import LakeFiles, check_footers, open_files, read_bytes, read_table
from serving.outcomes import Outcome
from serving.traffic import COLUMNS, SCORES

PARTITIONS = pa.schema([("model", pa.string()), ("date", pa.string()), ("hour", pa.string())])
NUMBERS = pa.list_(pa.float64())
TYPES = {
    "int32": pa.int32(), "int64": pa.int64(), "double": pa.float64(), "string": pa.string(), "list<double>": NUMBERS,
}  # fmt: skip
SHARED = ("model", "version", "arm", "generation", "role", "schema")  # of a tag
HOUR_US = 3_600_000_000
SCHEMA = pa.schema(
    [(name, TYPES[kind]) for name, kind in (*COLUMNS, SCORES) if name != "tag"]
    + [(name, pa.int64() if name == "generation" else pa.string()) for name in (*SHARED, "writer") if name != "model"]
)
OUTCOMES = "_outcomes"
OUTCOMES_SCHEMA = pa.schema([
    ("ts_us", pa.int64()), ("received_us", pa.int64()), ("request_id", pa.string()), ("row", pa.int32()),
    ("value_number", pa.float64()), ("value_text", pa.string()), ("seq", pa.int64()), ("writer", pa.string()),
])  # fmt: skip
RETIRED = "_retired"


def models(files: LakeFiles) -> list[str]:
    """Those with traffic in the lake."""
    return [name.removeprefix("model=") for name in files.folders() if name.startswith("model=")]


def window(
    lake: str | Path,
    model: str,
    *,
    since_us: int | None = None,
    until_us: int | None = None,
    columns: Sequence[str] | None = None,
    where: pc.Expression | None = None,
) -> pa.Table:
    """The model's rows with since <= ts_us < until. Raises LakeRefused where the lake has none of the model at all."""
    files = open_files(lake)
    condition = ds.field("model") == model
    if since_us is not None:
        condition &= ds.field("ts_us") >= since_us
    if until_us is not None:
        condition &= ds.field("ts_us") < until_us
    if where is not None:
        condition &= where
    paths = rows_parts(files, model, since_us=since_us, until_us=until_us)
    try:
        return rows_dataset(files, paths).to_table(columns=list(columns) if columns else None, filter=condition)
    except (OSError, pa.ArrowException) as spoiled:
        raise refused(files, paths, spoiled) from None


def rows_dataset(files: LakeFiles, paths: Sequence[str]) -> Any:
    """A pyarrow dataset of SCHEMA and PARTITIONS. The schema is given: a dataset's own is the first part's, an old one's."""
    check_footers(files, paths)
    schema = pa.unify_schemas([SCHEMA, PARTITIONS])
    return ds.dataset(
        list(paths),
        schema=schema,
        format=_checked(),
        filesystem=files.filesystem,
        partitioning=ds.partitioning(PARTITIONS, flavor="hive"),
    )


def outcomes_dataset(files: LakeFiles, paths: Sequence[str]) -> Any:
    check_footers(files, paths)
    return ds.dataset(list(paths), schema=OUTCOMES_SCHEMA, format=_checked(), filesystem=files.filesystem)


def rows_parts(files: LakeFiles, model: str, *, since_us: int | None = None, until_us: int | None = None) -> list[str]:
    """The files that may hold the model's rows of that time. Raises LakeRefused where the model has none of any."""
    found = [path for path in files.paths(f"model={model}") if path.count("/") == 3]
    if not found:
        held = ", ".join(models(files)) or "none"
        raise LakeRefused(f"{files.name}: holds no traffic of {model!r} (it has: {held}); run coppice compact")
    first = "" if since_us is None else _hour(since_us)
    last = "~" if until_us is None else _hour(until_us - 1)
    return visible(files, [path for path in found if first <= _hour_of(path) <= last])


def outcomes_parts(files: LakeFiles, *, since_us: int | None = None) -> list[str]:
    """Those of outcomes received then or later, a day of clocks that differ allowed for."""
    first = "" if since_us is None else f"{_when(since_us) - timedelta(days=1):%Y-%m-%d}"
    found = files.paths(OUTCOMES)
    return visible(files, [path for path in found if path.split("/")[1].removeprefix("date=") >= first])


def outcomes_table(outcomes: list[Outcome]) -> pa.Table:
    """
    >>> outcomes_table([Outcome(5, 6, "r", 0, True, 1, "w")]).to_pylist()[0]["value_number"]
    1.0
    """
    columns = {
        name: [getattr(told, name) for told in outcomes] for name in OUTCOMES_SCHEMA.names if name[:5] != "value"
    }
    columns["value_number"] = [None if isinstance(told.value, str) else float(told.value) for told in outcomes]
    columns["value_text"] = [told.value if isinstance(told.value, str) else None for told in outcomes]
    return pa.table(columns, schema=OUTCOMES_SCHEMA)


def visible(files: LakeFiles, paths: Sequence[str]) -> list[str]:
    """Without parts that a merged file has replaced."""
    listed = set(paths)
    hidden: set[str] = set()
    for path in paths:
        if path.endswith(".sources") and path.removesuffix(".sources") + ".parquet" in listed:
            folder = path.rpartition("/")[0]
            try:
                hidden |= {f"{folder}/{name}" for name in read_bytes(files, path).decode().split()}
            except FileNotFoundError:  # gone since it was listed, and with it all that it named
                listed = set(_there(files, paths))
    return [path for path in paths if path in listed and path.endswith(".parquet") and path not in hidden]


def refused(files: LakeFiles, paths: Sequence[str], why: Exception) -> LakeRefused:
    """The error to raise where a scan of these failed: it names the one that is spoiled, which the scan does not tell."""
    for path in paths:
        try:
            read_table(files, path)
        except LakeRefused as found:
            return found
    return LakeRefused(f"{files.name}: {why}")


def _there(files: LakeFiles, paths: Sequence[str]) -> list[str]:
    found = files.filesystem.get_file_info(list(paths))
    return [path for path, info in zip(paths, found, strict=True) if info.type == pa.fs.FileType.File]


def _checked() -> Any:
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    return ds.ParquetFileFormat(default_fragment_scan_options=options)


def _when(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1_000_000, UTC)


def _hour(us: int) -> str:
    return f"{_when(us):%Y-%m-%d %H}"


def _hour_of(path: str) -> str:
    """
    >>> _hour_of("model=churn/date=2026-01-31/hour=07/part-a.parquet")
    '2026-01-31 07'
    """
    _, date, hour, _ = path.split("/")
    return f"{date.removeprefix('date=')} {hour.removeprefix('hour=')}"
