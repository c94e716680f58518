"""A Parquet file larger than memory, as training sees it: a sample in memory, and every other row encoded on disk.

The sample (`SAMPLE_ROWS`, drawn with the recipe's seed) is what the run is planned and judged by: its rows give the schema, the
validation rows, the holdout and the reference for drift. Fitted to is every row of the file that neither validates nor is
held out. Those rows are read some at a time, encoded, and spooled to a temporary file (`training.spooled`), so
that what stays in memory is the quantised features (a byte a cell with up to 256 bins), the labels, and one block.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from training.data import Dataset, Labels, from_frame, text_of
from training.errors import DataRefused, RecipeRefused
from training.features import FeatureSchema, InputRefused, encode_frame
from training.inference import BOOLEAN_WORDS, tidy
from training.recipe import FORESTS, Recipe
from training.splitting import Indices
from training.spooled import BLOCK_BYTES, OnDisk, Spooled

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

SAMPLE_ROWS = 200_000
Progress = Callable[[str], None]


@dataclass(frozen=True)
class OutOfCore:
    """`dataset`: the sample; `sampled`: where in the file its rows stand, in ascending order. `rows`: of the file."""

    path: Path
    dataset: Dataset
    sampled: Indices
    rows: int
    folder: Path  # for the spooled rows: theirs whose context this is

    def fitting(
        self,
        schema: FeatureSchema,
        parts: Mapping[str, Indices],
        progress: Progress,
        *,
        groups: list[int] | None = None,
    ) -> OnDisk:
        """Every row that is in neither other part of the sample, encoded on disk; of some row groups, where they are named.
        Raises DataRefused, naming the column.
        """
        kept = np.ones(self.rows, dtype=np.bool_)
        kept[self.sampled[np.concatenate([parts["validation"], parts["holdout"]])]] = False
        path = self.folder / "rows.f64"
        labels: list[Labels] = []
        with path.open("wb") as file:
            for first, read in _frames(self.path, [*schema.names, self.dataset.target], schema.width, groups):
                frame = read[kept[first : first + len(read)]]
                labels.append(self._labels(frame[self.dataset.target]))
                try:
                    encode_frame(schema, tidied(schema, frame)).tofile(file)
                except InputRefused as refused:
                    raise DataRefused(f"{self.path.name}: rows from {first:,} on: {refused}") from None
                except OSError as full:
                    raise DataRefused(f"{self.folder}: the encoded rows can't be written here: {full}") from None
        spooled = Spooled(path, sum(map(len, labels)), schema.width)
        progress(f"{spooled.rows:,} rows encoded on disk, {spooled.path.stat().st_size / 1e9:.2f} GB")
        return OnDisk(spooled, np.concatenate(labels))

    def _labels(self, column: pd.Series[Any]) -> Labels:
        dataset, where = self.dataset, f"{self.path.name}: {self.dataset.target}"
        if column.isna().any():
            raise DataRefused(
                f"{where}: {int(column.isna().sum())} rows of a block have no label; remove or label them"
            )
        if not dataset.classes:
            return column.to_numpy(dtype=np.float64)
        codes = column.map(text_of).map({label: code for code, label in enumerate(dataset.classes)})
        if codes.isna().any():
            stranger = column[codes.isna()].iloc[0]
            raise DataRefused(
                f"{where}: {stranger!r} is none of the labels of the sample: {', '.join(dataset.classes)}"
            )
        return codes.to_numpy(dtype=np.int64) if len(dataset.classes) > 2 else codes.to_numpy(dtype=np.int64) == 1


def refuse_unfit(recipe: Recipe) -> None:
    """Raises RecipeRefused for what needs all rows at once."""
    wanting = {
        f"algorithm {recipe.algorithm}": recipe.algorithm in FORESTS,
        "split.by": recipe.split.by != "rows",
        "rounds.refit": recipe.rounds.refit,
        "query": bool(recipe.query),
    }
    for name, needs_all in wanting.items():
        if needs_all:
            raise RecipeRefused(
                f"{name}: can't be had with rows that stay on disk (--out-of-core): it needs all at once"
            )


def read(
    path: Path, target: str, recipe: Recipe, folder: Path, *, positive: str | None = None, rows: int = SAMPLE_ROWS
) -> OutOfCore:
    """The file's sample, `rows` at most. Raises DataRefused, naming the file and the column."""
    refuse_unfit(recipe)
    whole = int(_opened(path).metadata.num_rows)
    rng = np.random.default_rng(recipe.seed)
    sampled = np.sort(rng.choice(whole, rows, replace=False)) if whole > rows else np.arange(whole)
    try:
        frame = _picked(path, sampled)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as unreadable:
        raise DataRefused(f"{path}: {str(unreadable).splitlines()[0]}") from None
    if frame.empty:
        raise DataRefused(f"{path}: holds no rows")
    dataset = from_frame(tidy(frame), target, positive=positive, task=recipe.task, source=path.name, digest=digest)
    return OutOfCore(path, dataset, sampled, whole, folder)


