"""An exact ONNX model of a forest: one `ai.onnx.ml` v5 TreeEnsemble that answers the margins.

Version 5 holds float64 thresholds and leaves (so LightGBM's survive), states the comparison of each node, has a node for
set membership, and says where NaN goes. It has no base value, no lone leaf and no vector leaf: the first two become a split
whose two leaves are equal, and a tree with vectors is written once for each output. A base value comes first, because
XGBoost's sum starts from it and float32 addition does not commute in its last bit. The link is not in the graph: it is
applied in one place for every backend (`compile.links`).

Inputs: `rows`, float32 (XGBoost) or float64, (n, width), after what the metadata entry `coppice.rows` says, in this order
(`Inputs`). Output: `margin`, the same type, (n, outputs).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from compile.errors import ModelRefused
from compile.forest import NAN_LEFT, NAN_RIGHT, NAN_ZERO, ZERO_LEFT, ZERO_RIGHT, Forest, Members, Tree
from compile.onnx_engine import METADATA, Inputs

BRANCH_LEQ, BRANCH_LT, BRANCH_MEMBER = 0, 1, 6
SUM = 1
IR_VERSION = 9


def export_onnx(forest: Forest) -> bytes:
    """The serialised model; the same forest gives the same bytes."""
    import onnx
    from onnx import TensorProto, helper

    inputs = _inputs(forest)
    table = _Table(forest)
    for output, base in enumerate(forest.base):
        if base != 0.0 or not forest.trees or forest.outputs > 1:
            table.add_constant(base, output)
    for tree in forest.trees:
        if tree.vectors is None:
            table.add_tree(tree, tree.output, tree.threshold)
            continue
        for output in range(tree.vectors.shape[1]):
            table.add_tree(tree, tree.output + output, _column(tree, tree.vectors[:, output]))
    value = TensorProto.FLOAT if forest.dtype is np.float32 else TensorProto.DOUBLE
    node = helper.make_node(
        "TreeEnsemble",
        ["rows"],
        ["margin"],
        domain="ai.onnx.ml",
        n_targets=forest.outputs,
        aggregate_function=SUM,
        post_transform=0,
        tree_roots=table.roots,
        nodes_featureids=table.features,
        nodes_modes=helper.make_tensor("modes", TensorProto.UINT8, [len(table.modes)], table.modes),
        nodes_splits=_tensor(helper, "splits", value, table.splits, forest),
        nodes_truenodeids=table.true_ids,
        nodes_trueleafs=table.true_leaves,
        nodes_falsenodeids=table.false_ids,
        nodes_falseleafs=table.false_leaves,
        nodes_missing_value_tracks_true=table.nan_true,
        leaf_targetids=table.targets,
        leaf_weights=_tensor(helper, "weights", value, table.leaves, forest),
        **({"membership_values": _tensor(helper, "members", value, table.members, forest)} if table.members else {}),
    )
    graph = helper.make_graph(
        [node],
        "forest",
        [helper.make_tensor_value_info("rows", value, ["n", forest.width])],
        [helper.make_tensor_value_info("margin", value, ["n", forest.outputs])],
    )
    model = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        producer_name="coppice",
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 5)],
    )
    helper.set_model_props(model, {METADATA: msgspec.json.encode(inputs, order="sorted").decode()})
    onnx.checker.check_model(model)
    encoded: bytes = model.SerializeToString(deterministic=True)
    return encoded


def _column(tree: Tree, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The tree's thresholds, with one output's values for leaves."""
    thresholds = tree.threshold.copy()
    leaves = tree.left < 0
    thresholds[leaves] = values[thresholds[leaves].astype(np.int64)]
    return thresholds


def _inputs(forest: Forest) -> Inputs:
    """Raises ModelRefused where zero is missing in some splits of a feature and not in others: one column can't be both."""
    by_feature: dict[int, set[bool]] = {}
    for tree in forest.trees:
        nodes = tree.numeric_splits
        zero = (tree.nan[nodes] == ZERO_LEFT) | (tree.nan[nodes] == ZERO_RIGHT)
        for feature, is_zero in set(zip(tree.feature[nodes].tolist(), zero.tolist(), strict=True)):
            by_feature.setdefault(feature, set()).add(is_zero)
    mixed = sorted(feature for feature, kinds in by_feature.items() if len(kinds) > 1)
    if mixed:
        raise ModelRefused(f"feature {mixed[0]}: zero is a missing value in some of its splits only")
    return Inputs(
        dtype="float32" if forest.dtype is np.float32 else "float64",
        rounded=forest.rounds_inputs,
        snapped=forest.zero_snap,
        zero_missing=tuple(sorted(feature for feature, kinds in by_feature.items() if kinds == {True})),
        categorical=forest.categorical,
        category_rule=forest.category_rule,
    )


