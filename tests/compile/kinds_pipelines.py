"""Pipelines and calibrated classifiers over trees of each library: what happens before the trees, and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kinds_sklearn import BOOSTED, HISTOGRAM, SMALL, WHOLE_CODES, estimator, of
from tables import CODES, NUMBERS, raw_frame, with_rules

NUMBER_COLUMNS = [feature.name for feature in CODES.features if feature.kind != "category"]
CATEGORY_COLUMNS = [feature.name for feature in CODES.features if feature.kind == "category"]


def xgb(name: str = "XGBClassifier", **params: Any) -> Any:
    import xgboost

    return getattr(xgboost, name)(**{"n_estimators": 12, "max_depth": 4, "n_jobs": 1, "random_state": 0} | params)


def lgb(name: str = "LGBMClassifier", **params: Any) -> Any:
    import lightgbm

    given = {"n_estimators": 12, "num_leaves": 12, "n_jobs": 1, "random_state": 0, "verbosity": -1}
    return getattr(lightgbm, name)(**given | params)


def calibrated(base: Callable[[], Any], method: str, *, ensemble: bool) -> Callable[[], Any]:
    """By three folds, each with a model of its own."""

    def build() -> Any:
        from sklearn.calibration import CalibratedClassifierCV

        return CalibratedClassifierCV(base(), method=method, cv=3, ensemble=ensemble)

    return build


def frozen(base: Callable[[], Any], method: str) -> Callable[[Any, Any, Any], Any]:
    """Fits the base on half of the rows and calibrates it, as it is, on the others."""

    def fit(_: Any, rows: Any, target: Any) -> Any:
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.frozen import FrozenEstimator

        first = base().fit(rows[::2], target[::2])
        return CalibratedClassifierCV(FrozenEstimator(first), method=method).fit(rows[1::2], target[1::2])

    return fit


def piped(*steps: Callable[[], Any]) -> Callable[[], Any]:
    def build() -> Any:
        from sklearn.pipeline import make_pipeline

        return make_pipeline(*(step() for step in steps))

    return build


def prepared(name: str, **params: Any) -> Callable[[], Any]:
    """A transformer of sklearn.preprocessing, sklearn.impute or sklearn.decomposition, by name."""

    def build() -> Any:
        from sklearn import decomposition, impute, preprocessing

        home = next(module for module in (preprocessing, impute, decomposition) if hasattr(module, name))
        return getattr(home, name)(**params)

    return build


def by_column(categories: Callable[[], Any], numbers: Callable[[], Any] | str = "passthrough") -> Callable[[], Any]:
    """Categories first, so that the trees see another order of columns than the schema's."""

    def build() -> Any:
        from sklearn.compose import ColumnTransformer

        before = numbers if isinstance(numbers, str) else numbers()
        return ColumnTransformer(
            [("categories", categories(), CATEGORY_COLUMNS), ("numbers", before, NUMBER_COLUMNS)], sparse_threshold=0.9
        )

    return build


MEDIAN = prepared("SimpleImputer", strategy="median")
SCALED = prepared("StandardScaler")
DENSE = prepared("OneHotEncoder", sparse_output=False, handle_unknown="ignore")
SPARSE = prepared("OneHotEncoder", handle_unknown="ignore")
ORDINAL = prepared("OrdinalEncoder", handle_unknown="use_encoded_value", unknown_value=-1)
FOREST, HGB = of("RandomForestClassifier", **SMALL), of("HistGradientBoostingClassifier", **HISTOGRAM)
FINITE = with_rules(NUMBERS, infinity="refuse")
FINITE_CODES = with_rules(CODES, infinity="refuse")
FRAME: dict[str, Any] = {"schema": FINITE_CODES, "original": lambda rows: raw_frame(FINITE_CODES, rows)}
WHOLE_FRAME: dict[str, Any] = {"schema": WHOLE_CODES, "original": lambda rows: raw_frame(WHOLE_CODES, rows)}

