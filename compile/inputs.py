"""Which column of a row each feature of a trained model is, and which code each of its categories has.

Columns are matched by name where both sides have names, never by position then; a booster that was trained without names
has the schema's order. Category codes of a model that was trained on category names are rewritten to the schema's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compile import from_lightgbm, from_sklearn, from_xgboost
from compile.errors import ModelRefused
from compile.forest import Forest, recoded, renumbered
from compile.links import Link
from compile.native import as_frame, as_matrix, stranger
from compile.program import Program
from training.features import FeatureSchema

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model's rows are: the schema's (then columns have names), or a program's."""

    schema: FeatureSchema
    width: int
    named: bool

    @classmethod
    def of(cls, schema: FeatureSchema, program: Program | None) -> Inputs:
        return cls(schema, schema.width, True) if program is None else cls(schema, program.width, False)


@dataclass(frozen=True, slots=True)
class Part:
    """A forest over the inputs' columns, with its link. `original`: encoded rows as the model was trained on them."""

    forest: Forest
    link: Link
    places: tuple[int, ...]
    by_name: bool
    original: Callable[[Matrix], Any]


def read_estimator(estimator: Any, inputs: Inputs) -> Part:
    """Raises ModelRefused, naming the part."""
    library = type(estimator).__module__.split(".")[0]
    if library == "xgboost":
        return _xgboost(estimator, inputs)
    if library == "lightgbm":
        return _lightgbm(estimator, inputs)
    return _sklearn(estimator, inputs)


def _xgboost(estimator: Any, inputs: Inputs) -> Part:
    booster = _best_rounds(estimator)
    learner = from_xgboost.learner_of(booster)
    forest, link = from_xgboost.forest_in(learner, in_place=booster is not estimator)
    categories = from_xgboost.pandas_categories(learner)
    places = _places(booster.feature_names, forest.width, inputs)
    codes = {}
    for feature, known in categories.items():
        codes[feature] = _codes(inputs, places[feature], known)
        strangers = set(inputs.schema.features[places[feature]].categories) - set(map(_text, known))
        if strangers or inputs.schema.features[places[feature]].unseen == "other":
            raise ModelRefused(
                f"{inputs.schema.names[places[feature]]}: XGBoost refuses a category that it was not trained on"
                + (
                    f", as {sorted(strangers)[0]!r}"
                    if strangers
                    else '; the schema must have unseen = "missing" or "refuse"'
                )
            )
    return _part(forest, link, places, codes, categories, list(booster.feature_names or ()), inputs)


def _lightgbm(estimator: Any, inputs: Inputs) -> Part:
    booster = getattr(estimator, "booster_", estimator)
    forest, link = from_lightgbm.forest_of(booster)
    names = list(booster.feature_name())
    places = _places(names, forest.width, inputs)
    known = from_lightgbm.pandas_categories(booster)
    features = from_lightgbm.categorical_features(booster) if known else []
    if len(known) != len(features):
        raise ModelRefused(f"categories: {len(known)} tables for {len(features)} category columns")
    categories = dict(zip(features, known, strict=True))
    codes = {feature: _codes(inputs, places[feature], table) for feature, table in categories.items()}
    return _part(forest, link, places, codes, categories, names, inputs)


def _sklearn(estimator: Any, inputs: Inputs) -> Part:
    forest, link = from_sklearn.forest_of(estimator)
    names = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
    places = _places(names or None, forest.width, inputs)
    codes: dict[int, dict[int, int]] = {}
    for feature, known in from_sklearn.categories_of(estimator).items():
        named = inputs.named and inputs.schema.features[places[feature]].kind == "category"
        if named and (getattr(estimator, "categorical_features", None) == "from_dtype" or isinstance(known[0], str)):
            numbers = from_sklearn.numbers_of(known)
            ours = _codes(inputs, places[feature], known)
            codes[feature] = {numbers[code]: mine for code, mine in ours.items()}
        elif from_sklearn.numbers_of(known) != list(known):
            raise ModelRefused(f"categories: of column {feature} are no whole numbers from 0 on, as codes are")
    return _part(forest, link, places, codes, from_sklearn.categories_of(estimator), names, inputs)


