"""Some rows of a dataset, three ways: as they came, encoded, and what is known of each.

Where rows are ranked, those of a query stand together: both libraries want them so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from training.data import Dataset, Labels
from training.errors import DataRefused
from training.features import FeatureSchema, InputRefused, Matrix, encode_frame
from training.splitting import Indices


@dataclass(frozen=True)
class Part:
    """`queries`: how many rows each query has, in the rows' order; none where nothing is ranked."""

    rows: Indices
    frame: pd.DataFrame
    matrix: Matrix
    labels: Labels
    queries: Indices


def part_of(dataset: Dataset, schema: FeatureSchema, rows: Indices, query: str = "") -> Part:
    """Raises DataRefused, naming the file and the column that doesn't fit the schema."""
    queries = np.zeros(0, dtype=np.intp)
    if query:
        _, code, queries = np.unique(
            dataset.features[query].iloc[rows].map(str), return_inverse=True, return_counts=True
        )
        rows = rows[np.argsort(code, kind="stable")]
    frame = dataset.features.iloc[rows]
    try:
        matrix = encode_frame(schema, frame)
    except InputRefused as refused:
        raise DataRefused(f"{dataset.source}: {refused}") from None
    return Part(rows, frame, matrix, dataset.labels[rows], queries)
