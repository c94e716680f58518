"""How good answers were, now that the truth is known: figures with 95 % intervals, at the cost of one sort.

Rows are taken as independent; a million are as quick as they are many, so nothing is resampled row by row.

    shares (accuracy, precision, recall)       Wilson's interval (1927)
    roc_auc                                    DeLong, DeLong and Clarke-Pearson (1988), on the logit scale
    f1, macro_f1                               redraws of the confusion matrix, which is all they depend on
    means (log_loss, brier, mae, rmse, bias)   normal, from the rows' own variance; rmse on the scale of its logarithm
    r2                                         the delta method on both of its sums
    calibration_error                          ten groups of equally many rows; no interval (`training.intervals` says why)

A figure that the rows cannot say - an AUC without negatives, precision where nothing was chosen - is None: not estimable.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from training.intervals import Floats, Interval, Labels, bin_of, interval

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
REDRAWS = 1000
UNKNOWN = Interval(None, None, None)
TINY = float(np.finfo(np.float64).eps)

BINARY = ("roc_auc", "accuracy", "precision", "recall", "f1", "log_loss", "brier", "calibration_error")
MULTICLASS = ("accuracy", "macro_f1", "log_loss")
REGRESSION = ("mae", "rmse", "r2", "bias")


def binary(score: Floats, positive: Labels, threshold: float) -> dict[str, Interval]:
    """Each of BINARY. Positive is predicted above the threshold."""
    if not len(score):
        return dict.fromkeys(BINARY, UNKNOWN)
    chosen = score > threshold
    tp, fp = int((chosen & positive).sum()), int((chosen & ~positive).sum())
    fn, tn = int((~chosen & positive).sum()), int((~chosen & ~positive).sum())
    clipped = np.clip(score, TINY, 1 - TINY)
    bins = bin_of(score)
    gaps = np.abs(np.bincount(bins, score - positive))
    return {
        "roc_auc": area(score, positive),
        "accuracy": share(tp + tn, len(score)),
        "precision": share(tp, tp + fp),
        "recall": share(tp, tp + fn),
        "f1": _macro_f1(np.array([[tn, fp], [fn, tp]]), only=1),
        "log_loss": mean(-np.log(np.where(positive, clipped, 1 - clipped))),
        "brier": mean((score - positive) ** 2),
        "calibration_error": Interval(float(gaps.sum() / len(score)), None, None),
    }


def multiclass(scores: Floats, truth: npt.NDArray[np.intp]) -> dict[str, Interval]:
    """Each of MULTICLASS. `scores` is (n, k); `truth` the places of the classes."""
    if not len(scores):
        return dict.fromkeys(MULTICLASS, UNKNOWN)
    classes = scores.shape[1]
    said = scores.argmax(axis=1)
    confusion = np.bincount(truth * classes + said, minlength=classes**2).reshape(classes, classes)
    own = scores[np.arange(len(scores)), truth] / scores.sum(axis=1)
    return {
        "accuracy": share(int((said == truth).sum()), len(scores)),
        "macro_f1": _macro_f1(confusion),
        "log_loss": mean(-np.log(np.clip(own, TINY, 1))),
    }


def regression(answer: Floats, truth: Floats) -> dict[str, Interval]:
    """Each of REGRESSION; bias is positive where answers are too high."""
    off = answer - truth
    return {"mae": mean(np.abs(off)), "rmse": _rmse(off), "r2": _r2(off, truth), "bias": mean(off)}


def share(part: int, whole: int) -> Interval:
    if whole == 0:
        return UNKNOWN
    p, z2 = part / whole, Z * Z
    centre, half = p + z2 / (2 * whole), Z * (p * (1 - p) / whole + z2 / (4 * whole**2)) ** 0.5
    scale = 1 + z2 / whole
    return Interval(p, max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0))


def mean(values: Floats) -> Interval:
    if not len(values):
        return UNKNOWN
    if len(values) == 1:
        return Interval(float(values[0]), None, None)
    value, half = float(values.mean()), Z * float(values.std(ddof=1)) / len(values) ** 0.5
    return Interval(value, value - half, value + half)


def area(score: Floats, positive: Labels) -> Interval:
    """The AUC, half of each tie counting. No interval where all pairs, or all of one class's, rank alike."""
    from scipy.stats import rankdata

    found, missed = score[positive], score[~positive]
    if not len(found) or not len(missed):
        return UNKNOWN
    ranks = rankdata(score)
    above = (ranks[positive] - rankdata(found)) / len(missed)  # of a positive: the share of negatives below it
    below = 1 - (ranks[~positive] - rankdata(missed)) / len(found)
    value = float(above.mean())
    if min(len(found), len(missed)) < 2:
        return Interval(value, None, None)
    error = float(above.var(ddof=1) / len(found) + below.var(ddof=1) / len(missed)) ** 0.5
    if error == 0 or not 0 < value < 1:
        return Interval(value, None, None)
    logit, half = np.log(value / (1 - value)), Z * error / (value * (1 - value))
    return Interval(value, *(float(1 / (1 + np.exp(-end))) for end in (logit - half, logit + half)))


def _macro_f1(confusion: npt.NDArray[np.int64], only: int | None = None) -> Interval:
    """Rows are the truth. The mean over the classes that there are or were said; of class `only`, its own."""
    rows = int(confusion.sum())
    drawn = np.random.default_rng(0).multinomial(rows, confusion.ravel() / rows, REDRAWS)
    every = _f1(drawn.reshape(-1, *confusion.shape), only)
    return interval(float(_f1(confusion[None], only)[0]), every, LEVEL)


def _f1(confusion: npt.NDArray[np.int64], only: int | None) -> Floats:
    right = np.diagonal(confusion, axis1=1, axis2=2)
    either = confusion.sum(axis=1) + confusion.sum(axis=2)
    with np.errstate(invalid="ignore"):
        each = 2 * right / either
        if only is not None:
            return np.asarray(each[:, only], dtype=np.float64)
        there = either > 0
        return np.asarray(np.where(there, each, 0.0).sum(axis=1) / there.sum(axis=1), dtype=np.float64)


def _rmse(off: Floats) -> Interval:
    squares = mean(off**2)
    if squares.value is None or squares.high is None or squares.value == 0:
        return Interval(squares.value, None, None)
    half = (squares.high - squares.value) / squares.value / 2  # on the logarithm, and of the root
    value = squares.value**0.5
    return Interval(value, value * float(np.exp(-half)), value * float(np.exp(half)))


def _r2(off: Floats, truth: Floats) -> Interval:
    if len(off) < 2 or not truth.var() > 0:
        return UNKNOWN
    squares, apart = off**2, (truth - truth.mean()) ** 2
    error, spread = squares.mean(), apart.mean()
    value = float(1 - error / spread)
    influence = -(squares - error) / spread + error / spread**2 * (apart - spread)
    half = Z * float(influence.std(ddof=1)) / len(off) ** 0.5
    return Interval(value, value - half, value + half)
