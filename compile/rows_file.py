"""Rows from a CSV with a header, encoded as a schema says; an empty cell is a missing value."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from compile.errors import BundleRefused, CompileError
from training.features import Feature, FeatureSchema, InputRefused, Matrix, encode


def read_rows(path: Path, schema: FeatureSchema) -> Matrix:
    """(n, width) float64. Raises CompileError, naming the file, and the line or field."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return encode(schema, list(_typed(schema, csv.DictReader(file))))
    except (OSError, UnicodeDecodeError) as unreadable:
        raise BundleRefused(f"{path}: {unreadable}") from None
    except InputRefused as refused:
        raise CompileError(f"{path}: {refused}") from None


def _typed(schema: FeatureSchema, rows: Iterable[dict[str, str]]) -> Iterable[dict[str, object]]:
    """CSV knows strings alone: each cell becomes what the schema says its column is."""
    for number, row in enumerate(rows, start=2):
        try:
            yield {f.name: _cell(f, row[f.name]) for f in schema.features if row.get(f.name) is not None}
        except ValueError as wrong:
            raise InputRefused(f"line {number}", str(wrong)) from None


def _cell(feature: Feature, text: str) -> object:
    text = text.strip()
    if not text:
        return None
    if feature.kind == "number":
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{feature.name}: {text!r} is not a number") from None
    if feature.kind == "boolean":
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{feature.name}: {text!r} is not true or false")
        return text.lower() in ("true", "1")
    return text
