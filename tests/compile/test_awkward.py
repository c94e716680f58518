"""Every threshold is asked, however many stand in one row; and a row that is bent to reach a split does reach it."""

from __future__ import annotations

import numpy as np
import pytest
from cases import mixed_rows, train_mixed

from compile.awkward import Limits, awkward_rows
from compile.forest import NAN_LEFT, NAN_RIGHT, Forest, Tree
from compile.from_lightgbm import forest_of as from_lightgbm
from compile.from_xgboost import forest_of as from_xgboost
from compile.paths import bent_rows
from training.features import Feature, FeatureSchema

WIDTH = 32
SCHEMA = FeatureSchema(tuple(Feature(name=f"x{j}", kind="number") for j in range(WIDTH)))
LIMITS = Limits(frozenset(range(WIDTH)), np.inf, codes_only=False, booleans=frozenset())


@pytest.mark.parametrize("more_of_one", [0, 3_000])
def test_each_threshold_is_asked_with_its_neighbours_however_many_there_are(more_of_one: int) -> None:
    rng = np.random.default_rng(1)
    thresholds = [(j, value) for j in range(WIDTH) for value in rng.normal(size=100).tolist()]
    thresholds += [(5, value) for value in rng.normal(size=more_of_one).tolist()]
    rows = awkward_rows(SCHEMA, None, thresholds, None, np.full((5, WIDTH), -7.0), LIMITS)["thresholds"]
    seen = [set(column.tolist()) for column in rows.T]
    for feature, value in thresholds:
        single = np.float32(value)
        around = {value, float(single), np.nextafter(value, np.inf), np.nextafter(value, -np.inf)}
        around |= {float(np.nextafter(single, np.float32(side))) for side in (np.inf, -np.inf)}
        assert around <= seen[feature]
    assert len(rows) < 7 * len(thresholds)


def visited(forest: Forest, tree: Tree, row: list[float]) -> list[int]:
    """The nodes that the row comes by: the slow, obvious walk."""
    node, seen = 0, [0]
    while tree.left[node] >= 0:
        value = np.dtype(forest.dtype).type(row[tree.feature[node]])
        if node in tree.members:
            categories, go_right = tree.members[node]
            left = tree.nan[node] == NAN_LEFT if np.isnan(value) else (int(value) in categories) != go_right
        elif np.isnan(value):
            left = (
                tree.threshold[node] >= 0 if tree.nan[node] not in (NAN_LEFT, NAN_RIGHT) else tree.nan[node] == NAN_LEFT
            )
        else:
            threshold = tree.threshold[node]
            left = value < threshold if forest.library == "xgboost" else value <= threshold
        node = int(tree.left[node] if left else tree.right[node])
        seen.append(node)
    return seen


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_bent_rows_reach_their_split_and_lie_on_it(library: str) -> None:
    read = {"xgboost": from_xgboost, "lightgbm": from_lightgbm}[library]
    forest, _ = read(train_mixed(library, trees=8))
    base = mixed_rows(100)
    splits = [(number, int(node)) for number, tree in enumerate(forest.trees) for node in tree.numeric_splits]
    bent = iter(bent_rows(forest, base, len(splits), np.random.default_rng(0)))
    reached: dict[tuple[int, int], set[int]] = {}
    for number, changes in bent:
        row = base[number].tolist()
        for column, value in changes:
            row[column] = value
        for tree_number, node in splits:
            tree = forest.trees[tree_number]
            feature, threshold = int(tree.feature[node]), float(tree.threshold[node])
            if changes and abs(row[feature] - threshold) <= 1e-3 * max(1.0, abs(threshold)):
                path = visited(forest, tree, row)
                if node in path[:-1]:
                    reached.setdefault((tree_number, node), set()).add(path[path.index(node) + 1])
    assert len(reached) >= 0.95 * len(splits)
    assert sum(len(ways) == 2 for ways in reached.values()) >= 0.9 * len(splits)  # both sides, a step apart
