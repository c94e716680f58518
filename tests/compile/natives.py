"""The oracles: what XGBoost, LightGBM and scikit-learn themselves answer, and the thresholds that their dumps show."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from kind import Answers, Matrix, columns, probabilities

Native = Callable[[Matrix], Answers]
Thresholds = list[tuple[int, float]]
FLOAT32_MAX = float(np.finfo(np.float32).max)


def xgboost_native(booster: Any, feature_types: list[str] | None = None) -> Native:
    """A Booster's. DMatrix refuses what is infinite as float32, so such rows go through inplace_predict.

    The two sum dart's trees otherwise, one ulp apart: dart's infinite values are asked as the largest finite ones instead.
    The probabilities of multi:softmax, which names classes, are those of its copy with the objective multi:softprob.
    """
    import xgboost

    config = json.loads(booster.save_config())["learner"]
    dart = config["gradient_booster"]["name"] == "dart"

    def predict(asked: Any, rows: Matrix, margin: bool) -> Matrix:
        with np.errstate(over="ignore"):
            beyond = np.isinf(rows.astype(np.float32)).any(axis=1) & (not dart)
        if dart:
            rows = np.clip(rows, -FLOAT32_MAX, FLOAT32_MAX)
        inside = xgboost.DMatrix(
            rows[~beyond],
            feature_names=booster.feature_names,
            feature_types=feature_types or booster.feature_types,
            enable_categorical=True,
        )
        kind = "margin" if margin else "value"
        answers = asked.predict(inside, output_margin=margin, strict_shape=True)
        if not beyond.any():
            return columns(answers, len(rows))
        wide = columns(asked.inplace_predict(rows[beyond], predict_type=kind, strict_shape=True), beyond.sum())
        whole = np.empty((len(rows), wide.shape[1]))
        whole[~beyond] = answers.reshape(-1, wide.shape[1])
        whole[beyond] = wide
        return whole

    if config["objective"]["name"] != "multi:softmax":
        return lambda rows: Answers(predict(booster, rows, True), predict(booster, rows, False))
    soft = booster.copy()
    soft.set_param({"objective": "multi:softprob"})
    return lambda rows: Answers(
        predict(booster, rows, True), predict(soft, rows, False), predict(booster, rows, False)[:, 0].astype(np.int64)
    )


def lightgbm_native(booster: Any) -> Native:
    def native(rows: Matrix) -> Answers:
        return Answers(
            columns(booster.predict(rows, raw_score=True, num_threads=1), len(rows)),
            columns(booster.predict(rows, num_threads=1), len(rows)),
        )

    return native


def wrapper_native(model: Any, original: Callable[[Matrix], Any] = lambda rows: rows) -> Native:
    """A scikit-learn wrapper of either booster; `original` makes its rows of encoded ones."""
    raw = {"raw_score": True} if type(model).__module__.startswith("lightgbm") else {"output_margin": True}

    def native(rows: Matrix) -> Answers:
        asked = original(rows)
        margins = columns(model.predict(asked, **raw), len(rows))
        if not hasattr(model, "predict_proba"):
            return Answers(margins, columns(model.predict(asked), len(rows)))
        return Answers(margins, probabilities(model.predict_proba(asked)), labels_of(model, model.predict(asked)))

    return native


def sklearn_native(model: Any, original: Callable[[Matrix], Any] = lambda rows: rows) -> Native:
    """An estimator's; margins where a pipeline ends in a booster, which has them."""
    booster = model[-1] if hasattr(model, "steps") and is_booster(model[-1]) else None
    raw = {"raw_score": True} if type(booster).__module__.startswith("lightgbm") else {"output_margin": True}

    def native(rows: Matrix) -> Answers:
        asked = original(rows)
        margins = None if booster is None else columns(booster.predict(model[:-1].transform(asked), **raw), len(rows))
        if hasattr(model, "predict_proba"):
            answers = model.predict_proba(asked)
            if isinstance(answers, list):  # one array a label
                return Answers(margins, np.column_stack([answer[:, 1] for answer in answers]))
            return Answers(margins, probabilities(answers), labels_of(model, model.predict(asked)))
        answers = model.score_samples(asked) if not hasattr(model, "predict") else model.predict(asked)
        if hasattr(model, "offset_"):
            answers = model.decision_function(asked)
        return Answers(margins, columns(answers, len(rows)))

    return native


def is_booster(model: Any) -> bool:
    return type(model).__module__.split(".")[0] in ("xgboost", "lightgbm")


