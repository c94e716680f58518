"""How good a model of each task is, by which figures, and what it must beat.

binary       see `training.evaluation`
multiclass   accuracy, roc_auc (one class against the rest, each class alike), log_loss; and majority
regression   mae, rmse, r2; and mae_of_median: the mean absolute error of always saying the training rows' median
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from training import evaluation
from training.data import Labels
from training.evaluation import Gate
from training.features import Matrix
from training.recipe import Task

TOLD = {"binary": ("accuracy", "roc_auc"), "multiclass": ("accuracy", "roc_auc"), "regression": ("mae", "rmse", "r2")}


def measure(task: Task, labels: Labels, said: Matrix, trained: Labels) -> dict[str, float]:
    """`said` is what `boosters.probability` answers for the rows of `labels`; `trained`: the training rows' labels."""
    if task == "binary":
        return evaluation.evaluate(labels, said)
    return _multiclass(labels, said) if task == "multiclass" else _regression(labels, said, trained)


def judge(task: Task, metrics: Mapping[str, float], gates: Mapping[str, float]) -> list[Gate]:
    """The recipe's gates; where it has none, guessing must be beaten."""
    if task == "regression" and not gates:
        error, guessing = metrics["mae"], metrics["mae_of_median"]
        return [Gate("mean absolute error below the median's", error, guessing, error < guessing)]
    return evaluation.judge(metrics, gates)


def _multiclass(labels: Labels, said: Matrix) -> dict[str, float]:
    from sklearn import metrics

    every = np.arange(said.shape[1])
    shares = said / said.sum(axis=1, keepdims=True)  # float32 sums are one but for their rounding
    areas = [metrics.roc_auc_score(labels == code, shares[:, code]) for code in every]
    return {
        "accuracy": float(metrics.accuracy_score(labels, said.argmax(axis=1))),
        "roc_auc": float(np.mean(areas)),
        "log_loss": float(metrics.log_loss(labels, shares, labels=every)),
        "majority": float(np.bincount(labels).max() / len(labels)),
    }


def _regression(labels: Labels, said: Matrix, trained: Labels) -> dict[str, float]:
    from sklearn import metrics

    return {
        "mae": float(metrics.mean_absolute_error(labels, said)),
        "rmse": float(metrics.root_mean_squared_error(labels, said)),
        "r2": float(metrics.r2_score(labels, said)),
        "mae_of_median": float(np.abs(labels - np.median(trained)).mean()),
    }
