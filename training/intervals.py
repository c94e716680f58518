"""How sure a figure is: bootstrap percentile intervals of every metric, from one pass over the rows' weights.

A resample of n rows with replacement is how often each row was drawn. So a metric that takes weights serves both: all
ones for the figure itself, drawn counts for its spread; and two models asked with the same counts are compared in pairs.
Rates are sums, and so products of matrices; the AUC comes from ranks, half of each tie counting. What a resample can't
say, such as an AUC without negatives, is NaN there, and no figure at all where that happens often. The calibration error
has no interval: it adds up distances, which a resample's own noise makes larger, so that percentiles lie above the figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]

BINS = 10
CELLS = 1_000_000  # weights held at once: 8 MB
NO_INTERVAL = "calibration_error"
LEAST_ESTIMABLE = 0.9  # of the resamples; below it there is no interval
RATES = ("accuracy", "precision", "recall", "f1", "selection_rate", "false_positive_rate")
MEASURES = (*RATES, "roc_auc", "log_loss", "brier", "calibration_error")


class Interval(msgspec.Struct, frozen=True):
    """A figure, and where it lies by the bootstrap. None: not estimable from these rows."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.value is None:
            return "not estimable"
        if self.low is None or self.high is None:
            return f"{self.value:.4f}"
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class Judged:
    """Rows with the model's answers, laid out so that weights (r, n) become figures (r,)."""

    sums: Floats  # (n, k): what is added up, a column each
    positive: Floats  # (n,), in ascending order of the probability
    order: npt.NDArray[np.intp]
    ties: npt.NDArray[np.intp]  # where each distinct probability begins in that order
    bins: Floats  # (n, BINS): said minus seen, in the row's bin

    @property
    def rows(self) -> int:
        return len(self.order)

    def measure(self, weights: Floats) -> dict[str, Floats]:
        """Every one of MEASURES under each row of weights."""
        tp, fp, fn, tn, loss, brier = (weights @ self.sums).T
        total = tp + fp + fn + tn
        with np.errstate(divide="ignore", invalid="ignore"):
            chosen = tp + fp
            return {
                "accuracy": (tp + tn) / total,
                "precision": np.where(chosen > 0, tp / np.maximum(chosen, 1), 0.0),
                "recall": tp / (tp + fn),
                "f1": 2 * tp / (2 * tp + fp + fn),
                "selection_rate": chosen / total,
                "false_positive_rate": fp / (fp + tn),
                "roc_auc": self._auc(weights),
                "log_loss": loss / total,
                "brier": brier / total,
                "calibration_error": np.abs(weights @ self.bins).sum(axis=1) / total,
            }

    def _auc(self, weights: Floats) -> Floats:
        ordered = weights[:, self.order]
        found = np.add.reduceat(ordered * self.positive, self.ties, axis=1)
        missed = np.add.reduceat(ordered, self.ties, axis=1) - found
        below = np.cumsum(missed, axis=1) - missed / 2
        answer: Floats = (found * below).sum(axis=1) / (found.sum(axis=1) * missed.sum(axis=1))
        return answer


def judged(positive: Labels, probability: Floats, threshold: float) -> Judged:
    """Positive is predicted above the threshold. Bins of the calibration error hold equally many of these rows."""
    predicted = probability > threshold
    clipped = np.clip(probability, np.finfo(float).eps, 1 - np.finfo(float).eps)
    loss = -np.log(np.where(positive, clipped, 1 - clipped))
    outcomes = [predicted & positive, predicted & ~positive, ~predicted & positive, ~predicted & ~positive]
    order = np.argsort(probability, kind="stable")
    ascending = probability[order]
    bins = np.zeros((len(order), BINS))
    bins[np.arange(len(order)), bin_of(probability)] = probability - positive
    return Judged(
        sums=np.column_stack([*outcomes, loss, (probability - positive) ** 2]).astype(np.float64),
        positive=positive[order].astype(np.float64),
        order=order,
        ties=np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]]),
        bins=bins,
    )


def bin_of(probability: Floats) -> npt.NDArray[np.intp]:
    """Each row's bin of equally many rows, 0 to BINS - 1; equal probabilities share one."""
    edges = np.quantile(probability, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, probability, side="left")


def resamples(rows: int, count: int, seed: int) -> Iterator[Floats]:
    """`count` resamples in blocks (r, rows): how often each row was drawn. The same seed draws the same."""
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // rows)
    for done in range(0, count, at_once):
        block = min(at_once, count - done)
        drawn = rng.integers(0, rows, size=(block, rows)) + np.arange(block)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=block * rows).reshape(block, rows).astype(np.float64)


def draws(models: Sequence[Judged], count: int, seed: int) -> list[dict[str, Floats]]:
    """Each model's figures under the same resamples of the same rows."""
    rows = models[0].rows
    parts = [[model.measure(weights) for model in models] for weights in resamples(rows, count, seed)]
    return [{name: np.concatenate([part[m][name] for part in parts]) for name in MEASURES} for m in range(len(models))]


def figures(model: Judged) -> dict[str, float]:
    """The figures themselves: every row once."""
    return {name: float(value[0]) for name, value in model.measure(np.ones((1, model.rows))).items()}


def means(values: Floats, count: int, seed: int) -> Floats:
    """The mean of each column of `values` (n, k) under `count` resamples: (count, k)."""
    return np.concatenate([weights @ values for weights in resamples(len(values), count, seed)]) / len(values)


def interval(value: float, drawn: Floats, level: float) -> Interval:
    """The percentile interval of `level`."""
    if not np.isfinite(value):
        return Interval(None, None, None)
    kept = drawn[np.isfinite(drawn)]
    if len(kept) < LEAST_ESTIMABLE * len(drawn):
        return Interval(float(value), None, None)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def intervals(model: Judged, count: int, level: float, seed: int) -> dict[str, Interval]:
    drawn = draws([model], count, seed)[0]
    return {name: _ends(name, value, drawn[name], level) for name, value in figures(model).items()}


def differences(model: Judged, other: Judged, count: int, level: float, seed: int) -> dict[str, Interval]:
    """Model minus other, on the same rows under the same resamples."""
    ours, theirs = draws([model, other], count, seed)
    here, there = figures(model), figures(other)
    return {name: _ends(name, here[name] - there[name], ours[name] - theirs[name], level) for name in MEASURES}


def _ends(name: str, value: float, drawn: Floats, level: float) -> Interval:
    return Interval(value, None, None) if name == NO_INTERVAL else interval(value, drawn, level)
