"""How much of a window lies off known ground: values that no row that the model was trained on comes near.

Trees answer there as at the nearest edge that they know, and what a probability is worth there nobody has measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monitoring.cohorts import Times
from training.features import FeatureSchema, Matrix

LEAST = 30  # rows of a window that say it


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


@dataclass(frozen=True)
class Walked:
    """A sample of one version's rows, in the order of events, beside the ground that it was trained on."""

    ground: Ground
    ts_us: Times
    rows: Matrix

    def outside(self, since_us: int, until_us: int) -> float | None:
        """The share of the window's rows; None where the sample has too few of it."""
        first, last = np.searchsorted(self.ts_us, [since_us, until_us])
        return self.ground.outside(self.rows[first:last]) if last - first >= LEAST else None
