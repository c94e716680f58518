"""A window's performance before its labels are there, and whether to believe it.

Labelled rows from before the window, all closed by its end, are halved by time, the newer part no larger than it needs to
be. To the older part a curve is fitted - of a binary model, where its probabilities prove uncalibrated there, the isotonic
one; of a regression the errors by answer. The newer part checks what comes of it (`monitoring.trust`); so a curve is never
checked on rows that it was fitted to, and a model that was calibrated from its birth needs none.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from compile.bundle import Task
from monitoring import cbpe, goodness, trust
from monitoring.calibration import Calibration, Curve, calibration, isotonic
from monitoring.loss_estimate import Losses, losses
from monitoring.trust import Trust
from training.intervals import Floats, Interval

CHECKED = 1_000  # labelled rows that check, or as many as the window has
FITTED = 10_000  # labelled rows before those, that a curve is fitted to
LEAST_FITTED = 1_000  # of an isotonic curve


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """`figures`: accuracy, precision, recall, f1, roc_auc; of several classes accuracy and roc_auc; of a regression mae and
    rmse. None: not estimable. `calibrated`: by a curve of ours. `checked_until_us`: the time of the newest labelled row."""

    figures: dict[str, float | None]
    trust: Trust
    reasons: tuple[str, ...]
    rows: int
    fitted_rows: int
    checked_rows: int
    checked_until_us: int | None
    calibrated: bool
    calibration: Calibration | None


@dataclass(frozen=True)
class Labelled:
    """Rows whose truth is known, in the order of events. `scores` is (n, k)."""

    ts_us: np.ndarray[tuple[int], np.dtype[np.int64]]
    scores: Floats
    truth: Floats

    def __getitem__(self, part: slice) -> Labelled:
        return Labelled(self.ts_us[part], self.scores[part], self.truth[part])

    def __len__(self) -> int:
        return len(self.truth)


def estimate(
    task: Task,
    threshold: float,
    scores: Floats,
    known: Labelled,
    *,
    outside: float | None = None,
    calibrate: bool = True,
) -> Estimate:
    """Of the window's finite `scores` (n, k). `outside`: the share of its rows off known ground; None: not looked at.
    `calibrate=False`: take the probabilities as they are."""
    fit, check = _halves(known, len(scores), LEAST_FITTED if task == "binary" else 1)
    reasons = [*trust.of_rows(len(scores)), *trust.of_ground(outside)]
    tested: Calibration | None = None
    calibrated = False
    if task == "regression":
        figures, doubts = _regression(scores[:, 0], fit, check)
        reasons += doubts
    elif task == "binary":
        curve = _curve(fit) if calibrate else None
        calibrated = curve is not None
        figures = cbpe.binary(scores[:, 0], _worth(curve, scores[:, 0]), threshold)
        if trust.enough(check.truth):
            tested, doubts = _check_binary(curve, check, threshold, fitted=len(fit) if calibrated else 0)
            reasons += doubts
    else:
        figures = cbpe.multiclass(_shares(scores))
        if trust.enough(check.truth):
            tested, doubts = _check_multiclass(check)
            reasons += doubts
    return Estimate(
        figures=figures,
        trust=trust.verdict(reasons, len(check)),
        reasons=tuple(reasons),
        rows=len(scores),
        fitted_rows=len(fit),
        checked_rows=len(check),
        checked_until_us=int(check.ts_us[-1]) if len(check) else None,
        calibrated=calibrated,
        calibration=tested,
    )


def _halves(known: Labelled, rows: int, least: int) -> tuple[Labelled, Labelled]:
    """(what fits, what checks). Where fewer than `least` would fit, all check."""
    checks = min(max(CHECKED, min(rows, FITTED)), len(known) - len(known) // 2)
    fits = len(known) - checks
    if fits < least:
        return known[:0], known
    return known[max(fits - FITTED, 0) : fits], known[fits:]


def _curve(fit: Labelled) -> Curve | None:
    if len(fit) < LEAST_FITTED:
        return None
    score = fit.scores[:, 0]
    return isotonic(score, fit.truth) if calibration(score, fit.truth).p_value < trust.ALPHA else None


def _worth(curve: Curve | None, score: Floats) -> Floats:
    return score if curve is None else curve(score)


def _check_binary(
    curve: Curve | None, check: Labelled, threshold: float, *, fitted: int
) -> tuple[Calibration, list[str]]:
    score = check.scores[:, 0]
    worth = _worth(curve, score)
    tested = calibration(worth, check.truth, fitted=fitted)
    seen, said = goodness.binary(score, check.truth == 1, threshold), cbpe.binary(score, worth, threshold)
    return tested, [*trust.of_calibration(tested), *trust.of_figures(seen, said, checked=len(check), fitted=fitted)]


def _check_multiclass(check: Labelled) -> tuple[Calibration, list[str]]:
    shares, truth = _shares(check.scores), check.truth.astype(np.intp)
    by_class = [calibration(shares[:, k], (truth == k).astype(np.float64)) for k in range(shares.shape[1])]
    worst = max(by_class, key=lambda found: found.error)
    areas = [goodness.area(shares[:, k], truth == k) for k in range(shares.shape[1])]
    seen = {"accuracy": goodness.multiclass(shares, truth)["accuracy"], "roc_auc": _mean(areas)}
    return worst, [*trust.of_calibration(worst), *trust.of_figures(seen, cbpe.multiclass(shares), checked=len(check))]


def _regression(answer: Floats, fit: Labelled, check: Labelled) -> tuple[dict[str, float | None], list[str]]:
    """Without labelled rows there is nothing to say: a regression tells no probability."""
    found: Losses | None = losses(fit.scores[:, 0], fit.truth) if len(fit) else None
    if found is None:
        return {"mae": None, "rmse": None}, []
    doubts: list[str] = []
    if trust.enough(check.truth):
        seen = goodness.regression(check.scores[:, 0], check.truth)
        doubts = trust.of_figures(seen, found.estimate(check.scores[:, 0]), checked=len(check), fitted=len(fit))
    return found.estimate(answer), doubts


def _shares(scores: Floats) -> Floats:
    """Sums of float32 are one but for their rounding."""
    total = scores.sum(axis=1, keepdims=True)
    shares: Floats = np.divide(scores, total, out=np.zeros_like(scores), where=total > 0)
    return shares


def _mean(areas: list[Interval]) -> Interval:
    """Of the classes' areas; the ends as if the classes moved together, which is the widest that they can."""
    values, lows, highs = zip(*((area.value, area.low, area.high) for area in areas), strict=True)
    if any(value is None for value in (*values, *lows, *highs)):
        return goodness.UNKNOWN
    return Interval(*(float(np.mean(ends)) for ends in (values, lows, highs)))
