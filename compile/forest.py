"""One internal form of a boosted forest, read from the native library's own dump with nothing rounded.

XGBoost compares float32 by `<`, sums float32 from the base score on; LightGBM compares float64 by `<=` and sums float64
from zero. Both are kept as they are: a Forest says what its library computes, not what a neutral model would.

Where a missing value (NaN) goes is a property of each split, resolved here once:

    xgboost    the default child
    lightgbm   missing type NaN: the default child. Missing type None: NaN counts as 0.0
    category   xgboost: members go right, NaN to the default child; lightgbm: members go left, NaN right

LightGBM also reads |x| <= 1e-35 as 0.0 before it walks (`zero_snap`).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compile.errors import ModelRefused

Library = Literal["xgboost", "lightgbm"]
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

ZERO_SNAP = float(np.float32(1e-35))  # LightGBM's kZeroThreshold: a float constant in the C++ source
NAN_RIGHT, NAN_LEFT, NAN_ZERO = range(3)


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes of one tree; node 0 is the root. `left` is -1 at a leaf, where `threshold` is the leaf's value.

    `members` holds, for each categorical split by its node, the ascending categories of its set.
    """

    feature: Ints
    threshold: Floats  # holds float32 values exactly where the library is xgboost
    left: Ints
    right: Ints
    nan: Ints  # NAN_RIGHT, NAN_LEFT or NAN_ZERO
    members: dict[int, tuple[int, ...]]

    def depth(self) -> int:
        depths = np.zeros(len(self.left), dtype=np.int32)
        for node in range(len(self.left)):
            if self.left[node] >= 0:
                depths[self.left[node]] = depths[self.right[node]] = depths[node] + 1
        return int(depths.max())


@dataclass(frozen=True, slots=True)
class Forest:
    """A binary classifier's trees in the order in which the library adds them. Probability = 1/(1+exp(-sigmoid*margin))."""

    library: Library
    width: int
    trees: tuple[Tree, ...]
    base: float  # the margin that the sum starts from
    sigmoid: float
    objective: str

    @property
    def dtype(self) -> type[np.float32] | type[np.float64]:
        """What the library compares and sums."""
        return np.float32 if self.library == "xgboost" else np.float64

    @property
    def members_go_right(self) -> bool:
        return self.library == "xgboost"

    @property
    def zero_snap(self) -> bool:
        return self.library == "lightgbm"


def normalise(model: Any) -> Forest:
    """The forest of a native XGBoost or LightGBM model, scikit-learn wrapper or not.

    Raises ModelRefused, naming the part, for whatever is not a binary `gbtree`/`gbdt` classifier with a logistic link.
    """
    kind = type(model).__module__.split(".")[0]
    if kind == "xgboost":
        return _from_xgboost(native_booster(model))
    if kind == "lightgbm":
        return _from_lightgbm(native_booster(model))
    raise ModelRefused(f"model: {type(model).__module__}.{type(model).__name__} is neither XGBoost's nor LightGBM's")


def native_booster(model: Any) -> Any:
    """The booster that answers: only the wrapper applies XGBoost's best iteration, so it is applied here."""
    kind = type(model).__module__.split(".")[0]
    if kind == "lightgbm":
        return getattr(model, "booster_", model)
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    if hasattr(model, "missing") and not (model.missing is None or math.isnan(model.missing)):
        raise ModelRefused(f"missing={model.missing}: encode missing values as NaN before training")
    best = booster.attr("best_iteration") if hasattr(model, "get_booster") else None
    if best is not None and int(best) + 1 < booster.num_boosted_rounds():
        return booster[: int(best) + 1]
    return booster


def _from_xgboost(booster: Any) -> Forest:
    document = json.loads(bytes(booster.save_raw("json")))
    learner = document["learner"]
    booster_kind = learner["gradient_booster"]["name"]
    if booster_kind != "gbtree":
        raise ModelRefused(f"booster={booster_kind}: only gbtree is compiled so far")
    objective = learner["objective"]["name"]
    if objective not in ("binary:logistic", "binary:logitraw"):
        raise ModelRefused(f"objective={objective}: only binary:logistic is compiled so far")
    if objective == "binary:logitraw":
        raise ModelRefused("objective=binary:logitraw answers margins, not probabilities; train with binary:logistic")
    model = learner["gradient_booster"]["model"]
    if any(group != 0 for group in model["tree_info"]):
        raise ModelRefused("several outputs: only binary classification is compiled so far")
    if model.get("cats", {}).get("enc"):
        raise ModelRefused("categories: trained on pandas categories; train on the schema's codes instead")
    base_scores = np.array(_numbers(learner["learner_model_param"]["base_score"]), dtype=np.float32)
    if len(base_scores) != 1:
        raise ModelRefused(f"base_score: one is expected, got {len(base_scores)}")
    width = int(learner["learner_model_param"]["num_feature"])
    trees = tuple(_xgboost_tree(tree) for tree in model["trees"])
    return Forest("xgboost", width, trees, _logit(float(base_scores[0])), 1.0, objective)


