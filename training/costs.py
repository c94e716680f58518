"""What decisions are worth: the recipe's cost matrix, the threshold that costs least, and what the model saves.

    [costs]                     money per decision; what earns is negative
    tp = -40.0                  predicted positive, and it was
    fp = 10.0                   predicted positive, and it was not
    fn = 100.0                  not predicted, and it was
    tn = 0.0
    amount = "monthly_bill"     optional: a column whose value multiplies the row's costs
    currency = "EUR"
    volume_per_month = 20000    optional: decisions a month, to scale by

The threshold is chosen on the validation split and judged on the holdout, so that its choice flatters no figure. Savings
are against doing nothing (all predicted negative) and against treating everybody (all predicted positive).
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pandas as pd

from training.errors import DataRefused, RecipeRefused
from training.intervals import Floats, Interval, Labels, interval, means


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tp: float
    fp: float
    fn: float
    tn: float = 0.0
    amount: str = ""
    currency: str = ""
    volume_per_month: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tp", "fp", "fn", "tn", "volume_per_month"):
            if not math.isfinite(getattr(self, name)):
                raise RecipeRefused(f"costs.{name}: must be finite")
        if self.volume_per_month < 0:
            raise RecipeRefused("costs.volume_per_month: must not be negative")
        if self.fp <= self.tn or self.fn <= self.tp:
            raise RecipeRefused("costs: a mistake must cost more than the right decision: fp > tn and fn > tp")


class Worth(msgspec.Struct, frozen=True):
    """Money, on the holdout. `month`: the saving against doing nothing scaled to the volume; None where none is given."""

    threshold: float
    currency: str
    cost_per_1000: Interval
    saved_per_1000: Interval
    saved_per_1000_against_all: Interval
    saved_per_1000_against_half: Interval  # the same model at the threshold 0.5
    volume_per_month: float
    month: Interval | None


def amounts(costs: Costs, frame: pd.DataFrame, where: str) -> Floats:
    """What multiplies each row's costs. Raises DataRefused, naming the column."""
    if not costs.amount:
        return np.ones(len(frame))
    if costs.amount not in frame.columns:
        raise DataRefused(f"{where}: has no column {costs.amount!r}, which costs.amount names")
    column = frame[costs.amount]
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        raise DataRefused(f"{where}: {costs.amount}: costs.amount must name a column of numbers")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        raise DataRefused(f"{where}: {costs.amount}: {int(wrong.sum())} rows hold no finite amount of at least 0")
    return values


def decided(costs: Costs, positive: Labels, predicted: Labels, amount: Floats) -> Floats:
    """What each decision costs."""
    treated = np.where(positive, costs.tp, costs.fp)
    left = np.where(positive, costs.fn, costs.tn)
    answer: Floats = np.where(predicted, treated, left) * amount
    return answer


def best_threshold(costs: Costs, positive: Labels, probability: Floats, amount: Floats) -> float:
    """The threshold that costs least on these rows; of several, the one nearest to 0.5.

    Only what lies between two neighbouring probabilities can matter: their middles are tried, and 0 and 1 beside them.
    """
    values, group = np.unique(probability, return_inverse=True)
    everyone = np.ones(len(positive), dtype=bool)
    nothing = decided(costs, positive, ~everyone, amount)
    gain = np.bincount(group, nothing - decided(costs, positive, everyone, amount), minlength=len(values))
    above = np.r_[np.cumsum(gain[::-1])[::-1], 0.0]  # gained by treating this probability and all above it; or nobody
    middle = (values[:-1] + values[1:]) / 2
    candidates = np.r_[0.0, np.where(middle < values[1:], middle, values[:-1]), 1.0]
    if values[0] <= 0:
        candidates, above = candidates[1:], above[1:]  # nothing lies below 0: treating everybody is no threshold
    slack = 1e-12 * float(np.abs(nothing).sum() + np.abs(gain).sum())
    best = candidates[above >= above.max() - slack]
    return float(best[np.argmin(np.abs(best - 0.5))])


def worth(
    costs: Costs,
    positive: Labels,
    probability: Floats,
    amount: Floats,
    threshold: float,
    *,
    count: int,
    level: float,
    seed: int,
) -> Worth:
    """What deciding by the model at `threshold` costs and saves, with intervals."""
    everyone = np.ones(len(positive), dtype=bool)
    ours = decided(costs, positive, probability > threshold, amount)
    columns = np.column_stack(
        [
            ours,
            decided(costs, positive, ~everyone, amount) - ours,
            decided(costs, positive, everyone, amount) - ours,
            decided(costs, positive, probability > 0.5, amount) - ours,
        ]
    )
    drawn, seen = means(columns, count, seed), columns.mean(axis=0)

    def scaled(column: int, by: float) -> Interval:
        return interval(float(seen[column]) * by, drawn[:, column] * by, level)

    volume = costs.volume_per_month
    return Worth(
        threshold=threshold,
        currency=costs.currency,
        cost_per_1000=scaled(0, 1000),
        saved_per_1000=scaled(1, 1000),
        saved_per_1000_against_all=scaled(2, 1000),
        saved_per_1000_against_half=scaled(3, 1000),
        volume_per_month=volume,
        month=scaled(1, volume) if volume else None,
    )
