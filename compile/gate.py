"""The parity gate: a backend answers as the trained model does, on rows chosen to tell them apart, or it is refused.

Margins must be equal bit for bit where that is promised (our ONNX forest on one thread, our kernel), else within 1e-6;
scores within 1e-6, scaled by max(1, |score|); predicted classes equal where the library answers those. One row is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from compile.bundle import Parity, Promise
from compile.errors import ParityFailed
from compile.links import predicted_class
from compile.native import NativeModel
from compile.parity import TOLERANCE, apart

Matrix = npt.NDArray[np.float64]
Progress = Callable[[str], None]


class Asked(Protocol):
    """The part of `compile.runtime.Scorer` that is held against the oracle."""

    def margin(self, rows: Matrix) -> Matrix: ...

    def linked(self, margins: Matrix) -> Matrix: ...


class Oracle:
    """The trained model's answers to the awkward rows, asked once for all backends. Times one answer costs are its own."""

    def __init__(self, native: NativeModel, rows: dict[str, Matrix]) -> None:
        self.native, self.rows = native, rows
        self.margins = {kind: native.margin(block) for kind, block in rows.items()}
        self.scores = {kind: native.score(block) for kind, block in rows.items()}

    @property
    def count(self) -> int:
        return sum(map(len, self.rows.values()))


def prove(name: str, backend: Asked, oracle: Oracle, promise: Promise) -> Parity:
    """The backend's report. Raises ParityFailed, with the first row that differs, if any does."""
    worst_margin: float | None = None
    worst_score = 0.0
    for kind, block in oracle.rows.items():
        margins = backend.margin(block)
        scores = backend.linked(margins)
        theirs = oracle.margins[kind]
        if theirs is not None:
            worst = _compare(name, kind, "margin", block, margins, theirs, TOLERANCE[promise])
            worst_margin = max(worst_margin or 0.0, worst)
        if oracle.native.answers_labels:
            labels = predicted_class(scores)[:, None].astype(np.float64)
            _compare(name, kind, "class", block, labels, oracle.scores[kind], 0.0)
            continue
        worst = _compare(name, kind, "score", block, scores, oracle.scores[kind], TOLERANCE["1e-6"])
        worst_score = max(worst_score, worst)
    counts = {kind: len(block) for kind, block in oracle.rows.items()}
    return Parity(promise, counts, 0, worst_margin, worst_score)


def _compare(name: str, kind: str, what: str, block: Matrix, ours: Matrix, theirs: Matrix, tolerance: float) -> float:
    """The largest difference. Raises ParityFailed."""
    if ours.shape != theirs.shape:
        raise ParityFailed(f"{name}: answers {ours.shape[1]} {what}s, the trained model {theirs.shape[1]}")
    differences = apart(ours, theirs)
    bad = np.flatnonzero((differences > tolerance).any(axis=1))
    if len(bad):
        row = int(bad[0])
        raise ParityFailed(
            f"{name}: {len(bad)} of {len(block)} {kind} rows differ from the native library; the first, "
            f"{block[row].tolist()}, answers {what} {ours[row].tolist()}, the native one is {theirs[row].tolist()}"
        )
    return float(differences.max(initial=0.0))
