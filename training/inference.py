"""A FeatureSchema from a frame, by rules that a person can predict.

    boolean columns                                        boolean
    numbers                                                number
    text of which every filled cell reads as a number      number (blank cells are missing values)
    text in which every filled cell is true or false       boolean
    other text                                             category, known categories in sorted order

A column that identifies rows (text, or whole numbers named like an identifier, with nearly as many values as rows) or
that holds one value only tells a model nothing it may use: `identifiers` and `constants` name them, and they are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from training.features import Feature, FeatureSchema, InputRefused

MAX_CATEGORIES = 1000
IDENTIFIER_NAME = re.compile(r"(^|[_\s])(id|uuid|guid|key|nr|no)$|id$", re.IGNORECASE)
BOOLEAN_WORDS = {"true": True, "false": False}


def infer_schema(frame: pd.DataFrame, *, exclude: Sequence[str] = ()) -> FeatureSchema:
    """Raises InputRefused, naming the column, where one fits no rule."""
    left_out = {*exclude, *identifiers(frame), *constants(frame)}
    features = tuple(_feature(str(name), frame[name]) for name in frame.columns if name not in left_out)
    return FeatureSchema(features)


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as the schema will see it: text stripped, blanks missing, text columns of numbers or booleans converted."""
    return pd.DataFrame({name: _tidy_column(frame[name]) for name in frame.columns}, index=frame.index)


def identifiers(frame: pd.DataFrame) -> list[str]:
    """Columns that name rows rather than describe them."""
    found = []
    for name in frame.columns:
        column = frame[name].dropna()
        if len(column) < 20 or column.nunique() < 0.95 * len(column):
            continue
        is_text = not pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        if is_text or (pd.api.types.is_integer_dtype(column) and IDENTIFIER_NAME.search(str(name))):
            found.append(str(name))
    return found


def constants(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame.columns if frame[name].nunique(dropna=False) <= 1]


def _feature(name: str, column: pd.Series[Any]) -> Feature:
    if pd.api.types.is_bool_dtype(column.dropna().infer_objects()):
        return Feature(name=name, kind="boolean")
    if pd.api.types.is_numeric_dtype(column):
        return Feature(name=name, kind="number")
    known = sorted({value for value in column.dropna() if isinstance(value, str)})
    if len(known) != column.nunique():
        raise InputRefused(name, "holds values of several types")
    if len(known) > MAX_CATEGORIES:
        raise InputRefused(name, f"has {len(known)} categories; at most {MAX_CATEGORIES} make a feature. Leave it out")
    return Feature(name=name, kind="category", categories=tuple(known))


def _tidy_column(column: pd.Series[Any]) -> pd.Series[Any]:
    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return column
    stripped = column.map(lambda value: (value.strip() or None) if isinstance(value, str) else value)
    filled = stripped.dropna()
    if filled.empty:
        return stripped
    lowered = filled.map(lambda value: BOOLEAN_WORDS.get(value.lower()) if isinstance(value, str) else value)
    if lowered.map(lambda value: isinstance(value, bool)).all():
        return stripped.map(lambda value: BOOLEAN_WORDS.get(value.lower()) if isinstance(value, str) else value)
    numbers = pd.to_numeric(stripped, errors="coerce")
    if int(numbers.notna().sum()) == len(filled):
        return numbers
    return stripped.astype(object).where(stripped.notna(), None)
