"""compiled == booster, bit for bit on margins, whatever the row; else there is no bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import MIXED, Release, mixed_rows, train_mixed
from hypothesis import given
from hypothesis import strategies as st

from compile import build_bundle, open_predictor
from compile.build import prove_model
from compile.errors import BundleRefused, ModelRefused, ParityFailed
from compile.gate import Oracle, prove
from compile.normalise import normalise
from compile.runtime import Scorer
from training.features import Feature, FeatureSchema

TYPES = ["q", "q", "c", "c", "q", "q"]
BACKENDS = ["treelite", "onnx"]


def native_margin(model: Any, rows: np.ndarray) -> np.ndarray:
    """The library's own raw score of the original rows."""
    if type(model).__module__.startswith("lightgbm"):
        return np.asarray(model.predict(rows, raw_score=True)).reshape(-1, 1)
    import xgboost

    data = xgboost.DMatrix(rows, feature_types=TYPES[: rows.shape[1]], enable_categorical=True)
    return np.asarray(model.predict(data, output_margin=True), dtype=np.float64).reshape(-1, 1)


def thresholds(model: Any) -> list[tuple[int, float]]:
    """(feature, threshold) of every numeric split, read from the library's own dump."""
    found = []
    if type(model).__module__.startswith("lightgbm"):

        def walk(node: dict[str, Any]) -> None:
            if "split_feature" in node:
                if node["decision_type"] == "<=":
                    found.append((node["split_feature"], float(node["threshold"])))
                walk(node["left_child"])
                walk(node["right_child"])

        for tree in model.dump_model()["tree_info"]:
            walk(tree["tree_structure"])
        return found
    for tree in model.get_dump(dump_format="json"):
        nodes = [json.loads(tree)]
        while nodes:
            node = nodes.pop()
            nodes += node.get("children", [])
            if isinstance(node.get("split_condition"), int | float):
                found.append((int(node["split"][1:]), float(np.float32(node["split_condition"]))))
    return found


def around(model: Any, seed: int) -> np.ndarray:
    """Rows that lie on each threshold, and one ulp to either side in float32 and float64."""
    rows = []
    base = mixed_rows(50, seed)
    for n, (feature, threshold) in enumerate(thresholds(model)):
        with np.errstate(over="ignore"):  # LightGBM splits off missing values at the largest float64
            single = np.float32(threshold)
        for value in (
            threshold,
            np.nextafter(threshold, np.inf),
            np.nextafter(threshold, -np.inf),
            float(np.nextafter(single, np.float32(np.inf))),
            float(np.nextafter(single, np.float32(-np.inf))),
        ):
            row = base[n % len(base)].copy()
            row[feature] = value
            rows.append(row)
    return np.array(rows)


CELLS = st.one_of(
    st.floats(allow_infinity=False),
    st.floats(-5, 5),
    st.integers(-3, 9).map(float),
    st.sampled_from([0.0, -0.0, 1e-35, -1e-35, 1.0000001e-35, 1e-45, 3.4e38, -1e308, float("nan")]),
)
MATRICES = st.lists(st.lists(CELLS, min_size=6, max_size=6), min_size=1, max_size=30)


@pytest.fixture(scope="module", params=["champion", "challenger"])
def case(request: pytest.FixtureRequest, release: Release) -> tuple[Any, dict[str, Any]]:
    """A native model with its predictors, one a backend."""
    path = getattr(release, request.param)
    return release.natives[request.param], {backend: open_predictor(path, backend) for backend in BACKENDS}


@given(cells=MATRICES)
def test_margins_of_any_rows_are_the_native_ones(case: tuple[Any, dict[str, Any]], cells: list[list[float]]) -> None:
    native, predictors = case
    rows = np.array(cells)
    for column in (2, 3):  # a category's code is a whole number from 0 up, or missing: the encoder makes no other
        code = np.abs(np.nan_to_num(rows[:, column], posinf=0, neginf=0)) % 5 // 1
        rows[:, column] = np.where(np.isnan(rows[:, column]), np.nan, code)
    if type(native).__module__.startswith("xgboost"):
        rows = np.clip(rows, -3e38, 3e38)  # XGBoost itself refuses what overflows its float32
    expected = native_margin(native, rows)
    for backend, predictor in predictors.items():
        assert (predictor.margin(rows) == expected).all(), backend


def test_margins_at_every_threshold_are_the_native_ones(case: tuple[Any, dict[str, Any]]) -> None:
    native, predictors = case
    rows = around(native, 7)
    assert len(rows) > 100
    expected = native_margin(native, rows)
    for backend, predictor in predictors.items():
        assert (predictor.margin(rows) == expected).all(), backend


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_fresh_models_of_any_seed_are_exact(library: str, size: Callable[[int, int], int], tmp_path: Path) -> None:
    for seed in range(size(3, 60)):
        model = train_mixed(library, trees=5 + 7 * (seed % 5), seed=seed)
        built = build_bundle(model, MIXED, mixed_rows(200, seed), tmp_path / str(seed), name="m", version="1")
        rows = np.concatenate([around(model, seed), mixed_rows(2000, 1000 + seed)])
        for backend in BACKENDS:
            assert (open_predictor(built, backend).margin(rows) == native_margin(model, rows)).all(), (seed, backend)


