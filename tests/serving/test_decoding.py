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

CHANGEABLE = (
    b'{"age":1.5,"balance":-2e3,"plan":"basic","region":null,"autopay":true,"visits":0,'
    b'"of no use":"ab\xc3\xa9\\u00e9","nor this":[1e5,{"z":null}]}'
)
ODD_BYTES = st.sampled_from([bytes([byte]) for byte in b'"\\{}[],:0eE+-.u\xff\xc3\xed'])
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


NAMES = st.text(st.characters(blacklist_categories=("Cs",), min_codepoint=32, blacklist_characters='"\\'), min_size=1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
MISSING = st.one_of(st.sampled_from(["nan", "refuse"]), st.integers(-2, 5).map(float))


@st.composite
def features(draw: st.DrawFn, name: str) -> Feature:
    kind = draw(st.sampled_from(["number", "category", "boolean"]))
    if kind == "category":
        names = draw(st.lists(st.text(max_size=4), min_size=1, max_size=4, unique=True))
        unseen = draw(st.sampled_from(["missing", "other", "refuse"]))
        return Feature(name=name, kind=kind, categories=tuple(names), missing=draw(MISSING), unseen=unseen)
    if kind == "boolean":
        return Feature(name=name, kind=kind, missing=draw(MISSING))
    low, high = sorted(draw(st.tuples(FINITE, FINITE)))
    return Feature(
        name=name,
        kind="number",
        missing=draw(MISSING),
        infinity=draw(st.sampled_from(["refuse", "missing"])),
        low=draw(st.sampled_from([None, low])),
        high=draw(st.sampled_from([None, high])),
    )


SCHEMAS = (
    st.lists(NAMES, min_size=1, max_size=6, unique=True)
    .flatmap(lambda names: st.tuples(*map(features, names)))
    .map(FeatureSchema)
)
LITERALS = st.sampled_from(
    [
        *("1", "-0", "-0.0", "0e0", "1e400", "-1e400", "1e-400", "1E+2", "123456789012345678901234567890", "4.9e-324"),
        *("9007199254740993", "-9223372036854775809", "18446744073709551616", "1.7976931348623159e308", "0.1e1"),
        *("01", "+1", ".5", "1.", "0x1", "1e", "--1", "1_0", "NaN", "nan", "Infinity", "-Infinity", "inf"),
        *("true", "false", "null", "True", "None", "nul", '""', '"1"', '"\\u0041"', '"\\ud83d\\ude00"', '"\\ud800"'),
        *('"\\x41"', '"\\n"', '"\n"', "'a'", "[]", "{}", "[1]", '{"a": 1}', "[" * 40 + "]" * 40, "", " "),
    ]
)


@st.composite
def spelled(draw: st.DrawFn, schema: FeatureSchema) -> bytes:
    """An object as a client might write it: any order, repeated, unknown and escaped names, any literal."""
    members = []
    for feature in schema.features:
        right = [json.dumps(name) for name in feature.categories] or ["true", "0.5", "null"]
        literals = st.one_of(
            st.sampled_from(right), FINITE.map(json.dumps), st.text(max_size=4).map(json.dumps), LITERALS
        )
        members += [(feature.name, draw(literals)) for _ in range(draw(st.sampled_from([1, 1, 1, 1, 0, 2])))]
    if draw(st.booleans()):
        members.append((draw(st.text(max_size=3)), draw(LITERALS)))
    ascii_only = draw(st.booleans())
    space = draw(st.sampled_from(["", " ", "\n\t", "\r\n"]))
    written = [
        f"{space}{json.dumps(name, ensure_ascii=ascii_only)}{space}:{space}{literal}"
        for name, literal in draw(st.permutations(members))
    ]
    return ("{" + ",".join(written) + space + "}").encode("utf-8", "surrogatepass")


@given(SCHEMAS.flatmap(lambda schema: st.tuples(st.just(schema), spelled(schema))))
def test_any_schema_and_any_spelling_have_one_outcome(given_: tuple[FeatureSchema, bytes]) -> None:
    schema, body = given_
    fast = outcome(decoder(schema), body)
    assert fast == outcome(lambda sent: decode_slowly(schema, sent), body)
    try:
        fields = json.loads(body, parse_constant=refuse_constant)
    except ValueError:
        assert isinstance(fast, tuple)  # what Python takes for no JSON is no row
        return
    if isinstance(fast, bytes):
        assert fast == encode(schema, [fields]).tobytes()  # of repeated names, the last counts


@given(st.data())
def test_any_bytes_of_a_good_body_changed_have_one_outcome(data: st.DataObject) -> None:
    body = bytearray(CHANGEABLE)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 1))] = data.draw(st.one_of(st.binary(max_size=1), ODD_BYTES))
    assert outcome(FAST, bytes(body)) == outcome(slowly, bytes(body))


def refuse_constant(name: str) -> None:
    raise ValueError(name)


@pytest.mark.parametrize("depth", [1, 30, 31, 32, 33, 100, 950, 5000])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_depth_has_one_limit_however_deep_the_caller_is(depth: int, pair: str) -> None:
    opening, closing = pair[:-1], pair[-1]
    row = '{"age":1,"balance":2,"plan":null,"region":null,"autopay":null,"visits":null,"x":"[[{","other":%s}'
    body = (row % (opening * depth + "1" + closing * depth)).encode()

    def deeper(decode: Any, frames: int) -> Any:
        return deeper(decode, frames - 1) if frames else outcome(decode, body)

    outcomes = {str(deeper(decode, frames)) for decode in (FAST, slowly) for frames in (0, 100, 600)}
    assert len(outcomes) == 1
    assert ("nested" in outcomes.pop()) == (depth >= 32)


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
