"""Tables in, as training sees them: tidied columns, a target, and a hash that names the data.

The positive class, in this order: the label the caller names; a label that says yes (yes, y, true, t, 1, positive, pos);
the larger of two numbers; the rarer label.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.errors import DataRefused
from training.inference import tidy
from training.recipe import Task

AFFIRMATIVE = ("yes", "y", "true", "t", "1", "positive", "pos")
MIN_ROWS_OF_A_CLASS = 10
MAX_CLASSES = 100
MOST_RELEVANT = 30  # a relevance's gain doubles with each step
Labels = npt.NDArray[Any]  # as Dataset says


@dataclass(frozen=True)
class Dataset:
    """`features` holds every column but the target; `labels` belongs to the same rows. `digest` is sha256, hex.

    `labels`: binary, true where positive; multiclass, the class's place in `classes`; regression, the value itself;
    ranking, the relevance.
    """

    features: pd.DataFrame
    labels: Labels
    classes: tuple[str, ...]  # binary: negative, positive; regression: none
    target: str
    source: str
    digest: str
    held_out: int = 0  # so many of the last rows came as a holdout of their own

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.labels, dtype=np.bool_)


def read_dataset(path: str | Path, target: str, *, positive: str | None = None, task: Task = "binary") -> Dataset:
    """A CSV or Parquet file. Raises DataRefused, naming the file and the column."""
    path = Path(path)
    frame = read_frame(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return from_frame(frame, target, positive=positive, task=task, source=path.name, digest=digest)


def read_frame(path: str | Path, *, as_is: Sequence[str] = ()) -> pd.DataFrame:
    """The tidied columns of a CSV (`.csv`, `.csv.gz`, `.tsv`) or Parquet file. Those of `as_is` stay as the file has them,
    which of a CSV is text: names that consist of digits, and instants.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:]).lower() if path.suffix == ".gz" else path.suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
        elif suffix in (".csv", ".csv.gz", ".tsv", ".txt"):
            frame = _read_csv(path, "\t" if suffix == ".tsv" else ",", as_is)
        else:
            raise DataRefused(f"{path}: is neither .csv nor .parquet")
    except FileNotFoundError:
        raise DataRefused(f"{path}: there is no such file") from None
    except (OSError, ValueError) as unreadable:  # pandas' and pyarrow's parse errors are ValueErrors or OSErrors
        raise DataRefused(f"{path}: {str(unreadable).splitlines()[0]}") from None
    if frame.empty:
        raise DataRefused(f"{path}: holds no rows")
    frame.columns = [str(name).strip() for name in frame.columns]
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataRefused(f"{path}: two columns are named {twice[0]!r}")
    kept = [name for name in as_is if name in frame.columns]
    return (
        pd.concat([frame[kept], tidy(frame.drop(columns=kept))], axis=1)[list(frame.columns)] if kept else tidy(frame)
    )


def joined(train: Dataset, holdout: Dataset) -> Dataset:
    """Both as one, whose last rows are the holdout. Raises DataRefused where they don't speak of the same thing."""
    lacking = [str(column) for column in train.features.columns if column not in holdout.features.columns]
    if lacking:
        raise DataRefused(f"{holdout.source}: has no column {lacking[0]!r}, which {train.source} has")
    if train.classes != holdout.classes:
        theirs, ours = (", ".join(classes) for classes in (holdout.classes, train.classes))
        raise DataRefused(f"{holdout.source}: its labels are {theirs}; those of {train.source} are {ours}")
    features = pd.concat([train.features, holdout.features[list(train.features.columns)]], ignore_index=True)
    return dataclasses.replace(
        train,
        features=tidy(features),
        labels=np.concatenate([train.labels, holdout.labels]),
        source=f"{train.source}, held out {holdout.source}",
        digest=hashlib.sha256(f"{train.digest}{holdout.digest}".encode()).hexdigest(),
        held_out=len(holdout.labels),
    )


