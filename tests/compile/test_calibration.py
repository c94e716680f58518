"""A CalibratedClassifierCV taken apart answers as scikit-learn does, its forests' margins given."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import xgboost
from lightgbm import LGBMClassifier
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from compile.calibration import is_calibrated, unwrap
from compile.errors import ModelRefused
from compile.links import Isotonic, Link, Platt, apply
from compile.links_slow import apply_slowly
from compile.objectives import lightgbm_link, sklearn_link, xgboost_link

RNG = np.random.default_rng(11)
ROWS = RNG.normal(size=(3000, 4)).astype(np.float32).astype(np.float64)
TRAIN = ROWS[:240]
LABELS = (TRAIN[:, 0] + 0.8 * RNG.normal(size=len(TRAIN)) > 0).astype(int)
TARGETS = {2: LABELS, 3: LABELS + (TRAIN[:, 1] > 0.3), 9: np.arange(len(TRAIN)) % 9}

CLASSIFIERS = {
    "xgboost": xgboost.XGBClassifier(n_estimators=5, max_depth=3, n_jobs=1),
    "lightgbm": LGBMClassifier(n_estimators=5, num_leaves=6, n_jobs=1, verbose=-1),
    "lightgbm-rf": LGBMClassifier(
        boosting_type="rf", n_estimators=5, subsample=0.5, subsample_freq=1, n_jobs=1, verbose=-1
    ),
    "forest": RandomForestClassifier(5, max_depth=3, random_state=0),
    "extra": ExtraTreesClassifier(5, max_depth=3, random_state=0),
    "boosting": GradientBoostingClassifier(n_estimators=3, max_depth=2),
    "histogram": HistGradientBoostingClassifier(max_iter=3, max_depth=3),
}


def margins_and_link(estimator: Any) -> tuple[np.ndarray, Link]:
    """The library's own margins of ROWS, as a compiled forest answers them, and the link its objective names."""
    if isinstance(estimator, xgboost.XGBClassifier):
        margins = estimator.get_booster().predict(xgboost.DMatrix(ROWS), output_margin=True)
        return margins.astype(np.float64).reshape(len(ROWS), -1), xgboost_link(estimator.objective)
    if isinstance(estimator, LGBMClassifier):
        header = estimator.booster_.model_to_string().split("\nTree=")[0].splitlines()
        tokens = next(line.split("=")[1].split() for line in header if line.startswith("objective="))
        margins = estimator.booster_.predict(ROWS, raw_score=True).reshape(len(ROWS), -1)
        return margins, lightgbm_link(tokens, 5 if "average_output" in header else None)
    if hasattr(estimator, "decision_function"):
        return estimator.decision_function(ROWS).reshape(len(ROWS), -1), sklearn_link(estimator)
    return np.asarray(sum(tree.predict_proba(ROWS) for tree in estimator.estimators_)), sklearn_link(estimator)


