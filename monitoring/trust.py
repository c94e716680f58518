"""Whether an estimate made without labels may be believed: what the newest labelled rows say of it, and what it can't see.

An estimate is `trusted` where labelled rows from before the window were enough, and

    calibrated    the probabilities mean what they say there: not significantly (1 %) and materially (0.03) otherwise
    right         what would have been estimated for those rows is what their labels showed: for no figure both
                  significantly (1 % for all together) and materially (0.02; a loss: a tenth) otherwise. That is how
                  concept drift shows
    known ground  at most 5 % of the window's rows have a value outside of what the model was trained on
    enough        the window has at least 200 rows

and `not trusted` where one of these fails; every reason is told. Without enough labelled rows it is `unverified`. A concept
that changed after the newest closed label is seen by none of this: `checked_until_us` says how long ago that was.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Literal

from monitoring.calibration import Calibration
from monitoring.goodness import Z
from training.intervals import Floats, Interval

Trust = Literal["trusted", "unverified", "not trusted"]

LEAST_ROWS = 200
LEAST_LABELLED = 300
ALPHA = 0.01
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


def of_figures(
    seen: Mapping[str, Interval], estimated: Mapping[str, float | None], *, checked: int, fitted: int = 0
) -> list[str]:
    """`seen`: what the labels of the `checked` rows showed; `estimated`: what was said of them without. Where that rests on
    `fitted` rows, their chance adds to that of the checked."""
    stricter = NormalDist().inv_cdf(1 - ALPHA / len(estimated) / 2) / Z
    stricter *= (1 + checked / fitted) ** 0.5 if fitted else 1.0
    reasons = []
    for name, said in estimated.items():
        value, low, high = (seen[name].value, seen[name].low, seen[name].high) if name in seen else (None, None, None)
        if said is None or value is None or low is None or high is None:
            continue
        reach = stricter * ((value - low) if said < value else (high - value))
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


def verdict(reasons: list[str], labelled: int) -> Trust:
    if reasons:
        return "not trusted"
    return "trusted" if labelled >= LEAST_LABELLED else "unverified"


def enough(truth: Floats) -> bool:
    return len(truth) >= LEAST_LABELLED
