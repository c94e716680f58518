"""Figures under weights are scikit-learn's under weights, and their intervals are the bootstrap's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from training.evaluation import evaluate
from training.intervals import MEASURES, differences, draws, figures, interval, intervals, judged, resamples


def rows(count: int, seed: int, digits: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Few digits make ties."""
    rng = np.random.default_rng(seed)
    probability = np.round(rng.beta(1, 2, count), digits)
    positive = rng.random(count) < probability
    positive[:2] = True, False
    return positive, probability


@given(count=st.integers(4, 200), seed=st.integers(0, 10_000), digits=st.integers(1, 6), threshold=st.floats(0, 1))
def test_figures_are_those_of_scikit_learn_with_the_same_weights(
    count: int, seed: int, digits: int, threshold: float
) -> None:
    positive, probability = rows(count, seed, digits)
    model = judged(positive, probability, threshold)
    weights = np.random.default_rng(seed + 1).integers(1, 4, (2, count)).astype(float)
    found = model.measure(weights)
    predicted = probability > threshold
    for number, weight in enumerate(weights):
        told = {"sample_weight": weight}
        wanted = {
            "accuracy": metrics.accuracy_score(positive, predicted, **told),
            "precision": metrics.precision_score(positive, predicted, zero_division=0.0, **told),
            "recall": metrics.recall_score(positive, predicted, **told),
            "f1": metrics.f1_score(positive, predicted, **told),
            "roc_auc": metrics.roc_auc_score(positive, probability, **told),
            "brier": metrics.brier_score_loss(positive, probability, **told),
            "log_loss": metrics.log_loss(positive, probability, **told),
        }
        assert {name: found[name][number] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    once = figures(model)
    assert {name: once[name] for name in wanted} == pytest.approx(
        {name: evaluate(positive, probability, threshold)[name] for name in wanted}, abs=1e-9
    )


def test_the_interval_of_an_accuracy_and_of_an_auc_is_scipys() -> None:
    positive, probability = rows(300, 3)
    found = intervals(judged(positive, probability, 0.5), 4000, 0.9, 1)
    asked = {
        "accuracy": lambda y, p: np.mean(y == (p > 0.5)),
        "roc_auc": metrics.roc_auc_score,
    }
    for name, figure in asked.items():
        theirs = stats.bootstrap(
            (positive, probability), figure, paired=True, vectorized=False, n_resamples=1500,
            confidence_level=0.9, method="percentile", rng=np.random.default_rng(2),
        )  # fmt: skip
        # an end is a quantile of 1,500 draws: its own error is about sqrt(0.05 * 0.95 / 1500) / density, 0.06 of the spread
        slack = 0.25 * theirs.standard_error
        assert found[name].low == pytest.approx(theirs.confidence_interval.low, abs=slack), name
        assert found[name].high == pytest.approx(theirs.confidence_interval.high, abs=slack), name


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """90 % intervals of the recall on 150 worlds; binomial chance alone puts the count outside these bounds once in 10,000."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(150):
        positive = rng.random(400) < 0.5
        probability = np.where(rng.random(400) < 0.8, positive, ~positive).astype(float)  # a true recall of 0.8
        found = intervals(judged(positive, probability, 0.5), 200, 0.9, 1)["recall"]
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.8 <= found.high
    least, most = stats.binom.ppf([5e-5, 1 - 5e-5], 150, 0.88)  # the percentile's own shortfall at n = 200 positives
    assert least <= held <= most + 5


def test_the_same_seed_gives_the_same_intervals_and_each_resample_draws_every_row_once_on_average() -> None:
    positive, probability = rows(100, 1)
    model = judged(positive, probability, 0.5)
    assert intervals(model, 200, 0.95, 7) == intervals(model, 200, 0.95, 7)
    assert intervals(model, 200, 0.95, 7) != intervals(model, 200, 0.95, 8)
    weights = np.concatenate(list(resamples(100, 500, 1)))
    assert weights.shape == (500, 100)
    assert (weights.sum(axis=1) == 100).all()


def test_blocks_are_drawn_as_asked_where_one_block_does_not_hold_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.intervals.CELLS", 700)
    assert [len(block) for block in resamples(100, 20, 1)] == [7, 7, 6]


def test_a_model_is_not_different_from_itself_and_pairs_tell_more_than_two_intervals() -> None:
    positive, probability = rows(500, 2)
    model = judged(positive, probability, 0.5)
    none = differences(model, model, 200, 0.95, 1)
    assert none.pop("calibration_error").value == 0
    assert all((found.value, found.low, found.high) == (0, 0, 0) for found in none.values())
    worse = judged(positive, np.clip(probability + 0.02 * np.random.default_rng(1).normal(size=500), 0, 1), 0.5)
    paired = differences(model, worse, 500, 0.95, 1)["brier"]
    ours, theirs = draws([model], 500, 1)[0]["brier"], draws([worse], 500, 2)[0]["brier"]
    apart = interval(0.0, ours - theirs, 0.95)
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)  # type: ignore[operator]


def test_what_rows_can_not_say_is_not_a_figure() -> None:
    nobody = intervals(judged(np.zeros(50, dtype=bool), np.linspace(0, 1, 50), 0.5), 200, 0.95, 1)
    assert nobody["roc_auc"].value is None
    assert str(nobody["recall"]) == "not estimable"
    assert nobody["accuracy"].value == 0.5
    one = np.zeros(50, dtype=bool)
    one[0] = True  # a third of the resamples lack it
    rare = intervals(judged(one, np.linspace(0, 1, 50), 0.5), 200, 0.95, 1)["roc_auc"]
    assert (rare.value, rare.low, rare.high) == (0.0, None, None)
    assert set(nobody) == set(MEASURES)


def test_a_calibrated_model_has_a_small_calibration_error_and_a_boastful_one_has_not() -> None:
    rng = np.random.default_rng(1)
    said = rng.random(20_000)
    positive = rng.random(20_000) < said
    assert figures(judged(positive, said, 0.5))["calibration_error"] < 0.02
    assert figures(judged(positive, (said > 0.5).astype(float), 0.5))["calibration_error"] == pytest.approx(
        0.25, abs=0.02
    )
