"""LightGBM's kinds: every objective and boosting type, its ways with missing values and categories, and large numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from kind import Case, Kind, Matrix, Task, named
from natives import lightgbm_native, lightgbm_thresholds, wrapper_native
from tables import CODES, NUMBERS, draw, label, number, signal

from training.features import Feature, FeatureSchema

QUIET = {
    "verbosity": -1, "num_threads": 1, "num_leaves": 12, "learning_rate": 0.2, "min_data_in_leaf": 5,
    "deterministic": True, "force_row_wise": True,
}  # fmt: skip
ROWS = 500
MANY = FeatureSchema(
    (*NUMBERS.features[:4], Feature(name="city", kind="category", categories=tuple(f"c{i}" for i in range(120))))
)
SINGLE = FeatureSchema((number("load"),))
Change = Callable[[Matrix], Matrix]


def table(
    schema: FeatureSchema, seed: int, kind: str, change: Change = lambda rows: rows
) -> tuple[Matrix, Any, Matrix]:
    """Rows, their labels, and a holdout. `change` alters the columns after the labels were made."""
    rows = draw(schema, ROWS, seed)
    return change(rows), label(kind, signal(schema, rows), seed), change(draw(schema, 150, seed + 1000))


def booster(
    id: str,
    says: str,
    task: Task,
    labels: str,
    params: dict[str, Any],
    *,
    schema: FeatureSchema = NUMBERS,
    rounds: int = 12,
    outcome: Any = "served",
    reason: str = "",
    data: dict[str, Any] | None = None,
    change: Change = lambda rows: rows,
    after: Callable[[Any, Matrix, Any], Any] = lambda model, _rows, _target: model,
    stop: bool = False,
    largest: float = 3.4028234e38,
) -> Kind:
    """A native Booster on a matrix. `data` adds to its Dataset, `after` is done to it when trained."""

    def make(seed: int) -> Case:
        import lightgbm

        rows, target, holdout = table(schema, seed, labels, change)
        coded = [j for j, feature in enumerate(schema.features) if feature.kind == "category"]
        given = {"categorical_feature": coded or "auto", "params": QUIET | params, "free_raw_data": False} | (
            data or {}
        )
        train = lightgbm.Dataset(rows, target, **given)
        watch: dict[str, Any] = {}
        if stop:
            odd = np.where(np.arange(len(target)) % 4, target, 1 - target)
            watch = {
                "valid_sets": [train.create_valid(rows, odd)],
                "callbacks": [lightgbm.early_stopping(4, verbose=False)],
            }
        model = lightgbm.train(QUIET | params | {"seed": seed}, train, 60 if stop else rounds, **watch)
        model = after(model, rows, target)
        classes = ("a", "b", "c", "d") if task == "multiclass" else ()
        return Case(
            model, schema, rows, holdout, lightgbm_native(model), lightgbm_thresholds(model), classes,
            any_code=bool(coded), infinite=params.get("linear_tree") is None, largest=largest,
        )  # fmt: skip

    return Kind(id, says, task, make, outcome, reason)


def wrapper(
    id: str,
    says: str,
    task: Task,
    labels: str,
    name: str,
    params: dict[str, Any],
    *,
    classes: tuple[str, ...] = (),
    fit: Callable[[Matrix, Any], dict[str, Any]] = lambda _rows, _target: {},
) -> Kind:
    """A scikit-learn wrapper on a matrix; `classes` are string labels."""

    def make(seed: int) -> Case:
        import lightgbm

        rows, target, holdout = table(NUMBERS, seed, labels)
        given = {"n_estimators": 12, "num_leaves": 12, "n_jobs": 1, "random_state": seed, "verbosity": -1} | params
        model = getattr(lightgbm, name)(**given)
        model.fit(rows, np.array(classes)[target] if classes else target, **fit(rows, target))
        named = classes or {"binary": ("no", "yes"), "multiclass": ("a", "b", "c", "d")}.get(task, ())
        thresholds = lightgbm_thresholds(model.booster_)
        return Case(model, NUMBERS, rows, holdout, wrapper_native(model), thresholds, named, infinite=True)

    return Kind(id, says, task, make)


def query_ids(rows: Matrix, _target: Any) -> dict[str, Any]:
    return {"group": [20] * (len(rows) // 20)}


def noisy(rows: Matrix, target: Any) -> dict[str, Any]:
    import lightgbm

    odd = np.where(np.arange(len(target)) % 4, target, 1 - target)
    return {"eval_X": rows, "eval_y": odd, "callbacks": [lightgbm.early_stopping(4, verbose=False)]}


def squared(predicted: Any, data: Any) -> tuple[Any, Any]:
    """A custom objective."""
    return predicted - data.get_label(), np.ones_like(predicted)


def big_integers(rows: Matrix) -> Matrix:
    """Ids of nine digits: neighbours share a float32."""
    rows = rows.copy()
    rows[:, 1] = 987_654_000 + np.round(rows[:, 1])
    rows[:, 6] = 2**30 + np.round(rows[:, 6] / 10)
    return rows


def timestamps(rows: Matrix) -> Matrix:
    """Nanoseconds since 1970, beyond 2**53: neighbours share even a float64."""
    rows = rows.copy()
    rows[:, 1] = 1.7e18 + np.round(rows[:, 1]) * 256
    rows[:, 6] = 2.0**53 + 2 * np.round(rows[:, 6])
    return rows


def fine(rows: Matrix) -> Matrix:
    """Numbers that differ beyond float32's digits alone."""
    rows = rows.copy()
    rows[:, 0] = 1 + rows[:, 0] * 1e-11
    rows[:, 5] = -3 + rows[:, 5] * 1e-12
    return rows


