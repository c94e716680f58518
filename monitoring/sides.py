"""The two sides of a comparison, the reference and a window, as columns of numbers that look alike.

A `Side` holds a column for each prediction and each feature: numbers as they are, categories and booleans as the schema's
codes (the code after the last is a category that the schema does not know), missing values as NaN. A column that a side
lacks, or whose values the schema refuses, is all missing there, and `absent` says why: it stops no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from monitoring.errors import MonitoringError
from training.features import FeatureSchema, InputRefused, Matrix, decode_matrix, encode_frame

PREDICTION = "prediction"
MISSING = "(missing)"
MAX_ROWS = 50_000


@dataclass(frozen=True)
class Side:
    """`columns`: float64, all of one length, the predictions first. `of_rows`: how many rows there were before sampling."""

    columns: Mapping[str, Matrix]
    of_rows: int
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def sampled(self, most: int = MAX_ROWS, seed: int = 0) -> Side:
        """At most `most` of its rows, chosen at random; the same for the same seed."""
        if self.rows <= most:
            return self
        picked = np.sort(np.random.default_rng(seed).choice(self.rows, most, replace=False))
        return replace(self, columns={name: values[picked] for name, values in self.columns.items()})


def prediction_columns(outputs: Sequence[str]) -> list[str]:
    """The columns of a model's predictions.

    >>> prediction_columns(["value"]), prediction_columns(["cat", "dog"])
    (['prediction'], ['prediction[cat]', 'prediction[dog]'])
    """
    return [f"{PREDICTION}[{name}]" for name in outputs] if len(outputs) > 1 else [PREDICTION]


def of_reference(schema: FeatureSchema, frame: pd.DataFrame, outputs: Sequence[str] = (), *, where: str = "") -> Side:
    """The side of raw columns and the predictions' columns. Raises MonitoringError for one that lacks a prediction."""
    columns: dict[str, Matrix] = {}
    for name in prediction_columns(outputs):
        if name not in frame.columns:
            raise MonitoringError(f"{where or 'the reference'}: has no column {name!r}")
        columns[name] = frame[name].to_numpy(np.float64)
    absent = {}
    for feature in schema.features:
        try:
            columns[feature.name] = encode_frame(FeatureSchema((feature,)), frame)[:, 0]
        except InputRefused as refused:
            columns[feature.name] = np.full(len(frame), np.nan)
            absent[feature.name] = refused.reason
    return Side(columns, len(frame), absent)


def of_traffic(schema: FeatureSchema, traffic: pa.Table, outputs: Sequence[str] = ()) -> Side:
    """The side of rows of the lake: `features` and `score`, or `scores` where there are several outputs."""
    predictions = prediction_columns(outputs)
    matrix = _lists(traffic, "features", schema.width)
    if len(predictions) > 1:
        scores = _lists(traffic, "scores", len(predictions))
    else:
        scores = traffic.column("score").to_numpy().reshape(-1, 1)
    columns = dict(zip(predictions, scores.T, strict=True)) | dict(zip(schema.names, matrix.T, strict=True))
    return Side({name: np.ascontiguousarray(values) for name, values in columns.items()}, len(traffic))


def as_frame(schema: FeatureSchema, side: Side) -> pd.DataFrame:
    """For people's eyes: categories and booleans as text, their missing values a category; infinite numbers missing."""
    named = {feature.name for feature in schema.features}
    frame = pd.DataFrame({name: _finite(values) for name, values in side.columns.items() if name not in named})
    matrix = np.column_stack([side.columns[name] for name in schema.names])
    for feature, values in zip(schema.features, decode_matrix(schema, matrix).values(), strict=True):
        if feature.kind == "number":
            frame[feature.name] = _finite(side.columns[feature.name])
        else:
            frame[feature.name] = [MISSING if value is None else str(value) for value in values]
    return frame


def _finite(values: Matrix) -> Matrix:
    return np.where(np.isfinite(values), values, np.nan)


def _lists(traffic: pa.Table, name: str, width: int) -> Matrix:
    flat = traffic.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float64).reshape(-1, width)
