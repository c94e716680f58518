"""Rows of many are encoded as each would be alone: equal to the reference encoder, and refused by row and field."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from cases import MIXED
from hypothesis import given
from hypothesis import strategies as st
from test_decoding import RIGHT, SCHEMAS, VALUES

from serving.columns import encode_column_slowly, rows_of_columns, rows_of_json, rows_of_matrix
from serving.decoding import decoder
from serving.errors import BodyMalformed, BodyTooLarge, FieldRefused, RequestRefused
from training.features import Feature, FeatureSchema, InputRefused, encode

DECODE = decoder(MIXED)
LIMIT = 1000
ROW = {"age": 1, "balance": 2, "plan": None, "region": None, "autopay": None, "visits": None}


def outcome(schema: FeatureSchema, body: object) -> Any:
    """The rows' bits, or what was refused: class, row, field."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        return b"".join(rows_of_json(schema, decoder(schema), text, LIMIT))
    except RequestRefused as refused:
        return type(refused), refused.message, refused.row, refused.field


def reference(schema: FeatureSchema, rows: list[dict[str, Any]]) -> Any:
    """What the reference encoder makes of the rows, one after the other."""
    made = []
    for place, row in enumerate(rows):
        try:
            made.append(encode(schema, [row]).tobytes())
        except InputRefused as refused:
            return FieldRefused, f"row {place}: {refused}", place, refused.field
    return b"".join(made)


def columns_of(schema: FeatureSchema, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in schema.names}


@given(st.lists(st.fixed_dictionaries(RIGHT), max_size=5))
def test_acceptable_rows_and_columns_are_the_reference_encoding(rows: list[dict[str, Any]]) -> None:
    expected = reference(MIXED, rows)
    assert outcome(MIXED, rows) == expected == outcome(MIXED, {"rows": rows})
    assert outcome(MIXED, {"columns": columns_of(MIXED, rows) | {"of no use": "x"}}) == expected
    plain = b"".join(rows_of_columns(MIXED, columns_of(MIXED, rows), LIMIT))
    assert plain == expected  # of Python's own values as well


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(MIXED.names, VALUES)), max_size=3))
def test_of_any_values_the_first_row_to_blame_is_told(rows: list[dict[str, Any]]) -> None:
    expected = reference(MIXED, rows)
    assert outcome(MIXED, rows) == expected
    of_columns = outcome(MIXED, {"columns": columns_of(MIXED, rows)})
    if isinstance(expected, bytes):
        assert of_columns == expected
    else:  # columns are looked at one after the other: the first field to blame
        refusals = [reference(MIXED, [rows[n]]) for n in range(len(rows))]
        assert of_columns[0] is FieldRefused
        assert not isinstance(refusals[of_columns[2]], bytes)
        assert of_columns[1].startswith(f"row {of_columns[2]}: {of_columns[3]}: ")


@given(SCHEMAS.flatmap(lambda schema: st.tuples(st.just(schema), st.data())))
def test_columns_of_any_schema_encode_as_value_by_value(given_: tuple[FeatureSchema, Any]) -> None:
    schema, data = given_
    for feature in schema.features:
        pool = [st.none(), st.booleans(), st.floats(allow_nan=False), st.integers(), st.sampled_from(["", "a", "b"])]
        kind = {"number": (0, 2, 3), "category": (0, 4), "boolean": (0, 1)}[feature.kind]
        strategy = st.one_of(*[pool[n] for n in kind], *map(st.just, feature.categories))
        values = data.draw(st.lists(strategy, max_size=4))
        alone = FeatureSchema((feature,))
        whole = refusal_or(lambda a, f, v: b"".join(rows_of_columns(a, {f.name: v}, LIMIT)), alone, feature, values)
        assert whole == refusal_or(lambda _, f, v: encode_column_slowly(f, v).tobytes(), alone, feature, values)


def refusal_or(make: Any, *given_: Any) -> Any:
    try:
        return make(*given_)
    except FieldRefused as refused:
        return refused.message, refused.row, refused.field


NUMBERS = FeatureSchema(
    (
        Feature(name="a", kind="number"),
        Feature(name="b", kind="number", low=0, high=9, infinity="missing"),
        Feature(name="c", kind="boolean"),
        Feature(name="d", kind="number", missing=7.0),
    )
)