def tiny(rows: Matrix) -> Matrix:
    """About the 1e-35 that LightGBM takes for zero."""
    return rows * 1e-36


def huge(rows: Matrix) -> Matrix:
    return rows * 1e200


def zeros(rows: Matrix) -> Matrix:
    """Plenty of zeros."""
    rows = rows.copy()
    rows[:, 1] = np.where(np.abs(rows[:, 1]) < 400, 0, rows[:, 1])
    rows[:, 5] = np.where(np.abs(rows[:, 5]) < 0.4, 0, rows[:, 5])
    return rows


def more(model: Any, rows: Matrix, target: Any) -> Any:
    import lightgbm

    train = lightgbm.Dataset(rows[::-1].copy(), target[::-1].copy(), params=QUIET)
    return lightgbm.train(QUIET | {"objective": "binary"}, train, 4, init_model=model)


def best_of_five(model: Any, _rows: Matrix, _target: Any) -> Any:
    model.best_iteration = 5
    return model


def refitted(model: Any, rows: Matrix, target: Any) -> Any:
    return model.refit(rows, 1 - target, decay_rate=0.5)


def reloaded(model: Any, _rows: Matrix, _target: Any) -> Any:
    import lightgbm

    return lightgbm.Booster(model_str=model.model_to_string())


REGRESSIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("regression", "real", {}),
    ("regression_l1", "real", {}),
    ("huber", "real", {"alpha": 1.5}),
    ("fair", "real", {}),
    ("poisson", "count", {}),
    ("quantile", "real", {"alpha": 0.8}),
    ("mape", "positive", {}),
    ("gamma", "positive", {}),
    ("tweedie", "count", {"tweedie_variance_power": 1.3}),
    ("cross_entropy", "unit", {}),
    ("cross_entropy_lambda", "unit", {}),
]
BINARY = {"objective": "binary"}
CAREFUL = BINARY | {"min_data_per_group": 5, "cat_smooth": 1}
MULTI = {"objective": "multiclass", "num_class": 4}
REAL = {"objective": "regression"}
BAGGED = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6, "feature_fraction": 0.7}
DART = {"boosting": "dart", "drop_rate": 0.3, "skip_drop": 0.2}
NAMES = ["age", "balance_in_eur", "größe", "f0", "Column_3", "日本", "a.b"]

