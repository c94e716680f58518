"""Figures equal scikit-learn's, and their intervals hold the truth as often as they say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics

from monitoring import goodness
from training.intervals import Interval, intervals, judged


def rows(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    score = rng.uniform(0.01, 0.99, count).round(2)  # with ties
    return score, rng.random(count) < 0.2 + 0.6 * score


def test_of_two_classes_they_are_scikit_learns() -> None:
    score, positive = rows(np.random.default_rng(0), 997)
    found, chosen = goodness.binary(score, positive, 0.4), score > 0.4
    assert set(found) == set(goodness.BINARY)
    expected = {
        "roc_auc": metrics.roc_auc_score(positive, score),
        "accuracy": metrics.accuracy_score(positive, chosen),
        "precision": metrics.precision_score(positive, chosen),
        "recall": metrics.recall_score(positive, chosen),
        "f1": metrics.f1_score(positive, chosen),
        "log_loss": metrics.log_loss(positive, score),
        "brier": metrics.brier_score_loss(positive, score),
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected)
    before = intervals(judged(positive, score, 0.4), 500, 0.95, 0)
    for name, known in before.items():
        if name in found and known.low is not None and known.high is not None:  # the bootstrap's intervals
            assert found[name].low == pytest.approx(known.low, abs=0.01), name
            assert found[name].high == pytest.approx(known.high, abs=0.01), name
    assert found["calibration_error"].value == pytest.approx(before["calibration_error"].value)


def test_of_several_classes_and_of_values_too() -> None:
    rng = np.random.default_rng(1)
    scores = rng.dirichlet([1, 1, 1], 800)
    truth = np.where(rng.random(800) < 0.6, scores.argmax(axis=1), rng.integers(0, 3, 800))
    found = goodness.multiclass(scores, truth)
    assert found["accuracy"].value == pytest.approx(metrics.accuracy_score(truth, scores.argmax(axis=1)))
    assert found["macro_f1"].value == pytest.approx(metrics.f1_score(truth, scores.argmax(axis=1), average="macro"))
    assert found["log_loss"].value == pytest.approx(metrics.log_loss(truth, scores))
    value = rng.normal(3, 2, 500)
    answer = value + rng.normal(0.3, 1, 500)
    told = goodness.regression(answer, value)
    assert told["mae"].value == pytest.approx(metrics.mean_absolute_error(value, answer))
    assert told["rmse"].value == pytest.approx(metrics.root_mean_squared_error(value, answer))
    assert told["r2"].value == pytest.approx(metrics.r2_score(value, answer))
    assert told["bias"].value == pytest.approx((answer - value).mean())


def test_intervals_hold_the_truth_as_often_as_they_say(size: Callable[[int, int], int]) -> None:
    rng = np.random.default_rng(2)
    score, positive = rows(rng, 400_000)
    value = rng.normal(0, 2, 100_000)
    answer = value + rng.standard_t(6, 100_000)
    truly = goodness.binary(score, positive, 0.5) | goodness.regression(answer, value)
    trials = size(300, 4_000)
    held = dict.fromkeys(truly, 0)
    for _ in range(trials):
        drawn, others = rows(rng, 200), rng.integers(0, len(value), 400)
        seen = goodness.binary(*drawn, 0.5) | goodness.regression(answer[others], value[others])
        for name, figure in seen.items():
            if figure.low is not None and figure.high is not None:
                held[name] += figure.low <= (truly[name].value or 0) <= figure.high
    slack = 3 * (0.05 * 0.95 / trials) ** 0.5 + 0.015
    for name, count in held.items():
        if name != "calibration_error":
            assert abs(count / trials - 0.95) < slack, name


def test_not_estimable_is_a_result() -> None:
    none, all_of_one = np.array([], dtype=bool), np.ones(50, dtype=bool)
    unknown = Interval(None, None, None)
    assert set(goodness.binary(np.array([]), none, 0.5).values()) == {unknown}
    alone = goodness.binary(np.full(50, 0.2), all_of_one, 0.5)
    assert alone["roc_auc"] == unknown
    assert alone["precision"] == unknown
    assert alone["recall"].value == 0.0
    assert goodness.multiclass(np.empty((0, 3)), np.array([], dtype=int))["macro_f1"] == unknown
    assert set(goodness.regression(np.array([]), np.array([])).values()) == {unknown}
    assert goodness.regression(np.ones(9), np.ones(9))["r2"] == unknown
    perfect = goodness.area(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert (perfect.value, perfect.low) == (1.0, None)
