"""An Arrow IPC stream from a sender that nobody vouches for, read with every length and offset checked.

nanoarrow, which writes our own streams, can be crashed by a spoiled one, and a worker must not be. This reader knows what
a row of features may hold - integers, floats, booleans, strings, and dictionaries of them - and passes over columns that
are not wanted. It refuses compressed buffers: what they unpack to could be a thousand times what was sent.

    stream  = message*  (end)                                   https://arrow.apache.org/docs/format/Columnar.html
    message = 0xFFFFFFFF  length: int32  a flatbuffer of that length, which says what follows  body

The flatbuffer's tables have numbered fields (Message.fbs and Schema.fbs of the Arrow format); the numbers stand in the
calls of `field` below. Malformed bytes raise struct.error, ValueError or UnicodeDecodeError, or what a body is refused with.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.columns import Column
from serving.errors import BodyMalformed, BodyTooLarge, FieldRefused

MARK = 0xFFFFFFFF
SCHEMA, DICTIONARY_BATCH, RECORD_BATCH = 1, 2, 3
NULL, INT, FLOAT, UTF8, BOOL, LARGE_UTF8 = 1, 2, 3, 5, 6, 20
# buffers of a column by its type, children apart; unions and views, which have none or others, are not passed over
BUFFERS = {1: 0, 2: 2, 3: 2, 4: 3, 5: 3, 6: 2, 7: 2, 8: 2, 9: 2, 10: 2, 11: 2, 12: 2, 13: 1, 15: 2, 16: 1, 17: 2, 18: 2,
           19: 3, 20: 3, 21: 2}  # fmt: skip
FLOATS = ("<f2", "<f4", "<f8")
MOST_FIELDS = 10_000


class Table:
    """A table of a flatbuffer."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self._at = at
        self._fields = at - self._unpack("<i", at)
        self._size = self._unpack("<H", self._fields)

    @classmethod
    def root(cls, data: bytes) -> Table:
        return cls(data, struct.unpack_from("<I", data)[0])

    def number(self, field: int, kind: str, default: int = 0) -> int:
        at = self.field(field)
        return self._unpack("<" + kind, at) if at else default

    def table(self, field: int) -> Table:
        at = self.field(field)
        if not at:
            raise ValueError
        return Table(self.data, at + self._unpack("<I", at))

    def text(self, field: int) -> str:
        start, length = self.vector(field, 1)
        return self.data[start : start + length].decode()

    def tables(self, field: int) -> Iterator[Table]:
        start, length = self.vector(field, 4)
        for at in range(start, start + 4 * length, 4):
            yield Table(self.data, at + self._unpack("<I", at))

    def vector(self, field: int, item_bytes: int) -> tuple[int, int]:
        """(where its items begin, how many)."""
        at = self.field(field)
        if not at:
            return 0, 0
        at += self._unpack("<I", at)
        length = self._unpack("<I", at)
        if at + 4 + item_bytes * length > len(self.data):
            raise ValueError
        return at + 4, length

    def field(self, number: int) -> int:
        """Where it is; 0: it is absent."""
        where = 4 + 2 * number
        offset = self._unpack("<H", self._fields + where) if where + 2 <= self._size else 0
        return self._at + offset if offset else 0

    def _unpack(self, kind: str, at: int) -> int:
        if at < 0:
            raise ValueError
        found: int = struct.unpack_from(kind, self.data, at)[0]
        return found


@dataclass(frozen=True, slots=True)
class Kind:
    """A column's type. `dtype`: of a number, or of a dictionary's places; `nodes` and `buffers`: with its children's."""

    name: str
    type: int
    dtype: str
    dictionary: int | None
    nodes: int
    buffers: int


