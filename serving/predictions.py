"""A model's scores as arrays: the tensors of a task, and the plain numbers that other scoring servers answer.

    binary       prediction BYTES [n]       the label             probability FP64 [n]       of the positive class
    multiclass   prediction BYTES [n]       the label             probabilities FP64 [n, classes]
    multilabel   prediction BOOL [n, k]     above the threshold   probabilities FP64 [n, k]
    regression   prediction FP64 [n], of several outputs [n, k]
    ranking      as regression
    outlier      prediction BYTES [n]       outlier or inlier     score FP64 [n]

Plain numbers are what the native library's `predict` gives: the probability, value or score; a list of each row's where
the model has several outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compile.bundle import Manifest
from serving.errors import NotScored
from serving.lanes import Scores
from serving.many import Many
from serving.tasks import INLIER, OUTLIER
from serving.tensors import BOOL, BYTES

Array = npt.NDArray[Any]


class Output(NamedTuple):
    """`columns` 0: one value a row. `of`: from (n, outputs) float64."""

    name: str
    datatype: str
    columns: int
    of: Callable[[Array], Array]


def outputs_of(manifest: Manifest) -> tuple[Output, ...]:
    wide = len(manifest.outputs)
    labels = np.array(manifest.classes, dtype=object)
    threshold = manifest.threshold
    values = Output("prediction", "FP64", 0 if wide == 1 else wide, _values)
    probabilities = Output("probabilities", "FP64", wide, lambda scores: scores)
    by_task: dict[str, tuple[Output, ...]] = {
        "binary": (
            Output("prediction", BYTES, 0, lambda scores: labels[(scores[:, 0] > threshold).astype(int)]),
            Output("probability", "FP64", 0, _values),
        ),
        "multiclass": (Output("prediction", BYTES, 0, lambda scores: labels[scores.argmax(axis=1)]), probabilities),
        "multilabel": (Output("prediction", BOOL, wide, lambda scores: scores > threshold), probabilities),
        "outlier": (
            Output("prediction", BYTES, 0, lambda scores: np.where(scores[:, 0] < 0, OUTLIER, INLIER).astype(object)),
            Output("score", "FP64", 0, _values),
        ),
    }
    return by_task.get(manifest.task, (values,))


def scores_of(manifest: Manifest, many: Many) -> Array:
    """(n, outputs) float64. Raises NotScored where the model failed on a row."""
    return np.array(plain_numbers(many), dtype=np.float64).reshape(len(many.scores), len(manifest.outputs))


def plain_numbers(many: Many) -> Sequence[Scores]:
    """Raises NotScored."""
    if many.failed:
        raise NotScored("the model could not score this row, or its score is infinite").of_row(many.failed[0])
    return many.scores


def _values(scores: Array) -> Array:
    return scores[:, 0] if scores.shape[1] == 1 else scores