@given(st.lists(st.tuples(st.floats(), st.floats(), st.sampled_from([0.0, 1.0, np.nan]), st.floats()), max_size=5))
def test_a_matrix_encodes_as_its_rows_would(rows: list[tuple[float, ...]]) -> None:
    matrix = np.array(rows, dtype=np.float64).reshape(-1, 4)
    named = [
        {"a": a, "b": b, "c": None if np.isnan(c) else bool(c), "d": d} for a, b, c, d in rows
    ]  # NaN is missing to the reference encoder as well
    expected = reference(NUMBERS, named)
    try:
        got: Any = b"".join(rows_of_matrix(NUMBERS, matrix, LIMIT))
    except FieldRefused as refused:
        got = refused
    if isinstance(expected, bytes):
        assert got == expected
    else:
        assert not isinstance(reference(NUMBERS, [named[got.row]]), bytes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 3)), "2 x 3"),
        (np.zeros(4), "rows of 4 numbers"),
        (np.array([[0, 0, 0, 0], [0, 0, 0.5, 0]]), "row 1: c: must be 1 or 0"),
        (np.array([[0, 10, 0, 0]]), "row 0: b: 10.0 is outside the range 0 to 9"),
    ],
)
def test_a_matrix_that_does_not_fit_is_told(values: Any, words: str) -> None:
    with pytest.raises(RequestRefused, match=words):
        rows_of_matrix(NUMBERS, values, LIMIT)
    with pytest.raises(FieldRefused, match="plan: is a category"):
        rows_of_matrix(MIXED, np.zeros((1, 6)), LIMIT)


@pytest.mark.parametrize(
    ("body", "kind", "words", "row", "field"),
    [
        (b"", BodyMalformed, "not JSON", None, None),
        (b"\xff", BodyMalformed, "not JSON", None, None),
        (b"[1", BodyMalformed, "not JSON", None, None),
        (b"7", BodyMalformed, "send", None, None),
        (b"{}", BodyMalformed, "send", None, None),
        (b'{"rows": 7}', BodyMalformed, "send", None, None),
        (b'{"rows": [], "columns": {}}', BodyMalformed, "send", None, None),
        (b'{"columns": 7}', BodyMalformed, "send", None, None),
        (b"[" * 5000 + b"]" * 5000, BodyMalformed, "nested", None, None),
        (b'{"columns":' + b"[" * 5000 + b"]" * 5000 + b"}", BodyMalformed, "nested", None, None),
        ([ROW, 7], BodyMalformed, "row 1: must be one JSON object", 1, None),
        ([ROW, ROW | {"age": "x"}], FieldRefused, "row 1: age: must be a number", 1, "age"),
        ([ROW, {"age": 1}], FieldRefused, "row 1: balance: the field is missing", 1, "balance"),
        ([ROW, ROW | {"balance": float("nan")}], FieldRefused, "row 1: balance: nan is not a JSON", 1, "balance"),
        ({"columns": {"age": [1]}}, FieldRefused, "balance: the column is missing", None, "balance"),
        ({"columns": columns_of(MIXED, [ROW]) | {"plan": []}}, FieldRefused, "plan: has 0 values", None, "plan"),
        ({"columns": columns_of(MIXED, [ROW]) | {"plan": "x"}}, FieldRefused, "plan: must be an array", None, "plan"),
        ({"columns": columns_of(MIXED, [ROW, ROW]) | {"age": [1, 999]}}, FieldRefused, "row 1: age: 999", 1, "age"),
        ({"columns": columns_of(MIXED, [ROW]) | {"age": [float("inf")]}}, FieldRefused, "row 0: age: inf", 0, "age"),
        ([ROW] * (LIMIT + 1), BodyTooLarge, "more than 1000 rows", None, None),
        ({"columns": columns_of(MIXED, [ROW] * (LIMIT + 1))}, BodyTooLarge, "more than 1000 rows", None, None),
    ],
)
def test_a_body_that_is_refused_says_why(body: Any, kind: type, words: str, row: int | None, field: str | None) -> None:
    told = outcome(MIXED, body)
    assert told[0] is kind, told
    assert words in told[1]
    assert told[2:] == (row, field)


def test_no_rows_are_no_rows() -> None:
    assert outcome(MIXED, []) == outcome(MIXED, {"columns": columns_of(MIXED, [])}) == b""


def test_a_number_out_of_range_follows_the_rule_of_its_feature() -> None:
    body = json.dumps({"columns": columns_of(MIXED, [ROW])}).replace("[2]", "[1e400]").encode()
    assert np.isnan(np.frombuffer(outcome(MIXED, body))[1])  # `balance` takes an infinite number for a missing one
