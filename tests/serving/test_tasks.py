"""Models of every task: both paths answer byte for byte alike, with the bundle's very scores, which are the library's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inprocess import Answered, Failing, InProcess, route
from kind import Case
from kinds import KINDS
from running import Running

from compile import build_bundle, open_predictor
from compile.bundle import Manifest, publish
from compile.runtime import Predictor
from monitoring.compaction import compact
from monitoring.lake import window
from monitoring.reconcile import reconcile
from serving import page
from serving.errors import RoutesRefused
from serving.tasks import encoder
from training.features import Feature, FeatureSchema, decode_matrix

SERVED = (
    *("xgb_binary", "xgb_softprob_codes", "xgb_softmax", "xgb_squarederror", "xgb_ndcg", "xgb_multi_output"),
    *("xgb_multilabel", "xgb_poisson", "lgb_multiclass", "skl_rf_regression", "skl_rf_strings", "skl_isolation"),
    *("skl_pipe_onehot_regression", "skl_pipe_ordinal_lgb", "skl_calibrated_multiclass"),
)
TOLERANCE = 1e-6


@dataclass(repr=False)
class Served:
    case: Case
    predictor: Predictor
    asked: InProcess

    @property
    def manifest(self) -> Manifest:
        return self.predictor.manifest


def bundle_of(id: str, folder: Path, version: str = "1", seed: int = 0, name: str = "m") -> tuple[Case, Path]:
    """The kind of that id, built and published under `folder`."""
    case = next(kind for kind in KINDS if kind.id == id).make(seed)
    named: dict[str, Any] = {"classes": case.classes} if case.classes else {}
    built = build_bundle(case.model, case.schema, case.rows, folder / "built", name=name, version=version, **named)
    return case, folder / "store" / "bundles" / publish(built, folder / "store")


@pytest.fixture(scope="module", params=SERVED)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    case, path = bundle_of(request.param, folder)
    route(folder / "store", "m", {"champion": path.name})
    asked = InProcess(folder / "store", "m", folder / "traffic")
    yield Served(case, open_predictor(path), asked)
    asked.close()


def bodies_of(case: Case, rows: np.ndarray) -> list[bytes]:
    columns = decode_matrix(case.schema, rows)
    return [
        json.dumps(dict(zip(columns, values, strict=True))).encode() for values in zip(*columns.values(), strict=True)
    ]


def scores_in(manifest: Manifest, told: dict[str, Any]) -> list[float]:
    """The numbers that an answer spells, in the order of the outputs."""
    if manifest.task == "binary":
        return [told["probability"]]
    if manifest.task == "outlier":
        return [told["score"]]
    if manifest.task in ("multiclass", "multilabel"):
        assert tuple(told["probabilities"]) == manifest.outputs
        return list(told["probabilities"].values())
    if len(manifest.outputs) == 1:
        return [told["prediction"]]
    assert tuple(told["prediction"]) == manifest.outputs
    return list(told["prediction"].values())


def prediction_of(manifest: Manifest, scores: list[float]) -> object:
    """What must be predicted, said once more."""
    if manifest.task == "binary":
        return manifest.classes[int(scores[0] > manifest.threshold)]
    if manifest.task == "multiclass":
        return manifest.classes[int(np.argmax(scores))]
    if manifest.task == "multilabel":
        return [name for name, score in zip(manifest.outputs, scores, strict=True) if score > manifest.threshold]
    if manifest.task == "outlier":
        return "outlier" if scores[0] < 0 else "inlier"
    return scores[0] if len(scores) == 1 else dict(zip(manifest.outputs, scores, strict=True))


def without_times(answered: Answered) -> Answered:
    status, headers, body = answered
    return status, [pair for pair in headers if pair[0] != b"server-timing"], body


@given(data=st.data())
def test_both_paths_answer_alike_with_the_native_scores(served: Served, data: st.DataObject) -> None:
    rows = np.array([data.draw(a_row(served.case)) for _ in range(3)])
    wide = np.concatenate([rows, served.case.holdout])  # so that no column of the frame is of missing values alone
    native, scores = served.case.native(wide).scores[: len(rows)], served.predictor.score(rows)
    assert np.all(np.abs(scores - native) <= TOLERANCE * np.maximum(1, np.abs(native)))
    for n, body in enumerate(bodies_of(served.case, rows)):
        for path in ("/predict", "/predict/ab"):
            headers = {"content-type": "application/json", "x-request-id": f"row-{n}", "x-unit": f"unit {n}"}
            fast, slow = served.asked.direct(path, body, headers), served.asked.asgi(path, body, headers)
            assert without_times(fast) == without_times(slow)
            status, _, answer = fast
            assert status == 200, answer
            told = json.loads(answer)
            assert scores_in(served.manifest, told) == scores[n].tolist()
            assert told["prediction"] == prediction_of(served.manifest, scores[n].tolist())
            assert (told["model_version"], told["arm"], told["request_id"]) == ("1", "champion", f"row-{n}")


def a_row(case: Case) -> st.SearchStrategy[list[float]]:
    """An encoded row that a client can send: of the holdout's values, or any other that the schema lets through."""
    largest = min(case.largest, 1e30)

    def value(j: int, feature: Feature) -> st.SearchStrategy[float]:
        usual = st.sampled_from(case.holdout[:, j].tolist())
        if feature.kind == "category":
            return usual
        odd = st.floats(-largest, largest)
        missing = [st.just(float("nan"))] if feature.missing == "nan" else []
        return st.one_of(usual, odd, *missing)

    return st.tuples(*[value(j, feature) for j, feature in enumerate(case.schema.features)]).map(list)


