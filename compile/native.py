"""The oracle: the trained model itself, asked through its own library with the original rows.

What is compiled is held against these answers and nothing else - not against our own form of the model. Rows arrive
encoded by the schema and are turned back into what the model was trained on: the matrix, or a frame with category names.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NativeModel:
    """Rows are float64 (n, width) encoded by the schema; answers float64.

    `answers_labels`: the library answers the number of the predicted class, not scores (XGBoost's multi:softmax).
    """

    library: str
    version: str
    answers_labels: bool
    original: Callable[[Matrix], Any]
    margins: Callable[[Any], Any] | None
    scores: Callable[[Any], Any]

    def margin(self, rows: Matrix) -> Matrix | None:
        """Raw scores (n, groups), or None where the library has none. Raises the library's own refusal of a row."""
        return None if self.margins is None else _ask(self.margins, self.original(rows))

    def score(self, rows: Matrix) -> Matrix:
        """(n, k): positive-class probability, class probabilities or values. Raises the library's refusal of a row."""
        return _ask(self.scores, self.original(rows))

    def accepts(self, rows: Matrix) -> bool:
        """Whether the model answers these rows at all."""
        return self.refusal(rows) == ""

    def refusal(self, rows: Matrix) -> str:
        """The library's words where it does not answer these rows; else empty."""
        try:
            self.score(rows)
        except Exception as refused:  # each library has an error of its own
            return f"{type(refused).__name__}: {str(refused).strip()[:200]}"
        return ""


def native_model(model: Any, final: Any, original: Callable[[Matrix], Any]) -> NativeModel:
    """`model` as it was trained; `final`: the estimator at its end, which says how a raw score is asked for."""
    library = type(final).__module__.split(".")[0]
    margins, scores = _asked(model, final, library)
    labels = library == "xgboost" and hasattr(model, "inplace_predict") and _objective(model) == "multi:softmax"
    return NativeModel(library, importlib.import_module(library).__version__, labels, original, margins, scores)


def as_matrix(rows: Matrix) -> Matrix:
    return rows


def as_frame(names: list[str], places: list[int], categories: Mapping[int, Sequence[Any]]) -> Callable[[Matrix], Any]:
    """Encoded rows as the frame a model with these columns was trained on.

    `categories`: of each category column, by its place in the schema, the training frame's own values, in the order of the
    schema's codes.
    """
    import pandas as pd

    def frame(rows: Matrix) -> Any:
        columns: dict[str, Any] = {}
        for name, place in zip(names, places, strict=True):
            if place not in categories:
                columns[name] = pd.Series(rows[:, place])
                continue
            codes = np.where(np.isnan(rows[:, place]), -1, rows[:, place]).astype(int)
            known = list(categories[place])
            if (codes >= len(known)).any():
                known.append(stranger(known))
            columns[name] = pd.Series(pd.Categorical.from_codes(codes.tolist(), pd.Index(known)))
        return pd.DataFrame(columns)

    return frame


def stranger(known: Sequence[Any]) -> Any:
    """A category of the same type that is none of those known."""
    if known and all(isinstance(category, int | float) for category in known):
        return max(known) + 1
    name = "<other>"
    while name in known:
        name += "<other>"
    return name


def _ask(call: Callable[[Any], Any], rows: Any) -> Matrix:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # about names of columns that a matrix has not
        answers = np.asarray(call(rows), dtype=np.float64)
    return answers.reshape(len(rows), -1)


def _asked(model: Any, final: Any, library: str) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any]]:
    """(raw scores, scores) as calls on original rows."""
    if hasattr(model, "inplace_predict"):
        return _booster_calls(model)
    if hasattr(model, "model_to_string"):
        return (
            lambda rows: model.predict(rows, raw_score=True, num_threads=1),
            lambda rows: model.predict(rows, num_threads=1),
        )
    margins: Callable[[Any], Any] | None = None
    if library == "xgboost":
        margins = lambda rows: model.predict(rows, output_margin=True)  # noqa: E731
    elif library == "lightgbm":
        margins = lambda rows: model.predict(rows, raw_score=True)  # noqa: E731
    elif "GradientBoosting" in type(final).__name__ and hasattr(final, "classes_"):
        margins = model.decision_function
    return margins, _sklearn_scores(model, final)


def _booster_calls(booster: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """In place, since a DMatrix refuses infinite numbers; but for DART, which answers otherwise in place."""
    if json.loads(booster.save_config())["learner"]["gradient_booster"]["name"] != "dart":
        return lambda rows: booster.inplace_predict(rows, predict_type="margin"), booster.inplace_predict
    import xgboost

    def data(rows: Any) -> Any:
        named = {} if hasattr(rows, "columns") else {
            "feature_names": booster.feature_names, "feature_types": booster.feature_types
        }  # fmt: skip
        return xgboost.DMatrix(rows, enable_categorical=True, **named)

    return lambda rows: booster.predict(data(rows), output_margin=True), lambda rows: booster.predict(data(rows))


def _sklearn_scores(model: Any, final: Any) -> Callable[[Any], Any]:
    if hasattr(final, "predict_proba") and hasattr(final, "classes_"):
        binary = len(final.classes_) == 2
        return lambda rows: model.predict_proba(rows)[:, 1:] if binary else model.predict_proba(rows)
    if type(final).__name__ == "IsolationForest":
        return lambda rows: model.decision_function(rows)  # noqa: PLW0108  # what it is is not known
    return lambda rows: model.predict(rows)  # noqa: PLW0108


def _objective(booster: Any) -> str:
    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])