def _part(
    forest: Forest,
    link: Link,
    places: Sequence[int],
    codes: dict[int, dict[int, int]],
    categories: Mapping[int, Sequence[Any]],
    names: list[str],
    inputs: Inputs,
) -> Part:
    """`codes`: the schema's code of each category's number in the forest, by feature. `categories`: all of training's."""
    forest = renumbered(recoded(forest, codes), places, inputs.width)
    original: Callable[[Matrix], Any] = as_matrix
    if codes:
        values = {places[feature]: _values(inputs, places[feature], categories[feature]) for feature in codes}
        original = as_frame(names, list(places), values)
    elif list(places) != list(range(inputs.width)):
        original = lambda rows: np.ascontiguousarray(rows[:, places])  # noqa: E731
    return Part(forest, link, tuple(places), bool(codes), original)


def _best_rounds(estimator: Any) -> Any:
    """The booster that answers: only the wrapper applies the best iteration, so it is applied here."""
    if not hasattr(estimator, "get_booster"):
        return estimator
    booster = estimator.get_booster()
    best = booster.attr("best_iteration")
    if best is None or int(best) + 1 >= booster.num_boosted_rounds():
        return booster.copy()
    try:
        return booster[: int(best) + 1]
    except Exception as failure:  # XGBoost's own error, as for dart
        raise ModelRefused(f"early stopping: XGBoost can't take the first {int(best) + 1} rounds: {failure}") from None


def _places(names: Sequence[str] | None, width: int, inputs: Inputs) -> list[int]:
    """Each feature's column. Raises ModelRefused where names do not match."""
    if width != inputs.width:
        raise ModelRefused(f"schema: the model was trained on {width} features, its rows here have {inputs.width}")
    in_order = list(range(width))
    if not names or not inputs.named:
        return in_order
    if sorted(names) == sorted(inputs.schema.names):
        return [inputs.schema.names.index(name) for name in names]
    theirs, ours = [_plain(name) for name in names], [_plain(name) for name in inputs.schema.names]
    if theirs == ours:
        return in_order
    if sorted(theirs) == sorted(ours) and len(set(ours)) == width:
        return [ours.index(name) for name in theirs]
    if theirs in ([f"f{j}" for j in in_order], [f"Column_{j}" for j in in_order]):
        return in_order
    odd = next(name for name, plain in zip(names, theirs, strict=True) if theirs.count(plain) > 1 or plain not in ours)
    raise ModelRefused(
        f"columns: the model was trained on {odd!r}, which is none, or not only one, of the schema's features"
    )


def _plain(name: str) -> str:
    """As the libraries may have written it: they replace what they do not take."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _codes(inputs: Inputs, place: int, known: Sequence[Any]) -> dict[int, int]:
    """The model's code of each category -> the schema's. Categories are matched by how they are written."""
    if not inputs.named:
        raise ModelRefused("categories: a model behind transforms was trained on category names")
    feature = inputs.schema.features[place]
    if feature.kind != "category":
        raise ModelRefused(f"{feature.name}: the model was trained on categories, the schema has a {feature.kind}")
    written = [_text(category) for category in known]
    if len(set(written)) != len(written):
        raise ModelRefused(f"{feature.name}: two of the model's categories are written alike")
    ours = {category: code for code, category in enumerate(feature.categories)}
    return {code: ours[category] for code, category in enumerate(written) if category in ours}


def _values(inputs: Inputs, place: int, known: Sequence[Any]) -> list[Any]:
    """The training frame's value of each of the schema's categories; strangers for those that it did not have."""
    by_text = {_text(category): category for category in known}
    values: list[Any] = []
    for category in inputs.schema.features[place].categories:
        of_text = isinstance(known[0], str)
        values.append(
            by_text[category] if category in by_text else category if of_text else stranger([*known, *values])
        )
    return values


def _text(category: Any) -> str:
    whole = isinstance(category, float) and category == int(category)
    return str(int(category)) if whole else str(category)
