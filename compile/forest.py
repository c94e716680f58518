"""One internal form of a forest of trees, with nothing rounded: what its own library computes, not what a neutral model would.

XGBoost compares float32 by `<` and sums float32 from the base score on; LightGBM compares float64 by `<=` and sums float64
from zero; scikit-learn compares a value rounded to float32 (its histogram booster: float64) with a float64 threshold by
`<=`. Each library's module (`from_xgboost`, `from_lightgbm`, `from_sklearn`) reads its dump into this form.

Where a missing value (NaN) goes is a property of each split, resolved there once:

    NAN_RIGHT, NAN_LEFT     the right or the left child
    NAN_ZERO                NaN counts as 0.0 (LightGBM, missing type None)
    ZERO_RIGHT, ZERO_LEFT   NaN and zero alike go there (LightGBM, missing type Zero)

What a category is that the encoder does not make - negative, fractional, huge - is a property of the library:

    truncated   XGBoost: cut to a whole number; below zero it is no member
    int         LightGBM: cut to a whole number first, so that -0.5 is category 0; below zero it is no member
    exact       scikit-learn: only whole numbers are categories
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from compile.errors import ModelRefused

Library = Literal["xgboost", "lightgbm", "sklearn"]
CategoryRule = Literal["truncated", "int", "exact"]
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

ZERO_SNAP = float(np.float32(1e-35))  # LightGBM's kZeroThreshold: a float constant in the C++ source
NAN_RIGHT, NAN_LEFT, NAN_ZERO, ZERO_RIGHT, ZERO_LEFT = range(5)


class Members(NamedTuple):
    """The set of a categorical split: ascending categories, and whether a member goes right (else left)."""

    categories: tuple[int, ...]
    go_right: bool


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes of one tree; node 0 is the root. `left` is -1 at a leaf, where `threshold` is the leaf's value.

    `output` is the first output that the leaves add to. With `vectors` (leaves' rows, width), a leaf's `threshold` is its
    row in there instead, and the row's values are added to the outputs from `output` on.
    """

    feature: Ints
    threshold: Floats  # holds float32 values exactly where the library is xgboost
    left: Ints
    right: Ints
    nan: Ints
    members: dict[int, Members]
    output: int = 0
    vectors: Floats | None = None

    def __post_init__(self) -> None:
        leaves = self.threshold[self.left < 0] if self.vectors is None else self.vectors
        if not np.isfinite(leaves).all():
            raise ModelRefused("leaf values: one is NaN or infinite")
        if np.isnan(self.threshold).any():
            raise ModelRefused("thresholds: one is NaN")

    def depth(self) -> int:
        level, depth = np.zeros(1, dtype=np.int32), 0
        while True:
            level = level[self.left[level] >= 0]
            if not len(level):
                return depth
            level = np.concatenate([self.left[level], self.right[level]])
            depth += 1

    @property
    def numeric_splits(self) -> npt.NDArray[np.intp]:
        """The nodes that compare a number."""
        splits = self.left >= 0
        splits[list(self.members)] = False
        return np.flatnonzero(splits)


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees in the order in which the library adds them; margins are (n, outputs), each summed from its base on."""

    library: Library
    width: int
    trees: tuple[Tree, ...]
    base: tuple[float, ...]
    category_rule: CategoryRule = "truncated"
    rounds_inputs: bool = False  # to float32, before a comparison in float64 (scikit-learn's trees)

    @property
    def outputs(self) -> int:
        return len(self.base)

    @property
    def dtype(self) -> type[np.float32] | type[np.float64]:
        """What the library compares and sums."""
        return np.float32 if self.library == "xgboost" else np.float64

    @property
    def zero_snap(self) -> bool:
        """LightGBM reads |x| <= 1e-35 as 0.0 before it walks."""
        return self.library == "lightgbm"

    @property
    def leaf_width(self) -> int:
        """Values in a leaf: 0 where leaves are single numbers."""
        widths = {0 if tree.vectors is None else tree.vectors.shape[1] for tree in self.trees}
        if len(widths) > 1:
            raise ModelRefused("leaves: some trees have single values and some have vectors")
        return widths.pop() if widths else 0

    @property
    def categorical(self) -> tuple[int, ...]:
        """Features that are split by category, ascending."""
        return tuple(sorted({int(tree.feature[node]) for tree in self.trees for node in tree.members}))

    def thresholds(self) -> list[tuple[int, float]]:
        """Every distinct (feature, threshold), ascending."""
        found: set[tuple[int, float]] = set()
        for tree in self.trees:
            nodes = tree.numeric_splits
            found |= set(zip(tree.feature[nodes].tolist(), tree.threshold[nodes].tolist(), strict=True))
        return sorted(found)


def renumbered(forest: Forest, places: Sequence[int], width: int) -> Forest:
    """The same forest over other columns: its feature j is column places[j] of `width`."""
    if forest.width == width and list(places) == list(range(width)):
        return forest
    table = np.array(places, dtype=np.int32)
    trees = tuple(
        replace(tree, feature=np.where(tree.left >= 0, table[tree.feature], 0).astype(np.int32))
        for tree in forest.trees
    )
    return replace(forest, trees=trees, width=width)


def recoded(forest: Forest, codes: dict[int, dict[int, int]]) -> Forest:
    """The same forest over other category codes: `codes[feature][its code]` is ours. What has none drops out of the sets."""
    if not codes:
        return forest

    def recode(tree: Tree) -> Tree:
        members = {}
        for node, (categories, go_right) in tree.members.items():
            table = codes.get(int(tree.feature[node]))
            kept = categories if table is None else tuple(sorted(table[c] for c in categories if c in table))
            members[node] = Members(kept, go_right)
        return replace(tree, members=members)

    return replace(forest, trees=tuple(recode(tree) for tree in forest.trees))


def joined(forests: Iterable[Forest]) -> Forest:
    """Forests over the same columns as one: the second's outputs follow the first's, and so on."""
    first, *others = forests
    trees, base = list(first.trees), list(first.base)
    for forest in others:
        if replace(forest, trees=(), base=()) != replace(first, trees=(), base=()):
            raise ModelRefused("ensemble: its members read their inputs in different ways")
        trees += [replace(tree, output=tree.output + len(base)) for tree in forest.trees]
        base += forest.base
    return replace(first, trees=tuple(trees), base=tuple(base))
