"""A LightGBM booster as a Forest, from its own text, in which every double stands with all its digits."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.errors import ModelRefused
from compile.forest import NAN_LEFT, NAN_RIGHT, NAN_ZERO, ZERO_LEFT, ZERO_RIGHT, Floats, Forest, Ints, Members, Tree
from compile.links import Link
from compile.objectives import lightgbm_link


def forest_of(booster: Any) -> tuple[Forest, Link]:
    """Raises ModelRefused, naming the part, for whatever the form can't say."""
    header, *blocks = booster.model_to_string().split("\nTree=")
    fields = _fields(header)
    outputs = int(fields["num_tree_per_iteration"])
    trees = tuple(_tree(block.split("\nend of trees")[0], number % outputs) for number, block in enumerate(blocks))
    averaged = len(trees) // outputs if "average_output" in header.splitlines() else None
    forest = Forest("lightgbm", int(fields["max_feature_idx"]) + 1, trees, (0.0,) * outputs, category_rule="int")
    return forest, lightgbm_link(fields.get("objective", "").split(), averaged)


def pandas_categories(booster: Any) -> list[tuple[Any, ...]]:
    """The values, in code order, of the training frame's category columns, in the order of those columns."""
    text = booster.model_to_string().rsplit("pandas_categorical:", 1)[-1].strip().splitlines()[0]
    return [tuple(values) for values in json.loads(text) or []]


def categorical_features(booster: Any) -> list[int]:
    """Features that were categories in training: their `feature_infos` list values instead of a range."""
    infos = _fields(booster.model_to_string().split("\nTree=")[0])["feature_infos"].split()
    return [feature for feature, info in enumerate(infos) if info != "none" and not info.startswith("[")]


def _fields(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _tree(block: str, output: int) -> Tree:
    fields = _fields(block)
    if fields.get("is_linear", "0") != "0":
        raise ModelRefused("linear_tree: leaves that are linear models are not compiled; train with linear_tree=false")
    leaves = _floats(fields["leaf_value"])
    splits = int(fields["num_leaves"]) - 1
    if splits == 0:
        lone = np.array([-1], dtype=np.int32)
        return Tree(lone * 0, leaves[:1], lone, lone, lone * 0, {}, output)
    decision = _ints(fields["decision_type"])
    thresholds = _floats(fields["threshold"])
    categorical = decision & 1 == 1
    return Tree(
        feature=_padded(_ints(fields["split_feature"]), leaves.size),
        threshold=np.concatenate([np.where(categorical, 0.0, thresholds), leaves]),
        left=_padded(_renumbered(_ints(fields["left_child"]), splits), leaves.size, -1),
        right=_padded(_renumbered(_ints(fields["right_child"]), splits), leaves.size, -1),
        nan=_padded(np.where(categorical, NAN_RIGHT, _nan(decision)).astype(np.int32), leaves.size),
        members=_members(fields, np.flatnonzero(categorical), thresholds),
        output=output,
    )


def _nan(decision: Ints) -> npt.NDArray[Any]:
    """Bits 2 and 3 of a decision are the missing type: None, Zero or NaN; bit 1 is the default direction."""
    missing_type, default_left = decision >> 2 & 3, decision & 2 == 2
    of_zero = np.where(default_left, ZERO_LEFT, ZERO_RIGHT)
    of_nan = np.where(default_left, NAN_LEFT, NAN_RIGHT)
    return np.choose(missing_type, [np.full_like(decision, NAN_ZERO), of_zero, of_nan])


def _members(fields: dict[str, str], nodes: npt.NDArray[Any], thresholds: Floats) -> dict[int, Members]:
    """A categorical split's threshold numbers its bitset: words `boundaries[k]` to `boundaries[k + 1]`."""
    if not len(nodes):
        return {}
    boundaries, words = _ints(fields["cat_boundaries"]), [int(word) for word in fields["cat_threshold"].split()]
    members = {}
    for node in nodes.tolist():
        number = int(thresholds[node])
        bitset = words[boundaries[number] : boundaries[number + 1]]
        found = (32 * i + bit for i, word in enumerate(bitset) for bit in range(32) if word >> bit & 1)
        members[node] = Members(tuple(found), go_right=False)
    return members


def _renumbered(children: Ints, splits: int) -> Ints:
    """LightGBM numbers leaves ~0, ~1, ...; here they follow the splits."""
    return np.where(children < 0, splits + ~children, children).astype(np.int32)


def _padded(values: Ints, leaves: int, fill: int = 0) -> Ints:
    return np.concatenate([values, np.full(leaves, fill, dtype=np.int32)])


def _ints(text: str) -> Ints:
    return np.array(text.split(), dtype=np.int64).astype(np.int32)


def _floats(text: str) -> Floats:
    return np.array([float(word) for word in text.split()], dtype=np.float64)
