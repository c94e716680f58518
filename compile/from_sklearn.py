"""scikit-learn's own tree ensembles as Forests: bagged forests, gradient boosting, its histogram booster, isolation forests.

Their trees read values rounded to float32 (the histogram booster: as they are), compare with float64 thresholds by `<=` and
add float64 leaves in the order of training. A bagged forest's leaf is a vector; its average is taken by the link.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compile.errors import ModelRefused
from compile.forest import NAN_LEFT, NAN_RIGHT, Floats, Forest, Members, Tree, renumbered
from compile.links import Link
from compile.objectives import sklearn_link


def forest_of(model: Any) -> tuple[Forest, Link]:
    """Over the columns of training, categories by the numbers they had there. Raises ModelRefused, naming the part."""
    for name, read in READERS.items():
        if any(kind.__name__ == name and kind.__module__.startswith("sklearn.") for kind in type(model).__mro__):
            return read(model)
    raise ModelRefused(f"model: {type(model).__module__}.{type(model).__name__} is no tree model that is read here")


def categories_of(model: Any) -> dict[int, tuple[Any, ...]]:
    """The histogram booster's categories, by training column, as they stood in the training rows."""
    encoder = _category_encoder(model)
    if encoder is None:
        return {}
    columns = np.flatnonzero(model.is_categorical_).tolist()
    return {
        column: tuple(value for value in values.tolist() if value == value)
        for column, values in zip(columns, encoder.categories_, strict=True)
    }


def numbers_of(categories: Sequence[Any]) -> list[int]:
    """The number that stands for each category in the forest: itself where all are whole and not negative, else its place."""
    whole = all(isinstance(value, int | float) and value == int(value) and value >= 0 for value in categories)
    return [int(value) for value in categories] if whole else list(range(len(categories)))


def _bagged(model: Any) -> tuple[Forest, Link]:
    """Of a binary classifier's leaves the positive class alone: its sum has the same bits without the other."""
    classifier = hasattr(model, "classes_")
    if classifier and np.ndim(model.n_classes_) > 0:
        raise ModelRefused("classifier: several target columns are not compiled; train one model a target")
    first = 1 if classifier and model.n_classes_ == 2 else 0
    members = list(getattr(model, "estimators_", [model]))
    trees = tuple(_tree(each.tree_, each.tree_.value[:, :, first:]) for each in members)
    vectors = trees[0].vectors
    base = (0.0,) * (1 if vectors is None else vectors.shape[1])
    forest = Forest("sklearn", int(model.n_features_in_), trees, base, "exact", rounds_inputs=True)
    return forest, Link("identity", divisor=float(len(trees)))


def _boosted(model: Any) -> tuple[Forest, Link]:
    if model.init_ != "zero" and not type(model.init_).__name__.startswith("Dummy"):
        raise ModelRefused(
            f"init={type(model.init_).__name__}: an initial estimator is not compiled; use None or 'zero'"
        )
    base = model._raw_predict_init(np.zeros((1, model.n_features_in_)))[0]
    trees = [
        _tree(each.tree_, model.learning_rate * each.tree_.value, output)
        for stage in model.estimators_
        for output, each in enumerate(stage)
    ]
    forest = Forest("sklearn", int(model.n_features_in_), tuple(trees), tuple(base.tolist()), "exact", True)
    return forest, sklearn_link(model)


def _histogram(model: Any) -> tuple[Forest, Link]:
    base = np.ravel(model._baseline_prediction).tolist()
    order, known = _preprocessed(model)
    trees = [
        _histogram_tree(predictor, output, known)
        for stage in model._predictors
        for output, predictor in enumerate(stage)
    ]
    width = int(model._n_features)
    forest = Forest("sklearn", width, tuple(trees), tuple(base), "exact")
    return renumbered(forest, order, width), sklearn_link(model)


