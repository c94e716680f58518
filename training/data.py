"""Tables in, as training sees them: tidied columns, a binary target, and a hash that names the data.

The positive class, in this order: the label the caller names; a label that says yes (yes, y, true, t, 1, positive, pos);
the larger of two numbers; the rarer label.
"""

from __future__ import annotations

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

AFFIRMATIVE = ("yes", "y", "true", "t", "1", "positive", "pos")
MIN_ROWS_OF_A_CLASS = 10


@dataclass(frozen=True)
class Dataset:
    """`features` holds every column but the target; `positive` belongs to the same rows. `digest` is sha256, hex."""

    features: pd.DataFrame
    positive: npt.NDArray[np.bool_]
    classes: tuple[str, str]  # negative, positive
    target: str
    source: str
    digest: str


def read_dataset(path: str | Path, target: str, *, positive: str | None = None) -> Dataset:
    """A CSV or Parquet file. Raises DataRefused, naming the file and the column."""
    path = Path(path)
    frame = read_frame(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return from_frame(frame, target, positive=positive, source=path.name, digest=digest)


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


def from_frame(
    frame: pd.DataFrame, target: str, *, positive: str | None = None, source: str = "frame", digest: str | None = None
) -> Dataset:
    """A tidied frame with its target column. Raises DataRefused where the target does not have exactly two labels."""
    if target not in frame.columns:
        raise DataRefused(f"{source}: has no column {target!r}; it has {', '.join(map(str, frame.columns))}")
    labels = frame[target]
    if labels.isna().any():
        raise DataRefused(f"{source}: {target}: {int(labels.isna().sum())} rows have no label; remove or label them")
    counts = labels.value_counts()
    if len(counts) != 2:
        raise DataRefused(f"{source}: {target}: exactly two labels are needed, found {len(counts)}: {_some(counts)}")
    if counts.min() < MIN_ROWS_OF_A_CLASS:
        raise DataRefused(
            f"{source}: {target}: {_text(counts.idxmin())!r} has {counts.min()} rows; at least {MIN_ROWS_OF_A_CLASS} are needed"
        )
    chosen = _positive(counts, positive, f"{source}: {target}")
    other = next(label for label in counts.index if label != chosen)
    features = frame.drop(columns=[target])
    return Dataset(
        features=features,
        positive=(labels == chosen).to_numpy(dtype=bool),
        classes=(_text(other), _text(chosen)),
        target=target,
        source=source,
        digest=digest or hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest(),
    )


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
            if _text(label) == named:
                return label
        raise DataRefused(f"{where}: has no label {named!r}; it has {_some(counts)}")
    for label in labels:
        if _text(label).lower() in AFFIRMATIVE:
            return label
    if all(isinstance(label, int | float | np.number) for label in labels):
        return max(labels)
    return counts.idxmin() if counts.iloc[0] != counts.iloc[1] else max(labels, key=_text)


def _text(label: Any) -> str:
    """The label as the answer will spell it: whole numbers without a decimal point."""
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)


def _some(counts: pd.Series[Any]) -> str:
    shown = [_text(label) for label in counts.index[:6]]
    return ", ".join(shown) + (", ..." if len(counts) > 6 else "")
