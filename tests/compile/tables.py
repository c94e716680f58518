"""Small tables to train on: mixed magnitudes, integers, missing values, categories as codes; and labels that they explain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from kind import Matrix

from training.features import Feature, FeatureSchema, decode_matrix

COLORS = ("red", "green", "blue", "black", "white")
CITIES = tuple(f"city {n}" for n in range(12))


def number(name: str, **rules: Any) -> Feature:
    return Feature(name=name, kind="number", **({"infinity": "missing"} | rules))


NUMBERS = FeatureSchema(tuple(number(name) for name in ("age", "balance", "visits", "rate", "flag", "load", "steps")))
CODES = FeatureSchema(
    (
        *NUMBERS.features[:6],
        Feature(name="color", kind="category", categories=COLORS),
        Feature(name="city", kind="category", categories=CITIES),
    )
)


def with_rules(schema: FeatureSchema, **rules: Any) -> FeatureSchema:
    """The schema with these rules for every feature."""
    return FeatureSchema(tuple(msgspec.structs.replace(feature, **rules) for feature in schema.features))


def complete(schema: FeatureSchema) -> FeatureSchema:
    """The schema of a model that refuses missing and infinite values."""
    return with_rules(schema, missing="refuse", infinity="refuse")


def draw(schema: FeatureSchema, count: int, seed: int) -> Matrix:
    """Encoded rows of NUMBERS or CODES, or of those with other rules; missing where the schema lets a value be missing."""
    rng = np.random.default_rng(seed)
    drawn = {
        "age": rng.uniform(18, 90, count).round(1),
        "balance": rng.normal(0, 1000, count).round(2),
        "visits": rng.poisson(3, count),
        "rate": rng.lognormal(-7, 1, count),
        "flag": rng.integers(0, 2, count),
        "load": rng.normal(0, 1, count),
        "steps": rng.integers(0, 30_000, count),
        "color": rng.integers(0, len(COLORS), count),
        "city": rng.integers(0, len(CITIES), count),
    }
    rows = np.column_stack([drawn[name] for name in schema.names]).astype(np.float64)
    for j, feature in enumerate(schema.features):
        if feature.name not in ("visits", "flag") and feature.missing != "refuse":
            becomes = np.nan if isinstance(feature.missing, str) else feature.missing
            rows[rng.random(count) < 0.1, j] = becomes
    return rows


def signal(schema: FeatureSchema, rows: Matrix) -> Matrix:
    """What the labels are made of, about 0 +- 1.5. A missing value adds its own."""
    parts: dict[str, Callable[[Matrix], Any]] = {
        "age": lambda x: (x - 54) / 25,
        "balance": lambda x: np.sin(x / 600),
        "visits": lambda x: 0.3 * (x - 3),
        "rate": lambda x: 0.5 * (np.log(np.abs(x) + 1e-9) + 7),
        "flag": lambda x: x - 0.5,
        "load": np.tanh,
        "steps": lambda x: np.cos(x / 5000),
        "color": lambda x: 2.0 * np.isin(x, (1, 4)) - 0.8,
        "city": lambda x: 1.5 * (x % 3 == 1) - 0.5,
    }
    total = np.zeros(len(rows))
    for name, column in zip(schema.names, rows.T, strict=True):
        with np.errstate(invalid="ignore"):
            total += np.where(np.isnan(column), 0.4, parts[name](column))
    return total


def label(kind: str, wave: Matrix, seed: int) -> Any:
    """Labels of a kind that follow the signal, with some noise."""
    rng = np.random.default_rng(seed + 77)
    noisy = wave + rng.normal(0, 0.3, len(wave))
    if kind == "binary":
        return (noisy > 0.2).astype(int)
    if kind == "multi":
        return np.digitize(noisy, (-0.8, 0.5, 1.5))
    if kind == "real":
        return 3 * noisy
    if kind == "positive":
        return np.exp(noisy / 2) + 0.01
    if kind == "count":
        return rng.poisson(np.exp(wave / 2)).astype(float)
    if kind == "unit":
        return 1 / (1 + np.exp(-noisy))
    if kind == "rank":
        return np.digitize(noisy, (-1, 0, 1, 2))
    if kind == "relevant":
        return (noisy > 0.5).astype(int)
    if kind == "reals":
        return np.column_stack([3 * noisy, np.cos(wave), 100 + wave**2])
    if kind == "flags":
        return np.column_stack([noisy > 0, np.cos(noisy) > 0, noisy > 1]).astype(int)
    raise KeyError(kind)


def frame_of(schema: FeatureSchema, rows: Matrix, categories: dict[str, list[str]] | None = None) -> pd.DataFrame:
    """The raw rows that encoded ones stand for, categories as pandas' own; `categories` gives another order of them."""
    frame = pd.DataFrame(decode_matrix(schema, rows))
    for feature in schema.features:
        if feature.kind == "category":
            known = (categories or {}).get(feature.name, list(feature.categories))
            frame[feature.name] = pd.Categorical(frame[feature.name], categories=known)
        else:
            frame[feature.name] = frame[feature.name].astype(float)
    return frame


def backwards(schema: FeatureSchema, rows: Matrix) -> pd.DataFrame:
    """A frame of numbers whose columns stand in the opposite order to the schema's."""
    return pd.DataFrame(rows, columns=list(schema.names))[list(reversed(schema.names))]


def mirrored(schema: FeatureSchema, splits: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Thresholds in the schema's order, of a model trained `backwards`."""
    return [(schema.width - 1 - feature, value) for feature, value in splits]


def raw_frame(schema: FeatureSchema, rows: Matrix) -> pd.DataFrame:
    """The raw rows as a client would send them: strings for categories, missing values as NaN."""
    frame = pd.DataFrame(decode_matrix(schema, rows))
    numbers = [feature.name for feature in schema.features if feature.kind != "category"]
    return frame.astype(dict.fromkeys(numbers, float))