def _isolation(model: Any) -> tuple[Forest, Link]:
    link, width = sklearn_link(model), int(model.n_features_in_)
    parts = []
    for number, (each, columns) in enumerate(zip(model.estimators_, model.estimators_features_, strict=True)):
        lengths = model._decision_path_lengths[number] + model._average_path_length_per_tree[number] - 1.0
        tree = _tree(each.tree_, lengths.reshape(-1, 1, 1))
        part = Forest("sklearn", len(columns), (tree,), (0.0,), "exact", rounds_inputs=True)
        parts.append(renumbered(part, columns.tolist(), width).trees[0])
    return Forest("sklearn", width, tuple(parts), (0.0,), "exact", rounds_inputs=True), link


READERS: dict[str, Callable[[Any], tuple[Forest, Link]]] = {
    "HistGradientBoostingClassifier": _histogram,
    "HistGradientBoostingRegressor": _histogram,
    "GradientBoostingClassifier": _boosted,
    "GradientBoostingRegressor": _boosted,
    "IsolationForest": _isolation,
    "ForestClassifier": _bagged,
    "ForestRegressor": _bagged,
    "BaseDecisionTree": _bagged,
}


def _tree(tree: Any, values: Floats, output: int = 0) -> Tree:
    """`values`: (nodes, targets, classes), of which leaves keep theirs."""
    left, right = (np.asarray(side, dtype=np.int32) for side in (tree.children_left, tree.children_right))
    leaf = left < 0
    flat = np.asarray(values, dtype=np.float64).reshape(len(left), -1)
    threshold = np.where(leaf, flat[:, 0], tree.threshold)
    vectors = None
    if flat.shape[1] > 1:
        vectors = flat[leaf]
        threshold[leaf] = np.arange(leaf.sum())
    return Tree(
        feature=np.where(leaf, 0, tree.feature).astype(np.int32),
        threshold=threshold,
        left=np.where(leaf, -1, left).astype(np.int32),
        right=np.where(leaf, -1, right).astype(np.int32),
        nan=np.where(tree.missing_go_to_left, NAN_LEFT, NAN_RIGHT).astype(np.int32),
        members={},
        output=output,
        vectors=vectors,
    )


def _histogram_tree(predictor: Any, output: int, known: Sequence[tuple[int, ...]]) -> Tree:
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(bool)
    to_left = nodes["missing_go_to_left"].astype(bool)
    members = {}
    for node in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf).tolist():
        words = predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]]
        numbers = known[nodes["feature_idx"][node]]
        go_left = {raw for code, raw in enumerate(numbers) if int(words[code // 32]) >> code % 32 & 1}
        # an unknown category goes where a missing value goes: so the set is of those that go the other way
        chosen = set(numbers) - go_left if to_left[node] else go_left
        members[node] = Members(tuple(sorted(chosen)), go_right=bool(to_left[node]))
    return Tree(
        feature=np.where(leaf, 0, nodes["feature_idx"]).astype(np.int32),
        threshold=np.where(leaf, nodes["value"], np.where(nodes["is_categorical"], 0.0, nodes["num_threshold"])),
        left=np.where(leaf, -1, nodes["left"]).astype(np.int32),
        right=np.where(leaf, -1, nodes["right"]).astype(np.int32),
        nan=np.where(to_left, NAN_LEFT, NAN_RIGHT).astype(np.int32),
        members=members,
        output=output,
    )


def _category_encoder(model: Any) -> Any:
    if getattr(model, "is_categorical_", None) is None:
        return None
    return model._preprocessor.named_transformers_["encoder"]


def _preprocessed(model: Any) -> tuple[list[int], list[tuple[int, ...]]]:
    """The training column of each inner column (categories come first inside), and the inner categories' numbers."""
    if _category_encoder(model) is None:
        return list(range(int(model._n_features))), []
    is_categorical = np.asarray(model.is_categorical_)
    order = [*np.flatnonzero(is_categorical).tolist(), *np.flatnonzero(~is_categorical).tolist()]
    return order, [tuple(numbers_of(values)) for values in categories_of(model).values()]