LIGHTGBM = [
    booster("lgb_binary", "binary", "binary", "binary", BINARY),
    *(
        booster(f"lgb_{name}", name, "regression", labels, {"objective": name, **params})
        for name, labels, params in REGRESSIONS
    ),
    booster("lgb_reg_sqrt", "regression, reg_sqrt", "regression", "positive", REAL | {"reg_sqrt": True}),
    booster("lgb_sigmoid", "binary, sigmoid=2", "binary", "binary", BINARY | {"sigmoid": 2.0}),
    booster("lgb_multiclass", "multiclass", "multiclass", "multi", MULTI),
    booster("lgb_multiclassova", "multiclassova", "multiclass", "multi", MULTI | {"objective": "multiclassova"}),
    booster("lgb_multiclassova_sigmoid", "multiclassova, sigmoid=0.5", "multiclass", "multi",
            MULTI | {"objective": "multiclassova", "sigmoid": 0.5}),
    booster("lgb_lambdarank", "lambdarank", "ranking", "rank", {"objective": "lambdarank"}, data={"group": [20] * 25}),
    booster("lgb_xendcg", "rank_xendcg", "ranking", "rank", {"objective": "rank_xendcg"}, data={"group": [20] * 25}),
    booster("lgb_custom", "a custom objective", "regression", "real", {"objective": squared}, outcome="either"),
    booster("lgb_goss", "goss", "binary", "binary", BINARY | {"data_sample_strategy": "goss"}),
    booster("lgb_dart", "dart", "binary", "binary", BINARY | DART),
    booster("lgb_dart_multi", "dart, multiclass", "multiclass", "multi", MULTI | DART),
    booster("lgb_dart_uniform", "dart, xgboost_dart_mode", "regression", "real",
            REAL | DART | {"xgboost_dart_mode": True, "uniform_drop": True}),
    booster("lgb_rf", "rf", "binary", "binary", BINARY | BAGGED),
    booster("lgb_rf_multi", "rf, multiclass", "multiclass", "multi", MULTI | BAGGED),
    booster("lgb_rf_regression", "rf, regression", "regression", "real", REAL | BAGGED),
    booster("lgb_stopped", "stopped early: answers with its best rounds", "binary", "binary", BINARY, stop=True),
    booster("lgb_stopped_multi", "multiclass, best_iteration set", "multiclass", "multi", MULTI, after=best_of_five),
    booster("lgb_reloaded", "read back from its text", "binary", "binary", BINARY, after=reloaded),
    booster("lgb_max_bin", "max_bin=7", "binary", "binary", BINARY | {"max_bin": 7}),
    booster("lgb_big_integers", "integers beyond float32's", "binary", "binary", BINARY, change=big_integers),
    booster("lgb_timestamps", "timestamps beyond float64's integers", "binary", "binary", BINARY, change=timestamps),
    booster("lgb_float64", "thresholds that only float64 tells apart", "binary", "binary", BINARY, change=fine),
    booster("lgb_zero_as_missing", "zero_as_missing", "binary", "binary", BINARY | {"zero_as_missing": True},
            change=zeros, outcome="either"),
    booster("lgb_zero_as_missing_codes", "zero_as_missing with category codes", "binary", "binary",
            BINARY | {"zero_as_missing": True}, schema=CODES, change=zeros, outcome="either"),
    booster("lgb_no_missing", "use_missing=false", "binary", "binary", BINARY | {"use_missing": False}),
    booster("lgb_linear_tree", "linear_tree", "regression", "real", REAL | {"linear_tree": True},
            outcome="refused", reason="linear"),
    booster("lgb_codes", "category codes", "binary", "binary", CAREFUL, schema=CODES),
    booster("lgb_codes_onehot", "category codes, split one against the rest", "binary", "binary",
            BINARY | {"max_cat_to_onehot": 100, "min_data_per_group": 5}, schema=CODES),
    booster("lgb_codes_many", "120 category codes", "binary", "binary",
            BINARY | {"min_data_per_group": 1, "cat_smooth": 0.1, "max_cat_threshold": 100}, schema=MANY),
    booster("lgb_codes_multi", "category codes, multiclass", "multiclass", "multi",
            MULTI | {"min_data_per_group": 5, "cat_smooth": 1}, schema=CODES),
    booster("lgb_codes_dart", "category codes, dart", "binary", "binary",
            BINARY | DART | {"min_data_per_group": 5, "cat_smooth": 1}, schema=CODES),
    booster("lgb_codes_rf", "category codes, rf", "binary", "binary",
            BINARY | BAGGED | {"min_data_per_group": 5, "cat_smooth": 1}, schema=CODES),
    booster("lgb_extra_trees", "extra_trees", "binary", "binary", BINARY | {"extra_trees": True}),
    booster("lgb_monotone", "monotone constraints", "binary", "binary",
            BINARY | {"monotone_constraints": [1, 0, 1, 0, 0, -1, 0]}),
    booster("lgb_interaction", "interaction constraints", "binary", "binary",
            BINARY | {"interaction_constraints": "[0,1],[2,3,4,5,6]"}),
    booster("lgb_continued", "training continued from init_model", "binary", "binary", BINARY, after=more),
    booster("lgb_refit", "leaves refitted", "binary", "binary", BINARY, after=refitted),
    booster("lgb_no_average", "boost_from_average=false", "regression", "real", REAL | {"boost_from_average": False}),
    booster("lgb_unbalanced", "is_unbalance", "binary", "binary", BINARY | {"is_unbalance": True}),
    booster("lgb_leaf_only", "trees without a split", "binary", "binary", BINARY | {"min_data_in_leaf": 400}),
    booster("lgb_leaf_only_multi", "multiclass, trees without a split", "multiclass", "multi",
            MULTI | {"min_data_in_leaf": 400}),
    booster("lgb_single", "a single feature", "binary", "binary", BINARY, schema=SINGLE),
    named(booster("lgb_names", "column names of any characters", "binary", "binary", BINARY,
                  data={"feature_name": NAMES}), NAMES),
    booster("lgb_names_other", "column names that are not the schema's", "binary", "binary", BINARY,
            data={"feature_name": NAMES}, outcome="refused", reason="columns"),
    booster("lgb_quantized", "use_quantized_grad", "binary", "binary", BINARY | {"use_quantized_grad": True}),
    booster("lgb_smooth", "path_smooth, bagging, columns sampled by node", "regression", "real",
            REAL | {"path_smooth": 5, "bagging_freq": 1, "bagging_fraction": 0.6, "feature_fraction_bynode": 0.5}),
    booster("lgb_tiny", "numbers about LightGBM's zero", "binary", "binary", BINARY, change=tiny),
    booster("lgb_huge", "numbers beyond float32", "binary", "binary", BINARY, change=huge, largest=1e305),
    booster("lgb_deep", "63 leaves", "binary", "binary", BINARY | {"num_leaves": 63, "min_data_in_leaf": 1}),
    wrapper("lgb_classifier", "LGBMClassifier", "binary", "binary", "LGBMClassifier", {}),
    wrapper("lgb_classifier_multi", "LGBMClassifier of string labels", "multiclass", "multi", "LGBMClassifier", {},
            classes=("a", "b", "c", "d")),
    wrapper("lgb_classifier_strings", "LGBMClassifier of two string labels", "binary", "binary", "LGBMClassifier",
            {"class_weight": "balanced"}, classes=("no", "yes")),
    wrapper("lgb_stopped_classifier", "LGBMClassifier, stopped early", "binary", "binary", "LGBMClassifier",
            {"n_estimators": 60}, fit=noisy),
    wrapper("lgb_regressor", "LGBMRegressor", "regression", "real", "LGBMRegressor", {}),
    wrapper("lgb_ranker", "LGBMRanker", "ranking", "rank", "LGBMRanker", {}, fit=query_ids),
]  # fmt: skip
