"""An XGBoost booster as a Forest, from its own JSON.

The booster holds every round, also those after the best; weights of dropped-out trees stand apart from the leaves; the base
score is written as a probability where the objective has a link; vector leaves keep their values in a table of their own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from compile.errors import ModelRefused
from compile.forest import NAN_LEFT, NAN_RIGHT, Floats, Forest, Members, Tree
from compile.links import Link
from compile.objectives import base_margin, xgboost_link


def forest_of(booster: Any, *, in_place: bool = False) -> tuple[Forest, Link]:
    """`in_place`: as `inplace_predict` and the scikit-learn wrappers answer, which add up DART's trees in another way.

    Raises ModelRefused, naming the part, for whatever the form can't say.
    """
    return forest_in(learner_of(booster), in_place=in_place)


def learner_of(booster: Any) -> dict[str, Any]:
    """The booster's own JSON, which a large model takes a second to write and read."""
    learner: dict[str, Any] = json.loads(bytes(booster.save_raw("json")))["learner"]
    return learner


def forest_in(learner: dict[str, Any], *, in_place: bool = False) -> tuple[Forest, Link]:
    gradient, objective = learner["gradient_booster"], learner["objective"]["name"]
    if gradient["name"] not in ("gbtree", "dart"):
        raise ModelRefused(f"booster={gradient['name']}: has no trees; only gbtree and dart are compiled")
    drop = gradient.get("weight_drop")
    model = (gradient["gbtree"] if drop is not None else gradient)["model"]
    parameters = learner["learner_model_param"]
    outputs = max(int(parameters["num_class"]), int(parameters["num_target"]), 1)
    base = [float(part) for part in parameters["base_score"].strip("[]").split(",")]
    if len(base) not in (1, outputs):
        raise ModelRefused(f"base_score: {len(base)} values for {outputs} outputs")
    margins = [base_margin(objective, float(np.float32(score))) for score in base]
    margins = margins if len(margins) == outputs else margins * outputs
    trees = [_tree(tree, output) for tree, output in zip(model["trees"], model["tree_info"], strict=True)]
    if drop is not None:
        trees = [
            _weighted(tree, weight, margins[tree.output] if in_place else None)
            for tree, weight in zip(trees, drop, strict=True)
        ]
    forest = Forest(
        "xgboost",
        int(parameters["num_feature"]),
        tuple(trees),
        tuple(margins),
    )
    return forest, xgboost_link(objective)


def pandas_categories(learner: dict[str, Any]) -> dict[int, tuple[Any, ...]]:
    """The categories, in code order, of each feature that the booster knows by name: the training frame's values."""
    model = learner["gradient_booster"]
    encoded = (model.get("gbtree", model)).get("model", {}).get("cats", {}).get("enc", [])
    found: dict[int, tuple[Any, ...]] = {}
    for feature, entry in enumerate(encoded):
        values, offsets = entry.get("values", []), entry.get("offsets")
        if values and offsets is None:  # the categories are numbers
            found[feature] = tuple(values)
        elif values:
            text = bytes(value & 0xFF for value in values)
            found[feature] = tuple(text[begin:end].decode() for begin, end in pairwise(offsets))
    return found


def _tree(tree: dict[str, Any], output: int) -> Tree:
    left = np.array(tree["left_children"], dtype=np.int32)
    right = np.array(tree["right_children"], dtype=np.int32)
    threshold = np.array(tree["split_conditions"], dtype=np.float32).astype(np.float64)
    leaf_width = int(tree["tree_param"].get("size_leaf_vector", 1))
    vectors: Floats | None = None
    if leaf_width > 1:
        vectors = np.array(tree["leaf_weights"], dtype=np.float32).astype(np.float64).reshape(-1, leaf_width)
        threshold = np.where(left < 0, right, threshold)  # at a leaf, the right child is its row of the table
    members = {
        node: Members(tuple(sorted(tree["categories"][begin : begin + size])), go_right=True)
        for node, begin, size in zip(
            tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
        )
    }
    return Tree(
        feature=np.array(tree["split_indices"], dtype=np.int32),
        threshold=threshold,
        left=left,
        right=np.where(left < 0, -1, right).astype(np.int32),
        nan=np.where(np.array(tree["default_left"], dtype=bool), NAN_LEFT, NAN_RIGHT).astype(np.int32),
        members=members,
        output=0 if vectors is not None else output,
        vectors=vectors,
    )


def _weighted(tree: Tree, weight: float, base: float | None) -> Tree:
    """DART multiplies a tree's answer by its weight in float32; in place, after adding the base and taking it off again."""
    if tree.vectors is not None:
        raise ModelRefused("booster=dart: with vector leaves is not compiled")
    answers = tree.threshold.astype(np.float32)
    if base is not None:
        answers = (np.float32(base) + answers) - np.float32(base)
    weighted = (answers * np.float32(weight)).astype(np.float64)
    return replace(tree, threshold=np.where(tree.left < 0, weighted, tree.threshold))
