"""An exact ONNX model of a forest: one `ai.onnx.ml` v5 TreeEnsemble that answers the margin.

Version 5 holds float64 thresholds and leaves (so LightGBM's survive), states the comparison of each node, has a node for
set membership, and says where NaN goes. It has no base value and no lone leaf: both become a split whose two leaves are
equal. The base value comes first, because XGBoost's sum starts from it and float32 addition does not commute in its last
bit. The link is not in the graph: it is applied in one place for every backend (`compile.kernel.logistic`).

Inputs: `rows`, float32 (XGBoost) or float64 (LightGBM), (n, width). Output: `margin`, the same type, (n, 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compile.forest import NAN_LEFT, NAN_RIGHT, NAN_ZERO, Forest, Tree

BRANCH_LEQ, BRANCH_LT, BRANCH_MEMBER = 0, 1, 6
SUM = 1
IR_VERSION = 9


def export_onnx(forest: Forest) -> bytes:
    """The serialised model; the same forest gives the same bytes."""
    import onnx
    from onnx import TensorProto, helper

    table = _Table(forest)
    if forest.base != 0.0 or not forest.trees:
        table.add_constant(forest.base)
    for tree in forest.trees:
        table.add_tree(tree)
    value = TensorProto.FLOAT if forest.dtype is np.float32 else TensorProto.DOUBLE
    node = helper.make_node(
        "TreeEnsemble",
        ["rows"],
        ["margin"],
        domain="ai.onnx.ml",
        n_targets=1,
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
        leaf_targetids=[0] * len(table.leaves),
        leaf_weights=_tensor(helper, "weights", value, table.leaves, forest),
        **({"membership_values": _tensor(helper, "members", value, table.members, forest)} if table.members else {}),
    )
    graph = helper.make_graph(
        [node],
        "forest",
        [helper.make_tensor_value_info("rows", value, ["n", forest.width])],
        [helper.make_tensor_value_info("margin", value, ["n", 1])],
    )
    model = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        producer_name="coppice",
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 5)],
    )
    onnx.checker.check_model(model)
    encoded: bytes = model.SerializeToString(deterministic=True)
    return encoded


def _tensor(helper: Any, name: str, value: int, values: list[float], forest: Forest) -> Any:
    raw = np.array(values, dtype=np.dtype(forest.dtype).newbyteorder("<")).tobytes()
    return helper.make_tensor(name, value, [len(values)], raw, raw=True)


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
    members: list[float] = field(default_factory=list)

    def add_constant(self, value: float) -> None:
        """A split on the first feature, both sides of which are `value`."""
        self.roots.append(len(self.features))
        node = self._add_node(0, BRANCH_LEQ, 0.0, 0)
        for side in (True, False):
            self._link(node, side, self._add_leaf(value), leaf=True)

    def add_tree(self, tree: Tree) -> None:
        if tree.left[0] < 0:
            self.add_constant(float(tree.threshold[0]))
            return
        self.roots.append(len(self.features))
        self._add_below(tree)

    def _add_below(self, tree: Tree) -> None:
        """Depth first, true branch first: membership lists are read in the order in which their nodes stand."""
        waiting: list[tuple[int, int, bool]] = [(0, -1, True)]
        while waiting:
            node, parent, side = waiting.pop()
            if tree.left[node] < 0:
                self._link(parent, side, self._add_leaf(float(tree.threshold[node])), leaf=True)
                continue
            here, true_child, false_child = self._add_split(tree, node)
            if parent >= 0:
                self._link(parent, side, here, leaf=False)
            waiting += [(false_child, here, False), (true_child, here, True)]

    def _add_split(self, tree: Tree, node: int) -> tuple[int, int, int]:
        left, right, nan = int(tree.left[node]), int(tree.right[node]), int(tree.nan[node])
        feature, threshold = int(tree.feature[node]), float(tree.threshold[node])
        if node in tree.members:
            if not tree.members[node]:  # an empty set: nothing is a member, and a member list may not be empty
                return self._add_node(feature, BRANCH_MEMBER, 0.0, int(nan == NAN_RIGHT), (-1.0,)), right, left
            members = tuple(float(member) for member in tree.members[node])
            if self.forest.members_go_right:
                return self._add_node(feature, BRANCH_MEMBER, 0.0, int(nan == NAN_RIGHT), members), right, left
            return self._add_node(feature, BRANCH_MEMBER, 0.0, int(nan == NAN_LEFT), members), left, right
        nan_true = nan == NAN_LEFT or (nan == NAN_ZERO and threshold >= 0.0)
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

    def _add_leaf(self, value: float) -> int:
        self.leaves.append(value)
        return len(self.leaves) - 1

    def _link(self, node: int, side: bool, child: int, *, leaf: bool) -> None:
        ids, leaves = (self.true_ids, self.true_leaves) if side else (self.false_ids, self.false_leaves)
        ids[node], leaves[node] = child, int(leaf)
