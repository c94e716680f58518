"""Tables as columns: CSV, an Arrow IPC stream, Parquet; for `serving.columns` to encode.

    text/csv                              UTF-8, a header line; an empty cell is a missing value; booleans as true/false or 1/0
    application/vnd.apache.arrow.stream   numbers, booleans, strings and dictionaries of strings; uncompressed
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

from serving.columns import Column
from serving.errors import BodyMalformed, BodyTooLarge, ContentTypeRefused, FieldRefused
from training.features import Feature, FeatureSchema

ARROW_NUMBERS = {
    "double": "f8", "float": "f4", "half_float": "f2", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8",
    "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8",
}  # fmt: skip
ARROW_OTHERS = frozenset({"bool", "string", "large_string", "dictionary", "na"})
FLAGS = {"": None, "true": True, "1": True, "false": False, "0": False}
SCHEMA, DICTIONARY_BATCH, RECORD_BATCH = 1, 2, 3  # kinds of an Arrow IPC message
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
    import nanoarrow

    _look_over(body, max_rows)
    parts: dict[str, list[Column]] = {}
    try:
        with nanoarrow.ArrayStream.from_readable(body) as stream:
            names = [field.name for field in stream.schema.fields]
            _refuse_twice(schema, names)
            parts = {name: [] for name in names if name in schema.names}
            for batch in stream:
                for place, name in enumerate(names):
                    if name in parts:
                        parts[name].append(_arrow_values(name, batch.child(place)))
    except (FieldRefused, BodyMalformed):
        raise
    except Exception as malformed:  # whatever a decoder of hostile bytes raises is said of the body
        raise BodyMalformed(f"not an Arrow IPC stream that is read here: {malformed}") from None
    return {name: _joined(columns) for name, columns in parts.items()}


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
    except (pyarrow.ArrowException, OSError) as malformed:
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


def _arrow_values(name: str, array: Any) -> Column:
    kind = array.schema.type.name.lower()
    if kind in ARROW_NUMBERS:
        valid, data = array.buffers
        numbers = np.frombuffer(data, ARROW_NUMBERS[kind])[: len(array)].astype(np.float64)
        if valid is not None and len(bytes(valid)):
            bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[: len(array)]
            numbers[bits == 0] = np.nan
        return numbers
    if kind not in ARROW_OTHERS:
        raise FieldRefused(f"{name}: Arrow's {kind} is not read here; send numbers, booleans or strings", name)
    values: list[Any] = array.to_pylist()
    return values


def _joined(columns: list[Column]) -> Column:
    if columns and all(isinstance(column, np.ndarray) for column in columns):
        return np.concatenate(columns)
    return [value for column in columns for value in column]


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


def _look_over(body: bytes, max_rows: int) -> None:
    """What the stream says of itself before any of it is decoded: not too many rows, and nothing that has to be unpacked,
    which could be a thousand times what was sent."""
    rows = at = 0
    try:
        while at < len(body):
            (mark,) = struct.unpack_from("<I", body, at)
            at += 4 if mark == 0xFFFFFFFF else 0  # since 0.15 every message begins with it
            (length,) = struct.unpack_from("<I", body, at)
            at += 4
            if length == 0:
                return
            kind, batch, following = _message(body[at : at + length])
            at += length + following
            if batch is None:
                continue
            if batch.compressed:
                raise BodyMalformed("the Arrow stream's buffers are compressed; send them as they are")
            rows += batch.rows if kind == RECORD_BATCH else 0
            if batch.rows > max_rows or rows > max_rows:
                raise BodyTooLarge.of_rows(max_rows)
    except (struct.error, ValueError):
        raise BodyMalformed("not an Arrow IPC stream") from None


class _Batch:
    def __init__(self, table: _Table) -> None:
        at = table.field(0)
        self.rows = struct.unpack_from("<q", table.data, at)[0] if at else 0
        self.compressed = table.field(3) > 0
        if self.rows < 0:
            raise ValueError


class _Table:
    """A table of a flatbuffer: where its fields are, by their numbers; 0 for one that is absent."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self._at = at
        self._fields = at - struct.unpack_from("<i", data, at)[0]
        if self._fields < 0:
            raise ValueError
        self._size = struct.unpack_from("<H", data, self._fields)[0]

    def field(self, number: int) -> int:
        where = 4 + 2 * number
        if where + 2 > self._size:
            return 0
        (offset,) = struct.unpack_from("<H", self.data, self._fields + where)
        return self._at + offset if offset else 0

    def table(self, number: int) -> _Table:
        at = self.field(number)
        return _Table(self.data, at + struct.unpack_from("<I", self.data, at)[0])


def _message(data: bytes) -> tuple[int, _Batch | None, int]:
    """(its kind, the batch that it describes if it does, the length of the body behind it)."""
    message = _Table(data, struct.unpack_from("<I", data)[0])
    at = message.field(1)
    kind = data[at] if 0 < at < len(data) else 0
    at = message.field(3)
    following = struct.unpack_from("<q", data, at)[0] if at else 0
    if following < 0 or kind not in (SCHEMA, DICTIONARY_BATCH, RECORD_BATCH):
        raise ValueError
    if kind == SCHEMA:
        return kind, None, following
    header = message.table(2)
    return kind, _Batch(header.table(1) if kind == DICTIONARY_BATCH else header), following