def test_the_documentation_describes_the_answer(served: Served) -> None:
    body = bodies_of(served.case, served.case.holdout[:1])[0]
    told = json.loads(served.asked.direct("/predict", body, {})[2])
    document = json.loads(served.asked.asgi("/openapi.json", None, {})[2])
    operation = document["paths"]["/predict"]["post"]
    described = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert conforms(told, described), (told, described)
    model = json.loads(served.asked.asgi("/v1/models/m", None, {})[2])
    manifest = served.manifest
    assert (model["task"], model["outputs"]) == (manifest.task, list(manifest.outputs))
    assert model["classes"] == list(manifest.classes)


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON Schema that answers are described by; more fields than described are refused."""
    kinds = {"object": dict, "array": list, "string": str, "number": int | float}
    if not isinstance(value, kinds[schema["type"]]) or ("enum" in schema and value not in schema["enum"]):
        return False
    if isinstance(value, dict):
        inner = schema["properties"]
        return list(value) == list(inner) == schema["required"] and all(conforms(value[k], inner[k]) for k in inner)
    if isinstance(value, list):
        return all(conforms(each, schema["items"]) for each in value) and len(set(value)) == len(value)
    return isinstance(value, str) or schema.get("minimum", value) <= value <= schema.get("maximum", value)


@pytest.mark.parametrize("id", ["xgb_squarederror", "xgb_softprob"])
def test_a_failure_falls_back_and_an_infinite_score_is_no_answer(id: str, tmp_path: Path) -> None:
    case, champion = bundle_of(id, tmp_path)
    _, challenger = bundle_of(id, tmp_path, version="2", seed=1)
    route(tmp_path / "store", "m", {"champion": champion.name, "challenger": challenger.name})
    asked = InProcess(tmp_path / "store", "m", tmp_path / "traffic")
    predictor = open_predictor(champion)
    outputs, body = predictor.outputs, bodies_of(case, case.holdout[:1])[0]
    unit = next(f"u{n}" for n in range(100) if asked.live.snapshot.routes.arm_for(b"u%d" % n) == "challenger")
    expected = predictor.score(case.holdout[:1])[0].tolist()

    for answer in (None, float("inf"), float("-inf")):
        asked.replace_lane("challenger", Failing(predictor.width, outputs, answer))
        headers = {"x-unit": unit, "x-request-id": f"falls-{answer}"}
        fast, slow = (
            asked.direct("/predict/ab", body, headers),
            asked.asgi("/predict/ab", body, {**headers, "x-request-id": "slow"}),
        )
        assert {(b"x-fallback-from", b"challenger"), (b"x-arm", b"champion")} <= {*fast[1]} & {*slow[1]}
        status, _, told = fast
        assert status == 200
        assert json.loads(told)["arm"] == "champion"
        assert scores_in(predictor.manifest, json.loads(told)) == expected
    assert asked.slot.cells[page.FALLBACKS] == 6
    messages = {}
    for answer in (None, float("nan"), float("inf")):
        asked.replace_lane("champion", Failing(predictor.width, outputs, answer))
        fast, slow = (ask("/predict", body, {"x-request-id": f"fails-{answer}"}) for ask in (asked.direct, asked.asgi))
        assert without_times(fast) == without_times(slow)
        assert fast[0] == 500
        messages[answer] = json.loads(fast[2])["error"]
    assert "infinite" in messages[float("inf")]
    assert "infinite" not in messages[None]
    asked.close()

    compact(tmp_path / "traffic", tmp_path / "lake")
    logged = {(row["request_id"], row["arm"]): row for row in window(tmp_path / "lake", "m").to_pylist()}
    for wanted, failed in ((float("inf"), False), (None, True)):
        row = logged[f"falls-{wanted}", "challenger"]
        last = row["scores"][-1] if outputs > 1 else row["score"]
        assert row["status"] == 500
        assert np.isnan(last) if failed else np.isposinf(last)
        assert row["role"] == "served"
        stood_in = logged[f"falls-{wanted}", "champion"]
        assert (stood_in["status"], stood_in["role"]) == (200, "fallback")
    assert not reconcile(tmp_path / "traffic", tmp_path / "lake").faults


def test_a_model_whose_exp_overflows_says_so_and_answers_other_rows(tmp_path: Path) -> None:
    import xgboost

    rows = np.random.default_rng(0).normal(size=(400, 1))
    schema = FeatureSchema((Feature(name="a", kind="number"),))
    booster = xgboost.train({"objective": "reg:gamma", "max_depth": 2}, xgboost.DMatrix(rows, np.exp(rows[:, 0])), 10)
    raw = json.loads(bytes(booster.save_raw("json")))
    raw["learner"]["learner_model_param"]["base_score"] = "[1E38]"
    booster.load_model(bytearray(json.dumps(raw).encode()))
    native = booster.predict(xgboost.DMatrix(np.array([[2.0], [-1.0]]))).tolist()
    assert np.isposinf(native[0])
    built = build_bundle(booster, schema, rows[:50], tmp_path / "built", name="m", version="1")
    route(tmp_path / "store", "m", {"champion": publish(built, tmp_path / "store")})
    asked = InProcess(tmp_path / "store", "m", tmp_path / "traffic")
    for body, status in ((b'{"a": 2.0}', 500), (b'{"a": -1.0}', 200)):
        fast, slow = (ask("/predict", body, {"x-request-id": "r"}) for ask in (asked.direct, asked.asgi))
        assert without_times(fast) == without_times(slow)
        assert fast[0] == status
        told = json.loads(fast[2])
        assert (
            "infinite" in told["error"] if status == 500 else told["prediction"] == pytest.approx(native[1], rel=1e-6)
        )
    asked.close()


def test_arms_must_answer_in_the_same_words(tmp_path: Path) -> None:
    def load(arms: dict[str, str], shadow: str = "") -> None:
        route(tmp_path / "store", "m", arms, shadow)
        made = InProcess(tmp_path / "store", "m", tmp_path / f"t{len(list(tmp_path.iterdir()))}")
        made.close()

    paths = {id: bundle_of(id, tmp_path)[1].name for id in ("xgb_softprob", "xgb_binary", "xgb_squarederror")}
    for other, words in (("xgb_binary", "task: binary"), ("xgb_squarederror", "task: regression")):
        with pytest.raises(RoutesRefused, match=words):
            load({"champion": paths["xgb_softprob"], "other": paths[other]})
        with pytest.raises(RoutesRefused, match=words):
            load({"champion": paths["xgb_softprob"]}, shadow=paths[other])
    manifest = open_predictor(tmp_path / "store" / "bundles" / paths["xgb_softprob"]).manifest
    for change in ({"classes": ("a", "b")}, {"outputs": ("a", "a", "b", "c")}, {"task": "outlier"}):
        with pytest.raises(RoutesRefused, match=r"served|one name"):
            encoder(msgspec.structs.replace(manifest, **change), arm="champion", generation=1)


def test_names_of_any_characters_are_spelled_as_json(tmp_path: Path) -> None:
    names = ('a"b', "100 %", "%r %s", "日本", "\\")
    manifest = open_predictor(bundle_of("xgb_softprob", tmp_path)[1]).manifest
    odd = msgspec.structs.replace(manifest, classes=names, outputs=names)
    answer = encoder(odd, arm="champion", generation=1)((0.1, 0.2, 0.3, 0.3, 0.1), b"id", 1, 2, 3)
    assert json.loads(answer.body)["prediction"] == "%r %s"
    assert json.loads(answer.body)["probabilities"] == dict(zip(names, (0.1, 0.2, 0.3, 0.3, 0.1), strict=True))


def test_a_multiclass_server_splits_shadows_and_logs_all_scores(tmp_path: Path, serve: Callable[..., Running]) -> None:
    case, champion = bundle_of("xgb_softprob", tmp_path)
    _, challenger = bundle_of("lgb_multiclass", tmp_path, version="2")
    route(tmp_path / "store", "m", {"champion": champion.name, "challenger": challenger.name}, shadow=challenger.name)
    predictors = {"1": open_predictor(champion), "2": open_predictor(challenger)}
    server = serve(tmp_path / "store", workers=2)
    rows = case.holdout[:60]
    arms = set()
    for n, body in enumerate(bodies_of(case, rows)):
        status, headers, answer = server.ask("/predict/ab", body, {"x-unit": f"u{n}", "x-request-id": f"r{n}"})
        told = json.loads(answer)
        assert status == 200
        assert headers["x-arm"] == told["arm"]
        scores = predictors[told["model_version"]].score(rows[n : n + 1])[0].tolist()
        assert scores_in(predictors["1"].manifest, told) == scores
        arms.add(told["arm"])
    assert arms == {"champion", "challenger"}
    assert server.stop() == 0

    compact(server.traffic, tmp_path / "lake")
    logged = window(tmp_path / "lake", "m").to_pylist()
    assert sorted(row["request_id"] for row in logged if row["role"] == "served") == sorted(f"r{n}" for n in range(60))
    assert sum(row["role"] == "shadow" for row in logged) == 60
    for row in logged:
        scores = predictors[row["version"]].score(np.array([row["features"]]))[0].tolist()
        assert row["scores"] == scores
        assert row["score"] == scores[0]
    assert not reconcile(server.traffic, tmp_path / "lake").faults
