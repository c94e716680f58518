"""Fit a booster or a forest on an encoded matrix, with early stopping; what comes back holds the best rounds and no more.

Trimming here, once, spares everything after it the question of which trees count: XGBoost's `best_iteration` is an
attribute that formats lose, and LightGBM's is applied by some calls and not by others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from training import forests
from training.data import Labels
from training.errors import DataRefused, RecipeRefused
from training.features import FeatureSchema, Matrix
from training.parts import Part
from training.recipe import Recipe
from training.spooled import OnDisk, quantile_matrix, sequence

MAX_BIN = 256  # XGBoost's own default
AT = 10  # first rows of a query, by whose NDCG a ranking stops early
OBJECTIVES = {
    "xgboost": {
        "binary": ("binary:logistic", "logloss"),
        "multiclass": ("multi:softprob", "mlogloss"),
        "regression": ("reg:squarederror", "rmse"),
        "ranking": ("rank:ndcg", f"ndcg@{AT}"),
    },
    "lightgbm": {
        "binary": ("binary", "binary_logloss"),
        "multiclass": ("multiclass", "multi_logloss"),
        "regression": ("regression", "rmse"),
        "ranking": ("lambdarank", "ndcg"),
    },
}
Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class Fitted:
    """`booster`: an `xgboost.Booster` or `lightgbm.Booster`, a forest of scikit-learn's, or its calibration of one.

    `curve`: validation loss, one a round; of a ranking, 1 - NDCG.
    """

    booster: Any
    rounds: int
    curve: tuple[float, ...]
    importance: dict[str, float]  # share of total gain, by feature


def fit(
    recipe: Recipe,
    schema: FeatureSchema,
    train: Part | OnDisk,
    validation: Part,
    progress: Progress,
    every: int = 100,
) -> Fitted:
    """`progress(round, loss)` is called every `every` rounds; what it raises ends the fit.

    Raises RecipeRefused with the library's words.
    """
    fits = {"xgboost": _fit_xgboost, "lightgbm": _fit_lightgbm}
    return fits.get(recipe.algorithm, _fit_forest)(recipe, schema, train, validation, progress, every)


def probability(booster: Any, schema: FeatureSchema, rows: Matrix) -> Matrix:
    """What the library itself answers for encoded rows (n, width), float64.

    The positive class's probability or the value (n,); of several classes, their probabilities (n, k).
    """
    if hasattr(booster, "predict_proba"):
        shares = np.asarray(_said(booster.predict_proba, rows), dtype=np.float64)
        return shares[:, 1] if shares.shape[1] == 2 else shares
    library = type(booster).__module__.split(".")[0]
    if library == "sklearn":
        return np.asarray(_said(booster.predict, rows), dtype=np.float64)
    is_xgboost = library == "xgboost"
    answers = booster.predict(_dmatrix(schema, rows) if is_xgboost else rows)
    return np.asarray(answers, dtype=np.float64)


def _said(ask: Callable[[Matrix], Any], rows: Matrix) -> Any:
    """scikit-learn's forests refuse a number that float32 can't hold."""
    try:
        return ask(rows)
    except ValueError as refused:
        raise DataRefused(f"rows: {str(refused).splitlines()[0]}") from None


def column_types(schema: FeatureSchema) -> list[str]:
    """XGBoost's letters: c for a category, q for a quantity."""
    return ["c" if feature.kind == "category" else "q" for feature in schema.features]


def _dmatrix(schema: FeatureSchema, rows: Matrix, **known: Any) -> Any:
    """`known`: label, weight, group."""
    import xgboost

    names = _safe_names(schema)
    return xgboost.DMatrix(
        rows, feature_names=names, feature_types=column_types(schema), enable_categorical=True, **known
    )


def _xgboost_rows(recipe: Recipe, schema: FeatureSchema, train: Part | OnDisk) -> Any:
    weights = _weights(recipe, train.labels)
    if isinstance(train, OnDisk):
        bins = recipe.params.get("max_bin", MAX_BIN)
        described = {"feature_names": _safe_names(schema), "feature_types": column_types(schema)}
        return quantile_matrix(train, weights, int(bins), **described)
    return _dmatrix(schema, train.matrix, **_known(recipe, train), weight=weights)


def _task_settings(recipe: Recipe, schema: FeatureSchema, labels: Labels) -> dict[str, Any]:
    objective, metric = OBJECTIVES[recipe.algorithm][recipe.task]
    settings: dict[str, Any] = {"objective": objective, "seed": recipe.seed}
    settings["eval_metric" if recipe.algorithm == "xgboost" else "metric"] = metric
    if recipe.task == "multiclass":
        settings["num_class"] = int(labels.max()) + 1
    if recipe.task == "ranking" and recipe.algorithm == "lightgbm":
        settings["eval_at"] = [AT]
    if recipe.monotone:
        directions = _directions(recipe, schema)
        written = f"({','.join(map(str, directions))})" if recipe.algorithm == "xgboost" else directions
        settings["monotone_constraints"] = written
    return settings


def _known(recipe: Recipe, part: Part | OnDisk) -> dict[str, Any]:
    """What both libraries call label and group: a group's rows are those of one query."""
    return {"label": part.labels} | ({"group": part.queries} if recipe.query else {})


def _loss(recipe: Recipe, value: float) -> float:
    return 1 - value if recipe.task == "ranking" else value


