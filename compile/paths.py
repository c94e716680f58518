"""Rows that reach a split and lie on it.

A threshold that is asked in a row whose path never comes there shows nothing. So for each numeric split an ordinary row
is bent, where it must be, to take the path from the root to that split, and its feature is set to the threshold and to the
neighbour that goes the other way: the smallest step that changes the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compile.forest import Forest, Tree

Matrix = npt.NDArray[np.float64]
Changes = tuple[tuple[int, float], ...]  # (column, value) of a row, where it is bent


class Bounds(NamedTuple):
    """What the splits above allow a number: at least `low`, at most `high`, both included."""

    low: float
    high: float

    def of(self, value: float) -> float:
        """The value, or the nearest one allowed, for a missing value that nearest to zero."""
        return min(max(0.0 if value != value else value, self.low), self.high)


EVERYTHING = Bounds(-np.inf, np.inf)


def bent_rows(forest: Forest, base: Matrix, most: int, rng: np.random.Generator) -> Iterator[tuple[int, Changes]]:
    """(number of a base row, what to change in it), two for each numeric split that can be reached.

    Of more than `most` splits, a seeded sample.
    """
    places = [(number, int(node)) for number, tree in enumerate(forest.trees) for node in tree.numeric_splits]
    if len(places) > most:
        places = [places[i] for i in sorted(rng.permutation(len(places))[:most].tolist())]
    walks = [_Walks(forest, tree) for tree in forest.trees]
    rows = rng.integers(0, len(base), len(places)).tolist()
    for (number, node), row in zip(places, rows, strict=True):
        for changes in walks[number].onto(node, base[row].tolist()):
            yield row, changes


class _Walks:
    def __init__(self, forest: Forest, tree: Tree) -> None:
        self._members = tree.members
        self._feature, self._threshold = tree.feature.tolist(), tree.threshold.tolist()
        self._strict = forest.library == "xgboost"  # left is below the threshold, not at it
        step = np.float32 if forest.dtype is np.float32 or forest.rounds_inputs else np.float64
        self._below, self._above = _neighbours(tree.threshold, step)
        self._parent = {}
        for node, (left, right) in enumerate(zip(tree.left.tolist(), tree.right.tolist(), strict=True)):
            if left >= 0:
                self._parent[left], self._parent[right] = (node, True), (node, False)

    def onto(self, node: int, row: list[float]) -> Iterator[Changes]:
        bounds: dict[int, Bounds] = {}
        sets: dict[int, list[tuple[int, bool]]] = {}
        at = node
        while at in self._parent:
            at, goes_left = self._parent[at]
            column = self._feature[at]
            if at in self._members:
                sets.setdefault(column, []).append((at, goes_left))
            else:
                bounds[column] = self._narrowed(bounds.get(column, EVERYTHING), at, goes_left)
        if any(low > high for low, high in bounds.values()):
            return
        changes = {column: allowed.of(row[column]) for column, allowed in bounds.items()}
        for column, splits in sets.items():
            category = self._category(splits)
            if category is None:
                return
            changes[column] = category
        feature = self._feature[node]
        low, high = bounds.get(feature, EVERYTHING)
        for value in (self._threshold[node], self._below[node] if self._strict else self._above[node]):
            if low <= value <= high:
                yield tuple((changes | {feature: value}).items())

    def _narrowed(self, allowed: Bounds, node: int, goes_left: bool) -> Bounds:
        if goes_left:
            most = self._below[node] if self._strict else self._threshold[node]
            return Bounds(allowed.low, min(allowed.high, most))
        least = self._threshold[node] if self._strict else self._above[node]
        return Bounds(max(allowed.low, least), allowed.high)

    def _category(self, splits: list[tuple[int, bool]]) -> float | None:
        """A category that takes every one of these splits' sides; None where there is none among those they name."""
        known = {category for node, _ in splits for category in self._members[node].categories}
        for category in (*sorted(known), max(known, default=0) + 1):
            sides = ((category in self._members[node].categories) != self._members[node].go_right for node, _ in splits)
            if all(side == goes_left for side, (_, goes_left) in zip(sides, splits, strict=True)):
                return float(category)
        return None


def _neighbours(thresholds: Matrix, step: type[np.float32] | type[np.float64]) -> tuple[list[float], list[float]]:
    """The next smaller and the next larger of the numbers that the model compares; of a threshold between two, those."""
    with np.errstate(over="ignore"):
        single: npt.NDArray[Any] = thresholds.astype(step)
    below, above = np.nextafter(single, step(-np.inf)), np.nextafter(single, step(np.inf))
    below = np.where(single < thresholds, single, below)
    above = np.where(single > thresholds, single, above)
    return below.astype(np.float64).tolist(), above.astype(np.float64).tolist()
