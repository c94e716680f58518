"""Rows and frames are encoded alike; what a schema does not accept is refused by its field."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cases import MIXED, mixed_body, mixed_rows
from hypothesis import given
from hypothesis import strategies as st

from training.features import (
    Feature,
    FeatureSchema,
    InputRefused,
    decode_matrix,
    encode,
    encode_frame,
    infer,
)
from training.inference import tidy


@given(st.integers(1, 50), st.integers(0, 10_000))
def test_rows_and_frames_are_encoded_alike(count: int, seed: int) -> None:
    rows = [json.loads(mixed_body(row)) for row in mixed_rows(count, seed)]
    frame = pd.DataFrame(rows, columns=list(MIXED.names))
    assert np.array_equal(encode(MIXED, rows), encode_frame(MIXED, frame), equal_nan=True)


def test_decoding_undoes_encoding() -> None:
    matrix = mixed_rows(200)
    columns = decode_matrix(MIXED, matrix)
    rows: list[dict[str, Any]] = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    again = encode(MIXED, rows)
    assert np.array_equal(again, matrix, equal_nan=True)


def test_the_schema_survives_its_json_and_its_fingerprint_tells_contracts_apart() -> None:
    back = FeatureSchema.from_json(MIXED.to_json())
    assert back == MIXED
    assert back.fingerprint == MIXED.fingerprint
    reordered = FeatureSchema(MIXED.features[::-1])
    assert reordered.fingerprint != MIXED.fingerprint
    with pytest.raises(InputRefused, match="colour"):
        FeatureSchema.from_json(MIXED.to_json().replace(b'"kind"', b'"colour"', 1))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": ""}, "no name"),
        ({"name": 'a"b'}, "quotes"),
        ({"kind": "category"}, "at least one"),
        ({"kind": "category", "categories": ("a", "a")}, "twice"),
        ({"categories": ("a",)}, "no categories"),
        ({"kind": "boolean", "low": 1.0}, "range"),
        ({"missing": float("inf")}, "missing"),
    ],
)
def test_impossible_features_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InputRefused, match=named):
        Feature(**({"name": "a", "kind": "number"} | fields))


def test_a_frame_suggests_the_schema_that_its_values_read_as() -> None:
    rng = np.random.default_rng(0)
    raw = pd.DataFrame(
        {
            "customer_id": range(100),
            "code": [f"c{n}" for n in range(100)],
            "charges": ["12.5", " ", "7"] * 33 + ["1"],
            "plan": ["a ", "b", None] * 33 + ["a"],
            "senior": ["true", "False"] * 50,
            "active": [True, False] * 50,
            "level": rng.integers(0, 9, 100),
            "same": ["x"] * 100,
        }
    )
    schema = infer(tidy(raw))
    assert {feature.name: feature.kind for feature in schema.features} == {
        "charges": "number",
        "plan": "category",
        "senior": "boolean",
        "active": "boolean",
        "level": "number",
    }
    plan = next(feature for feature in schema.features if feature.name == "plan")
    assert plan.categories == ("a", "b")
    encoded = encode_frame(schema, tidy(raw))
    assert np.isnan(encoded[1, 0])
    assert encoded[0, 0] == 12.5
