"""scikit-learn's CalibratedClassifierCV, taken apart: the forests inside, and the calibration as data in the link.

What a calibrator is fed decides the bits. scikit-learn asks for `decision_function` and, failing that, `predict_proba`:

    GradientBoosting, HistGradientBoosting   raw margins, float64
    LightGBM                                 raw margins from 4.7 on, which has decision_function; before, probabilities
    RandomForest, ExtraTrees                 averaged probabilities, float64
    XGBoost                                  probabilities in its own float32, and isotonic and temperature stay in float32

A binary classifier's calibrator sees the second class alone. With temperature scaling scikit-learn takes a batch of raw
margins for probabilities where every row of it happens to add up to one; here margins are always margins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from compile.errors import ModelRefused
from compile.links import Calibrator, Isotonic, Link, Platt, Temperature

KNOWN = {
    "xgboost": ("XGBClassifier", "XGBRFClassifier"),
    "lightgbm": ("LGBMClassifier",),
    "sklearn": (
        "RandomForestClassifier",
        "ExtraTreesClassifier",
        "GradientBoostingClassifier",
        "HistGradientBoostingClassifier",
    ),
}


@dataclass(frozen=True, slots=True)
class Calibrated:
    """`estimators`: the fitted classifiers inside, or pipelines that end in one, in scikit-learn's order; each is a fold."""

    estimators: tuple[Any, ...]
    folds: tuple[tuple[Calibrator, ...], ...]

    def build(self, inner: Sequence[Link]) -> Link:
        """The link of all margins side by side, fold by fold, from the estimators' own links.

        Raises ModelRefused where the estimators' links differ.
        """
        fed = [_fed(estimator, link) for estimator, link in zip(self.estimators, inner, strict=True)]
        if any(link != fed[0] for link in fed):
            raise ModelRefused("estimators: their links differ from fold to fold")
        return msgspec.structs.replace(fed[0], folds=self.folds)


def is_calibrated(model: Any) -> bool:
    return type(model).__module__ == "sklearn.calibration" and type(model).__name__ == "CalibratedClassifierCV"


def unwrap(model: Any) -> Calibrated:
    """The parts of a fitted CalibratedClassifierCV. Raises ModelRefused, naming the part, for what is not understood."""
    if not is_calibrated(model):
        raise ModelRefused(f"model: {type(model).__module__}.{type(model).__name__} is not a CalibratedClassifierCV")
    if not getattr(model, "calibrated_classifiers_", None):
        raise ModelRefused("model: the CalibratedClassifierCV is not fitted")
    estimators = tuple(_estimator(pair, model.classes_) for pair in model.calibrated_classifiers_)
    pairs = zip(estimators, model.calibrated_classifiers_, strict=True)
    return Calibrated(estimators, tuple(_calibrators(estimator, pair) for estimator, pair in pairs))


def _estimator(pair: Any, classes: Any) -> Any:
    estimator = pair.estimator
    while type(estimator).__module__.startswith("sklearn.frozen"):
        estimator = estimator.estimator
    last = _last(estimator)
    if type(last).__name__ not in KNOWN.get(_library(estimator), ()):
        raise ModelRefused(f"estimator: {type(last).__module__}.{type(last).__name__} is not known calibrated")
    if not np.array_equal(estimator.classes_, classes):
        raise ModelRefused(f"estimator: knows the classes {list(estimator.classes_)} of {list(classes)}")
    return estimator


def _calibrators(estimator: Any, pair: Any) -> tuple[Calibrator, ...]:
    expected = 1 if len(pair.classes) == 2 or pair.method == "temperature" else len(pair.classes)
    if len(pair.calibrators) != expected:
        raise ModelRefused(f"calibrators: {expected} are expected, got {len(pair.calibrators)}")
    return tuple(_calibrator(estimator, calibrator) for calibrator in pair.calibrators)


def _calibrator(estimator: Any, calibrator: Any) -> Calibrator:
    name = type(calibrator).__name__
    if name == "_SigmoidCalibration":
        return Platt(float(calibrator.a_), float(calibrator.b_))
    if name == "_TemperatureScaling":
        single = np.asarray(calibrator.beta_).dtype == np.float32
        inputs: Literal["logits", "probabilities"] = "logits" if _feeds_margins(estimator) else "probabilities"
        return Temperature(float(calibrator.beta_), inputs, single)
    if name == "IsotonicRegression" and calibrator.out_of_bounds == "clip":
        if getattr(_last(estimator), "objective", None) == "multi:softmax":
            raise ModelRefused("objective=multi:softmax: its probabilities are not exact enough for isotonic steps")
        x, y = calibrator.X_thresholds_, calibrator.y_thresholds_
        return Isotonic(tuple(x.tolist()), tuple(y.tolist()), single=x.dtype == np.float32)
    raise ModelRefused(f"calibrator: {name} is not known")


def _fed(estimator: Any, link: Link) -> Link:
    """The link up to what scikit-learn feeds the calibrator."""
    if _feeds_margins(estimator):
        return Link("identity")
    if _library(estimator) == "xgboost" and link.kind in ("logistic", "softmax"):
        return msgspec.structs.replace(link, single=True)
    return link


def _feeds_margins(estimator: Any) -> bool:
    return hasattr(estimator, "decision_function")


def _library(model: Any) -> str:
    return type(_last(model)).__module__.split(".")[0]


def _last(model: Any) -> Any:
    """The classifier at the end of a pipeline."""
    return _last(model.steps[-1][1]) if hasattr(model, "steps") else model
