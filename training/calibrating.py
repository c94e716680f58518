"""Calibration of two classes: a curve from the booster's answer to the share of positives that validation rows had there.

    platt      a logistic curve: two numbers, safe with few rows
    isotonic   any curve that never falls: wants a thousand rows or more
    best       of these and none, what has the least Brier score, cross-validated among the validation rows

The booster stays as it was fitted. What comes of it is scikit-learn's CalibratedClassifierCV, which MLflow keeps and
`compile` takes apart, so that the served probability is the calibrated one, bit for bit.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from training.boosters import Fitted, column_types, probability
from training.features import FeatureSchema
from training.parts import Part
from training.recipe import FORESTS, Recipe

Method = Literal["platt", "isotonic"]
NAMES: dict[Method, str] = {"platt": "sigmoid", "isotonic": "isotonic"}
FOLDS = 5
TRUSTED = (  # what MLflow's file format, skops, must be told to load; all of it is as safe as who may write to the registry
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.tree._tree.Tree",  # whose nodes are read without a check of bounds
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
)


def calibrated(recipe: Recipe, schema: FeatureSchema, fitted: Fitted, validation: Part) -> tuple[Fitted, str]:
    """(what answers calibrated, the method); as it was, and "none", where the recipe or the rows want none."""
    if recipe.calibration == "none":
        return fitted, "none"
    classifier = _classifier(recipe, schema, fitted.booster)
    if recipe.calibration == "best":
        plain = _brier(validation, probability(fitted.booster, schema, validation.matrix))
        scores = {name: _cross_validated(classifier, validation, name, recipe.seed) for name in NAMES}
        method = min(scores, key=lambda name: scores[name])
        if scores[method] >= plain:
            return fitted, "none"
    else:
        method = recipe.calibration
    return dataclasses.replace(fitted, booster=_curve(classifier, method).fit(*_rows(validation))), method


def _curve(classifier: Any, method: Method) -> Any:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    return CalibratedClassifierCV(FrozenEstimator(classifier), method=NAMES[method])


def _cross_validated(classifier: Any, part: Part, method: Method, seed: int) -> float:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    ways = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    said = cross_val_predict(_curve(classifier, method), *_rows(part), cv=ways, method="predict_proba")
    return _brier(part, said[:, 1])


def _brier(part: Part, said: Any) -> float:
    return float(np.mean((said - part.labels) ** 2))


def _rows(part: Part) -> tuple[Any, Any]:
    return part.matrix, part.labels.astype(np.int64)


def _classifier(recipe: Recipe, schema: FeatureSchema, booster: Any) -> Any:
    """The booster as scikit-learn's interface has it. LightGBM has no public way to say that one is fitted already."""
    if recipe.algorithm in FORESTS:
        return booster
    if recipe.algorithm == "xgboost":
        import xgboost

        classifier = xgboost.XGBClassifier(enable_categorical=True, feature_types=column_types(schema))
        classifier.load_model(booster.save_raw("ubj"))
        return classifier
    import lightgbm
    from sklearn.preprocessing import LabelEncoder

    classifier = lightgbm.LGBMClassifier(objective="binary")
    known = {"_Booster": booster, "_n_features": schema.width, "_n_features_in": schema.width, "_objective": "binary"}
    classes = {"_n_classes": 2, "_classes": np.array([0, 1]), "_le": LabelEncoder().fit([0, 1]), "fitted_": True}
    for name, value in (known | classes).items():
        setattr(classifier, name, value)
    return classifier
