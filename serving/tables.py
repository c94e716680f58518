"""Tables as columns: CSV, an Arrow IPC stream, Parquet; for `serving.columns` to encode.

    text/csv                              UTF-8, a header line; an empty cell is a missing value; booleans as true/false or 1/0
    application/vnd.apache.arrow.stream   numbers, booleans, strings and dictionaries of them (`serving.arrow_stream`)
    application/vnd.apache.parquet        the same kinds; needs pyarrow (extra `parquet`), imported when first used

Columns that the schema does not name are not looked at. Any thread. All raise RequestRefused.
"""

from __future__ import annotations

import csv
import io
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.arrow_stream import stream_columns
from serving.columns import Column
from serving.errors import BodyMalformed, BodyTooLarge, ContentTypeRefused, FieldRefused, RequestRefused
from training.features import Feature, FeatureSchema

FLAGS = {"": None, "true": True, "1": True, "false": False, "0": False}
MOST_UNPACKED = 16  # times the body's limit, that a Parquet file may say it unpacks to

Columns = dict[str, Column]
Read = Callable[[FeatureSchema, bytes, int, int], Columns]
"""(schema, body, most rows, most bytes of a body) -> columns"""


def csv_columns(schema: FeatureSchema, body: bytes, max_rows: int, max_bytes: int) -> Columns:  # noqa: ARG001  # a Read
    try:
        lines = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        header = next(lines, [])
        _refuse_twice(schema, header)
        rows: list[list[str]] = []
        for cells in lines:
            if not cells:
                continue  # an empty line
            if len(cells) != len(header):
                message = f"line {lines.line_num}: has {len(cells)} cells; the header has {len(header)}"
                raise BodyMalformed(message).of_row(len(rows))
            if len(rows) == max_rows:
                raise BodyTooLarge.of_rows(max_rows)
            rows.append(cells)
    except UnicodeDecodeError:
        raise BodyMalformed("the body is not UTF-8") from None
    except csv.Error as malformed:
        raise BodyMalformed(f"line {lines.line_num}: not CSV: {malformed}") from None
    by_name = dict(zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True))
    return {f.name: _cells(f, by_name[f.name]) for f in schema.features if f.name in by_name}


def arrow_columns(schema: FeatureSchema, body: bytes, max_rows: int, max_bytes: int) -> Columns:  # noqa: ARG001  # a Read
    try:
        return stream_columns(body, schema.names, max_rows)
    except (struct.error, ValueError, IndexError, KeyError, OverflowError):
        raise BodyMalformed("not an Arrow IPC stream, or cut short") from None


def parquet_columns(schema: FeatureSchema, body: bytes, max_rows: int, max_bytes: int) -> Columns:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        message = "content-type: Parquet needs pyarrow here (extra `parquet`); send CSV, JSON or an Arrow stream"
        raise ContentTypeRefused(message) from None
    try:
        with pyarrow.parquet.ParquetFile(io.BytesIO(body)) as file:
            facts = file.metadata
            if facts.num_rows > max_rows:
                raise BodyTooLarge.of_rows(max_rows)
            unpacked = sum(facts.row_group(n).total_byte_size for n in range(facts.num_row_groups))
            if unpacked > MOST_UNPACKED * max_bytes:
                raise BodyTooLarge(f"the file unpacks to more than {MOST_UNPACKED * max_bytes} bytes")
            names = file.schema_arrow.names
            _refuse_twice(schema, names)
            wanted = [name for name in names if name in schema.names]
            table = file.read(columns=wanted, use_threads=False)
        return {name: _parquet_values(pyarrow, name, table.column(name)) for name in wanted}
    except RequestRefused:
        raise
    except Exception as malformed:  # pyarrow's own errors, and those of names that are not text
        raise BodyMalformed(f"not a Parquet file: {malformed}") from None


READERS: dict[str, Read] = {
    "text/csv": csv_columns,
    "application/vnd.apache.arrow.stream": arrow_columns,
    "application/vnd.apache.parquet": parquet_columns,
}


def _refuse_twice(schema: FeatureSchema, names: Sequence[str]) -> None:
    for name in schema.names:
        if names.count(name) > 1:
            raise FieldRefused(f"{name}: two columns have this name", name)


def _cells(feature: Feature, cells: Sequence[str]) -> Column:
    if feature.kind == "category":
        return [cell or None for cell in cells]
    read = _number if feature.kind == "number" else _flag
    values: list[Any] = []
    for cell in cells:
        try:
            values.append(read(cell))
        except (ValueError, KeyError):
            wanted = "a number" if feature.kind == "number" else "true or false"
            message = f"{feature.name}: must be {wanted} or empty, got {cell[:40]!r}"
            raise FieldRefused(message, feature.name).of_row(len(values)) from None
    return values


def _number(cell: str) -> float | None:
    if "_" in cell:  # Python's spelling, and nobody else's
        raise ValueError
    return float(cell) if cell else None


def _flag(cell: str) -> bool | None:
    return FLAGS[cell.strip().lower()]


def _parquet_values(pyarrow: Any, name: str, column: Any) -> Column:
    types, kind = pyarrow.types, column.type
    if types.is_floating(kind) or types.is_integer(kind):
        numbers = column.to_numpy().astype(np.float64) if column.null_count == 0 else None
        return numbers if numbers is not None else np.array(column.to_pylist(), dtype=np.float64)
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
        values: list[Any] = column.to_pylist()
        return values
    raise FieldRefused(f"{name}: a column of {kind} is not read here; send numbers, booleans or strings", name)
