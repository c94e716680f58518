"""scikit-learn's kinds: forests, boosting, isolation, and what is stacked upon trees of any library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from kind import Case, Kind, Matrix, Task
from natives import sklearn_native, sklearn_thresholds
from tables import CITIES, CODES, NUMBERS, complete, draw, frame_of, label, signal

from training.features import FeatureSchema

WHOLE = complete(NUMBERS)
WHOLE_CODES = complete(CODES)
SMALL = {"n_estimators": 12, "max_depth": 5, "random_state": 0, "n_jobs": 1}
BOOSTED = {"n_estimators": 12, "max_depth": 3, "random_state": 0}
HISTOGRAM = {"max_iter": 12, "max_leaf_nodes": 12, "min_samples_leaf": 5, "random_state": 0}
LETTERS = ("ant", "bee", "cat", "dog")
Original = Callable[[Matrix], Any]


def table(schema: FeatureSchema, seed: int, kind: str, count: int = 400) -> tuple[Matrix, Any, Matrix]:
    """Rows, their labels, and a holdout."""
    rows = draw(schema, count, seed)
    return rows, label(kind, signal(schema, rows), seed), draw(schema, 150, seed + 1000)


def estimator(
    id: str,
    says: str,
    task: Task,
    labels: str,
    build: Callable[[], Any],
    *,
    schema: FeatureSchema = WHOLE,
    original: Original = lambda rows: rows,
    scale: float = 1.0,
    classes: tuple[str, ...] = (),
    infinite: bool = False,
    any_code: bool = False,
    largest: float = 3.4028234e38,
    outcome: Any = "served",
    reason: str = "",
    fit: Callable[[Any, Any, Any], Any] = lambda model, rows, target: model.fit(rows, target),
) -> Kind:
    """`build` makes it, `fit` fits it; `classes` are string labels; `original` makes its rows of encoded ones."""

    def make(seed: int) -> Case:
        rows, target, holdout = table(schema, seed, labels)
        rows, holdout = rows * scale, holdout * scale
        model = fit(build(), original(rows), np.array(classes)[target] if classes else target)
        named = classes or {"binary": ("no", "yes"), "multiclass": ("a", "b", "c", "d")}.get(task, ())
        return Case(
            model, schema, rows, holdout, sklearn_native(model, original), sklearn_thresholds(model), named,
            any_code=any_code, infinite=infinite, largest=largest,
        )  # fmt: skip

    return Kind(id, says, task, make, outcome, reason)


def of(name: str, **params: Any) -> Callable[[], Any]:
    """An estimator of sklearn.ensemble or sklearn.tree, by name."""

    def build() -> Any:
        from sklearn import ensemble, tree

        return getattr(ensemble if hasattr(ensemble, name) else tree, name)(**params)

    return build


def sorted_categories(rows: Matrix) -> Any:
    """A pandas frame whose cities are in another order than the schema's."""
    return frame_of(CODES, rows, {"city": sorted(CITIES)})


def stack() -> Any:
    from sklearn.ensemble import RandomForestClassifier, StackingClassifier
    from sklearn.linear_model import LogisticRegression

    return StackingClassifier([("forest", RandomForestClassifier(**SMALL))], LogisticRegression(), cv=3)


def vote() -> Any:
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, VotingClassifier

    parts = [("forest", RandomForestClassifier(**SMALL)), ("boosted", GradientBoostingClassifier(**BOOSTED))]
    return VotingClassifier(parts, voting="soft")


def bagged() -> Any:
    from sklearn.ensemble import BaggingClassifier
    from sklearn.tree import DecisionTreeClassifier

    return BaggingClassifier(DecisionTreeClassifier(max_depth=4), 8, max_features=0.7, random_state=0)


def adaptive() -> Any:
    from sklearn.ensemble import AdaBoostClassifier
    from sklearn.tree import DecisionTreeClassifier

    return AdaBoostClassifier(DecisionTreeClassifier(max_depth=2), n_estimators=8, random_state=0)


def each_target() -> Any:
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.multioutput import MultiOutputRegressor

    return MultiOutputRegressor(GradientBoostingRegressor(**BOOSTED))


