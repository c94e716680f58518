"""Whole requests over generated schemas: C, Python's protocol and FastAPI give one answer, and it is the reference's.

`test_decoding` holds decoders to each other over any schema; here the schema has a model of its own, and what is compared
is all that a client sees.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inprocess import InProcess, route
from test_decoding import refuse_constant, spelled

from compile import build_bundle, open_predictor
from compile.bundle import publish
from compile.runtime import Predictor
from training.features import Feature, FeatureSchema, InputRefused, encode

NAMES = ["age", "Age", "a b", "é", "x.y", "class", "日本", "_", "0", "a" * 80, "-1", "{}", "null", "%s", "a/b", "🌲"]
CATEGORIES = ["a", "A", "b c", "", "é", '"', "\\", "\n", "null", "0", "日本", "🌲", "%", "a" * 70]
CHANGING = re.compile(rb'"request_id":"[^"]*"|x-request-id: \S*\r\n|server-timing: [^\r]*\r\n|date: [^\r]*\r\n')
APART = {b"x-request-id", b"server-timing", b"date"}
SEEDS = range(6)


def schema_of(rng: random.Random) -> FeatureSchema:
    return FeatureSchema(tuple(feature(rng, name) for name in rng.sample(NAMES, rng.randint(1, 8))))


def feature(rng: random.Random, name: str) -> Feature:
    missing: Any = rng.choice(["nan", "refuse", 0.0, -1.0])
    kind = rng.choice(["number", "number", "category", "boolean"])
    if kind == "category":
        known = tuple(rng.sample(CATEGORIES, rng.randint(1, 6)))
        unseen: Any = rng.choice(["missing", "other", "refuse"])
        return Feature(name=name, kind="category", categories=known, missing=missing, unseen=unseen)
    if kind == "boolean":
        return Feature(name=name, kind="boolean", missing=missing)
    infinity: Any = rng.choice(["refuse", "missing"])
    low, high = rng.choice([(None, None), (-2.0, None), (None, 1e6), (-0.0, 1.0)])
    return Feature(name=name, kind="number", missing=missing, infinity=infinity, low=low, high=high)


def rows_of(schema: FeatureSchema, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    columns = [
        rng.integers(0, len(each.categories) + (each.unseen == "other"), 300).astype(float)
        if each.kind == "category"
        else rng.integers(0, 2, 300).astype(float)
        if each.kind == "boolean"
        else rng.uniform(0, 1, 300)
        for each in schema.features
    ]
    rows = np.column_stack(columns)
    for column, each in enumerate(schema.features):
        if each.missing == "nan":
            rows[rng.random(300) < 0.1, column] = np.nan
    return rows


def trained(schema: FeatureSchema, rows: np.ndarray, library: str) -> Any:
    labels = (np.nan_to_num(rows).sum(1) > np.median(np.nan_to_num(rows).sum(1))).astype(int)
    if library == "xgboost":
        import xgboost

        kinds = ["c" if each.kind == "category" else "q" for each in schema.features]
        data = xgboost.DMatrix(rows, labels, feature_types=kinds, enable_categorical=True)
        return xgboost.train({"objective": "binary:logistic", "max_depth": 3}, data, 8)
    import lightgbm

    categories = [column for column, each in enumerate(schema.features) if each.kind == "category"]
    settings = {"objective": "binary", "num_leaves": 7, "verbosity": -1, "min_data_in_leaf": 5}
    return lightgbm.train(settings, lightgbm.Dataset(rows, labels, categorical_feature=categories), 8)


@pytest.fixture(scope="module", params=SEEDS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FeatureSchema, Predictor, InProcess]]:
    folder, schema = tmp_path_factory.mktemp("generated"), schema_of(random.Random(request.param))
    rows = rows_of(schema, request.param)
    model = trained(schema, rows, "lightgbm" if request.param % 2 else "xgboost")
    built = build_bundle(model, schema, rows, folder / "built", name="any", version="1", classes=("no", "yes"))
    digest = publish(built, folder / "store")
    route(folder / "store", "any", {"champion": digest})
    asked = InProcess(folder / "store", "any", folder / "traffic")
    yield schema, open_predictor(folder / "store" / "bundles" / digest), asked
    asked.finish()


def answers(asked: InProcess, body: bytes) -> list[tuple[int, list[tuple[bytes, bytes]], bytes]]:
    """By C where it takes it, by Python's protocol, and by FastAPI: without what differs from one request to the next."""
    sent = (
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-unit: u\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    found = []
    for raw in (asked.raw(sent), asked.raw(sent, quick=False)):
        head, _, said = CHANGING.sub(b"", raw).partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        pairs = sorted((name, value) for name, _, value in (line.partition(b": ") for line in lines))
        found.append((int(first.split()[1]), pairs, said))
    status, headers, said = asked.asgi("/predict", body, {"content-type": "application/json", "x-unit": "u"})
    kept = sorted(pair for pair in headers if pair[0] not in APART)
    return [*found, (status, kept, CHANGING.sub(b"", said))]


@given(data=st.data())
def test_any_body_has_one_answer_whichever_way_it_takes(
    case: tuple[FeatureSchema, Predictor, InProcess], data: st.DataObject
) -> None:
    schema, predictor, asked = case
    body = data.draw(spelled(schema))
    if data.draw(st.sampled_from([False, False, True])):  # and with a byte of it changed
        at = data.draw(st.integers(0, len(body) - 1))
        body = body[:at] + data.draw(st.binary(max_size=2)) + body[at + 1 :]
    quick, direct, asgi = answers(asked, body)
    assert quick == direct
    assert direct[0] == asgi[0]
    assert direct[2] == asgi[2]
    assert [pair for pair in direct[1] if pair[0] != b"connection"] == asgi[1]
    assert direct[0] == 200 or 400 <= direct[0] < 500
    if direct[0] == 200:
        row = encode(schema, [json.loads(body, parse_constant=refuse_constant)])
        told = json.loads(direct[2].replace(b',"request_id"', b"").replace(b",}", b"}"))
        assert told["probability"] == float(predictor.score(row)[0, 0])


def test_good_rows_are_taken_and_bad_ones_refused_by_all(
    case: tuple[FeatureSchema, Predictor, InProcess], size: Callable[[int, int], int]
) -> None:
    """So that the law above is no law about refusals alone: rows the reference encoder takes are answered with 200."""
    schema, _, asked = case
    rng = random.Random(1)
    seen = set()
    for _ in range(size(100, 2000)):
        fields = {each.name: value(rng, each) for each in schema.features}
        body = json.dumps(fields, ensure_ascii=rng.random() < 0.5).encode()
        try:
            encode(schema, [fields])
            due = 200
        except InputRefused:
            due = 422
        told = answers(asked, body)
        assert {status for status, _, _ in told} == {due}, (body, told)
        seen.add(due)
    assert 200 in seen


def value(rng: random.Random, each: Feature) -> Any:
    if rng.random() < 0.1:
        return None
    if each.kind == "category":
        return rng.choice([*each.categories, *each.categories, "never seen"])
    if each.kind == "boolean":
        return rng.random() < 0.5
    return rng.choice([rng.uniform(0, 1), rng.gauss(0, 1), rng.randrange(3), 1e-300, 0])


def test_the_generated_schemas_have_all_kinds_and_rules() -> None:
    features = [each for seed in SEEDS for each in schema_of(random.Random(seed)).features]
    assert {each.kind for each in features} == {"number", "category", "boolean"}
    assert {each.unseen for each in features if each.kind == "category"} == {"missing", "other", "refuse"}
    assert {each.missing for each in features} >= {"nan", "refuse", 0.0}


def test_names_that_hardly_differ_are_features_of_their_own_in_any_order(tmp_path: Path) -> None:
    schema = FeatureSchema(tuple(Feature(name=name, kind="number") for name in ("age", "Age", "é", "a" * 80)))
    rows = np.random.default_rng(0).uniform(0, 1, (300, 4))
    built = build_bundle(
        trained(schema, rows, "xgboost"), schema, rows, tmp_path / "built", name="any", version="1", classes=("n", "y")
    )
    digest = publish(built, tmp_path / "store")
    route(tmp_path / "store", "any", {"champion": digest})
    asked = InProcess(tmp_path / "store", "any", tmp_path / "traffic")
    probabilities = set()
    for names in (("age", "Age", "é", "a" * 80), ("Age", "age", "a" * 80, "é")):
        for order in (names, names[::-1]):
            fields = {name: {"age": 0.1, "Age": 0.9, "é": 0.2, "a" * 80: 0.8}[name] for name in order}
            told = answers(asked, json.dumps(fields).encode())
            assert {status for status, _, _ in told} == {200}
            probabilities |= {said for _, _, said in told}
    assert len(probabilities) == 1
    asked.finish()
