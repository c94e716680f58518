"""How good a classifier probably is on rows whose labels nobody knows yet: confidence-based performance estimation.

A calibrated probability says how often the row is positive, and so how often each decision is right: of rows told 0.8, a
fifth are wrong. The expected confusion matrix adds that up, and figures are read off it; the AUC is what the probabilities
expect of every pair of rows. Figures are those of NannyML's method of that name, which counts a row as a pair with
itself, half right: that matters in a handful of rows alone.

It holds while two things do: the probabilities are calibrated on these rows, and the label still depends on the inputs as
it did (no concept drift). Neither shows in the rows themselves. `monitoring.trust` asks the newest labelled rows.
"""

from __future__ import annotations

import numpy as np

from training.intervals import Floats


def binary(score: Floats, probability: Floats, threshold: float) -> dict[str, float | None]:
    """accuracy, precision, recall, f1, roc_auc; None: not estimable. `score` (n,) ranks and decides, positive above the
    threshold; `probability` (n,) is what it is worth: the same, or calibrated."""
    chosen = score > threshold
    tp, fp = probability[chosen].sum(), (1 - probability)[chosen].sum()
    fn, tn = probability[~chosen].sum(), (1 - probability)[~chosen].sum()
    return {
        "accuracy": _share(tp + tn, tp + fp + fn + tn),
        "precision": _share(tp, tp + fp),
        "recall": _share(tp, tp + fn),
        "f1": _share(2 * tp, 2 * tp + fp + fn),
        "roc_auc": area(score, probability),
    }


def multiclass(probabilities: Floats) -> dict[str, float | None]:
    """accuracy, and roc_auc: each class against the rest, each class alike. `probabilities` is (n, k)."""
    rows, classes = probabilities.shape
    areas = [area(probabilities[:, k], probabilities[:, k]) for k in range(classes)]
    known = [value for value in areas if value is not None]
    return {
        "accuracy": _share(probabilities.max(axis=1).sum(), rows) if rows else None,
        "roc_auc": float(np.mean(known)) if known and len(known) == classes else None,
    }


def area(score: Floats, probability: Floats) -> float | None:
    """The expected AUC: of a positive and a negative, how often the positive ranks higher, half of each tie counting."""
    order = np.argsort(score, kind="stable")
    ordered, positive = score[order], probability[order]
    if not len(ordered):
        return None
    ties = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    found = np.add.reduceat(positive, ties)
    missed = np.add.reduceat(1 - positive, ties)
    below = np.cumsum(missed) - missed / 2
    return _share((found * below).sum(), found.sum() * missed.sum())


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None
