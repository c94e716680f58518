"""Estimates without labels: the reference's numbers, right where nothing but the inputs moved, and doubted where more did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from monitoring import cbpe, goodness
from monitoring.calibration import calibration, isotonic
from monitoring.estimate import Estimate, Labelled, estimate
from monitoring.ground import Ground
from monitoring.loss_estimate import losses
from training.features import encode_frame, infer
from training.simulator import TARGET, World, simulate


def reference_rows(shift: float, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(shift, 1, count)
    p = 1 / (1 + np.exp(-(1.5 * x - 1)))
    return p, rng.random(count) < p


def test_the_figures_are_those_of_nannyml_to_six_digits() -> None:
    """Measured with NannyML 0.13.1: a reference of 20,000 rows, two chunks of 5,000, the second shifted by 1."""
    rng = np.random.default_rng(0)
    reference_rows(0, rng, 20_000)
    for shift, accuracy, f1, roc_auc, seen in (
        (0, 0.765532, 0.598628, 0.815435, 0.7692),
        (1, 0.741774, 0.786589, 0.812436, 0.7432),
    ):
        p, positive = reference_rows(shift, rng, 5_000)
        found = cbpe.binary(p, p, 0.5)
        assert [round(found[name] or 0, 6) for name in ("accuracy", "f1", "roc_auc")] == [accuracy, f1, roc_auc]
        assert ((p > 0.5) == positive).mean() == seen  # the very rows


def test_the_expected_figures_are_the_means_over_the_labels(size: Callable[[int, int], int]) -> None:
    rng = np.random.default_rng(1)
    p, redraws = rng.beta(0.6, 1.2, 2_000), size(100, 2_000)
    said = cbpe.binary(p, p, 0.4)
    seen = [goodness.binary(p, rng.random(2_000) < p, 0.4) for _ in range(redraws)]
    for name, value in said.items():
        drawn = np.array([figures[name].value for figures in seen])
        assert value == pytest.approx(drawn.mean(), abs=4 * drawn.std() / redraws**0.5 + 1e-3), name


def test_of_several_classes_too() -> None:
    rng = np.random.default_rng(2)
    p = rng.dirichlet([0.5, 0.8, 0.3], 20_000)
    truth = (rng.random(len(p))[:, None] > p.cumsum(axis=1)).sum(axis=1)
    said = cbpe.multiclass(p)
    assert said["accuracy"] == pytest.approx((p.argmax(axis=1) == truth).mean(), abs=0.01)
    areas = [goodness.area(p[:, k], truth == k).value for k in range(3)]
    assert said["roc_auc"] == pytest.approx(np.mean(areas), abs=0.01)


def test_what_no_row_says_is_not_estimable() -> None:
    nothing = np.array([])
    assert set(cbpe.binary(nothing, nothing, 0.5).values()) == {None}
    assert set(cbpe.multiclass(np.empty((0, 3))).values()) == {None}
    certain = np.zeros(10)
    assert cbpe.binary(certain, certain, 0.5)["roc_auc"] is None
    assert cbpe.binary(certain, certain, 0.5)["precision"] is None


@pytest.fixture(scope="module")
def churn() -> tuple[Callable[[World], np.ndarray], Ground, Callable[[World], np.ndarray]]:
    """(scores of a model that was trained on the calm world, its ground, the encoder). It is not calibrated."""
    import lightgbm

    world = simulate(8_000, seed=1)
    schema = infer(world.frame, exclude=[TARGET])

    def encoded(world: World) -> np.ndarray:
        return encode_frame(schema, world.features)

    rows = encoded(world)
    categories = [j for j, feature in enumerate(schema.features) if feature.kind == "category"]
    settings: dict[str, Any] = {"objective": "binary", "num_leaves": 15, "verbosity": -1, "num_threads": 1, "seed": 1}
    data = lightgbm.Dataset(rows, world.churned, categorical_feature=categories, params={"verbosity": -1})
    booster = lightgbm.train(settings, data, 60)
    return lambda world: np.asarray(booster.predict(encoded(world), num_threads=1)), Ground(schema, rows), encoded


def labelled(*parts: tuple[np.ndarray, np.ndarray]) -> Labelled:
    scores = np.concatenate([scores for scores, _ in parts])
    truth = np.concatenate([truth for _, truth in parts]).astype(np.float64)
    return Labelled(np.arange(len(scores)), scores[:, None], truth)


def estimated(scores: np.ndarray, known: Labelled, **more: Any) -> Estimate:
    return estimate("binary", 0.5, scores[:, None], known, **more)


def test_the_auc_is_estimated_within_a_hundredth_while_inputs_alone_move(
    churn: Any, size: Callable[[int, int], int]
) -> None:
    score, ground, encoded = churn
    calm = simulate(5_000, seed=2)
    known = labelled((score(calm), calm.churned))
    for drift in (0.0, 0.5, 1.0):
        off = []
        for seed in range(size(3, 30)):
            world = simulate(5_000, seed=100 + seed, covariate_drift=drift)
            scores = score(world)
            found = estimated(scores, known, outside=ground.outside(encoded(world)))
            assert found.trust == "trusted", found.reasons
            assert found.calibrated
            off.append((found.figures["roc_auc"] or 0) - (goodness.area(scores, world.churned).value or 0))
        assert np.abs(off).mean() < 0.01
        assert abs(np.mean(off)) < 0.01


def test_a_drifted_concept_is_not_seen_before_its_labels_and_doubted_after_them(churn: Any) -> None:
    score, _, _ = churn
    calm, moved, next_one = (
        simulate(5_000, seed=seed, concept_drift=drift) for seed, drift in ((2, 0.0), (3, 1.0), (4, 1.0))
    )
    before = estimated(score(next_one), labelled((score(calm), calm.churned)))
    truly = goodness.area(score(next_one), next_one.churned).value or 0
    assert (before.figures["roc_auc"] or 0) - truly > 0.05
    assert before.trust == "trusted"  # wrongly: nothing in the rows shows it
    after = estimated(score(next_one), labelled((score(calm), calm.churned), (score(moved), moved.churned)))
    assert after.trust == "not trusted"
    assert any("roc_auc was" in reason for reason in after.reasons)
    parts = [simulate(5_000, seed=seed, concept_drift=1.0) for seed in (5, 6)]
    settled = estimated(score(next_one), labelled(*((score(world), world.churned) for world in parts)))
    assert settled.trust == "trusted"  # once the curve is fitted to the new concept
    assert settled.figures["roc_auc"] == pytest.approx(truly, abs=0.02)


def test_doubts_have_their_reasons() -> None:
    rng = np.random.default_rng(3)
    p, positive = reference_rows(0, rng, 6_000)
    good = labelled((p, positive))
    assert estimated(p, good).trust == "trusted"
    assert not estimated(p, good).calibrated  # there is nothing to mend
    assert estimated(p, good[:0]).trust == "unverified"
    assert estimated(p, good[:200]).trust == "unverified"
    (few,) = estimated(p[:50], good).reasons
    assert "too few rows: 50" in few
    (ground,) = estimated(p, good, outside=0.2).reasons
    assert "20% of the rows" in ground
    flattened = labelled((0.5 + (p - 0.5) / 3, positive))
    doubted = estimated(flattened.scores[:, 0], flattened, calibrate=False)
    assert doubted.trust == "not trusted"
    assert "not calibrated" in doubted.reasons[0]
    mended = estimated(flattened.scores[:, 0], flattened)
    assert mended.calibrated
    assert mended.trust == "trusted"


def test_true_probabilities_pass_as_calibrated(size: Callable[[int, int], int]) -> None:
    rng = np.random.default_rng(4)
    trials, low = size(200, 2_000), 0
    for _ in range(trials):
        p, positive = reference_rows(0, rng, 1_000)
        low += calibration(p, positive.astype(np.float64)).p_value < 0.05
    assert low / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    p, positive = reference_rows(0, rng, 1_000)
    wrong = calibration(np.clip(p + 0.1, 0, 1), positive.astype(np.float64))
    assert wrong.p_value < 0.001
    assert wrong.error > 0.05
    assert calibration(np.array([1.0, 0.0]), np.array([1.0, 1.0])).p_value == 0


def test_the_isotonic_curve_is_scikit_learns_but_for_certainty() -> None:
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(5)
    score = rng.random(3_000).round(2)
    positive = (rng.random(3_000) < score**2).astype(np.float64)
    ours, asked = isotonic(score, positive), np.r_[-0.5, np.unique(score), 1.5]
    theirs = IsotonicRegression(out_of_bounds="clip").fit(score, positive).predict(asked)
    assert np.abs(ours(asked) - np.clip(theirs, ours.worth[0], ours.worth[-1])).max() < 1e-9
    assert 0 < ours.worth[0] < 0.05
    assert ours.worth[-1] < 1


def off_by(answer: np.ndarray, rng: np.random.Generator, scale: float = 1.0) -> np.ndarray:
    """The truth of a model whose errors grow with its answer."""
    return answer + rng.normal(0, 1, len(answer)) * scale * (1 + np.abs(answer))


def test_a_regressions_loss_follows_its_answers_and_is_doubted_when_it_should_be() -> None:
    rng = np.random.default_rng(6)
    answer = rng.normal(0, 2, 8_000)
    known = Labelled(np.arange(8_000), answer[:, None], off_by(answer, rng))
    moved = rng.normal(2, 2, 5_000)
    found = estimate("regression", 0.0, moved[:, None], known)
    seen = goodness.regression(moved, off_by(moved, rng))
    assert found.trust == "trusted"
    assert found.figures["mae"] == pytest.approx(seen["mae"].value, rel=0.05)
    assert found.figures["rmse"] == pytest.approx(seen["rmse"].value, rel=0.1)
    worse = Labelled(np.arange(8_000), answer[:, None], np.r_[known.truth[:4_000], off_by(answer[4_000:], rng, 1.5)])
    doubted = estimate("regression", 0.0, moved[:, None], worse)
    assert doubted.trust == "not trusted"
    assert "mae was" in doubted.reasons[0]
    nothing = estimate("regression", 0.0, moved[:, None], known[:0])
    assert (nothing.figures, nothing.trust) == ({"mae": None, "rmse": None}, "unverified")
    assert losses(answer[:10], answer[:10]) is None
    same = losses(np.zeros(100), np.ones(100))
    assert same is not None
    assert same.estimate(np.array([-5.0, 0.0, 5.0])) == {"mae": 1.0, "rmse": 1.0}
