"""The fast decoder and its slow twin are one function."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from cases import MIXED
from hypothesis import given
from hypothesis import strategies as st

from serving.decoding import decode_slowly, decoder
from serving.errors import RequestRefused
from training.features import Feature, FeatureSchema, InputRefused, encode

FAST = decoder(MIXED)
VALUES: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-200, 200),
    st.sampled_from(["basic", "plus", "premium", "east", "west", "", "nowhere", "é", "\u0000", "\ud7ff"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
RIGHT = {
    "age": st.one_of(st.none(), st.floats(0, 150), st.integers(0, 150)),
    "balance": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers()),
    "plan": st.one_of(st.none(), st.sampled_from(["basic", "plus", "premium", "gold"])),
    "region": st.one_of(st.none(), st.sampled_from(["east", "north", "south", "west", "moon"])),
    "autopay": st.one_of(st.none(), st.booleans()),
    "visits": st.one_of(st.none(), st.floats(-1e300, 1e300)),
}


def outcome(decode: Any, body: bytes) -> Any:
    """The row's bits, or the refusal's words."""
    try:
        row = decode(body)
    except RequestRefused as refused:
        return type(refused).__name__, refused.message, refused.field
    return row if isinstance(row, bytes) else np.array(row, dtype=np.float64).tobytes()


def slowly(body: bytes) -> list[float]:
    return decode_slowly(MIXED, body)


def reference(fields: dict[str, Any]) -> Any:
    try:
        return encode(MIXED, [fields]).tobytes()
    except InputRefused as refused:
        return "FieldRefused", f"{refused.field}: {refused.reason}", refused.field


@given(st.fixed_dictionaries(RIGHT))
def test_acceptable_rows_decode_to_the_reference_encoding(fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    parsed = json.loads(body)
    assert outcome(FAST, body) == reference(parsed) == outcome(slowly, body)


@given(st.dictionaries(st.sampled_from([*MIXED.names, "other"]), VALUES))
def test_any_object_has_one_outcome_on_both_paths(fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    assert outcome(FAST, body) == outcome(slowly, body)


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_any_bytes_have_one_outcome_on_both_paths(body: bytes) -> None:
    assert outcome(FAST, body) == outcome(slowly, body)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_are_refused_by_the_name_of_their_field(literal: str) -> None:
    fields = {"age": 1, "balance": 2, "plan": None, "region": None, "autopay": None, "visits": None}
    body = json.dumps(fields).replace('"balance": 2', f'"balance": {literal}').encode()
    with pytest.raises(RequestRefused) as refused:
        FAST(body)
    assert refused.value.field == "balance"


def test_names_that_are_no_identifiers_decode() -> None:
    schema = FeatureSchema(
        (
            Feature(name="class", kind="number"),
            Feature(name="a b", kind="number"),
            Feature(name="é-1", kind="number"),
        )
    )
    row = {"class": 1.5, "a b": 2.5, "é-1": 3.5}
    assert np.frombuffer(decoder(schema)(json.dumps(row).encode())).tolist() == [1.5, 2.5, 3.5]
