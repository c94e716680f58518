"""Encoded rows on disk, and what the two libraries read them through: memory has one block of them at a time.

XGBoost builds a `QuantileDMatrix` through an iterator, and where that is large an `ExtMemQuantileDMatrix`, whose pages lie on
disk too; LightGBM its `Dataset` through a `Sequence`. All keep a bin's number a cell, a byte with up to 256 bins, XGBoost
in memory twice, by rows and by columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.data import Labels
from training.features import Matrix
from training.splitting import Indices

QUANTISED_BYTES = 512 << 20  # of quantised cells: XGBoost keeps more than that on disk, in pages
PAGE_BYTES = 128 << 20  # of encoded rows
BLOCK_BYTES = 16 << 20  # of encoded rows: read, encoded and handed on at a time


class Spooled:
    """Encoded rows in a file, (n, width) float64. What is read is a copy; nothing is mapped into memory."""

    def __init__(self, path: Path, rows: int, width: int) -> None:
        self.path, self.rows, self.width = path, rows, width

    def __len__(self) -> int:
        return self.rows

    @property
    def block_rows(self) -> int:
        return max(1, BLOCK_BYTES // (8 * self.width))

    def read(self, first: int, count: int) -> Matrix:
        """Rows `first` to `first + count`, or to the end. Raises OSError."""
        count = min(count, self.rows - first)
        found = np.fromfile(self.path, np.float64, count * self.width, offset=8 * first * self.width)
        return found.reshape(count, self.width)

    def blocks(self, size: int = 0) -> Iterator[tuple[int, Matrix]]:
        """(first row, rows), of about `size` bytes, or BLOCK_BYTES."""
        count = max(1, size // (8 * self.width)) if size else self.block_rows
        for first in range(0, self.rows, count):
            yield first, self.read(first, count)


@dataclass(frozen=True)
class OnDisk:
    """Rows to fit to, and their labels, which are in memory."""

    rows: Spooled
    labels: Labels

    @property
    def queries(self) -> Indices:
        """None: a ranking needs its rows together."""
        return np.zeros(0, dtype=np.intp)


def quantile_matrix(given: OnDisk, weights: Matrix | None, max_bin: int, **described: Any) -> Any:
    """XGBoost's, through an iterator. `described`: feature names and types."""
    import xgboost

    on_disk = len(given.rows) * given.rows.width > QUANTISED_BYTES
    size = PAGE_BYTES if on_disk else BLOCK_BYTES

    class Blocks(xgboost.DataIter):
        def __init__(self) -> None:
            super().__init__(str(given.rows.path) + ".pages" if on_disk else None)
            self._blocks = given.rows.blocks(size)

        def next(self, input_data: Callable[..., None]) -> bool:
            found = next(self._blocks, None)
            if found is None:
                return False
            first, rows = found
            part = slice(first, first + len(rows))
            weight = None if weights is None else weights[part]
            input_data(data=rows, label=given.labels[part], weight=weight, **described)
            return True

        def reset(self) -> None:
            self._blocks = given.rows.blocks(size)

    kind = xgboost.ExtMemQuantileDMatrix if on_disk else xgboost.QuantileDMatrix
    return kind(Blocks(), max_bin=max_bin, enable_categorical=True)


def sequence(spooled: Spooled) -> Any:
    """LightGBM's, of which its `Dataset` takes the bins from a sample and then all rows block by block."""
    import lightgbm

    class Rows(lightgbm.Sequence):
        batch_size = spooled.block_rows

        def __len__(self) -> int:
            return len(spooled)

        def __getitem__(self, index: int | slice | list[int]) -> Matrix:
            if isinstance(index, slice):
                first, last, _ = index.indices(len(spooled))
                return spooled.read(first, last - first)
            if isinstance(index, list):
                return np.concatenate([spooled.read(i, 1) for i in index])
            row: Matrix = spooled.read(int(index), 1)[0]
            return row

    return Rows()