def _xgboost_tree(tree: dict[str, Any]) -> Tree:
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise ModelRefused("multi_strategy: vector leaves are not compiled so far")
    left = np.array(tree["left_children"], dtype=np.int32)
    default_left = np.array(tree["default_left"], dtype=bool)
    members: dict[int, tuple[int, ...]] = {}
    for node, begin, size in zip(
        tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
    ):
        members[node] = tuple(sorted(tree["categories"][begin : begin + size]))
    return _checked(
        Tree(
            feature=np.array(tree["split_indices"], dtype=np.int32),
            threshold=np.array(tree["split_conditions"], dtype=np.float32).astype(np.float64),
            left=left,
            right=np.array(tree["right_children"], dtype=np.int32),
            nan=np.where(default_left, NAN_LEFT, NAN_RIGHT).astype(np.int32),
            members=members,
        )
    )


def _logit(probability: float) -> float:
    """XGBoost's ProbToMargin in float32, by the C library's own logf: NumPy's may differ in the last bit."""
    logf = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6").logf
    logf.restype, logf.argtypes = ctypes.c_float, [ctypes.c_float]
    if not 0 < probability < 1:
        raise ModelRefused(f"base_score={probability}: must be between 0 and 1 for a logistic objective")
    inverse = np.float32(1) / np.float32(probability) - np.float32(1)
    return -float(logf(float(inverse)))


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.strip("[]").split(",")]


def _from_lightgbm(booster: Any) -> Forest:
    text = booster.model_to_string()
    header, *blocks = text.split("\nTree=")
    fields = dict(line.split("=", 1) for line in header.splitlines() if "=" in line)
    tokens = fields.get("objective", "").split()
    if not tokens or tokens[0] != "binary":
        raise ModelRefused(f"objective={' '.join(tokens) or '(none)'}: only binary is compiled so far")
    if "average_output" in header.splitlines():
        raise ModelRefused("boosting=rf: averaged trees are not compiled so far")
    sigmoid = next((float(token.split(":")[1]) for token in tokens if token.startswith("sigmoid:")), 1.0)
    width = int(fields["max_feature_idx"]) + 1
    trees = tuple(_lightgbm_tree(block.split("\nend of trees")[0]) for block in blocks)
    return Forest("lightgbm", width, trees, 0.0, sigmoid, " ".join(tokens))


def _lightgbm_tree(block: str) -> Tree:
    fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    if fields.get("is_linear", "0") != "0":
        raise ModelRefused("linear_tree: linear leaves are not compiled so far")
    leaf_values = _floats(fields["leaf_value"])
    splits = int(fields["num_leaves"]) - 1
    if splits == 0:
        empty = np.array([-1], dtype=np.int32)
        return _checked(Tree(empty * 0, leaf_values[:1], empty, empty, empty * 0, {}))
    decision = _ints(fields["decision_type"])
    missing_type = decision >> 2 & 3
    if (missing_type == 1).any():
        raise ModelRefused("zero_as_missing: LightGBM's missing type Zero is not compiled so far")
    categorical = decision & 1 == 1
    default_left = decision & 2 == 2
    thresholds = _floats(fields["threshold"])
    nan = np.where(missing_type == 0, NAN_ZERO, np.where(default_left, NAN_LEFT, NAN_RIGHT))
    nan = np.where(categorical, NAN_RIGHT, nan)
    members = _lightgbm_members(fields, np.flatnonzero(categorical), thresholds)
    return _checked(
        Tree(
            feature=_padded(_ints(fields["split_feature"]), leaf_values.size),
            threshold=np.concatenate([np.where(categorical, 0.0, thresholds), leaf_values]),
            left=_padded(_renumbered(_ints(fields["left_child"]), splits), leaf_values.size, -1),
            right=_padded(_renumbered(_ints(fields["right_child"]), splits), leaf_values.size, -1),
            nan=_padded(nan.astype(np.int32), leaf_values.size),
            members=members,
        )
    )


def _lightgbm_members(
    fields: dict[str, str], nodes: npt.NDArray[Any], thresholds: Floats
) -> dict[int, tuple[int, ...]]:
    """A categorical split's threshold numbers its bitset: words `boundaries[k]` to `boundaries[k + 1]`."""
    if not len(nodes):
        return {}
    boundaries, words = _ints(fields["cat_boundaries"]), [int(word) for word in fields["cat_threshold"].split()]
    members = {}
    for node in nodes.tolist():
        number = int(thresholds[node])
        bitset = words[boundaries[number] : boundaries[number + 1]]
        members[node] = tuple(32 * i + bit for i, word in enumerate(bitset) for bit in range(32) if word >> bit & 1)
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


def _checked(tree: Tree) -> Tree:
    leaves = tree.threshold[tree.left < 0]
    if not np.isfinite(leaves).all():
        raise ModelRefused("leaf values: one is NaN or infinite")
    if np.isnan(tree.threshold).any():
        raise ModelRefused("thresholds: one is NaN")
    return tree
