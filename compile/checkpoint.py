"""The forest as a Treelite checkpoint: built node by node from our form, so that it holds what Treelite's loaders drop.

Early stopping, dropped-out trees' weights and base scores are in it already; links are not: it answers raw scores. What it
can't say, and who reads it must do: LightGBM's snap of |x| <= 1e-35 to zero, scikit-learn's rounding to float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compile.errors import ModelRefused
from compile.forest import NAN_LEFT, NAN_ZERO, ZERO_LEFT, ZERO_RIGHT, Forest, Tree


def checkpoint(forest: Forest) -> bytes:
    """Raises ModelRefused where Treelite has no word for a part."""
    from treelite.model_builder import Metadata, ModelBuilder, PostProcessorFunc, TreeAnnotation

    if not forest.trees:
        raise ModelRefused("trees: there is none, which Treelite can't say")
    vector = forest.leaf_width
    if vector and (vector != forest.outputs):
        raise ModelRefused("leaves: vectors of a part of the outputs, which Treelite can't say")
    number = "float32" if forest.dtype is np.float32 else "float64"
    builder = ModelBuilder(
        threshold_type=number,
        leaf_output_type=number,
        metadata=Metadata(
            num_feature=forest.width,
            task_type="kMultiClf" if forest.outputs > 1 else "kRegressor",
            average_tree_output=False,
            num_target=1,
            num_class=[forest.outputs],
            leaf_vector_shape=(1, vector or 1),
        ),
        tree_annotation=TreeAnnotation(
            num_tree=len(forest.trees),
            target_id=[0] * len(forest.trees),
            class_id=[-1 if vector else tree.output for tree in forest.trees],
        ),
        postprocessor=PostProcessorFunc(name="identity_multiclass" if forest.outputs > 1 else "identity"),
        base_scores=list(forest.base),
    )
    for tree in forest.trees:
        _add(builder, forest, tree)
    return bytes(builder.commit().serialize_bytes())


def _add(builder: Any, forest: Forest, tree: Tree) -> None:
    features, thresholds, lefts, rights, nans = (
        column.tolist() for column in (tree.feature, tree.threshold, tree.left, tree.right, tree.nan)
    )
    builder.start_tree()
    waiting = [0]
    while waiting:
        node = waiting.pop()
        builder.start_node(node)
        if lefts[node] < 0:
            row = tree.vectors
            builder.leaf(thresholds[node] if row is None else row[int(thresholds[node])].tolist())
        elif node in tree.members:
            categories, go_right = tree.members[node]
            builder.categorical_test(
                features[node],
                default_left=nans[node] == NAN_LEFT,
                category_list=list(categories),
                category_list_right_child=go_right,
                left_child_key=lefts[node],
                right_child_key=rights[node],
            )
        else:
            builder.numerical_test(
                features[node],
                thresholds[node],
                default_left=_default_left(nans[node], thresholds[node]),
                opname="<" if forest.library == "xgboost" else "<=",
                left_child_key=lefts[node],
                right_child_key=rights[node],
            )
        builder.end_node()
        if lefts[node] >= 0:
            waiting += [rights[node], lefts[node]]
    builder.end_tree()


def _default_left(nan: int, threshold: float) -> bool:
    if nan in (ZERO_LEFT, ZERO_RIGHT):
        raise ModelRefused("zero_as_missing: Treelite has no split for which zero is a missing value")
    return nan == NAN_LEFT or (nan == NAN_ZERO and threshold >= 0)
