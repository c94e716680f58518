"""A small model of mixed inputs, trained by both libraries, and rows for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving import routes
from training.features import Feature, FeatureSchema

MIXED = FeatureSchema(
    (
        Feature(name="age", kind="number", low=0, high=150),
        Feature(name="balance", kind="number", infinity="missing"),
        Feature(name="plan", kind="category", categories=("basic", "plus", "premium")),
        Feature(name="region", kind="category", categories=("east", "north", "south", "west"), unseen="other"),
        Feature(name="autopay", kind="boolean"),
        Feature(name="visits", kind="number", missing=0.0),
    )
)


def mixed_rows(count: int, seed: int = 0) -> np.ndarray:
    """Encoded rows of MIXED, with missing values."""
    rng = np.random.default_rng(seed)
    rows = np.column_stack(
        [
            rng.uniform(18, 90, count).round(1),
            rng.normal(0, 1000, count).round(2),
            rng.integers(0, 3, count),
            rng.integers(0, 5, count),
            rng.integers(0, 2, count),
            rng.poisson(3, count),
        ]
    ).astype(np.float64)
    for column in (0, 1, 2, 4):
        rows[rng.random(count) < 0.1, column] = np.nan
    return rows


def train_mixed(library: str, trees: int = 30, seed: int = 0) -> Any:
    rows = mixed_rows(2000, seed)
    labels = (np.nan_to_num(rows[:, 0]) / 40 + np.nan_to_num(rows[:, 2]) + np.sin(rows[:, 3]) > 2.2).astype(int)
    if library == "xgboost":
        import xgboost

        data = xgboost.DMatrix(rows, labels, feature_types=["q", "q", "c", "c", "q", "q"], enable_categorical=True)
        return xgboost.train({"objective": "binary:logistic", "max_depth": 4, "seed": seed}, data, trees)
    import lightgbm

    data = lightgbm.Dataset(rows, labels, categorical_feature=[2, 3], params={"verbosity": -1})
    return lightgbm.train({"objective": "binary", "num_leaves": 9, "verbosity": -1, "seed": seed}, data, trees)


@dataclass(frozen=True)
class Release:
    """A store with a champion (XGBoost) and a challenger (LightGBM) of the model `mixed`, split evenly."""

    store: Path
    champion: Path
    challenger: Path
    natives: dict[str, Any]

    def digest(self, arm: str) -> str:
        return {"champion": self.champion, "challenger": self.challenger}[arm].name


def publish_routes(store: Path, arms: dict[str, str], shares: dict[str, float], shadow: str = "") -> None:
    history = routes.history(store, "mixed")
    routes.publish(
        store,
        routes.Routes(
            model="mixed",
            generation=(history[-1] if history else 0) + 1,
            salt="00112233445566778899aabbccddeeff",
            slots=routes.split_slots(shares),
            arms=arms,
            shadow=(routes.Shadow(name="candidate", bundle=shadow, sample=1.0),) if shadow else (),
            note="",
            by="tests",
            at=routes.stamp(),
        ),
    )


def mixed_body(row: np.ndarray) -> bytes:
    """The JSON that a client would send for an encoded row of MIXED."""
    fields: dict[str, object] = {}
    for feature, value in zip(MIXED.features, row.tolist(), strict=True):
        if np.isnan(value):
            fields[feature.name] = None
        elif feature.kind == "category":
            fields[feature.name] = [*feature.categories, "elsewhere"][int(value)]
        else:
            fields[feature.name] = bool(value) if feature.kind == "boolean" else value
    return json.dumps(fields).encode()
