"""What a recipe's settings are worth on rows that they were not fitted to: the mean loss of several folds.

Each fold is encoded by what its own training rows hold, so that nothing of what it is measured on gets in, and counts
with the loss of its best round. The mean of those rounds is how long the settings want to be fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training import boosters
from training.data import Dataset
from training.features import FeatureSchema, infer
from training.parts import Part, part_of
from training.recipe import Recipe
from training.splitting import Indices, folds

EVERY = 10  # rounds between two looks at the curve
Look = Callable[[int, float], None]


@dataclass(frozen=True)
class Fold:
    schema: FeatureSchema
    train: Part
    measured: Part


@dataclass(frozen=True)
class Score:
    """`deviation`: of the folds' losses. `rounds`: the mean of the folds' best."""

    loss: float
    deviation: float
    rounds: int


def folds_of(recipe: Recipe, dataset: Dataset, rows: Indices, schema: FeatureSchema | None = None) -> list[Fold]:
    """`schema`: the contract to keep; else the recipe's, else inferred, fold by fold."""
    made = []
    for train, measured in folds(dataset, recipe, rows, recipe.search.folds):
        known = schema or recipe.schema or infer(dataset.features.iloc[train], exclude=[recipe.split.column])
        made.append(Fold(known, *(part_of(dataset, known, rows_, recipe.query) for rows_ in (train, measured))))
    return made


def score(recipe: Recipe, made: list[Fold], look: Look) -> Score:
    """`look(round, loss)` sees the first fold's curve, every EVERY rounds; what it raises ends the scoring."""
    losses, rounds = [], []
    for number, fold in enumerate(made):
        fitted = boosters.fit(
            recipe, fold.schema, fold.train, fold.measured, look if number == 0 else lambda *_: None, EVERY
        )
        losses.append(min(fitted.curve))
        rounds.append(fitted.rounds)
    return Score(float(np.mean(losses)), float(np.std(losses)), max(1, round(float(np.mean(rounds)))))