def _tensor(helper: Any, name: str, value: int, values: list[float], forest: Forest) -> Any:
    raw = np.array(values, dtype=np.dtype(forest.dtype).newbyteorder("<")).tobytes()
    return helper.make_tensor(name, value, [len(values)], raw, raw=True)


class _Splits:
    """A tree's columns as lists: indexing arrays one by one takes most of an export's time."""

    def __init__(self, tree: Tree) -> None:
        self.feature, self.threshold = tree.feature.tolist(), tree.threshold.tolist()
        self.left, self.right, self.nan = tree.left.tolist(), tree.right.tolist(), tree.nan.tolist()
        self.members: dict[int, Members] = tree.members


@dataclass(slots=True)
class _Table:
    """The operator's parallel lists. A child is an index into the nodes, or into the leaves where its flag is 1."""

    forest: Forest
    roots: list[int] = field(default_factory=list)
    features: list[int] = field(default_factory=list)
    modes: list[int] = field(default_factory=list)
    splits: list[float] = field(default_factory=list)
    true_ids: list[int] = field(default_factory=list)
    true_leaves: list[int] = field(default_factory=list)
    false_ids: list[int] = field(default_factory=list)
    false_leaves: list[int] = field(default_factory=list)
    nan_true: list[int] = field(default_factory=list)
    leaves: list[float] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    members: list[float] = field(default_factory=list)

    def add_constant(self, value: float, output: int) -> None:
        """A split on the first feature, both sides of which are `value`."""
        self.roots.append(len(self.features))
        node = self._add_node(0, BRANCH_LEQ, 0.0, 0)
        for side in (True, False):
            self._link(node, side, self._add_leaf(value, output), leaf=True)

    def add_tree(self, tree: Tree, output: int, thresholds: npt.NDArray[np.float64]) -> None:
        """`thresholds`: the tree's, with the values of this output for leaves."""
        if tree.left[0] < 0:
            self.add_constant(float(thresholds[0]), output)
            return
        self.roots.append(len(self.features))
        lefts, values = tree.left.tolist(), thresholds.tolist()
        splits = _Splits(tree)
        # depth first, true branch first: membership lists are read in the order in which their nodes stand
        waiting: list[tuple[int, int, bool]] = [(0, -1, True)]
        while waiting:
            node, parent, side = waiting.pop()
            if lefts[node] < 0:
                self._link(parent, side, self._add_leaf(values[node], output), leaf=True)
                continue
            here, true_child, false_child = self._add_split(splits, node)
            if parent >= 0:
                self._link(parent, side, here, leaf=False)
            waiting += [(false_child, here, False), (true_child, here, True)]

    def _add_split(self, splits: _Splits, node: int) -> tuple[int, int, int]:
        left, right, nan = splits.left[node], splits.right[node], splits.nan[node]
        feature, threshold = splits.feature[node], splits.threshold[node]
        if node in splits.members:
            categories, go_right = splits.members[node]
            # an empty set: nothing is a member, and a member list may not be empty
            members = tuple(float(category) for category in categories) or (-2.0,)
            if go_right:
                return self._add_node(feature, BRANCH_MEMBER, 0.0, int(nan == NAN_RIGHT), members), right, left
            return self._add_node(feature, BRANCH_MEMBER, 0.0, int(nan == NAN_LEFT), members), left, right
        nan_true = nan in (NAN_LEFT, ZERO_LEFT) or (nan == NAN_ZERO and threshold >= 0.0)
        mode = BRANCH_LT if self.forest.library == "xgboost" else BRANCH_LEQ
        return self._add_node(feature, mode, threshold, int(nan_true)), left, right

    def _add_node(self, feature: int, mode: int, split: float, nan_true: int, members: tuple[float, ...] = ()) -> int:
        self.features.append(feature)
        self.modes.append(mode)
        self.splits.append(split)
        self.nan_true.append(nan_true)
        for ids in (self.true_ids, self.false_ids, self.true_leaves, self.false_leaves):
            ids.append(0)
        self.members += [*members, float("nan")] if members else []
        return len(self.features) - 1

    def _add_leaf(self, value: float, output: int) -> int:
        self.leaves.append(value)
        self.targets.append(output)
        return len(self.leaves) - 1

    def _link(self, node: int, side: bool, child: int, *, leaf: bool) -> None:
        ids, leaves = (self.true_ids, self.true_leaves) if side else (self.false_ids, self.false_leaves)
        ids[node], leaves[node] = child, int(leaf)