def labels_of(model: Any, predicted: Any) -> Any:
    """Predicted classes by their place in classes_; none where there are several a row."""
    if np.ndim(predicted) != 1:
        return None
    order = {value: place for place, value in enumerate(model.classes_.tolist())}
    return np.array([order[value] for value in np.asarray(predicted).tolist()], dtype=np.int64)


def xgboost_thresholds(booster: Any) -> Thresholds:
    model = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]
    found = []
    for tree in model.get("gbtree", model).get("model", {}).get("trees", []):
        for node, left in enumerate(tree["left_children"]):
            if left >= 0 and node not in tree["categories_nodes"]:
                found.append((tree["split_indices"][node], float(np.float32(tree["split_conditions"][node]))))
    return found


def lightgbm_thresholds(booster: Any) -> Thresholds:
    nodes = [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
    found = []
    while nodes:
        node = nodes.pop()
        if "split_feature" in node:
            nodes += [node["left_child"], node["right_child"]]
            if node["decision_type"] == "<=":
                found.append((node["split_feature"], float(node["threshold"])))
    return found


def sklearn_thresholds(model: Any) -> Thresholds:
    """Of whatever holds trees, however deep. A pipeline's are told in the columns that went into it."""
    if hasattr(model, "steps"):
        return _before(model[:-1], sklearn_thresholds(model[-1]))
    if type(model).__name__ == "FrozenEstimator":
        return sklearn_thresholds(model.estimator)
    if is_booster(model):
        if type(model).__module__.startswith("xgboost"):
            return xgboost_thresholds(model.get_booster())
        return lightgbm_thresholds(model.booster_)
    if hasattr(model, "tree_"):
        tree = model.tree_
        return [(int(f), float(t)) for f, t in zip(tree.feature, tree.threshold, strict=True) if f >= 0]
    if hasattr(model, "calibrated_classifiers_"):
        return [split for part in model.calibrated_classifiers_ for split in sklearn_thresholds(part.estimator)]
    if hasattr(model, "_predictors"):
        return _histogram_thresholds(model)
    if not hasattr(model, "estimators_"):
        return []
    found: Thresholds = []
    parts = np.ravel(np.array(model.estimators_, dtype=object)).tolist()
    given = getattr(model, "estimators_features_", [None] * len(parts))
    for part, features in zip(parts, given, strict=True):
        for feature, threshold in sklearn_thresholds(part):
            found.append((feature if features is None else int(features[feature]), threshold))
    return found


def _histogram_thresholds(model: Any) -> Thresholds:
    """HistGradientBoosting moves categorical columns to the front before it splits."""
    categorical = model.is_categorical_
    order = np.arange(model.n_features_in_)
    if categorical is not None:
        order = np.concatenate([np.flatnonzero(categorical), np.flatnonzero(~np.asarray(categorical))])
    return [
        (int(order[node["feature_idx"]]), float(node["num_threshold"]))
        for stage in model._predictors
        for predictor in stage
        for node in predictor.nodes
        if not node["is_leaf"] and not node["is_categorical"]
    ]


def _before(steps: Any, splits: Thresholds) -> Thresholds:
    """Where a value turns before scaling: at the float32s that become the threshold, or round to it."""
    turning = [(feature, value) for feature, threshold in splits for value in _roundings(threshold)]
    for step in reversed([step for _, step in steps.steps]):
        name = type(step).__name__
        if name == "StandardScaler":
            turning = [(j, value * float(step.scale_[j]) + float(step.mean_[j])) for j, value in turning]
        elif name == "MinMaxScaler":
            turning = [(j, (value - float(step.min_[j])) / float(step.scale_[j])) for j, value in turning]
        elif name == "ColumnTransformer":
            turning = _through_columns(step, turning)
        elif name != "SimpleImputer":
            return []
    return turning


def _through_columns(step: Any, turning: Thresholds) -> Thresholds:
    """Of the numbers alone; their columns are traced by name."""
    names, inputs = step.get_feature_names_out().tolist(), step.feature_names_in_.tolist()
    found = []
    for j, value in turning:
        group, column = names[j].split("__", 1)
        if group == "numbers":
            before, raw = step.named_transformers_[group], value
            if type(before).__name__ == "StandardScaler":
                place = before.feature_names_in_.tolist().index(column)
                raw = value * float(before.scale_[place]) + float(before.mean_[place])
            found.append((inputs.index(column), raw))
    return found


def _roundings(threshold: float) -> list[float]:
    single = np.float32(threshold)
    with np.errstate(over="ignore"):
        beside = [float(np.nextafter(single, np.float32(side))) for side in (-np.inf, np.inf)]
    return [threshold, *((float(single) + other) / 2 for other in beside)]
