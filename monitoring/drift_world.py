"""A population of 30 features, as odd as real ones, from which references and windows are drawn, whole or with a fault.

22 numbers (normal; long-tailed; whole numbers with many ties), 6 categories (2 to 17 of them, the last ones rare) and 2
booleans; five columns lack one value in twenty. For benchmarks and tests of drift, where the truth must be known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from monitoring.sides import PREDICTION, Side
from training.features import Feature, FeatureSchema, Matrix

NUMBERS, CATEGORIES, BOOLEANS = 22, 6, 2
WIDTH = NUMBERS + CATEGORIES + BOOLEANS
LONG_TAILED, WHOLE = range(14, 18), range(18, 22)
GAPS = (3, 8, 16, 23, 29)
GAP = 0.05


def _categories(place: int) -> int:
    return 2 + 3 * (place - NUMBERS)


def _feature(place: int) -> Feature:
    if place < NUMBERS:
        return Feature(name=f"number_{place}", kind="number", infinity="missing")
    if place < NUMBERS + CATEGORIES:
        names = tuple(f"c{k}" for k in range(_categories(place)))
        return Feature(name=f"category_{place}", kind="category", categories=names, unseen="other")
    return Feature(name=f"boolean_{place}", kind="boolean")


SCHEMA = FeatureSchema(tuple(map(_feature, range(WIDTH))))
DECAY = 0.85  # of what a feature adds to the label's logit, from one to the next


@dataclass(frozen=True)
class World:
    """`score`: what the model says of encoded rows, (n,)."""

    score: Callable[[Matrix], Matrix]

    def side(self, rows: Matrix) -> Side:
        named = {name: np.ascontiguousarray(rows[:, place]) for place, name in enumerate(SCHEMA.names)}
        return Side({PREDICTION: self.score(rows)} | named, len(rows))


def draw(rng: np.random.Generator, count: int) -> Matrix:
    """Encoded rows of the population, (count, WIDTH)."""
    rows = rng.normal(size=(count, WIDTH))
    rows[:, LONG_TAILED] = np.exp(rows[:, LONG_TAILED])
    rows[:, WHOLE] = np.floor(2 * rows[:, WHOLE])
    for place in range(NUMBERS, NUMBERS + CATEGORIES):
        shares = 1 / np.arange(1, _categories(place) + 1) ** 1.5
        rows[:, place] = rng.choice(len(shares), count, p=shares / shares.sum())
    rows[:, NUMBERS + CATEGORIES :] = rows[:, NUMBERS + CATEGORIES :] > 0
    for place in GAPS:
        rows[rng.random(count) < GAP, place] = np.nan
    return rows


def logit(rows: Matrix) -> Matrix:
    """Of the label's probability."""
    strength = DECAY ** np.arange(WIDTH)
    filled = np.nan_to_num(rows, posinf=3, neginf=-3)
    filled[:, LONG_TAILED] = np.log(np.maximum(filled[:, LONG_TAILED], 1e-9))
    filled[:, NUMBERS:] = np.minimum(filled[:, NUMBERS:], 3)
    total: Matrix = filled @ strength
    return total


def by_formula(rows: Matrix) -> Matrix:
    """A model that knows the truth: for tests that need no trained one."""
    answer: Matrix = 1 / (1 + np.exp(-logit(rows)))
    return answer


FORMULA_WEIGHTS = {
    name: float(weight) for name, weight in zip(SCHEMA.names, (1 - DECAY) * DECAY ** np.arange(WIDTH), strict=True)
}
FORMULA_WEIGHTS[SCHEMA.names[0]] += 1 - sum(FORMULA_WEIGHTS.values())
