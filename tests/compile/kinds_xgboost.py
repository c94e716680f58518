"""XGBoost's kinds: every objective, booster and tree method, the wrappers, and whatever a converter has been wrong about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from kind import Case, Kind, Matrix, Task, named
from natives import wrapper_native, xgboost_native, xgboost_thresholds
from tables import (
    CODES,
    NUMBERS,
    draw,
    label,
    number,
    signal,
    with_rules,
)

from training.features import Feature, FeatureSchema

QUIET = {"nthread": 1, "verbosity": 0, "max_depth": 4, "eta": 0.3, "seed": 7}
ROWS = 400
MANY = FeatureSchema(
    (*NUMBERS.features[:4], Feature(name="city", kind="category", categories=tuple(f"c{i}" for i in range(90))))
)


def table(schema: FeatureSchema, seed: int, kind: str) -> tuple[Matrix, Any, Matrix]:
    """Rows, their labels, and a holdout."""
    rows = draw(schema, ROWS, seed)
    return rows, label(kind, signal(schema, rows), seed), draw(schema, 150, seed + 1000)


def types_of(schema: FeatureSchema) -> list[str]:
    return ["c" if feature.kind == "category" else "q" for feature in schema.features]


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
    data: Callable[[Matrix], dict[str, Any]] = lambda _: {},
    change: Callable[[Any], Any] = lambda booster: booster,
    classes: tuple[str, ...] = (),
    scale: float = 1.0,
    **train: Any,
) -> Kind:
    """A native Booster on a matrix. `data` adds to its DMatrix, `change` is done to it after training."""

    def make(seed: int) -> Case:
        import xgboost

        rows, target, holdout = table(schema, seed, labels)
        rows, holdout = rows * scale, holdout * scale
        given: dict[str, Any] = {"feature_types": types_of(schema), "enable_categorical": True, "label": target}
        given |= data(rows)
        matrix = xgboost.DMatrix(rows, **given)
        model = change(xgboost.train(QUIET | params | {"seed": seed}, matrix, rounds, verbose_eval=False, **train))
        native = xgboost_native(model, given["feature_types"])
        linear = params.get("booster") == "gblinear"
        coded = "c" in given["feature_types"]
        named = classes or (("a", "b", "c", "d") if task == "multiclass" else ())
        return Case(
            model, schema, rows, holdout, native, [] if linear else xgboost_thresholds(model), named,
            any_code=coded, infinite=not linear, exact_labels=params.get("objective") == "multi:softmax",
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
    schema: FeatureSchema = NUMBERS,
    outcome: Any = "served",
    fit: Callable[[Matrix, Any], dict[str, Any]] = lambda _rows, _target: {},
    twofold: bool = False,
) -> Kind:
    """A scikit-learn wrapper on a matrix."""

    def make(seed: int) -> Case:
        import xgboost

        rows, target, holdout = table(schema, seed, labels)
        given = {"n_estimators": 12, "max_depth": 4, "n_jobs": 1, "random_state": seed, "verbosity": 0} | params
        model = getattr(xgboost, name)(**given)
        model.fit(rows, target, **{"verbose": False} | fit(rows, target))
        named = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c", "d")}.get(task, ())
        thresholds = xgboost_thresholds(model.get_booster())
        native = wrapper_native(model)
        coded = "c" in types_of(schema)
        return Case(
            model, schema, rows, holdout, native, thresholds, named, infinite=True, any_code=coded
        )  # fmt: skip

    return Kind(id, says, task, make, outcome, "", twofold)


def sentinel(id: str, missing: float) -> Kind:
    """missing=, which lives in the wrapper alone: the schema encodes a missing value as that number."""
    return wrapper(
        id, f"XGBClassifier, missing={missing:g}", "binary", "binary", "XGBClassifier", {"missing": missing},
        schema=with_rules(NUMBERS, missing=missing), outcome="either",
    )  # fmt: skip


def groups(rows: Matrix) -> dict[str, Any]:
    return {"group": [20] * (len(rows) // 20)}


def query_ids(rows: Matrix, _target: Any) -> dict[str, Any]:
    return {"qid": np.arange(len(rows)) // 20}


def bounds(rows: Matrix) -> dict[str, Any]:
    low = np.exp(signal(NUMBERS, rows) / 2)
    high = np.where(np.arange(len(rows)) % 3 == 0, np.inf, low * 1.5)
    return {"label": None, "label_lower_bound": low, "label_upper_bound": high}


def survived(rows: Matrix) -> dict[str, Any]:
    time = np.exp(signal(NUMBERS, rows) / 2)
    return {"label": np.where(np.arange(len(rows)) % 4 == 0, -time, time)}


def noisy(rows: Matrix, target: Any) -> dict[str, Any]:
    """Early stopping on labels that are partly noise, so that it does stop."""
    odd = np.where(np.arange(len(target)) % 16, target, 1 - target)
    return {"eval_set": [(rows, odd)]}


def stopped(labels: str, params: dict[str, Any]) -> Callable[[int], Case]:
    """A Booster that stopped early: its own predict uses every round it holds."""

    def make(seed: int) -> Case:
        import xgboost

        rows, target, holdout = table(NUMBERS, seed, labels)
        watched = xgboost.DMatrix(rows[:200], noisy(rows[:200], target[:200])["eval_set"][0][1])
        model = xgboost.train(
            QUIET | {"eta": 0.15} | params, xgboost.DMatrix(rows[200:], target[200:]), 60,
            evals=[(watched, "w")], early_stopping_rounds=5, verbose_eval=False,
        )  # fmt: skip
        return Case(
            model,
            NUMBERS,
            rows,
            holdout,
            xgboost_native(model),
            xgboost_thresholds(model),
            ("no", "yes"),
            infinite=True,
        )

    return make


def squared(predicted: Any, data: Any) -> tuple[Any, Any]:
    """A custom objective."""
    return predicted - data.get_label(), np.ones_like(predicted)


def soft_binary(predicted: Any, data: Any) -> tuple[Any, Any]:
    probability = 1 / (1 + np.exp(-predicted))
    return probability - data.get_label(), probability * (1 - probability)


REGRESSIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("squarederror", "real", {}),
    ("squaredlogerror", "positive", {}),
    ("logistic", "unit", {}),
    ("pseudohubererror", "real", {"huber_slope": 2.0}),
    ("absoluteerror", "real", {}),
    ("quantileerror", "real", {"quantile_alpha": 0.8}),
    ("gamma", "positive", {}),
    ("tweedie", "count", {"tweedie_variance_power": 1.3}),
]
BINARY = {"objective": "binary:logistic"}
MULTI = {"objective": "multi:softprob", "num_class": 4}
REAL = {"objective": "reg:squarederror"}
VECTOR = {"multi_strategy": "multi_output_tree", "tree_method": "hist"}
DART = {"booster": "dart", "rate_drop": 0.3, "skip_drop": 0.2}
SINGLE = FeatureSchema((number("load"),))
ODD_NAMES = ["age in years", "Bälance €", "a.b:c", "x>y?", "{curly}", "日本", "-1"]


def more(model: Any) -> Any:
    """Three rounds more on other rows."""
    import xgboost

    rows, target, _ = table(NUMBERS, 99, "binary")
    return xgboost.train(QUIET | BINARY, xgboost.DMatrix(rows, target), 3, xgb_model=model)


XGBOOST = [
    booster("xgb_binary", "binary:logistic", "binary", "binary", BINARY),
    booster("xgb_logitraw", "binary:logitraw", "binary", "binary", {"objective": "binary:logitraw"}, outcome="either"),
    booster("xgb_hinge", "binary:hinge", "binary", "binary", {"objective": "binary:hinge"}, outcome="either"),
    *(
        booster(f"xgb_{name}", f"reg:{name}", "regression", labels, {"objective": f"reg:{name}", **params})
        for name, labels, params in REGRESSIONS
    ),
    booster("xgb_quantiles", "reg:quantileerror of three quantiles", "regression", "real",
            {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}),
    booster("xgb_poisson", "count:poisson", "regression", "count", {"objective": "count:poisson"}),
    booster("xgb_cox", "survival:cox", "regression", "real", {"objective": "survival:cox"}, data=survived),
    booster("xgb_aft", "survival:aft", "regression", "real",
            {"objective": "survival:aft", "aft_loss_distribution": "normal"}, data=bounds),
    booster("xgb_softprob", "multi:softprob", "multiclass", "multi", MULTI),
    booster("xgb_softmax", "multi:softmax", "multiclass", "multi", MULTI | {"objective": "multi:softmax"}),
    booster("xgb_softprob_codes", "multi:softprob on category codes", "multiclass", "multi", MULTI, schema=CODES),
    booster("xgb_ndcg", "rank:ndcg", "ranking", "rank", {"objective": "rank:ndcg"}, data=groups),
    booster("xgb_pairwise", "rank:pairwise", "ranking", "rank", {"objective": "rank:pairwise"}, data=groups),
    booster("xgb_map", "rank:map", "ranking", "relevant", {"objective": "rank:map"}, data=groups),
    wrapper("xgb_classifier", "XGBClassifier", "binary", "binary", "XGBClassifier", {}),
    wrapper("xgb_classifier_multi", "XGBClassifier of four classes", "multiclass", "multi", "XGBClassifier", {}),
    wrapper("xgb_classifier_codes", "XGBClassifier on category codes, feature_types given", "binary", "binary",
            "XGBClassifier", {"feature_types": types_of(CODES), "enable_categorical": True}, schema=CODES),
    wrapper("xgb_regressor_targets", "XGBRegressor of three targets", "regression", "reals", "XGBRegressor", {}),
    wrapper("xgb_regressor", "XGBRegressor", "regression", "real", "XGBRegressor", {}),
    wrapper("xgb_ranker", "XGBRanker", "ranking", "rank", "XGBRanker", {}, fit=query_ids),
    wrapper("xgb_rf_classifier", "XGBRFClassifier", "binary", "binary", "XGBRFClassifier", {}),
    wrapper("xgb_rf_regressor", "XGBRFRegressor", "regression", "real", "XGBRFRegressor", {}),
    booster("xgb_dart", "dart", "binary", "binary", BINARY | DART),
    booster("xgb_dart_multi", "dart, multi:softprob", "multiclass", "multi", MULTI | DART),
    booster("xgb_dart_forest", "dart, normalize_type=forest, weighted drops", "regression", "real",
            REAL | DART | {"normalize_type": "forest", "sample_type": "weighted", "one_drop": 1}),
    booster("xgb_dart_codes", "dart on category codes", "binary", "binary", BINARY | DART, schema=CODES),
    wrapper("xgb_dart_classifier", "XGBClassifier, dart: its own two paths differ by an ulp", "binary", "binary",
            "XGBClassifier", {"booster": "dart", "rate_drop": 0.3}, twofold=True),
    booster("xgb_base_score", "base_score=0.2", "binary", "binary", BINARY | {"base_score": 0.2}),
    booster("xgb_base_score_million", "regression, base_score=1e6", "regression", "real", REAL | {"base_score": 1e6},
            data=lambda rows: {"label": 1e6 + 300 * signal(NUMBERS, rows)}),
    booster("xgb_base_score_poisson", "count:poisson, base_score=3", "regression", "count",
            {"objective": "count:poisson", "base_score": 3.0}),
    sentinel("xgb_missing_999", -999.0),
    sentinel("xgb_missing_0", 0.0),
    booster("xgb_codes_onehot", "category codes, split one against the rest", "binary", "binary",
            BINARY | {"max_cat_to_onehot": 100}, schema=CODES),
    booster("xgb_codes", "category codes, split by partition", "binary", "binary",
            BINARY | {"max_cat_to_onehot": 1}, schema=CODES),
    booster("xgb_codes_many", "90 category codes", "binary", "binary",
            BINARY | {"max_cat_to_onehot": 1, "max_cat_threshold": 64}, schema=MANY),
    booster("xgb_monotone", "monotone constraints", "binary", "binary",
            BINARY | {"monotone_constraints": "(1,0,1,0,0,-1,0)"}),
    booster("xgb_interaction", "interaction constraints", "binary", "binary",
            BINARY | {"interaction_constraints": "[[0,1],[2,3,4,5,6]]"}),
    wrapper("xgb_stopped_classifier", "XGBClassifier, stopped early: answers with its best rounds", "binary", "binary",
            "XGBClassifier", {"n_estimators": 60, "early_stopping_rounds": 5, "learning_rate": 0.3}, fit=noisy),
    Kind("xgb_stopped", "Booster, stopped early: answers with all its rounds", "binary", stopped("binary", BINARY)),
    Kind("xgb_stopped_dart", "dart Booster, stopped early", "binary", stopped("binary", BINARY | DART)),
    booster("xgb_parallel", "num_parallel_tree=3", "binary", "binary",
            BINARY | {"num_parallel_tree": 3, "subsample": 0.7}, rounds=5),
    booster("xgb_parallel_multi", "num_parallel_tree=2, multi:softprob", "multiclass", "multi",
            MULTI | {"num_parallel_tree": 2, "subsample": 0.7}, rounds=4),
    booster("xgb_multi_output", "three targets, one tree each", "regression", "reals", REAL),
    booster("xgb_vector_leaf", "three targets, vector leaves", "regression", "reals", REAL | VECTOR),
    booster("xgb_vector_multi", "multi:softprob, vector leaves", "multiclass", "multi", MULTI | VECTOR),
    booster("xgb_multilabel", "three labels", "multilabel", "flags", BINARY),
    booster("xgb_multilabel_vector", "three labels, vector leaves", "multilabel", "flags", BINARY | VECTOR),
    booster("xgb_lossguide", "grow_policy=lossguide, max_leaves=9", "binary", "binary",
            BINARY | {"grow_policy": "lossguide", "max_leaves": 9, "max_depth": 0}),
    named(booster("xgb_names_odd", "column names of any characters", "binary", "binary", BINARY,
                  data=lambda _: {"feature_names": ODD_NAMES}), ODD_NAMES),
    booster("xgb_names_other", "column names that are not the schema's", "binary", "binary", BINARY,
            data=lambda _: {"feature_names": ODD_NAMES}, outcome="refused", reason="columns"),
    booster("xgb_leaf_only", "trees without a split", "binary", "binary", BINARY | {"gamma": 1e6}),
    booster("xgb_leaf_only_regression", "regression, trees without a split", "regression", "real", REAL | {"gamma": 1e9}),
    booster("xgb_scale_pos_weight", "scale_pos_weight=5", "binary", "binary", BINARY | {"scale_pos_weight": 5}),
    booster("xgb_gblinear", "gblinear", "binary", "binary", BINARY | {"booster": "gblinear", "max_depth": 0},
            outcome="refused", reason="gblinear"),
    booster("xgb_exact", "tree_method=exact", "binary", "binary", BINARY | {"tree_method": "exact"}),
    booster("xgb_approx", "tree_method=approx", "binary", "binary", BINARY | {"tree_method": "approx"}),
    booster("xgb_single", "a single feature", "binary", "binary", BINARY, schema=SINGLE),
    booster("xgb_integers", "feature types int and indicator", "binary", "binary", BINARY,
            data=lambda _: {"feature_types": ["q", "q", "int", "q", "i", "q", "int"]}),
    booster("xgb_custom", "a custom objective", "regression", "real", {}, obj=squared, outcome="either"),
    booster("xgb_custom_binary", "a custom objective on a binary:logistic model", "binary", "binary", BINARY,
            obj=soft_binary, outcome="either"),
    booster("xgb_continued", "training continued on other rows", "binary", "binary", BINARY, change=more),
    booster("xgb_sliced", "a slice of its rounds", "binary", "binary", BINARY, change=lambda model: model[2:9]),
    booster("xgb_sampled", "rows and columns sampled, leaves bounded", "regression", "real",
            REAL | {"subsample": 0.6, "colsample_bynode": 0.6, "max_delta_step": 1, "lambda": 0.1}),
    booster("xgb_tiny", "numbers that are denormal as float32", "binary", "binary", BINARY, scale=1e-42),
    booster("xgb_huge", "numbers up to float32's largest", "binary", "binary", BINARY, scale=1e33),
    booster("xgb_integers_beyond", "integers beyond float32's", "binary", "binary", BINARY, scale=2.0**24 + 3),
    booster("xgb_deep", "depth 10", "binary", "binary", BINARY | {"max_depth": 10, "min_child_weight": 0}),
]  # fmt: skip
