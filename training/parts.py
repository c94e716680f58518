"""Some rows of a dataset, three ways: as they came, encoded, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from training.data import Dataset, Labels
from training.errors import DataRefused
from training.features import FeatureSchema, InputRefused, Matrix, encode_frame
from training.splitting import Indices


@dataclass(frozen=True)
class Part:
    rows: Indices
    frame: pd.DataFrame
    matrix: Matrix
    labels: Labels


def part_of(dataset: Dataset, schema: FeatureSchema, rows: Indices) -> Part:
    """Raises DataRefused, naming the file and the column that doesn't fit the schema."""
    frame = dataset.features.iloc[rows]
    try:
        matrix = encode_frame(schema, frame)
    except InputRefused as refused:
        raise DataRefused(f"{dataset.source}: {refused}") from None
    return Part(rows, frame, matrix, dataset.labels[rows])