def from_frame(
    frame: pd.DataFrame,
    target: str,
    *,
    positive: str | None = None,
    task: Task = "binary",
    source: str = "frame",
    digest: str | None = None,
) -> Dataset:
    """A tidied frame with its target column. Raises DataRefused where the target does not fit the task."""
    if target not in frame.columns:
        raise DataRefused(f"{source}: has no column {target!r}; it has {', '.join(map(str, frame.columns))}")
    labels = frame[target]
    if labels.isna().any():
        raise DataRefused(f"{source}: {target}: {int(labels.isna().sum())} rows have no label; remove or label them")
    features = frame.drop(columns=[target])
    digest = digest or hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
    where = f"{source}: {target}"
    if task == "ranking":
        return Dataset(features, _relevances(labels, where), (), target, source, digest)
    if task == "regression":
        return Dataset(features, _numbers(labels, where), (), target, source, digest)
    counts = labels.value_counts()
    if task == "multiclass":
        classes = _classes(counts, where)
        codes = labels.map(text_of).map({label: code for code, label in enumerate(classes)})
        return Dataset(features, codes.to_numpy(dtype=np.int64), classes, target, source, digest)
    if len(counts) != 2:
        raise DataRefused(f"{source}: {target}: exactly two labels are needed, found {len(counts)}: {_some(counts)}")
    if counts.min() < MIN_ROWS_OF_A_CLASS:
        raise DataRefused(
            f"{source}: {target}: {text_of(counts.idxmin())!r} has {counts.min()} rows; "
            f"at least {MIN_ROWS_OF_A_CLASS} are needed"
        )
    chosen = _positive(counts, positive, f"{source}: {target}")
    other = next(label for label in counts.index if label != chosen)
    positives = (labels == chosen).to_numpy(dtype=bool)
    return Dataset(features, positives, (text_of(other), text_of(chosen)), target, source, digest)


def _relevances(labels: pd.Series[Any], where: str) -> npt.NDArray[np.float64]:
    values = _numbers(labels, where)
    if not (np.all(values == np.round(values)) and values.min() >= 0 and values.max() <= MOST_RELEVANT):
        raise DataRefused(f"{where}: a ranking needs whole relevances from 0 to {MOST_RELEVANT}")
    if values.max() == 0:
        raise DataRefused(f"{where}: no row is relevant")
    return values


def _numbers(labels: pd.Series[Any], where: str) -> npt.NDArray[np.float64]:
    if not pd.api.types.is_numeric_dtype(labels) or pd.api.types.is_bool_dtype(labels):
        raise DataRefused(f"{where}: numbers are needed")
    values = labels.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataRefused(f"{where}: holds infinite values")
    return values


def _classes(counts: pd.Series[Any], where: str) -> tuple[str, ...]:
    """In order: numbers by size, words by the alphabet."""
    if len(counts) < 3 or len(counts) > MAX_CLASSES:
        raise DataRefused(f"{where}: 3 to {MAX_CLASSES} labels make a multiclass target, found {len(counts)}")
    if counts.min() < MIN_ROWS_OF_A_CLASS:
        raise DataRefused(
            f"{where}: {text_of(counts.idxmin())!r} has {counts.min()} rows; at least {MIN_ROWS_OF_A_CLASS} are needed"
        )
    numeric = pd.api.types.is_numeric_dtype(counts.index.dtype)
    return tuple(text_of(label) for label in sorted(counts.index, key=None if numeric else text_of))


def _read_csv(path: Path, separator: str, as_text: Sequence[str]) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # mixed columns are tidied below, by one rule
        return pd.read_csv(
            path,
            sep=separator,
            skipinitialspace=True,
            na_values=["?"],
            low_memory=False,
            dtype=dict.fromkeys(as_text, "str"),
        )


def _positive(counts: pd.Series[Any], named: str | None, where: str) -> Any:
    labels = list(counts.index)
    if named is not None:
        for label in labels:
            if text_of(label) == named:
                return label
        raise DataRefused(f"{where}: has no label {named!r}; it has {_some(counts)}")
    for label in labels:
        if text_of(label).lower() in AFFIRMATIVE:
            return label
    if all(isinstance(label, int | float | np.number) for label in labels):
        return max(labels)
    return counts.idxmin() if counts.iloc[0] != counts.iloc[1] else max(labels, key=text_of)


def text_of(label: Any) -> str:
    """The label as the answer will spell it: whole numbers without a decimal point."""
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)


def _some(counts: pd.Series[Any]) -> str:
    shown = [text_of(label) for label in counts.index[:6]]
    return ", ".join(shown) + (", ..." if len(counts) > 6 else "")
