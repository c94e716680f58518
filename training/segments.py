"""Figures by group, for the columns that the recipe declares: where the model is worse, and whom it treats differently.

    [evaluation]
    segments = ["contract", "senior"]   any column of the data, whether the model reads it or not
    resamples = 1000                    of the bootstrap; 0.95 is the level of its intervals
    level = 0.95

Text and booleans make a group of each value, rare ones together; numbers make four of equal size. Gaps are the largest
less the smallest rate among groups of at least MIN_ROWS rows; as a range never falls below 0, chance alone widens it.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pandas as pd

from training.errors import DataRefused, RecipeRefused
from training.intervals import Floats, Interval, Labels, draws, figures, interval, judged

MIN_ROWS = 30
MOST_GROUPS = 12
MISSING, OTHER = "(missing)", "(other)"
SHOWN = ("accuracy", "roc_auc", "brier", "selection_rate", "recall", "false_positive_rate")
FAIRNESS = {
    "selection_rate": "selection rate",
    "recall": "true positive rate",
    "false_positive_rate": "false positive rate",
}


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    segments: tuple[str, ...] = ()
    resamples: int = 1000
    level: float = 0.95

    def __post_init__(self) -> None:
        if not 100 <= self.resamples <= 100_000:
            raise RecipeRefused("evaluation.resamples: must be from 100 to 100000")
        if not 0.5 <= self.level < 1:
            raise RecipeRefused("evaluation.level: must be at least 0.5 and below 1")
        if len(set(self.segments)) != len(self.segments):
            raise RecipeRefused("evaluation.segments: names a column twice")


class Group(msgspec.Struct, frozen=True):
    column: str
    value: str
    rows: int
    positives: int
    figures: dict[str, Interval]  # of SHOWN


class Gap(msgspec.Struct, frozen=True):
    """`rate` is one of FAIRNESS; the groups are where it is lowest and highest."""

    column: str
    rate: str
    gap: Interval
    lowest: str
    highest: str


def groups_of(column: pd.Series[Any]) -> pd.Series[Any]:
    """The name of each row's group."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column) and column.nunique() > 6:
        parts = pd.qcut(column, 4, duplicates="drop")
        return parts.astype(object).where(column.notna(), MISSING).map(str)
    named = column.astype(object).where(column.notna(), MISSING).map(str)
    common = named.value_counts().index[:MOST_GROUPS]
    return named.where(named.isin(common), OTHER)


def by_group(
    declared: Evaluation, frame: pd.DataFrame, positive: Labels, probability: Floats, threshold: float, seed: int
) -> tuple[list[Group], list[Gap]]:
    """Each declared column's groups, and the gaps between them. Groups are resampled each by itself."""
    groups: list[Group] = []
    gaps: list[Gap] = []
    for column in declared.segments:
        names = groups_of(frame[column]).to_numpy()
        drawn: dict[str, dict[str, Floats]] = {}
        found: list[Group] = []
        for number, value in enumerate(sorted(set(names))):
            rows = names == value
            model = judged(positive[rows], probability[rows], threshold)
            drawn[value] = draws([model], declared.resamples, seed + number)[0]
            seen = figures(model)
            kept = {name: interval(seen[name], drawn[value][name], declared.level) for name in SHOWN}
            found.append(Group(column, value, int(rows.sum()), int(positive[rows].sum()), kept))
        groups += found
        gaps += [gap for rate in FAIRNESS if (gap := _gap(rate, found, drawn, declared.level))]
    return groups, gaps


def refuse_unknown(declared: Evaluation, frame: pd.DataFrame, where: str) -> None:
    """Raises DataRefused, naming the column: before the fit, not after it."""
    for column in declared.segments:
        if column not in frame.columns:
            raise DataRefused(f"{where}: has no column {column!r}, which evaluation.segments names")


def _gap(rate: str, groups: list[Group], drawn: dict[str, dict[str, Floats]], level: float) -> Gap | None:
    rates = {
        group.value: value
        for group in groups
        if group.rows >= MIN_ROWS and (value := group.figures[rate].value) is not None
    }
    if len(rates) < 2:
        return None
    every = np.stack([drawn[value][rate] for value in rates])
    low, high = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
    gap = interval(rates[high] - rates[low], every.max(axis=0) - every.min(axis=0), level)
    return Gap(groups[0].column, rate, gap, low, high)
