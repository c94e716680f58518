"""What a kind of model is to the judge: how to train one, and what its own library answers on the original rows.

Nothing here knows how a bundle is made: natives are asked through their public predict calls, and thresholds are read
from their own dumps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from training.features import FeatureSchema

Matrix = npt.NDArray[np.float64]
Task = Literal["binary", "multiclass", "multilabel", "regression", "ranking", "outlier"]


class Answers(NamedTuple):
    """The library's own: raw scores where it has them, linked scores, and the predicted class where it names one."""

    margins: Matrix | None
    scores: Matrix
    labels: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Case:
    """A trained model with its oracle.

    native: the answers on encoded rows, from the original library given the original rows.
    thresholds: (feature, value) of the numeric splits; empty where unknown.
    any_code: rows may hold categories that no schema encodes to (negative, fractional, huge), as a raw matrix could.
    infinite: the native model answers rows beyond float32, and infinite ones.
    exact_labels: the predicted class is decided by margins, so that not even a tie may fall otherwise.
    largest: the largest magnitude asked of a number; less where a step before the trees would overflow float32.
    """

    model: Any
    schema: FeatureSchema
    rows: Matrix
    holdout: Matrix
    native: Callable[[Matrix], Answers]
    thresholds: list[tuple[int, float]]
    classes: tuple[str, ...] = ()
    any_code: bool = False
    infinite: bool = False
    exact_labels: bool = False
    largest: float = 3.4028234e38


@dataclass(frozen=True)
class Kind:
    """One row of the table. `reason` is a regular expression that a refusal must match.

    twofold: the library has two answers itself, an ulp apart; margins may then be off by the scores' tolerance.
    """

    id: str
    says: str
    task: Task
    make: Callable[[int], Case]
    outcome: Literal["served", "refused", "either"] = "served"
    reason: str = ""
    twofold: bool = False

    @property
    def library(self) -> str:
        return {"xgb": "XGBoost", "lgb": "LightGBM", "skl": "scikit-learn"}[self.id[:3]]


def named(kind: Kind, names: Sequence[str]) -> Kind:
    """The kind with these names in its schema."""

    def make(seed: int) -> Case:
        case = kind.make(seed)
        renamed = zip(case.schema.features, names, strict=True)
        features = tuple(msgspec.structs.replace(feature, name=name) for feature, name in renamed)
        return replace(case, schema=FeatureSchema(features))

    return replace(kind, make=make)


def columns(answers: Any, count: int) -> Matrix:
    """(n, k) float64, whatever shape a library answers in."""
    return np.asarray(answers, dtype=np.float64).reshape(count, -1)


def probabilities(answers: Any) -> Matrix:
    """predict_proba's, as served: of two classes the second alone."""
    answers = np.asarray(answers, dtype=np.float64)
    return np.array(answers[:, 1:] if answers.shape[1] == 2 else answers)