@dataclass(slots=True)
class Batch:
    """A record batch, or the values of a dictionary."""

    rows: int
    nodes: list[tuple[int, int]]  # (rows, nulls)
    buffers: list[memoryview]

    def column(self, kind: Kind, node: int, buffer: int, dictionaries: dict[int, list[Any]]) -> Column:
        rows, nulls = self.nodes[node]
        if rows != self.rows or rows < 0:
            raise ValueError
        if kind.type == NULL and kind.dictionary is None:
            return [None] * rows
        valid = self._bits(buffer, rows) if nulls and len(self.buffers[buffer]) else None
        data = self.buffers[buffer + 1]
        if kind.dictionary is not None:
            return _looked_up(np.frombuffer(data, kind.dtype, rows), valid, dictionaries[kind.dictionary])
        if kind.type == BOOL:
            return _with_nulls(self._bits(buffer + 1, rows).tolist(), valid)
        if kind.type in (UTF8, LARGE_UTF8):
            return _with_nulls(_texts(data, bytes(self.buffers[buffer + 2]), kind.dtype, rows), valid)
        numbers = np.frombuffer(data, kind.dtype, rows).astype(np.float64)
        if valid is not None:
            numbers[~valid] = np.nan
        return numbers

    def _bits(self, buffer: int, rows: int) -> npt.NDArray[np.bool_]:
        packed = np.frombuffer(self.buffers[buffer], np.uint8, (rows + 7) // 8)
        return np.unpackbits(packed, count=rows, bitorder="little").astype(np.bool_)


def stream_columns(body: bytes, wanted: Collection[str], max_rows: int) -> dict[str, Column]:
    """The wanted columns that the stream has. Raises BodyTooLarge, FieldRefused and, as above, what malformed bytes do."""
    kinds: list[Kind] = []
    values: dict[int, Kind] = {}  # of dictionaries
    dictionaries: dict[int, list[Any]] = {}
    parts: dict[str, list[Column]] = {}
    rows = 0
    for message, data in _messages(body):
        header = message.number(1, "B")
        if header == SCHEMA and not kinds:
            kinds, values = _schema(message.table(2), wanted)
            parts = {kind.name: [] for kind in kinds if kind.name in wanted}
        elif header == DICTIONARY_BATCH:
            _learn(message.table(2), data, values, dictionaries)
        elif header == RECORD_BATCH and kinds:
            batch = _batch(message.table(2), data)
            rows += batch.rows
            if batch.rows > max_rows or rows > max_rows:
                raise BodyTooLarge.of_rows(max_rows)
            node = buffer = 0
            for kind in kinds:
                if kind.name in wanted:
                    parts[kind.name].append(batch.column(kind, node, buffer, dictionaries))
                node += kind.nodes
                buffer += kind.buffers
        else:
            raise ValueError
    if not kinds:
        raise ValueError
    return {name: _joined(columns) for name, columns in parts.items()}


def _messages(body: bytes) -> Iterator[tuple[Table, memoryview]]:
    """Each message, and the bytes behind it."""
    at, view = 0, memoryview(body)
    while at < len(body):
        (mark, length) = struct.unpack_from("<Ii", body, at)
        if mark != MARK or length < 0:
            raise ValueError
        if length == 0:
            return
        at += 8
        message = Table.root(body[at : at + length])
        following = message.number(3, "q")
        at += length
        if not 0 <= following <= len(body) - at:
            raise ValueError
        yield message, view[at : at + following]
        at += following


def _schema(schema: Table, wanted: Collection[str]) -> tuple[list[Kind], dict[int, Kind]]:
    if schema.number(0, "h"):
        raise ValueError  # big-endian
    kinds: list[Kind] = []
    values: dict[int, Kind] = {}
    seen: set[str] = set()
    left = [MOST_FIELDS]
    for field in schema.tables(1):
        name = field.text(0)
        if name in wanted and name in seen:
            raise FieldRefused(f"{name}: two columns have this name", name)
        seen.add(name)
        nodes, buffers = _extent(field, name, left, 0)
        kind = Kind(name, field.number(2, "B"), "", None, nodes, buffers)
        if name in wanted:
            kind = _typed(field, kind)
        if field.field(4):
            encoding = field.table(4)
            number = encoding.number(0, "q")
            if name in wanted:
                values[number] = kind
            places = _integers(encoding.table(1)) if encoding.field(1) else "<i4"
            kind = Kind(name, kind.type, places, number, nodes, buffers)
        kinds.append(kind)
    return kinds, values


def _typed(field: Table, kind: Kind) -> Kind:
    """With its dtype. Raises FieldRefused for a type that no feature has."""
    dtype = {NULL: "", BOOL: "", UTF8: "<i4", LARGE_UTF8: "<i8"}.get(kind.type)
    if kind.type == INT:
        dtype = _integers(field.table(3))
    elif kind.type == FLOAT:
        dtype = FLOATS[field.table(3).number(0, "H")] if field.table(3).number(0, "H") < len(FLOATS) else None
    if dtype is None:
        message = f"{kind.name}: a column of this Arrow type is not read here; send numbers, booleans or strings"
        raise FieldRefused(message, kind.name)
    return Kind(kind.name, kind.type, dtype, None, kind.nodes, kind.buffers)


def _integers(type_: Table) -> str:
    width = type_.number(0, "i")
    if width not in (8, 16, 32, 64):
        raise ValueError
    return f"<{'i' if type_.number(1, 'B') else 'u'}{width // 8}"


def _extent(field: Table, name: str, left: list[int], depth: int) -> tuple[int, int]:
    """How many nodes and buffers it has in a batch, with its children. `left`: fields that may still come."""
    left[0] -= 1
    if left[0] < 0 or depth > 32:
        raise ValueError
    if field.field(4):
        return 1, 2  # places in a dictionary
    buffers = BUFFERS.get(field.number(2, "B"))
    if buffers is None:
        raise FieldRefused(f"{name}: a stream with a column of this Arrow type is not read here", name)
    nodes = 1
    for child in field.tables(5):
        more_nodes, more_buffers = _extent(child, name, left, depth + 1)
        nodes += more_nodes
        buffers += more_buffers
    return nodes, buffers


def _learn(header: Table, data: memoryview, values: dict[int, Kind], dictionaries: dict[int, list[Any]]) -> None:
    number = header.number(0, "q")
    kind = values.get(number)
    if kind is None:
        return  # of a column that is not wanted
    if kind.type == NULL:
        raise ValueError
    found = list(_batch(header.table(1), data).column(kind, 0, 0, {}))
    dictionaries[number] = dictionaries.get(number, []) + found if header.number(2, "B") else found


def _batch(header: Table, data: memoryview) -> Batch:
    if header.field(3):
        raise BodyMalformed("the Arrow stream's buffers are compressed; send them as they are")
    start, count = header.vector(1, 16)
    nodes = list(struct.iter_unpack("<qq", header.data[start : start + 16 * count]))
    start, count = header.vector(2, 16)
    buffers: list[memoryview] = []
    total = 0
    for offset, length in struct.iter_unpack("<qq", header.data[start : start + 16 * count]):
        total += length
        if offset < 0 or length < 0 or offset + length > len(data) or total > len(data):
            raise ValueError  # outside, or one part of the body used twice
        buffers.append(data[offset : offset + length])
    return Batch(header.number(0, "q"), nodes, buffers)


def _texts(offsets: memoryview, data: bytes, dtype: str, rows: int) -> list[str]:
    if not rows:
        return []
    ends = np.frombuffer(offsets, dtype, rows + 1)
    if ends[0] < 0 or ends[-1] > len(data) or (np.diff(ends) < 0).any():
        raise ValueError
    places = ends.tolist()
    return [data[begin:end].decode() for begin, end in pairwise(places)]


def _looked_up(places: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None, values: list[Any]) -> list[Any]:
    known = places if valid is None else places[valid]
    if len(known) and (known.min() < 0 or known.max() >= len(values)):
        raise ValueError
    if valid is None:
        return [values[place] for place in places.tolist()]
    return [values[place] if there else None for place, there in zip(places.tolist(), valid.tolist(), strict=True)]


def _with_nulls(values: list[Any], valid: npt.NDArray[np.bool_] | None) -> list[Any]:
    if valid is None:
        return values
    return [value if there else None for value, there in zip(values, valid.tolist(), strict=True)]


def _joined(columns: list[Column]) -> Column:
    if columns and all(isinstance(column, np.ndarray) for column in columns):
        return np.concatenate(columns)
    return [value for column in columns for value in column]