def _directions(recipe: Recipe, schema: FeatureSchema) -> list[int]:
    kinds = {feature.name: feature.kind for feature in schema.features}
    for name in recipe.monotone:
        if kinds.get(name, "category") == "category":
            raise RecipeRefused(f"monotone.{name}: is {'a category' if name in kinds else 'no feature'}")
    return [recipe.monotone.get(name, 0) for name in schema.names]


def _weights(recipe: Recipe, labels: Labels) -> Matrix | None:
    """Balanced: every class weighs the same in sum, and a row 1 on average."""
    if recipe.weights == "equal":
        return None
    counts = np.bincount(labels.astype(np.int64))
    share: Matrix = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return share[labels.astype(np.int64)]


def _fit_xgboost(
    recipe: Recipe,
    schema: FeatureSchema,
    train: Part | OnDisk,
    validation: Part,
    progress: Progress,
    every: int,
) -> Fitted:
    import xgboost

    class Told(xgboost.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:  # noqa: ARG002
            if (epoch + 1) % every == 0:
                progress(epoch + 1, _loss(recipe, evals_log["validation"][metric][-1]))
            return False

    settings = {"tree_method": "hist", "verbosity": 0} | _task_settings(recipe, schema, train.labels)
    metric = settings["eval_metric"]
    history: dict[str, Any] = {}
    try:
        booster = xgboost.train(
            settings | recipe.params,
            _xgboost_rows(recipe, schema, train),
            num_boost_round=recipe.rounds.most,
            evals=[(_dmatrix(schema, validation.matrix, **_known(recipe, validation)), "validation")],
            early_stopping_rounds=recipe.rounds.patience or None,
            evals_result=history,
            verbose_eval=False,
            callbacks=[Told()],
        )
    except xgboost.core.XGBoostError as refused:
        raise RecipeRefused(f"params: {_last_line(refused)}") from None
    if recipe.rounds.patience:
        booster = booster[: booster.best_iteration + 1]
        booster.set_attr(best_iteration=None, best_score=None)
    gains = booster.get_score(importance_type="total_gain")
    by_feature = [_scalar(gains.get(name, 0.0)) for name in _safe_names(schema)]
    return Fitted(
        booster,
        booster.num_boosted_rounds(),
        tuple(_loss(recipe, value) for value in history["validation"][metric]),
        _shares(schema, by_feature),
    )


def _fit_lightgbm(
    recipe: Recipe,
    schema: FeatureSchema,
    train: Part | OnDisk,
    validation: Part,
    progress: Progress,
    every: int,
) -> Fitted:
    import lightgbm

    def told(state: Any) -> None:
        if (state.iteration + 1) % every == 0:
            progress(state.iteration + 1, _loss(recipe, state.evaluation_result_list[0][2]))

    categorical = [j for j, feature in enumerate(schema.features) if feature.kind == "category"]
    settings = {"verbosity": -1} | _task_settings(recipe, schema, train.labels)
    way = "force_col_wise" if isinstance(train, OnDisk) else "force_row_wise"  # by rows: once more in memory
    data = lightgbm.Dataset(
        sequence(train.rows) if isinstance(train, OnDisk) else train.matrix,
        **_known(recipe, train),
        weight=_weights(recipe, train.labels),
        feature_name=_safe_names(schema),
        categorical_feature=categorical,
    )
    history: dict[str, Any] = {}
    try:
        booster = lightgbm.train(
            settings | {"deterministic": True, way: True} | recipe.params,
            data,
            num_boost_round=recipe.rounds.most,
            valid_sets=[lightgbm.Dataset(validation.matrix, **_known(recipe, validation), reference=data)],
            valid_names=["validation"],
            callbacks=[
                *([lightgbm.early_stopping(recipe.rounds.patience, verbose=False)] if recipe.rounds.patience else []),
                lightgbm.record_evaluation(history),
                told,
            ],
        )
    except lightgbm.basic.LightGBMError as refused:
        raise RecipeRefused(f"params: {_last_line(refused)}") from None
    rounds = booster.best_iteration or booster.current_iteration()
    booster = lightgbm.Booster(model_str=booster.model_to_string(num_iteration=rounds))
    return Fitted(
        booster,
        rounds,
        tuple(_loss(recipe, value) for value in next(iter(history["validation"].values()))),
        _shares(schema, booster.feature_importance("gain").tolist()),
    )


def _fit_forest(
    recipe: Recipe,
    schema: FeatureSchema,
    train: Part | OnDisk,
    validation: Part,
    progress: Progress,
    every: int,
) -> Fitted:
    if isinstance(train, OnDisk):
        raise RecipeRefused(f"algorithm: a {recipe.algorithm} needs all rows in memory at once (--out-of-core)")
    grown = forests.grow(
        recipe,
        train,
        validation,
        weights=_weights(recipe, train.labels),
        directions=_directions(recipe, schema) if recipe.monotone else None,
        progress=progress,
        every=every,
    )
    return Fitted(grown.forest, len(grown.curve), grown.curve, _shares(schema, grown.importances))


def _safe_names(schema: FeatureSchema) -> list[str]:
    """The features' names in characters that both libraries take; by number where that would make two alike."""
    names = [re.sub(r"[^A-Za-z0-9_.-]", "_", name) for name in schema.names]
    return names if len(set(names)) == len(names) else [f"f{j}" for j in range(schema.width)]


def _scalar(gain: Any) -> float:
    return float(gain[0] if isinstance(gain, list) else gain)


def _shares(schema: FeatureSchema, gains: list[float]) -> dict[str, float]:
    whole = sum(gains) or 1.0
    return {name: gain / whole for name, gain in zip(schema.names, gains, strict=True)}


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("[", "Stack"))), lines[0] if lines else "refused")