def one_against_rest() -> Any:
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.multiclass import OneVsRestClassifier

    return OneVsRestClassifier(GradientBoostingClassifier(**BOOSTED))


def forest(id: str, says: str, name: str, **rest: Any) -> list[Kind]:
    """A classifier of two and of four classes, of strings, with missing values; a regressor of one and of three targets."""
    classifier, regressor = of(f"{name}Classifier", **SMALL, **rest), of(f"{name}Regressor", **SMALL, **rest)
    return [
        estimator(f"{id}_binary", f"{says} classifier", "binary", "binary", classifier),
        estimator(f"{id}_multiclass", f"{says} classifier of four classes", "multiclass", "multi", classifier),
        estimator(f"{id}_strings", f"{says} classifier of string labels", "multiclass", "multi", classifier,
                  classes=LETTERS),
        estimator(f"{id}_missing", f"{says} classifier, trained with missing values", "binary", "binary", classifier,
                  schema=NUMBERS),
        estimator(f"{id}_regression", f"{says} regressor", "regression", "real", regressor),
        estimator(f"{id}_multi_output", f"{says} regressor of three targets", "regression", "reals", regressor),
    ]  # fmt: skip


SKLEARN = [
    *forest("skl_rf", "random forest", "RandomForest"),
    *forest("skl_et", "extra trees", "ExtraTrees", bootstrap=True),
    estimator("skl_rf_weighted", "random forest, balanced classes, entropy", "binary", "binary",
              of("RandomForestClassifier", **SMALL, class_weight="balanced", criterion="entropy")),
    estimator("skl_rf_multilabel", "random forest of three labels", "multilabel", "flags",
              of("RandomForestClassifier", **SMALL), outcome="either"),
    estimator("skl_rf_absolute", "random forest regressor, absolute error", "regression", "real",
              of("RandomForestRegressor", **SMALL, criterion="absolute_error")),
    estimator("skl_rf_integers_beyond", "random forest, integers beyond float32's", "binary", "binary",
              of("RandomForestClassifier", **SMALL), scale=2.0**24 + 3),
    estimator("skl_rf_leaf_only", "random forest, trees without a split", "binary", "binary",
              of("RandomForestClassifier", **SMALL, min_samples_leaf=350)),
    estimator("skl_hgb_float64", "histogram gradient boosting, numbers beyond float32", "binary", "binary",
              of("HistGradientBoostingClassifier", **HISTOGRAM), schema=NUMBERS, scale=1e200, infinite=True,
              largest=1e305),
    estimator("skl_tree", "decision tree", "binary", "binary", of("DecisionTreeClassifier", max_depth=6)),
    estimator("skl_tree_multiclass", "decision tree of four classes", "multiclass", "multi",
              of("DecisionTreeClassifier", max_depth=6)),
    estimator("skl_tree_regression", "decision tree regressor", "regression", "real",
              of("DecisionTreeRegressor", max_depth=6)),
    estimator("skl_tree_missing", "decision tree, trained with missing values", "binary", "binary",
              of("DecisionTreeClassifier", max_depth=6), schema=NUMBERS),
    estimator("skl_gb_binary", "gradient boosting", "binary", "binary", of("GradientBoostingClassifier", **BOOSTED)),
    estimator("skl_gb_multiclass", "gradient boosting of four classes", "multiclass", "multi",
              of("GradientBoostingClassifier", **BOOSTED)),
    estimator("skl_gb_exponential", "gradient boosting, exponential loss", "binary", "binary",
              of("GradientBoostingClassifier", **BOOSTED, loss="exponential"), outcome="either"),
    estimator("skl_gb_zero", "gradient boosting, init='zero'", "binary", "binary",
              of("GradientBoostingClassifier", **BOOSTED, init="zero")),
    estimator("skl_gb_init", "gradient boosting, started from a forest", "binary", "binary",
              of("GradientBoostingClassifier", **BOOSTED, init=of("RandomForestClassifier", **SMALL)()),
              outcome="either"),
    *(
        estimator(f"skl_gb_{loss}", f"gradient boosting regressor, {loss}", "regression", "real",
                  of("GradientBoostingRegressor", **BOOSTED, loss=loss))
        for loss in ("squared_error", "absolute_error", "huber", "quantile")
    ),
    estimator("skl_gb_zero_regression", "gradient boosting regressor, init='zero'", "regression", "real",
              of("GradientBoostingRegressor", **BOOSTED, init="zero")),
    estimator("skl_gb_stopped", "gradient boosting, stopped early", "binary", "binary",
              of("GradientBoostingClassifier", **BOOSTED | {"n_estimators": 60}, n_iter_no_change=3)),
    estimator("skl_hgb_binary", "histogram gradient boosting, with missing values", "binary", "binary",
              of("HistGradientBoostingClassifier", **HISTOGRAM), schema=NUMBERS, infinite=True),
    estimator("skl_hgb_complete", "histogram gradient boosting, trained without missing values", "binary", "binary",
              of("HistGradientBoostingClassifier", **HISTOGRAM), infinite=True),
    estimator("skl_hgb_multiclass", "histogram gradient boosting of four classes", "multiclass", "multi",
              of("HistGradientBoostingClassifier", **HISTOGRAM), schema=NUMBERS, infinite=True),
    estimator("skl_hgb_strings", "histogram gradient boosting of string labels", "binary", "binary",
              of("HistGradientBoostingClassifier", **HISTOGRAM), schema=NUMBERS, infinite=True, classes=("no", "yes")),
    *(
        estimator(f"skl_hgb_{loss}", f"histogram gradient boosting regressor, {loss}", "regression", labels,
                  of("HistGradientBoostingRegressor", **HISTOGRAM, loss=loss, **rest), schema=NUMBERS, infinite=True)
        for loss, labels, rest in (
            ("squared_error", "real", {}), ("absolute_error", "real", {}), ("poisson", "count", {}),
            ("gamma", "positive", {}), ("quantile", "real", {"quantile": 0.8}),
        )
    ),
    estimator("skl_hgb_codes", "histogram gradient boosting, categorical_features by index", "binary", "binary",
              of("HistGradientBoostingClassifier", **HISTOGRAM, categorical_features=[6, 7]), schema=CODES,
              infinite=True, any_code=True),
    estimator("skl_hgb_codes_first", "histogram gradient boosting regressor, a categorical feature amid numbers",
              "regression", "real", of("HistGradientBoostingRegressor", **HISTOGRAM, categorical_features=[1, 4]),
              schema=FeatureSchema((CODES.features[0], CODES.features[6], *CODES.features[1:3], CODES.features[7])),
              infinite=True, any_code=True),
    estimator("skl_hgb_pandas", "histogram gradient boosting on pandas categories", "binary", "binary",
              of("HistGradientBoostingClassifier", **HISTOGRAM), schema=CODES, infinite=True,
              original=sorted_categories),
    estimator("skl_hgb_monotone", "histogram gradient boosting, monotone, stopped early", "binary", "binary",
              of("HistGradientBoostingClassifier", **HISTOGRAM | {"max_iter": 60}, early_stopping=True,
                 monotonic_cst=[1, 0, 1, 0, 0, -1, 0]), schema=NUMBERS, infinite=True),
    estimator("skl_isolation", "isolation forest", "outlier", "binary",
              of("IsolationForest", n_estimators=20, random_state=0, n_jobs=1)),
    estimator("skl_isolation_features", "isolation forest, max_features=0.5, contamination=0.1", "outlier", "binary",
              of("IsolationForest", n_estimators=20, max_features=0.5, contamination=0.1, random_state=0, n_jobs=1)),
    estimator("skl_stacking", "a logistic regression stacked upon a forest", "binary", "binary", stack,
              outcome="either"),
    estimator("skl_voting", "a forest and gradient boosting, voting", "binary", "binary", vote, outcome="either"),
    estimator("skl_bagging", "bagged trees", "binary", "binary", bagged, outcome="either"),
    estimator("skl_adaboost", "AdaBoost", "binary", "binary", adaptive, outcome="either"),
    estimator("skl_each_target", "gradient boosting of each target", "regression", "reals", each_target,
              outcome="either"),
    estimator("skl_one_against_rest", "gradient boosting, one class against the rest", "multiclass", "multi",
              one_against_rest, outcome="either"),
]  # fmt: skip
