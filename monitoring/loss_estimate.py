"""How far off a regression model probably is on rows whose truth nobody knows yet: the error that answers like these had.

Labelled rows are grouped by the answer, equally many to a group; a group's mean absolute and mean squared error are what a
new row with such an answer is expected to have. So an estimate moves where answers move into regions of larger or
smaller errors, and it sees nothing else: not errors that depend on a feature at the same answer, not answers beyond those
that were labelled (the outermost group stands for them), not a truth that changed. `monitoring.trust` asks the newest
labelled rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.intervals import Floats

GROUPS = 20
LEAST_IN_GROUP = 25
LEAST = 2 * LEAST_IN_GROUP


@dataclass(frozen=True)
class Losses:
    """By group of answers; group k ends at edges[k], the last one nowhere."""

    edges: Floats
    absolute: Floats
    squared: Floats

    def estimate(self, answer: Floats) -> dict[str, float | None]:
        """mae and rmse over the rows; None of none."""
        if not len(answer):
            return {"mae": None, "rmse": None}
        group = np.searchsorted(self.edges, answer, side="left")
        return {"mae": float(self.absolute[group].mean()), "rmse": float(self.squared[group].mean() ** 0.5)}


def losses(answer: Floats, truth: Floats) -> Losses | None:
    """Of labelled rows, both (n,); None where there are fewer than LEAST."""
    if len(answer) < LEAST:
        return None
    groups = min(GROUPS, len(answer) // LEAST_IN_GROUP)
    edges = np.unique(np.quantile(answer, np.linspace(0, 1, groups + 1)[1:-1]))
    group = np.searchsorted(edges, answer, side="left")
    rows = np.bincount(group, minlength=len(edges) + 1)
    off = answer - truth
    overall = np.array([np.abs(off).mean(), (off**2).mean()])  # of a group that equal answers left empty
    with np.errstate(invalid="ignore"):
        absolute = np.bincount(group, np.abs(off), len(rows)) / rows
        squared = np.bincount(group, off**2, len(rows)) / rows
    return Losses(edges, np.where(rows > 0, absolute, overall[0]), np.where(rows > 0, squared, overall[1]))