@given(counts=st.lists(st.integers(1, 64), min_size=1, max_size=6))
def test_a_bound_call_scores_any_count_as_one_by_one(case: tuple[Any, dict[str, Any]], counts: list[int]) -> None:
    _, predictors = case
    rows = mixed_rows(64, 9)
    for predictor in predictors.values():
        alone = np.concatenate([predictor.score(row[None]) for row in rows])
        buffer, scores = rows.copy(), np.zeros((64, 1))
        run = predictor.bound(buffer, scores)
        for count in counts:
            scores[:] = -1
            run(count)
            assert (scores[:count] == alone[:count]).all()
            assert (scores[count:] == -1).all()


def test_probabilities_are_the_native_ones(case: tuple[Any, dict[str, Any]]) -> None:
    native, predictors = case
    rows = mixed_rows(1000, 11)
    expected = 1 / (1 + np.exp(-native_margin(native, rows)))
    for predictor in predictors.values():
        assert np.abs(predictor.score(rows) - expected).max() <= 1e-12


def test_a_bundle_that_differs_by_one_bit_is_refused_by_its_files_name(release: Release, tmp_path: Path) -> None:
    import shutil

    rng = np.random.default_rng(0)
    for file in sorted(path.name for path in release.champion.iterdir()):
        if file == "measured.json":  # outside the digest: measured, not derived
            continue
        copy = tmp_path / file / release.champion.name
        shutil.copytree(release.champion, copy)
        data = bytearray((copy / file).read_bytes())
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        (copy / file).chmod(0o644)
        (copy / file).write_bytes(data)
        with pytest.raises(BundleRefused, match=file.replace(".", r"\.")):
            open_predictor(copy)


def test_the_same_inputs_give_the_same_digest(release: Release, tmp_path: Path) -> None:
    again = build_bundle(
        release.natives["champion"],
        MIXED,
        mixed_rows(500, 1),
        tmp_path,
        name="mixed",
        version="1",
        classes=("no", "yes"),
    )
    assert again.name == release.champion.name


def test_a_model_of_another_kind_is_refused_with_the_reason(tmp_path: Path) -> None:
    import xgboost

    rows = mixed_rows(200)
    linear = xgboost.train(
        {"objective": "reg:squarederror", "booster": "gblinear"},
        xgboost.DMatrix(np.nan_to_num(rows), np.arange(200.0)),
        2,
    )
    narrow = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows[:, :4], np.arange(200) % 2), 2)
    for model, reason in ((linear, "gblinear"), (narrow, "4 features"), (object(), "no tree model")):
        with pytest.raises(ModelRefused, match=reason):
            build_bundle(model, MIXED, mixed_rows(10), tmp_path, name="m", version="1")
    assert not list(tmp_path.iterdir())


def test_a_backend_that_is_wrong_on_one_row_is_refused(release: Release) -> None:
    native = release.natives["champion"]
    proven = prove_model(native, MIXED, mixed_rows(50), name="m", version="1")
    oracle = Oracle(normalise(native, MIXED).native, {"rows": mixed_rows(50)})

    class OneUlpOff:
        def __init__(self, scorer: Scorer) -> None:
            self.linked = scorer.linked
            self.scorer = scorer

        def margin(self, rows: np.ndarray) -> np.ndarray:
            margins = np.array(self.scorer.margin(rows))
            margins[-1] = np.nextafter(margins[-1], np.inf)
            return margins

    scorer = proven.scorers["treelite"]
    assert prove("right", scorer, oracle, "bits").bad_rows == 0
    with pytest.raises(ParityFailed, match="differ from the native library"):
        prove("wrong", OneUlpOff(scorer), oracle, "bits")


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_categories_that_are_numbers_are_matched_by_how_they_are_written(library: str, tmp_path: Path) -> None:
    import lightgbm
    import pandas as pd
    import xgboost

    known, ours = [20, 7, 10], ("7", "10", "20")
    rng = np.random.default_rng(0)
    values = rng.choice(known, 400)
    frame = pd.DataFrame({"size": rng.normal(size=400), "bay": pd.Categorical(values, categories=known)})
    labels = (values == 7) ^ (frame["size"] > 0)
    made = {
        "xgboost": lambda: xgboost.XGBClassifier(n_estimators=5, max_depth=3, enable_categorical=True),
        "lightgbm": lambda: lightgbm.LGBMClassifier(n_estimators=5, min_data_per_group=1, verbosity=-1),
    }
    model = made[library]().fit(frame, labels)
    schema = FeatureSchema((Feature(name="size", kind="number"), Feature(name="bay", kind="category", categories=ours)))
    rows = np.column_stack([frame["size"], [ours.index(str(value)) for value in values]])
    built = build_bundle(model, schema, rows, tmp_path, name="m", version="1")
    assert np.abs(open_predictor(built).score(rows)[:, 0] - model.predict_proba(frame)[:, 1]).max() <= 1e-6


def test_rows_that_the_model_itself_refuses_are_the_reason(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    rows = np.nan_to_num(mixed_rows(100))
    forest = RandomForestClassifier(3).fit(rows, np.arange(100) % 2)
    with pytest.raises(ModelRefused, match="does not answer a row of this schema: ValueError"):
        build_bundle(forest, MIXED, np.full((1, 6), np.inf), tmp_path, name="m", version="1")
