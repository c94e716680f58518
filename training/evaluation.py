"""How good a binary model is on rows that it has not seen, and whether that is good enough to register."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]

THRESHOLD = 0.5  # positive is predicted above it, as the server does; `training.costs` may choose another


@dataclass(frozen=True)
class Gate:
    """`value` was measured; `passed` where it lies on the right side of `bound`, the bound itself included."""

    name: str
    value: float
    bound: float
    passed: bool

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"{self.name}: {self.value:.4f}, wanted {self.bound:.4f}: {verdict}"


def evaluate(positive: Labels, probability: Floats, threshold: float = THRESHOLD) -> dict[str, float]:
    """accuracy, precision, recall, f1, roc_auc, log_loss, brier; and the majority's share, which is what guessing reaches.

    Both are (n,); both classes must be present. Precision is 0 where nothing was predicted positive.
    """
    from sklearn import metrics

    predicted = probability > threshold
    return {
        "accuracy": float(metrics.accuracy_score(positive, predicted)),
        "precision": float(metrics.precision_score(positive, predicted, zero_division=0.0)),
        "recall": float(metrics.recall_score(positive, predicted)),
        "f1": float(metrics.f1_score(positive, predicted, zero_division=0.0)),
        "roc_auc": float(metrics.roc_auc_score(positive, probability)),
        "log_loss": float(metrics.log_loss(positive, probability)),
        "brier": float(metrics.brier_score_loss(positive, probability)),
        "majority": float(max(positive.mean(), 1 - positive.mean())),
    }


def judge(metrics: Mapping[str, float], gates: Mapping[str, float]) -> list[Gate]:
    """The recipe's gates; where it has none, accuracy must beat the majority class."""
    if not gates:
        accuracy, majority = metrics["accuracy"], metrics["majority"]
        return [Gate("accuracy above the majority class", accuracy, majority, accuracy > majority)]
    judged = []
    for key, bound in gates.items():
        kind, _, metric = key.partition("_")
        value = metrics[metric]
        judged.append(Gate(key, value, bound, value >= bound if kind == "min" else value <= bound))
    return judged
