"""A block of rows answers as its rows do one by one, bit for bit: at every threshold and beside it, missing, infinite."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from test_parity import thresholds

from compile.flat import flatten
from compile.kernel import FlatForest
from compile.normalise import normalise
from training.features import Feature, FeatureSchema

WIDTH = 6


def trained(library: str, **params: Any) -> Any:
    rng = np.random.default_rng(11)
    rows = rng.normal(size=(3000, WIDTH)).round(2)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    labels = (np.nansum(rows[:, :3], axis=1) + rng.normal(size=len(rows)) > 0).astype(int)
    if library == "lightgbm":
        import lightgbm

        settings = {"objective": "binary", "verbosity": -1, "num_threads": 1} | params
        return lightgbm.train(settings, lightgbm.Dataset(rows, labels), 40)
    import xgboost

    settings = {"objective": "binary:logistic", "nthread": 1} | params
    return xgboost.train(settings, xgboost.DMatrix(rows, labels), 40)


def awkward(model: Any) -> np.ndarray:
    rng = np.random.default_rng(12)
    found = thresholds(model)
    rows = rng.normal(size=(3 * len(found) + 200, WIDTH)).round(2)
    for n, (feature, value) in enumerate(found):
        kind = np.float32 if type(model).__module__.startswith("xgboost") else np.float64
        at = kind(value)
        for step, near in enumerate((at, np.nextafter(at, kind(-np.inf)), np.nextafter(at, kind(np.inf)))):
            rows[3 * n + step, feature] = near
    for value in (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e300, 5e-324):
        rows[rng.random(rows.shape) < 0.03] = value
    return np.ascontiguousarray(rows[rng.permutation(len(rows))])


@pytest.mark.parametrize(
    ("library", "params"),
    [
        ("lightgbm", {"num_leaves": 32}),  # as many as a block takes
        ("lightgbm", {"num_leaves": 33}),  # one more: walked
        ("lightgbm", {"num_leaves": 2}),
        ("lightgbm", {"num_leaves": 31, "zero_as_missing": True}),
        ("lightgbm", {"num_leaves": 31, "use_missing": False}),
        ("xgboost", {"max_depth": 5}),
        ("xgboost", {"max_depth": 6}),
        ("xgboost", {"max_depth": 0, "max_leaves": 32, "grow_policy": "lossguide"}),
    ],
)
def test_a_block_answers_as_its_rows_do_alone(library: str, params: dict[str, Any]) -> None:
    model = trained(library, **params)
    rows = awkward(model)
    schema = FeatureSchema(tuple(Feature(name=f"x{n}", kind="number") for n in range(WIDTH)))
    forest = FlatForest(flatten(normalise(copy.deepcopy(model), schema).forest))
    alone = np.concatenate([forest.margin(rows[n : n + 1]) for n in range(len(rows))])
    assert np.array_equal(forest.margin(rows), alone)
    for count in range(1, 40):
        assert np.array_equal(forest.margin(rows[:count]), alone[:count]), count
    assert np.isfinite(alone).all()
