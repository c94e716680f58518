"""Whether probabilities mean what they say, and a curve that makes them.

Two tests of labelled rows. Spiegelhalter's (1986): were the probabilities true, the Brier score would have a known mean and
variance; `z` is how far from that mean it lies. It does not see an error that its weights cancel, so ten groups of equally
many rows, as Hosmer and Lemeshow's, are tested besides: seen less said, squared, over its variance, is chi-square in each.
With many rows both notice what nobody minds. `error` says how large it is: the root mean square over the groups of seen
less said, less what chance alone would make of it.

The curve is isotonic regression: any that never falls, fitted to labelled rows that the booster was not.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from training.intervals import BINS, Floats, bin_of

EVEN = 1e-12  # a variance below it: every row is certain


class Calibration(msgspec.Struct, frozen=True):
    """Of the labelled rows that were looked at. `p_value`: the smaller of the two tests', doubled for being the smaller."""

    rows: int
    z: float
    p_value: float
    error: float


@dataclass(frozen=True)
class Curve:
    """What a score is worth: linear between knots, level beyond them."""

    score: Floats
    worth: Floats

    def __call__(self, score: Floats) -> Floats:
        return np.interp(score, self.score, self.worth)


def calibration(probability: Floats, positive: Floats, *, fitted: int = 0) -> Calibration:
    """Both (n,), n >= 1; `positive` is 0 or 1. Where the probabilities come from a curve that was fitted to `fitted` other
    rows, what chance did to that curve adds to what it does here."""
    from scipy.stats import chi2, norm

    chances = 1 + len(probability) / fitted if fitted else 1.0
    spread = probability * (1 - probability) * chances
    variance = float(((1 - 2 * probability) ** 2 * spread).sum())
    excess = float((((probability - positive) ** 2) - probability * (1 - probability)).sum())
    z = excess / variance**0.5 if variance > EVEN else 0.0
    bins = bin_of(probability)
    rows = np.bincount(bins, minlength=BINS).astype(np.float64)
    gap = np.bincount(bins, positive - probability, BINS)
    chance = np.bincount(bins, spread, BINS)
    tested = chance > EVEN
    groups = float((gap[tested] ** 2 / chance[tested]).sum())
    p_value = min(2 * float(norm.sf(abs(z))), float(chi2.sf(groups, max(int(tested.sum()), 1))))
    if ((gap != 0) & ~tested).any():
        p_value = 0.0  # said to be certain, and wrong
    filled = rows > 0
    beyond = float(((gap[filled] ** 2 - chance[filled]) / rows[filled]).sum() / rows.sum())
    return Calibration(len(probability), z, min(2 * p_value, 1.0), max(beyond, 0.0) ** 0.5)


def isotonic(score: Floats, positive: Floats) -> Curve:
    """n >= 1. Nothing is certain: the outermost levels have half a row of the other class besides their own."""
    from scipy.optimize import isotonic_regression

    knots, place, rows = np.unique(score, return_inverse=True, return_counts=True)
    found = isotonic_regression(np.bincount(place, positive) / rows, weights=rows)
    low, high = (float(found.weights[k]) for k in (0, -1))
    return Curve(knots, np.clip(found.x, 0.5 / (low + 1), 1 - 0.5 / (high + 1)))
