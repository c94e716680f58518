"""Whether an estimate made without labels may be believed: what the newest labelled rows say of it, and what it can't see.

An estimate is `trusted` where labelled rows from before the window were enough, and

    calibrated    the probabilities mean what they say there: not significantly (1 %) and materially (0.03) otherwise
    right         what would have been estimated for those rows is what their labels showed: for no figure both
                  significantly (1 %) and materially (0.02; a loss: a tenth) otherwise. That is how concept drift shows
    known ground  at most 5 % of the window's rows have a value outside of what the model was trained on
    enough        the window has at least 200 rows

and `not trusted` where one of these fails; every reason is told. Without enough labelled rows it is `unverified`. A concept
that changed after the newest closed label is seen by none of this: `checked_until_us` says how long ago that was.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Literal

import numpy as np

from monitoring.calibration import Calibration
from monitoring.goodness import Z
from training.features import FeatureSchema, Matrix
from training.intervals import Floats, Interval

Trust = Literal["trusted", "unverified", "not trusted"]

LEAST_ROWS = 200
LEAST_LABELLED = 300
ALPHA = 0.01
STRICTER = NormalDist().inv_cdf(1 - ALPHA / 2) / Z  # how much wider a 99 % interval is than a 95 % one
CALIBRATION_ERROR = 0.03
APART = 0.02
LOSS_APART = 0.1
OUTSIDE = 0.05
LOSSES = ("mae", "rmse", "log_loss", "brier", "calibration_error")


def of_calibration(found: Calibration) -> list[str]:
    if found.p_value >= ALPHA or found.error <= CALIBRATION_ERROR:
        return []
    return [
        f"the probabilities are not calibrated: off by {found.error:.3f} on {found.rows:,} labelled rows "
        f"(p = {found.p_value:.2g})"
    ]


def of_figures(seen: Mapping[str, Interval], estimated: Mapping[str, float | None]) -> list[str]:
    """`seen`: what the labels of rows showed; `estimated`: what was, or would have been, said of them without labels."""
    reasons = []
    for name, said in estimated.items():
        value, low, high = (seen[name].value, seen[name].low, seen[name].high) if name in seen else (None, None, None)
        if said is None or value is None or low is None or high is None:
            continue
        reach = STRICTER * ((value - low) if said < value else (high - value))
        least = LOSS_APART * value if name in LOSSES else APART
        if abs(said - value) > max(reach, least):
            reasons.append(
                f"on the newest labelled rows {name} was {value:.3f} where {said:.3f} was estimated: the concept drifted, "
                "or the estimate does not fit this model"
            )
    return reasons


def of_rows(rows: int) -> list[str]:
    return [f"too few rows: {rows:,}, and {LEAST_ROWS} are needed"] if rows < LEAST_ROWS else []


def of_ground(outside: float | None) -> list[str]:
    if outside is None or outside <= OUTSIDE:
        return []
    return [f"{outside:.0%} of the rows have a value outside of what the model was trained on"]


class Ground:
    """What the model was trained on: the range of each number, the codes of each category, and whether any was missing."""

    def __init__(self, schema: FeatureSchema, trained: Matrix) -> None:
        self._numbers = np.array([feature.kind == "number" for feature in schema.features])
        there = ~np.isnan(trained)
        self._missing = (~there).any(axis=0)
        self._low = np.where(there, trained, np.inf).min(axis=0, initial=np.inf)
        self._high = np.where(there, trained, -np.inf).max(axis=0, initial=-np.inf)
        self._codes = [np.unique(trained[there[:, j], j]) for j in range(schema.width)]

    def outside(self, rows: Matrix) -> float:
        """The share of rows with a value that no training row comes near."""
        if not len(rows):
            return 0.0
        missing = np.isnan(rows)
        strange = missing & ~self._missing
        strange |= self._numbers & ((rows < self._low) | (rows > self._high))
        for j in np.flatnonzero(~self._numbers):
            strange[:, j] |= ~missing[:, j] & ~np.isin(rows[:, j], self._codes[j])
        return float(strange.any(axis=1).mean())


def verdict(reasons: list[str], labelled: int) -> Trust:
    if reasons:
        return "not trusted"
    return "trusted" if labelled >= LEAST_LABELLED else "unverified"


def enough(truth: Floats) -> bool:
    return len(truth) >= LEAST_LABELLED
