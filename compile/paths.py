"""Rows that reach a split and lie on it.

A threshold that is asked in a row whose path never comes there shows nothing. So for each numeric split an ordinary row
is bent, where it must be, to take the path from the root to that split, and its feature is set to the threshold and to the
neighbour that goes the other way: the smallest step that changes the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

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
        """The value, or the nearest one allowed; NaN is a value that no split above has excluded."""
        return value if np.isnan(value) and self == EVERYTHING else float(np.clip(np.nan_to_num(value), *self))


EVERYTHING = Bounds(-np.inf, np.inf)


def bent_rows(forest: Forest, base: Matrix, most: int, rng: np.random.Generator) -> Iterator[tuple[int, Changes]]:
    """(number of a base row, what to change in it), two for each numeric split that can be reached.

    Of more than `most` splits, a seeded sample.
    """
    places = [(number, int(node)) for number, tree in enumerate(forest.trees) for node in tree.numeric_splits]
    if len(places) > most:
        places = [places[i] for i in sorted(rng.permutation(len(places))[:most].tolist())]
    walks = [_Walks(forest, tree) for tree in forest.trees]
    for number, node in places:
        row = int(rng.integers(len(base)))
        for changes in walks[number].onto(node, base[row]):
            yield row, changes


class _Walks:
    def __init__(self, forest: Forest, tree: Tree) -> None:
        self._tree = tree
        self._strict = forest.library == "xgboost"  # left is below the threshold, not at it
        self._step = np.float32 if forest.dtype is np.float32 or forest.rounds_inputs else np.float64
        self._parent = {}
        for node, (left, right) in enumerate(zip(tree.left.tolist(), tree.right.tolist(), strict=True)):
            if left >= 0:
                self._parent[left], self._parent[right] = (node, True), (node, False)

    def onto(self, node: int, row: Matrix) -> Iterator[Changes]:
        bounds: dict[int, Bounds] = {}
        sets: dict[int, list[tuple[int, bool]]] = {}
        at = node
        while at in self._parent:
            at, goes_left = self._parent[at]
            column = int(self._tree.feature[at])
            if at in self._tree.members:
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
        feature, threshold = int(self._tree.feature[node]), float(self._tree.threshold[node])
        low, high = bounds.get(feature, EVERYTHING)
        for value in (threshold, self._next(threshold, down=self._strict)):
            if low <= value <= high:
                yield tuple((changes | {feature: value}).items())

    def _narrowed(self, allowed: Bounds, node: int, goes_left: bool) -> Bounds:
        threshold = float(self._tree.threshold[node])
        if goes_left:
            most = self._next(threshold, down=True) if self._strict else threshold
            return Bounds(allowed.low, min(allowed.high, most))
        least = threshold if self._strict else self._next(threshold, down=False)
        return Bounds(max(allowed.low, least), allowed.high)

    def _next(self, value: float, *, down: bool) -> float:
        """The neighbour in the numbers that the model compares."""
        with np.errstate(over="ignore"):
            single = self._step(value)
            if self._step is np.float32 and down and single > value:  # rounded up past the threshold
                return float(np.nextafter(single, self._step(-np.inf)))
            return float(np.nextafter(single, self._step(-np.inf if down else np.inf)))

    def _category(self, splits: list[tuple[int, bool]]) -> float | None:
        """A category that takes every one of these splits' sides; None where there is none among those they name."""
        known = {category for node, _ in splits for category in self._tree.members[node].categories}
        for category in (*sorted(known), max(known, default=0) + 1):
            sides = (
                (category in self._tree.members[node].categories) != self._tree.members[node].go_right
                for node, _ in splits
            )
            if all(side == goes_left for side, (_, goes_left) in zip(sides, splits, strict=True)):
                return float(category)
        return None
