"""How far apart two answers are, and how far they may be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

# The libraries apply the link in float32 (XGBoost): scores agree within 1e-6; raw scores are promised bit for bit.
TOLERANCE = {"bits": 0.0, "1e-6": 1e-6}


def apart(ours: Matrix, theirs: Matrix) -> Matrix:
    """|ours - theirs| / max(1, |theirs|), cell by cell; 0 for equal infinities and for two NaN, infinite for one NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs))
    difference = np.where((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)), 0.0, difference)
    return np.where(np.isnan(difference), np.inf, difference)