def answers(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """(ours, scikit-learn's); the twin answers as the kernel does."""
    parts = unwrap(model)
    margins, inner = zip(*map(margins_and_link, parts.estimators), strict=True)
    link, side_by_side = parts.build(inner), np.hstack(margins)
    ours = apply(link, side_by_side)
    assert np.array_equal(ours[:300], apply_slowly(link, side_by_side[:300]))
    native = model.predict_proba(ROWS)
    return ours, native[:, 1:] if native.shape[1] == 2 else native


def prefit(classifier: Any, classes: int, method: str) -> Any:
    """Calibrated on rows that the classifier was not fitted on: all of ROWS[120:240] lie on knots, or between equal ones."""
    inner = clone(classifier).fit(TRAIN[:120], TARGETS[classes][:120])
    return CalibratedClassifierCV(FrozenEstimator(inner), method=method).fit(TRAIN[120:], TARGETS[classes][120:])


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
@pytest.mark.parametrize("classes", TARGETS)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_calibrated_classifier_answers_as_scikit_learn_bit_for_bit(name: str, classes: int, method: str) -> None:
    ours, native = answers(prefit(CLASSIFIERS[name], classes, method))
    assert np.array_equal(ours, native)


@pytest.mark.parametrize("classes", TARGETS)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_temperature_scaling_answers_as_scikit_learn(name: str, classes: int) -> None:
    """NumPy's exp and log are not always the C library's, in float32 never; and it adds eight classes in another order."""
    ours, native = answers(prefit(CLASSIFIERS[name], classes, "temperature"))
    np.testing.assert_allclose(ours, native, rtol=0, atol=1e-6 if name == "xgboost" else 1e-14)


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
@pytest.mark.parametrize("ensemble", [True, False])
@pytest.mark.parametrize(("name", "classes"), [("xgboost", 2), ("xgboost", 3), ("lightgbm", 2), ("forest", 3)])
def test_folds_are_averaged_bit_for_bit(name: str, classes: int, ensemble: bool, method: str) -> None:
    model = CalibratedClassifierCV(CLASSIFIERS[name], method=method, cv=3, ensemble=ensemble)
    model.fit(TRAIN, TARGETS[classes])
    assert len(unwrap(model).estimators) == (3 if ensemble else 1)
    ours, native = answers(model)
    assert np.array_equal(ours, native)


def test_rows_do_lie_on_knots() -> None:
    parts = unwrap(prefit(CLASSIFIERS["xgboost"], 2, "isotonic"))
    knots = parts.folds[0][0]
    assert isinstance(knots, Isotonic)
    assert knots.single
    assert np.isin(parts.estimators[0].predict_proba(ROWS)[:, 1].astype(np.float64), knots.x).sum() > 100


def test_steep_steps_between_neighbouring_floats_are_kept() -> None:
    """XGBoost's float32 probability decides the side of a step that is one ulp wide; float64 would stand between."""
    margins = RNG.normal(size=(4000, 1)).astype(np.float32).astype(np.float64)
    fed = np.unique(apply(xgboost_link("binary:logistic", single=True), margins)).astype(np.float32)
    x = tuple(sorted({float(edge) for p in fed[::50] for edge in (p, np.nextafter(p, np.float32(0)))}))
    y = tuple(float(n % 2) for n in range(len(x)))
    link = Link("logistic", single=True, folds=((Isotonic(x, y, single=True),),))
    on_steps = np.isin(apply(xgboost_link("binary:logistic", single=True), margins), x)
    scores = apply(link, margins)
    assert on_steps.any()
    assert (scores[on_steps] == 1).all()


def test_a_row_that_every_calibrator_calls_impossible_is_uniform() -> None:
    never = Isotonic((0.0, 1.0), (0.0, 0.0))
    link = Link("identity", folds=((never, never, never),))
    assert (apply(link, np.ones((1, 3))) == 1 / 3).all()


def test_xgboosts_softmax_is_calibrated_by_sigmoid_and_refused_by_isotonic() -> None:
    classifier = clone(CLASSIFIERS["xgboost"]).set_params(objective="multi:softmax")
    ours, native = answers(prefit(classifier, 3, "sigmoid"))
    np.testing.assert_allclose(ours, native, rtol=0, atol=1e-6)
    with pytest.raises(ModelRefused, match="multi:softmax"):
        unwrap(prefit(classifier, 3, "isotonic"))


def test_what_is_not_understood_is_refused_and_the_part_named() -> None:
    fitted = prefit(CLASSIFIERS["forest"], 2, "sigmoid")
    inside = CalibratedClassifierCV(make_pipeline(LogisticRegression()), cv=2).fit(TRAIN, LABELS)
    linear = CalibratedClassifierCV(LogisticRegression(), cv=2).fit(TRAIN, LABELS)
    for model, part in (
        (CLASSIFIERS["forest"], "RandomForestClassifier is not a CalibratedClassifierCV"),
        (CalibratedClassifierCV(CLASSIFIERS["forest"]), "not fitted"),
        (inside, "LogisticRegression"),
        (linear, "LogisticRegression"),
    ):
        assert is_calibrated(model) == (model is not CLASSIFIERS["forest"])
        with pytest.raises(ModelRefused, match=re.escape(part)):
            unwrap(model)
    fitted.calibrated_classifiers_[0].calibrators[0] = LogisticRegression()
    with pytest.raises(ModelRefused, match="calibrator: LogisticRegression"):
        unwrap(fitted)


def test_folds_whose_links_differ_are_refused() -> None:
    parts = unwrap(CalibratedClassifierCV(CLASSIFIERS["forest"], cv=2).fit(TRAIN, LABELS))
    assert all(isinstance(fold[0], Platt) for fold in parts.folds)
    with pytest.raises(ModelRefused, match="fold"):
        parts.build([Link("identity", divisor=5.0), Link("identity", divisor=6.0)])
