"""How good a model of each task is, by which figures, and what it must beat.

binary       see `training.evaluation`
multiclass   accuracy, roc_auc (one class against the rest, each class alike), log_loss; and majority
regression   mae, rmse, r2; and mae_of_median: the mean absolute error of always saying the training rows' median
ranking      ndcg_5, ndcg_10: mean over the queries with a relevant row, gains 2^relevance - 1, ties at their average;
             first_relevant: mean of 1 / place of the first relevant row; and ndcg_10_of_chance: of any order, on average
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from training import evaluation
from training.evaluation import Gate
from training.features import Matrix
from training.parts import Part
from training.recipe import Task

TOLD = {
    "binary": ("accuracy", "roc_auc"),
    "multiclass": ("accuracy", "roc_auc"),
    "regression": ("mae", "rmse", "r2"),
    "ranking": ("ndcg_10",),
}


def measure(task: Task, part: Part, said: Matrix, trained: Part) -> dict[str, float]:
    """`said` is what `boosters.probability` answers for the rows of `part`; `trained`: the training rows."""
    if task == "binary":
        return evaluation.evaluate(part.labels, said)
    if task == "regression":
        return _regression(part, said, trained)
    return _multiclass(part, said) if task == "multiclass" else _ranking(part, said)


def judge(task: Task, metrics: Mapping[str, float], gates: Mapping[str, float]) -> list[Gate]:
    """The recipe's gates; where it has none, guessing must be beaten."""
    if task == "regression" and not gates:
        error, guessing = metrics["mae"], metrics["mae_of_median"]
        return [Gate("mean absolute error below the median's", error, guessing, error < guessing)]
    if task == "ranking" and not gates:
        found, guessing = metrics["ndcg_10"], metrics["ndcg_10_of_chance"]
        return [Gate("NDCG of the first ten above that of chance", found, guessing, found > guessing)]
    return evaluation.judge(metrics, gates)


def _multiclass(part: Part, said: Matrix) -> dict[str, float]:
    from sklearn import metrics

    labels, every = part.labels, np.arange(said.shape[1])
    shares = said / said.sum(axis=1, keepdims=True)  # float32 sums are one but for their rounding
    areas = [metrics.roc_auc_score(labels == code, shares[:, code]) for code in every]
    return {
        "accuracy": float(metrics.accuracy_score(labels, said.argmax(axis=1))),
        "roc_auc": float(np.mean(areas)),
        "log_loss": float(metrics.log_loss(labels, shares, labels=every)),
        "majority": float(np.bincount(labels).max() / len(labels)),
    }


def _regression(part: Part, said: Matrix, trained: Part) -> dict[str, float]:
    from sklearn import metrics

    return {
        "mae": float(metrics.mean_absolute_error(part.labels, said)),
        "rmse": float(metrics.root_mean_squared_error(part.labels, said)),
        "r2": float(metrics.r2_score(part.labels, said)),
        "mae_of_median": float(np.abs(part.labels - np.median(trained.labels)).mean()),
    }


def _ranking(part: Part, said: Matrix) -> dict[str, float]:
    from sklearn.metrics import ndcg_score

    found: dict[str, list[float]] = {"ndcg_5": [], "ndcg_10": [], "first_relevant": [], "ndcg_10_of_chance": []}
    ends = np.cumsum(part.queries)
    for first, end in zip(ends - part.queries, ends, strict=True):
        labels, scores = part.labels[first:end], said[first:end]
        if len(labels) < 2 or not labels.any():
            continue  # there is no order to be right or wrong about
        gains = 2.0**labels - 1
        for name, most in (("ndcg_5", 5), ("ndcg_10", 10)):
            found[name].append(float(ndcg_score([gains], [scores], k=most)))
        found["ndcg_10_of_chance"].append(float(ndcg_score([gains], [np.zeros(len(gains))], k=10)))
        placed = labels[np.argsort(-scores, kind="stable")]
        found["first_relevant"].append(1 / (1 + int(np.argmax(placed > 0))))
    return {name: float(np.mean(values)) if values else 0.0 for name, values in found.items()}
