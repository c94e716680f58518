"""Kinds that differ in what their columns are called, in which order they stand, and in how pandas lists their categories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from kind import Answers, Case, Kind, Matrix, columns
from natives import (
    lightgbm_native,
    lightgbm_thresholds,
    sklearn_native,
    sklearn_thresholds,
    wrapper_native,
    xgboost_native,
    xgboost_thresholds,
)
from tables import CITIES, CODES, COLORS, NUMBERS, backwards, complete, draw, frame_of, label, mirrored, number, signal

from training.features import FeatureSchema

ROWS = 450
XGB = {"max_depth": 4, "eta": 0.3, "nthread": 1, "verbosity": 0, "objective": "binary:logistic", "max_cat_to_onehot": 2}
LGB = {
    "num_leaves": 12, "num_threads": 1, "verbosity": -1, "objective": "binary", "min_data_per_group": 5, "cat_smooth": 1
}  # fmt: skip
Order = Callable[[tuple[str, ...]], list[str]]


def downwards(names: tuple[str, ...]) -> list[str]:
    return sorted(names, reverse=True)


def table(schema: FeatureSchema, seed: int) -> tuple[Matrix, Any, Matrix]:
    """Rows, two classes, and a holdout."""
    rows = draw(schema, ROWS, seed)
    return rows, label("binary", signal(schema, rows), seed), draw(schema, 150, seed + 1000)


def xgb_classifier() -> Any:
    import xgboost

    given: dict[str, Any] = {"max_cat_to_onehot": 2, "enable_categorical": True}
    return xgboost.XGBClassifier(n_estimators=12, max_depth=4, n_jobs=1, random_state=0, **given)


def lgb_classifier() -> Any:
    import lightgbm

    given: dict[str, Any] = {"min_data_per_group": 5, "cat_smooth": 1}
    return lightgbm.LGBMClassifier(n_estimators=12, num_leaves=12, n_jobs=1, random_state=0, verbosity=-1, **given)


def forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=12, max_depth=5, n_jobs=1, random_state=0)


def categories(id: str, says: str, build: Callable[[], Any], order: Order) -> Kind:
    """A wrapper on a frame whose categories pandas lists in an order of its own."""

    def make(seed: int) -> Case:
        rows, target, holdout = table(CODES, seed)
        original = _frames(order)
        model = build().fit(original(rows), target)
        native = wrapper_native(model, original)
        return Case(model, CODES, rows, holdout, native, sklearn_thresholds(model), ("no", "yes"), infinite=True)

    return Kind(id, says, "binary", make)


def xgb_booster_categories(seed: int) -> Case:
    """A DMatrix made of a frame. It refuses infinite values."""
    import xgboost

    rows, target, holdout = table(CODES, seed)
    original = _frames(downwards)
    model = xgboost.train(XGB, xgboost.DMatrix(original(rows), target, enable_categorical=True), 12)

    def native(asked: Matrix) -> Answers:
        data = xgboost.DMatrix(original(asked), enable_categorical=True)
        margins, scores = (columns(model.predict(data, output_margin=raw), len(asked)) for raw in (True, False))
        return Answers(margins, scores)

    return Case(model, CODES, rows, holdout, native, xgboost_thresholds(model), ("no", "yes"))


def lgb_booster_categories(seed: int) -> Case:
    import lightgbm

    rows, target, holdout = table(CODES, seed)
    original = _frames(sorted)
    model = lightgbm.train(LGB, lightgbm.Dataset(original(rows), target, params=LGB), 12)
    native, thresholds = lightgbm_native(model), lightgbm_thresholds(model)
    return Case(
        model, CODES, rows, holdout, lambda asked: native(original(asked)), thresholds, ("no", "yes"), infinite=True
    )


def renamed(id: str, says: str, *, schema_agrees: bool) -> Kind:
    """Columns called f6 to f0: who reads an index in a name permutes them."""

    def make(seed: int) -> Case:
        import xgboost

        names = [f"f{i}" for i in reversed(range(NUMBERS.width))]
        rows, target, holdout = table(NUMBERS, seed)
        model = xgboost.train(XGB, xgboost.DMatrix(rows, target, feature_names=names), 12)
        order = list(range(NUMBERS.width)) if schema_agrees else list(reversed(range(NUMBERS.width)))
        back = np.argsort(order)
        native = xgboost_native(model)
        thresholds = [(int(back[feature]), value) for feature, value in xgboost_thresholds(model)]
        return Case(
            model, FeatureSchema(tuple(number(names[j]) for j in order)), rows[:, order], holdout[:, order],
            lambda asked: native(np.ascontiguousarray(asked[:, back])), thresholds, ("no", "yes"), infinite=True,
        )  # fmt: skip

    return Kind(id, says, "binary", make, "served" if schema_agrees else "either")


def reversed_columns(id: str, says: str, build: Callable[[], Any], schema: FeatureSchema = NUMBERS) -> Kind:
    """A frame whose columns stand in another order than the schema's: to be put in order, or refused."""

    def make(seed: int) -> Case:
        rows, target, holdout = table(schema, seed)
        model = build().fit(backwards(schema, rows), target)
        wrapped = type(model).__module__.split(".")[0] != "sklearn"
        oracle = wrapper_native if wrapped else sklearn_native
        native = oracle(model, lambda asked: backwards(schema, asked))
        thresholds = mirrored(schema, sklearn_thresholds(model))
        return Case(model, schema, rows, holdout, native, thresholds, ("no", "yes"), infinite=wrapped)

    return Kind(id, f"{says} on a frame, its columns in another order than the schema's", "binary", make, "either")


def _frames(order: Order) -> Callable[[Matrix], Any]:
    trained_on = {"color": order(COLORS), "city": order(CITIES)}
    return lambda rows: frame_of(CODES, rows, trained_on)


COLUMNS = [
    categories("xgb_pandas", "XGBClassifier on pandas categories", xgb_classifier, list),
    categories("xgb_pandas_reordered", "XGBClassifier on pandas categories, listed by the schema in another order",
               xgb_classifier, downwards),
    Kind("xgb_pandas_booster", "Booster on pandas categories, listed in another order", "binary",
         xgb_booster_categories),
    categories("lgb_pandas", "LGBMClassifier on pandas categories", lgb_classifier, list),
    categories("lgb_pandas_reordered", "LGBMClassifier on pandas categories, listed by the schema in another order",
               lgb_classifier, downwards),
    Kind("lgb_pandas_booster", "Booster on pandas categories, listed in another order", "binary",
         lgb_booster_categories),
    renamed("xgb_names_permuted", "columns named f6 to f0", schema_agrees=True),
    renamed("xgb_names_schema", "columns that the schema lists in another order than the model", schema_agrees=False),
    reversed_columns("xgb_columns", "XGBClassifier", xgb_classifier),
    reversed_columns("lgb_columns", "LGBMClassifier", lgb_classifier),
    reversed_columns("skl_columns", "random forest", forest, complete(NUMBERS)),
]  # fmt: skip