def tidied(schema: FeatureSchema, frame: pd.DataFrame) -> pd.DataFrame:
    """Text as the schema's kinds have it: what `tidy` concludes from a whole column, a block of it must not conclude anew."""
    columns = {}
    for feature in schema.features:
        column = frame[feature.name]
        if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)):
            column = column.map(lambda value: (value.strip() or None) if isinstance(value, str) else value)
            if feature.kind == "number":
                column = _numbers(feature.name, column)
            elif feature.kind == "boolean":
                column = column.map(
                    lambda value: BOOLEAN_WORDS.get(value.lower(), value) if isinstance(value, str) else value
                )
        columns[feature.name] = column
    return pd.DataFrame(columns, index=frame.index)


def temporary() -> tempfile.TemporaryDirectory[str]:
    """Where rows are spooled: the system's folder for what is large and passing, TMPDIR to have another."""
    return tempfile.TemporaryDirectory(prefix="coppice-rows-")


def row_groups(path: Path) -> int:
    """Raises DataRefused."""
    return int(_opened(path).num_row_groups)


def _opened(path: Path) -> ParquetFile:
    """Raises DataRefused, naming the file."""
    from pyarrow.parquet import ParquetFile

    if path.suffix.lower() not in (".parquet", ".pq"):
        raise DataRefused(f"{path}: rows can stay on disk (--out-of-core) in Parquet alone; write it as .parquet")
    try:
        return ParquetFile(path, memory_map=False, pre_buffer=False)
    except FileNotFoundError:
        raise DataRefused(f"{path}: there is no such file") from None
    except (OSError, ValueError) as unreadable:
        raise DataRefused(f"{path}: {str(unreadable).splitlines()[0]}") from None


def _picked(path: Path, rows: Indices) -> pd.DataFrame:
    parts = []
    for first, batch in _batches(path, None, 0):
        low, high = np.searchsorted(rows, [first, first + batch.num_rows])
        parts.append(_frame(batch.take(rows[low:high] - first)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _frames(
    path: Path, columns: list[str] | None, width: int, groups: list[int] | None = None
) -> Iterator[tuple[int, pd.DataFrame]]:
    """(first row, rows) of the file, in its order; of the row groups named, or all."""
    for first, batch in _batches(path, columns, width, groups):
        yield first, _frame(batch)


def _frame(batch: RecordBatch) -> pd.DataFrame:
    frame: pd.DataFrame = batch.to_pandas()
    frame.columns = [str(name).strip() for name in frame.columns]
    return frame


def _batches(
    path: Path, columns: list[str] | None, width: int, groups: list[int] | None = None
) -> Iterator[tuple[int, RecordBatch]]:
    file = _opened(path)
    named = {name.strip(): name for name in file.schema_arrow.names}
    wanted = None if columns is None else [named[name] for name in columns]
    count = max(1, BLOCK_BYTES // (8 * (width or len(file.schema_arrow))))
    first = 0
    for group in range(file.num_row_groups):
        if groups is not None and group not in groups:
            first += file.metadata.row_group(group).num_rows
            continue
        for batch in file.iter_batches(batch_size=count, row_groups=[group], columns=wanted, use_threads=False):
            yield first, batch
            first += batch.num_rows


def _numbers(name: str, column: pd.Series[Any]) -> pd.Series[Any]:
    numbers = pd.to_numeric(column, errors="coerce")
    strange = numbers.isna() & column.notna()
    if strange.any():
        raise InputRefused(name, f"{column[strange].iloc[0]!r} is no number, and in the sample all were")
    return numbers
