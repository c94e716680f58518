"""Which rows train, which stop the training, which are held out; and the folds of a cross-validation.

By rows: at random, stratified by the label where there are classes. By time: the latest are held out, those before them
validate, and a fold trains on nothing later than what it is measured on. By group: no group is in two parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.data import Dataset
from training.errors import DataRefused
from training.recipe import Recipe

Indices = npt.NDArray[np.intp]


def split(dataset: Dataset, recipe: Recipe) -> dict[str, Indices]:
    """Rows by part: train, validation, holdout. Raises DataRefused where a part would lack a class."""
    shares = recipe.split
    whole = len(dataset.labels)
    ordered = _in_time(dataset, recipe, np.arange(whole - dataset.held_out))
    if dataset.held_out:
        rest, holdout = ordered, np.arange(whole - dataset.held_out, whole)
    else:
        rest, holdout = _parted(dataset, recipe, ordered, shares.holdout)
    share = shares.validation if dataset.held_out else shares.validation / (1 - shares.holdout)
    train, validation = _parted(dataset, recipe, rest, share)
    parts = {"train": train, "validation": validation, "holdout": holdout}
    for name, rows in parts.items():
        _refuse_lacking(dataset, name, rows)
    return parts


def folds(dataset: Dataset, recipe: Recipe, rows: Indices, count: int) -> list[tuple[Indices, Indices]]:
    """(train, measured) of each of `count` folds, among `rows`. Raises DataRefused where they don't suffice."""
    from sklearn import model_selection as ways

    seed = recipe.seed
    rows = _in_time(dataset, recipe, rows)
    groups = None
    if recipe.split.by == "time":
        way = ways.TimeSeriesSplit(count)
    elif recipe.split.by == "group":
        way, groups = ways.GroupKFold(count), _column(dataset, recipe).iloc[rows]
    elif recipe.task == "regression":
        way = ways.KFold(count, shuffle=True, random_state=seed)
    else:
        way = ways.StratifiedKFold(count, shuffle=True, random_state=seed)
    try:
        made = [(rows[train], rows[test]) for train, test in way.split(rows, dataset.labels[rows], groups)]
    except ValueError as refused:
        raise DataRefused(f"{dataset.source}: {refused}") from None
    for number, (train, test) in enumerate(made, 1):
        _refuse_lacking(dataset, f"fold {number}", train)
        _refuse_lacking(dataset, f"fold {number}", test)
    return made


def _parted(dataset: Dataset, recipe: Recipe, rows: Indices, share: float) -> tuple[Indices, Indices]:
    """The rows without a share of them, and that share."""
    from sklearn import model_selection as ways

    if recipe.split.by == "time":
        cut = len(rows) - max(1, round(share * len(rows)))
        return rows[:cut], rows[cut:]
    try:
        if recipe.split.by == "group":
            way = ways.GroupShuffleSplit(1, test_size=share, random_state=recipe.seed)
            first, second = next(way.split(rows, groups=_column(dataset, recipe).iloc[rows]))
            return rows[first], rows[second]
        labels = None if recipe.task == "regression" else dataset.labels[rows]
        first, second = ways.train_test_split(rows, test_size=share, random_state=recipe.seed, stratify=labels)
        return first, second
    except ValueError as refused:
        raise DataRefused(f"{dataset.source}: {refused}") from None


def _in_time(dataset: Dataset, recipe: Recipe, rows: Indices) -> Indices:
    """Earliest first, where time decides; rows of one moment keep the file's order."""
    if recipe.split.by != "time":
        return rows
    if not recipe.split.column:
        return np.sort(rows)
    moments = _column(dataset, recipe).iloc[rows]
    return rows[np.argsort(moments.to_numpy(), kind="stable")]


def _column(dataset: Dataset, recipe: Recipe) -> pd.Series[Any]:
    name = recipe.split.column
    if name not in dataset.features.columns:
        raise DataRefused(f"{dataset.source}: has no column {name!r}, by which the recipe splits")
    column = dataset.features[name]
    if column.isna().any():
        raise DataRefused(
            f"{dataset.source}: {name}: {int(column.isna().sum())} rows are blank, and can't be split by it"
        )
    return column


def _refuse_lacking(dataset: Dataset, part: str, rows: Indices) -> None:
    for code, label in enumerate(dataset.classes):
        if not np.any(dataset.labels[rows] == code):
            raise DataRefused(f"{dataset.source}: {dataset.target}: {part} would have no row of {label!r}")
    if not len(rows):
        raise DataRefused(f"{dataset.source}: {part} would have no rows")
