"""Which link a trained model's objective has, and how XGBoost turns its base score into a margin.

Each formula was read from XGBoost 3.2, LightGBM 4.7 and scikit-learn 1.9, and is held against them by a test.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from compile.errors import ModelRefused
from compile.links import Kind, Link

Transform = Literal["identity", "logit", "log"]

# objective: (its link, how a base score becomes a margin)
XGBOOST: dict[str, tuple[Kind, Transform]] = {
    **dict.fromkeys(("reg:squarederror", "reg:linear", "reg:squaredlogerror"), ("identity", "identity")),
    **dict.fromkeys(("reg:pseudohubererror", "reg:absoluteerror", "reg:quantileerror"), ("identity", "identity")),
    **dict.fromkeys(("rank:ndcg", "rank:map", "rank:pairwise", "binary:logitraw"), ("identity", "identity")),
    **dict.fromkeys(("binary:logistic", "reg:logistic"), ("logistic", "logit")),
    "binary:hinge": ("hinge", "identity"),
    **dict.fromkeys(("multi:softprob", "multi:softmax"), ("softmax", "identity")),
    **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"), ("exp", "log")),
}

LIGHTGBM: dict[str, Kind] = {
    **dict.fromkeys(("regression", "regression_l1", "huber", "fair", "quantile", "mape"), "identity"),
    **dict.fromkeys(("lambdarank", "rank_xendcg", "custom", "none"), "identity"),
    **dict.fromkeys(("binary", "multiclassova", "cross_entropy"), "logistic"),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), "exp"),
    "multiclass": "softmax",
    "cross_entropy_lambda": "log1pexp",
}

SKLEARN = (
    *("RandomForestClassifier", "ExtraTreesClassifier", "RandomForestRegressor", "ExtraTreesRegressor"),
    *("GradientBoostingClassifier", "HistGradientBoostingClassifier"),
    *("GradientBoostingRegressor", "HistGradientBoostingRegressor", "IsolationForest"),
)


def xgboost_link(objective: str, *, single: bool = False) -> Link:
    """The link of an XGBoost objective. `single`: in XGBoost's float32, bit for bit; exp always is, for it overflows there.

    `multi:softmax` answers a class: `predicted_class` of the margins. Raises ModelRefused for an unknown objective.
    """
    kind, _ = _xgboost(objective)
    return Link(kind, single=kind == "exp" or (single and kind in ("logistic", "softmax")))


def base_margin(objective: str, base_score: float) -> float:
    """XGBoost's ProbToMargin in float32, by the C library's own logf: NumPy's may differ in the last bit.

    Raises ModelRefused where the base score has no margin.
    """
    _, transform = _xgboost(objective)
    score = np.float32(base_score)
    if transform == "identity":
        return float(score)
    if transform == "logit" and 0 < score < 1:
        return -_logf(np.float32(1) / score - np.float32(1))
    if transform == "log" and 0 < score < np.inf:
        return _logf(score)
    raise ModelRefused(f"base_score={base_score}: has no {transform} for objective={objective}")


def lightgbm_link(objective: Sequence[str], average_output_iterations: int | None = None) -> Link:
    """The link of a LightGBM model file's `objective=` tokens; none, as a custom objective leaves, is the identity.

    `average_output_iterations`: how many iterations are averaged where boosting is `rf`. Raises ModelRefused for an unknown
    objective.
    """
    name, options = (objective[0], objective[1:]) if objective else ("none", ())
    if name not in LIGHTGBM:
        raise ModelRefused(f"objective={' '.join(objective)}: its link is not known")
    divisor = float(average_output_iterations or 1)
    if LIGHTGBM[name] == "logistic":
        sigmoid = next((float(option.split(":")[1]) for option in options if option.startswith("sigmoid:")), 1.0)
        return Link("logistic", sigmoid=sigmoid, divisor=divisor)
    return Link("signed_square" if "sqrt" in options else LIGHTGBM[name], divisor=divisor)


def sklearn_link(model: Any) -> Link:
    """The link of a fitted scikit-learn ensemble. Margins are sums over its trees, a group an output or class.

    Forests have a group for each of two classes, of which the second is served; boosting has one. Raises ModelRefused for
    another kind of model.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("sklearn.")}
    name = next((known for known in SKLEARN if known in kinds), type(model).__name__)
    classes = len(getattr(model, "classes_", ()))
    if name in ("RandomForestClassifier", "ExtraTreesClassifier"):
        if model.n_outputs_ != 1 or classes < 2:
            raise ModelRefused(f"{name}: {model.n_outputs_} outputs of {classes} classes; one of two or more is needed")
        return Link("identity", divisor=float(len(model.estimators_)), column=1 if classes == 2 else None)
    if name in ("RandomForestRegressor", "ExtraTreesRegressor"):
        return Link("identity", divisor=float(len(model.estimators_)))
    if name in ("GradientBoostingClassifier", "HistGradientBoostingClassifier"):
        halves = getattr(model, "loss", "log_loss") == "exponential"
        return Link("softmax") if classes > 2 else Link("logistic", sigmoid=2.0 if halves else 1.0)
    if name == "GradientBoostingRegressor":
        return Link("identity")
    if name == "HistGradientBoostingRegressor":
        return Link("exp" if model.loss in ("poisson", "gamma") else "identity")
    if name == "IsolationForest":
        return _isolation(model)
    raise ModelRefused(f"model: {type(model).__module__}.{name} has no link that is known")


def _isolation(model: Any) -> Link:
    from sklearn.ensemble._iforest import _average_path_length

    longest = float(len(model.estimators_) * _average_path_length([model._max_samples])[0])
    if longest == 0:
        raise ModelRefused("IsolationForest: trees of a single sample say nothing")
    return Link("isolation", divisor=longest, offset=float(model.offset_))


def _xgboost(objective: str) -> tuple[Kind, Transform]:
    if objective not in XGBOOST:
        raise ModelRefused(f"objective={objective}: its link is not known")
    return XGBOOST[objective]


def _logf(value: np.float32) -> float:
    logf = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6").logf
    logf.restype, logf.argtypes = ctypes.c_float, [ctypes.c_float]
    return float(logf(float(value)))
