"""A block of traffic rows: filled in constant time by a request, encoded as Arrow by the log's thread."""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from itertools import chain
from time import monotonic
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from serving.segments import COLUMNS, SCORES, Facts, Tag, join_payload

RECORD = struct.Struct("<qqd7i")
_RECORD_TYPE = np.dtype(
    [
        ("ts_us", "<i8"),
        ("seq", "<i8"),
        ("score", "<f8"),
        ("tag", "<i4"),
        ("row", "<i4"),
        ("status", "<i4"),
        ("parse_us", "<i4"),
        ("queue_us", "<i4"),
        ("score_us", "<i4"),
        ("batch_rows", "<i4"),
    ]
)


class Packed(NamedTuple):
    """Pieces of varying length: one after the other in `data`, piece n from `ends[n]` to `ends[n + 1]`."""

    ends: npt.NDArray[np.int32]
    data: Any


class Rows(Protocol):
    """Rows on their way to the writer."""

    @property
    def count(self) -> int: ...

    @property
    def born(self) -> float: ...

    @property
    def records(self) -> Any: ...

    @property
    def scores(self) -> dict[int, tuple[float, ...]]: ...

    def pieces(self) -> tuple[Packed, Packed, Packed]:
        """Request ids, units, and features."""
        ...


class Block:
    """Rows as Python puts them. Fixed-size fields are packed in place; the others wait in lists."""

    __slots__ = ("born", "count", "features", "ids", "records", "scores", "units")

    def __init__(self, rows: int) -> None:
        self.born = monotonic()
        self.records = bytearray(RECORD.size * rows)
        self.ids: list[bytes] = []
        self.units: list[bytes] = []
        self.features: list[bytes] = []
        self.scores: dict[int, tuple[float, ...]] = {}  # by place: of models of several outputs
        self.count = 0

    def pieces(self) -> tuple[Packed, Packed, Packed]:
        ids, units, features = (
            Packed(_running(np.fromiter(map(len, values), dtype=np.int32, count=len(values))), b"".join(values))
            for values in (self.ids, self.units, self.features)
        )
        return ids, units, features


def encode_block(block: Rows, tags: list[Tag], writer: str) -> bytes:
    """The block's payload; 0.4 µs a row in blocks of hundreds."""
    made = arrow()
    records = np.frombuffer(block.records, dtype=_RECORD_TYPE, count=block.count)
    ids, units, features = block.pieces()
    columns: dict[str, Any] = {
        "request_id": made.texts(ids),
        "unit": made.texts(units),
        "features": made.lists(features),
    }
    used, places = np.unique(records["tag"], return_inverse=True)  # not every tag that there ever was
    columns["tag"] = made.numbers("int32", places.astype(np.int32))
    for name, kind in COLUMNS:
        if name not in columns:
            columns[name] = made.numbers(kind, np.ascontiguousarray(records[name]))
    ordered = [columns[name] for name, _ in COLUMNS]
    if block.scores:
        ordered.append(made.sparse_lists(block.scores, block.count))
    facts = msgspec.json.encode(Facts(writer, tuple(tags[number] for number in used)))
    return join_payload(facts, made.stream(ordered, block.count))


@lru_cache(maxsize=1)
def arrow() -> _Arrow:
    """Made when a log is: the first block must not wait for an import while requests fill the queue behind it."""
    return _Arrow()


class _Arrow:
    """nanoarrow with the types made once: making them anew was two thirds of a block's cost."""

    def __init__(self) -> None:
        import nanoarrow
        from nanoarrow.ipc import StreamWriter

        self._array = nanoarrow.c_array_from_buffers
        self._writer_to = StreamWriter.from_writable
        makers = {
            "int32": nanoarrow.int32(),
            "int64": nanoarrow.int64(),
            "double": nanoarrow.float64(),
            "string": nanoarrow.string(),
            "list<double>": nanoarrow.list_(nanoarrow.float64()),
        }
        self._types = {kind: nanoarrow.c_schema(made) for kind, made in makers.items()}
        self._rows = {
            len(columns): nanoarrow.c_schema(nanoarrow.struct({name: makers[kind] for name, kind in columns}))
            for columns in (COLUMNS, (*COLUMNS, SCORES))
        }

    def numbers(self, kind: str, values: Any) -> Any:
        return self._array(self._types[kind], len(values), [None, values])

    def texts(self, texts: Packed) -> Any:
        return self._array(self._types["string"], len(texts.ends) - 1, [None, texts.ends, texts.data])

    def lists(self, rows: Packed) -> Any:
        numbers = self.numbers("double", np.frombuffer(rows.data, dtype=np.float64))
        return self._array(self._types["list<double>"], len(rows.ends) - 1, [None, rows.ends // 8], children=[numbers])

    def sparse_lists(self, present: dict[int, tuple[float, ...]], rows: int) -> Any:
        """Lists of numbers by place, in ascending order; null elsewhere."""
        lengths, valid = np.zeros(rows, dtype=np.int32), np.zeros(rows, dtype=np.bool_)
        places = list(present)
        lengths[places] = [len(values) for values in present.values()]
        valid[places] = True
        numbers = self.numbers("double", np.fromiter(chain.from_iterable(present.values()), dtype=np.float64))
        bits = np.packbits(valid, bitorder="little")
        return self._array(
            self._types["list<double>"], rows, [bits, _running(lengths)], null_count=rows - len(present),
            children=[numbers],
        )  # fmt: skip

    def stream(self, columns: list[Any], rows: int) -> bytes:
        batch = self._array(self._rows[len(columns)], rows, [None], children=columns)
        out = io.BytesIO()
        with self._writer_to(out) as stream:
            stream.write_stream(batch)
        return out.getvalue()


def _running(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
