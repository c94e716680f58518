"""A table of any format is read as the rows that it holds; a hostile one is refused, and nothing else happens."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from cases import MIXED, mixed_rows
from hypothesis import given
from hypothesis import strategies as st

from serving.columns import rows_of_columns
from serving.errors import RequestRefused
from serving.tables import READERS, arrow_columns, csv_columns, parquet_columns
from training.features import decode_matrix

LIMIT, BYTES = 1000, 1 << 20
ROWS = mixed_rows(200, 6)
ENCODED = [row.tobytes() for row in ROWS]


def table() -> pa.Table:
    columns = decode_matrix(MIXED, ROWS)
    return pa.table({"unread": pa.array([[1]] * len(ROWS))} | {n: pa.array(v) for n, v in columns.items()})


def stream(made: pa.Table, batch_rows: int = 1000, **options: Any) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, made.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(made, max_chunksize=batch_rows)
    return out.getvalue()


def parquet(made: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(made, out, **options)
    return out.getvalue()


def text(made: pa.Table) -> bytes:
    cells = [["" if cell is None else str(cell) for cell in row.values()] for row in made.to_pylist()]
    return "\n".join(",".join(row) for row in [made.column_names, *cells]).replace("[1]", "x").encode()


def with_dictionaries(made: pa.Table) -> pa.Table:
    for name in ("plan", "region"):
        made = made.set_column(made.column_names.index(name), name, made.column(name).dictionary_encode())
    return made


def read(kind: str, body: bytes) -> list[bytes]:
    return rows_of_columns(MIXED, READERS[kind](MIXED, body, LIMIT, BYTES), LIMIT)


ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("text/csv", lambda: text(table())),
        ("text/csv", lambda: b"\xef\xbb\xbf" + text(table()).replace(b"\n", b"\r\n") + b"\r\n\r\n"),
        (ARROW, lambda: stream(table())),
        (ARROW, lambda: stream(table(), batch_rows=7)),
        (ARROW, lambda: stream(with_dictionaries(table()))),
        (PARQUET, lambda: parquet(table())),
        (PARQUET, lambda: parquet(with_dictionaries(table()), compression="zstd", row_group_size=33)),
    ],
)
def test_a_table_is_read_as_its_rows(kind: str, make: Callable[[], bytes]) -> None:
    assert read(kind, make()) == ENCODED


@pytest.mark.parametrize("kind", ["float16", "float32", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"])
def test_numbers_of_every_width_are_read(kind: str) -> None:
    values = np.array([1, 2, 100], dtype=kind)
    column = pa.array([1, None, 100], getattr(pa, kind)()) if kind != "float16" else pa.array(values)
    made = table().slice(0, 3).set_column(1, "age", column)
    for read_ in (
        arrow_columns(MIXED, stream(made), LIMIT, BYTES),
        parquet_columns(MIXED, parquet(made), LIMIT, BYTES),
    ):
        got = np.asarray(read_["age"], dtype=np.float64)
        assert got[[0, 2]].tolist() == [1.0, 100.0]
        assert np.isnan(got[1]) or kind == "float16"


def test_no_rows_are_no_rows() -> None:
    nothing = table().slice(0, 0)
    assert read("text/csv", ",".join(MIXED.names).encode()) == []
    assert read(ARROW, stream(nothing)) == read(PARQUET, parquet(nothing)) == []


WIDE = pa.table({name: pa.array([None] * 1001) for name in MIXED.names})


@pytest.mark.parametrize(
    ("kind", "make", "words"),
    [
        ("text/csv", lambda: b"", "age: the column is missing"),
        ("text/csv", lambda: b"\xff", "not UTF-8"),
        ("text/csv", lambda: b"age,age\n1,2", "age: two columns"),
        ("text/csv", lambda: b"age,plan\n1,x\n1\n", "row 1: line 3: has 1 cells; the header has 2"),
        ("text/csv", lambda: b'age,plan\n"1', "line 2: not CSV"),
        ("text/csv", lambda: b'age\n"' + b"1" * 200_000 + b'"', "not CSV"),
        ("text/csv", lambda: b"age\n1\nold", "row 1: age: must be a number or empty, got 'old'"),
        ("text/csv", lambda: b"age\n1_0", "row 0: age: must be a number"),
        ("text/csv", lambda: b"autopay\nperhaps", "row 0: autopay: must be true or false"),
        ("text/csv", lambda: b"age\n" + b"1\n" * 1001, "more than 1000 rows"),
        (ARROW, lambda: b"", "not an Arrow"),
        (ARROW, lambda: b"age,plan\n1,2" * 9, "not an Arrow"),
        (ARROW, lambda: stream(table())[:300], "not an Arrow"),
        (ARROW, lambda: stream(table())[:-1000], "not an Arrow"),
        (ARROW, lambda: stream(table(), compression="zstd"), "compressed"),
        (ARROW, lambda: stream(with_dictionaries(table()), compression="lz4"), "compressed"),
        (ARROW, lambda: stream(table(), use_legacy_format=True), "not an Arrow"),
        (ARROW, lambda: stream(WIDE), "more than 1000 rows"),
        (ARROW, lambda: stream(table().append_column("age", pa.array([1.0] * 200))), "age: two columns"),
        (ARROW, lambda: stream(table().select(["age"])), "balance: the column is missing"),
        (ARROW, lambda: stream(pa.table({"age": pa.array([[1]])})), "age: a column of this Arrow type"),
        (PARQUET, lambda: b"", "not a Parquet"),
        (PARQUET, lambda: b"PAR1" * 20, "not a Parquet"),
        (PARQUET, lambda: parquet(WIDE), "more than 1000 rows"),
        (PARQUET, lambda: parquet(pa.table({"age": pa.array([[1]])})), "age: a column of list"),
        (
            PARQUET,
            lambda: parquet(pa.table({"age": ["x" * 1000] * 999}).set_column(0, "plan", pa.array(["y" * 40_000] * 999)),
                            use_dictionary=False),
            "unpacks to more than",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_read_says_why(kind: str, make: Callable[[], bytes], words: str) -> None:
    with pytest.raises(RequestRefused, match=words):
        read(kind, make())


@pytest.mark.parametrize("kind", [ARROW, PARQUET, "text/csv"])
@given(seed=st.integers(0, 1 << 30))
def test_a_spoiled_table_is_rows_or_a_refusal(kind: str, seed: int) -> None:
    made = with_dictionaries(table())
    body = bytearray({ARROW: stream, PARQUET: parquet, "text/csv": text}[kind](made))
    chance = random.Random(seed)
    for _ in range(chance.randrange(1, 8)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    try:
        rows = read(kind, bytes(body[: chance.choice([len(body), chance.randrange(len(body))])]))
    except RequestRefused:
        return
    assert all(len(row) == 8 * MIXED.width for row in rows)


def test_csv_keeps_every_bit_of_a_number() -> None:
    values = np.random.default_rng(1).normal(size=100)
    body = "age\n" + "\n".join(map(repr, values.tolist()))
    assert csv_columns(MIXED, body.encode(), LIMIT, BYTES)["age"] == values.tolist()
