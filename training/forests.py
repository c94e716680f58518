"""scikit-learn's forests on the encoded matrix: random forests and extremely randomised trees.

A category is read as its code, in the order of the schema, and a missing value goes where each split learned to send it.
Trees are independent of one another, so no round is the best and none is dropped; the curve tells whether more would help.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data import Labels
from training.errors import RecipeRefused
from training.features import Matrix
from training.parts import Part
from training.recipe import Recipe, Task

ESTIMATORS = {  # of classes, of values
    "random_forest": ("RandomForestClassifier", "RandomForestRegressor"),
    "extra_trees": ("ExtraTreesClassifier", "ExtraTreesRegressor"),
}
Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class Grown:
    """`curve`: the validation rows' log loss, or root mean squared error, of the first 1, 2, ... trees together."""

    forest: Any
    curve: tuple[float, ...]
    importances: list[float]


def grow(
    recipe: Recipe,
    train: Part,
    validation: Part,
    *,
    weights: Matrix | None,
    directions: list[int] | None,
    progress: Progress,
    every: int,
) -> Grown:
    """`weights`: of the rows; `directions`: of the columns' constraints, 1, 0 or -1. `progress` is called as of a booster, but
    once the forest stands. Raises RecipeRefused with scikit-learn's words, which name the parameter.
    """
    forest = _estimator(recipe, directions)
    labels = _labels(recipe.task, train.labels)
    try:
        forest.fit(train.matrix, labels, sample_weight=weights)
    except ValueError as refused:
        raise RecipeRefused(f"{recipe.algorithm}: {str(refused).splitlines()[0]}") from None
    forest.set_params(n_jobs=None)  # answers are added in the order of the trees, not in that of threads
    curve = []
    for trees, loss in enumerate(_losses(forest, recipe.task, validation), 1):
        curve.append(loss)
        if trees % every == 0:
            progress(trees, loss)
    return Grown(forest, tuple(curve), forest.feature_importances_.tolist())


def _estimator(recipe: Recipe, directions: list[int] | None) -> Any:
    from sklearn import ensemble

    of_classes, of_values = ESTIMATORS[recipe.algorithm]
    kind = getattr(ensemble, of_values if recipe.task == "regression" else of_classes)
    settings = {"n_estimators": recipe.rounds.most, "n_jobs": _threads(), "random_state": recipe.seed}
    try:
        return kind(**settings, monotonic_cst=directions, **recipe.params)
    except TypeError as refused:
        raise RecipeRefused(f"params: {refused}") from None


def _threads() -> int:
    """As many as a booster would take: OMP_NUM_THREADS, which Ray sets to a trial's share, or (-1) one a core."""
    most = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(most) if most.isdecimal() and int(most) else -1


def _labels(task: Task, labels: Labels) -> Any:
    return labels if task == "regression" else labels.astype(np.int64)


def _losses(forest: Any, task: Task, part: Part) -> Iterator[float]:
    """Of the first tree, of the first two, and so on."""
    labels, total = _labels(task, part.labels), 0.0
    least = np.finfo(np.float64).eps
    for count, tree in enumerate(forest.estimators_, 1):
        if task == "regression":
            total = total + tree.predict(part.matrix)
            yield float(np.sqrt(np.mean((total / count - labels) ** 2)))
        else:
            total = total + tree.predict_proba(part.matrix)
            share = (total / count)[np.arange(len(labels)), labels]
            yield float(-np.log(np.maximum(share, least)).mean())
