"""What makes a holdout's figures too good: warnings that a person reads, none of which stops a run.

- a column that alone tells the target apart (AUC above 0.99 on the holdout), or is a copy of it
- rows that are in the holdout and, with all their values, among the training rows too
- rows alike in every value with different labels
- a number or text that has nearly as many values as rows: it may name rows rather than describe them
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.intervals import Floats, Labels, figures, judged

ALONE = 0.99
NAMING_SHARE = 0.95
Hashes = npt.NDArray[np.uint64]


def warnings_of(train: pd.DataFrame, holdout: pd.DataFrame, train_labels: Labels, labels: Labels) -> list[str]:
    """One sentence a finding. The frames hold the columns that the model reads, and the same ones."""
    found = []
    for column in train.columns:
        auc = _alone(train[column], holdout[column], train_labels, labels)
        if auc >= 1.0:
            found.append(f"{column}: tells the target apart without a mistake; is it a copy of it?")
        elif auc > ALONE:
            found.append(f"{column}: alone has an AUC of {auc:.4f} on the holdout; is it known before the outcome is?")
        if _names_rows(train[column]):
            found.append(f"{column}: has nearly as many values as rows; does it name rows rather than describe them?")
    return found + _duplicates(train, holdout, train_labels, labels)


def _alone(train: pd.Series[Any], holdout: pd.Series[Any], train_labels: Labels, labels: Labels) -> float:
    """The holdout AUC of the column by itself: numbers by rank, either way; text by its share of positives in training."""
    numeric = pd.api.types.is_numeric_dtype(train) and not pd.api.types.is_bool_dtype(train)
    if numeric and train.nunique() > 20:
        values = holdout.to_numpy(dtype=np.float64, na_value=np.nan)
        scores: Floats = np.where(np.isnan(values), np.nanmedian(values) if not np.isnan(values).all() else 0.0, values)
    else:
        shares = pd.Series(train_labels.astype(float)).groupby(_named(train).to_numpy()).mean()
        scores = _named(holdout).map(shares).fillna(float(train_labels.mean())).to_numpy(dtype=np.float64)
    auc = figures(judged(labels, np.where(np.isfinite(scores), scores, 0.0), 0.5))["roc_auc"]
    return max(auc, 1 - auc)


def _named(column: pd.Series[Any]) -> pd.Series[Any]:
    return column.astype(object).where(column.notna(), "(missing)").map(str)


def _names_rows(column: pd.Series[Any]) -> bool:
    """Whole numbers and text alone: measured values are all different, too."""
    filled = column.dropna()
    if len(filled) < 100 or filled.nunique() < NAMING_SHARE * len(filled) or pd.api.types.is_bool_dtype(filled):
        return False
    if not pd.api.types.is_numeric_dtype(filled):
        return True
    values = filled.to_numpy(dtype=np.float64)
    return bool((values == np.round(values)).all())


def _duplicates(train: pd.DataFrame, holdout: pd.DataFrame, train_labels: Labels, labels: Labels) -> list[str]:
    ours, theirs = _hashes(train), _hashes(holdout)
    found = []
    both = int(np.isin(theirs, ours).sum())
    if both:
        share = both / len(theirs)
        found.append(
            f"{both:,} of {len(theirs):,} holdout rows ({share:.1%}) are among the training rows, value for value"
        )
    every = pd.DataFrame({"row": np.r_[ours, theirs], "label": np.r_[train_labels, labels]})
    torn = int((every.groupby("row")["label"].nunique() > 1).sum())
    if torn:
        found.append(f"{torn:,} rows are there with both labels and the same values: no model can tell those apart")
    return found


def _hashes(frame: pd.DataFrame) -> Hashes:
    """One a row, of its values as text; a column at a time, since text takes ten times the room of numbers."""
    rows = np.zeros(len(frame), dtype=np.uint64)
    for name in frame.columns:
        column = frame[name]
        as_text = (
            column.astype(object).where(column.notna(), None).map(lambda value: "" if value is None else str(value))
        )
        rows = rows * np.uint64(1_000_003) + pd.util.hash_array(as_text.to_numpy(dtype=object), categorize=False)
    return rows