PIPELINES = [
    estimator("skl_pipe_imputer_xgb", "pipeline: imputer, XGBoost", "binary", "binary", piped(MEDIAN, xgb),
              schema=FINITE),
    estimator("skl_pipe_scaler_lgb", "pipeline: scaler, LightGBM", "binary", "binary", piped(SCALED, lgb),
              schema=FINITE, largest=1e30),
    estimator("skl_pipe_scaler_xgb", "pipeline: imputer, scaler, XGBoost of four classes", "multiclass", "multi",
              piped(MEDIAN, SCALED, xgb), schema=FINITE, largest=1e30),
    estimator("skl_pipe_minmax_gb", "pipeline: min-max scaler, gradient boosting regressor", "regression", "real",
              piped(prepared("MinMaxScaler"), of("GradientBoostingRegressor", **BOOSTED)), largest=1e30),
    estimator("skl_pipe_forest", "pipeline: scaler, random forest", "binary", "binary", piped(SCALED, FOREST), largest=1e30),
    estimator("skl_pipe_onehot_xgb", "pipeline: one-hot (dense), XGBoost", "binary", "binary",
              piped(by_column(DENSE), xgb), **FRAME),
    estimator("skl_pipe_onehot_regression", "pipeline: one-hot (dense) and imputer, XGBoost regressor", "regression",
              "real", piped(by_column(DENSE, MEDIAN), lambda: xgb("XGBRegressor")), **FRAME),
    estimator("skl_pipe_ordinal_lgb", "pipeline: ordinal codes, LightGBM", "binary", "binary",
              piped(by_column(ORDINAL), lgb), **FRAME),
    estimator("skl_pipe_ordinal_hgb", "pipeline: ordinal codes, histogram gradient boosting", "binary", "binary",
              piped(by_column(ORDINAL), HGB), **FRAME),
    estimator("skl_pipe_onehot_forest", "pipeline: one-hot and scaler, random forest", "binary", "binary",
              piped(by_column(DENSE, SCALED), FOREST), largest=1e30, **WHOLE_FRAME),
    estimator("skl_pipe_sparse_xgb", "pipeline: one-hot (sparse), XGBoost: zeros are missing", "binary", "binary",
              piped(by_column(SPARSE), xgb), outcome="refused", reason="sparse", **FRAME),
    estimator("skl_pipe_pca", "pipeline: principal components, random forest", "binary", "binary",
              piped(prepared("PCA", n_components=3), FOREST), largest=1e30, outcome="either"),
    estimator("skl_pipe_calibrated", "a calibrated pipeline: imputer, XGBoost", "binary", "binary",
              calibrated(piped(MEDIAN, xgb), "sigmoid", ensemble=True), schema=FINITE),
    estimator("skl_pipe_of_calibrated", "pipeline: scaler, calibrated random forest", "binary", "binary",
              piped(SCALED, calibrated(FOREST, "isotonic", ensemble=False)), largest=1e30),
    estimator("skl_calibrated_xgb", "calibrated (sigmoid, three folds): XGBoost", "binary", "binary",
              calibrated(xgb, "sigmoid", ensemble=True), schema=NUMBERS),
    estimator("skl_calibrated_xgb_isotonic", "calibrated (isotonic, frozen): XGBoost", "binary", "binary", xgb,
              fit=frozen(xgb, "isotonic"), schema=NUMBERS),
    estimator("skl_calibrated_lgb", "calibrated (sigmoid, frozen): LightGBM", "binary", "binary", lgb,
              fit=frozen(lgb, "sigmoid"), schema=NUMBERS),
    estimator("skl_calibrated_lgb_isotonic", "calibrated (isotonic, three folds): LightGBM", "binary", "binary",
              calibrated(lgb, "isotonic", ensemble=True), schema=NUMBERS),
    estimator("skl_calibrated_forest", "calibrated (sigmoid, three folds): random forest", "binary", "binary",
              calibrated(FOREST, "sigmoid", ensemble=True)),
    estimator("skl_calibrated_forest_isotonic", "calibrated (isotonic, frozen): random forest", "binary", "binary",
              FOREST, fit=frozen(FOREST, "isotonic")),
    estimator("skl_calibrated_hgb", "calibrated (sigmoid, frozen): histogram gradient boosting", "binary", "binary",
              HGB, fit=frozen(HGB, "sigmoid"), schema=NUMBERS),
    estimator("skl_calibrated_gb", "calibrated (isotonic, one model): gradient boosting", "binary", "binary",
              calibrated(of("GradientBoostingClassifier", **BOOSTED), "isotonic", ensemble=False)),
    estimator("skl_calibrated_multiclass", "calibrated (sigmoid, three folds): XGBoost of four classes", "multiclass",
              "multi", calibrated(xgb, "sigmoid", ensemble=True), schema=NUMBERS),
    estimator("skl_calibrated_forest_multiclass", "calibrated (isotonic, frozen): random forest of four classes",
              "multiclass", "multi", FOREST, fit=frozen(FOREST, "isotonic")),
]  # fmt: skip
