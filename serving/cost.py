"""What a call of a model costs on this machine, measured when it is loaded, and how its rows are dispatched for that."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter_ns
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Reason = Literal["inline", "tick", "busy"]


class Bindable(Protocol):
    """The part of `compile.runtime.Predictor` that a lane needs."""

    @property
    def width(self) -> int: ...

    @property
    def outputs(self) -> int: ...

    @property
    def probe_rows(self) -> Matrix: ...

    def bound(self, rows: Matrix, scores: Matrix) -> Callable[[int], None]: ...


class Cost(NamedTuple):
    """A call's cost in µs: `fixed_us + rows * row_us`."""

    fixed_us: float
    row_us: float


def dispatch_reason(cost: Cost, inline_budget_us: float, max_batch_rows: int = 64) -> Reason:
    """The thread costs about 50 µs of hand-over, the tick 20 beside an inline answer, which C gives: each must be worth it."""
    if cost.fixed_us + cost.row_us > inline_budget_us:
        return "busy"
    return "tick" if max_batch_rows > 1 and cost.fixed_us > max(20.0, cost.row_us) else "inline"


def measure(predictor: Bindable, rows: Matrix, max_batch_rows: int) -> Cost:
    """The model's cost on this machine now: the best of a few calls with one row and with a full batch.

    `rows` are distinct (n, width) rows to cycle through: one row repeated would flatter trees.
    """
    batch = max(2, min(max_batch_rows, 32))
    buffer = np.zeros((batch, predictor.width))
    run = predictor.bound(buffer, np.zeros((batch, predictor.outputs)))
    single = _best_us(run, buffer, rows, 1)
    full = _best_us(run, buffer, rows, batch)
    row_us = max(0.0, (full - single) / (batch - 1))
    return Cost(max(0.0, single - row_us), row_us)


def _best_us(run: Callable[[int], None], buffer: Matrix, rows: Matrix, count: int) -> float:
    best = math.inf
    for trial in range(30):
        buffer[:count] = np.take(rows, range(trial * count, (trial + 1) * count), axis=0, mode="wrap")
        began = perf_counter_ns()
        run(count)
        best = min(best, (perf_counter_ns() - began) / 1000)
    return best
