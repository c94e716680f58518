"""Which proven backend is the fastest, measured on the machine at hand."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from time import perf_counter_ns

import numpy as np
import numpy.typing as npt

from compile.bundle import Measured
from compile.runtime import Scorer

Matrix = npt.NDArray[np.float64]

BATCHES = (1, 8, 32, 128)
MOST_S = 0.5  # of one batch size


def measure(scorers: Mapping[str, Scorer], rows: Matrix) -> Measured:
    """µs of one call, medians, interleaved over distinct rows: a repeated row would flatter trees.

    The fastest for one row is chosen, unless another is far faster in batches and hardly slower for one.
    """
    medians: dict[str, dict[str, float]] = {name: {} for name in scorers}
    for count in BATCHES:
        for name, us in _medians(scorers, rows, count).items():
            medians[name][str(count)] = round(us, 2)
    return Measured(_chosen(medians), medians, f"{platform.machine()} {platform.system()}")


def _medians(scorers: Mapping[str, Scorer], rows: Matrix, count: int) -> dict[str, float]:
    buffer = np.zeros((count, rows.shape[1]))
    runs = {name: scorer.bound(buffer, np.zeros((count, scorer.outputs)), 5.0) for name, scorer in scorers.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    ends = perf_counter_ns() + int(MOST_S * 1e9)
    for trial in range(200 if count == 1 else 40):
        buffer[:] = np.take(rows, range(trial * count, (trial + 1) * count), axis=0, mode="wrap")
        for name, run in runs.items():
            began = perf_counter_ns()
            run(count)
            samples[name].append((perf_counter_ns() - began) / 1000)
        if perf_counter_ns() > ends and trial >= 4:
            break
    return {name: float(np.median(taken)) for name, taken in samples.items()}


def _chosen(medians: Mapping[str, Mapping[str, float]]) -> str:
    """By the mean over the batch sizes of the cost relative to the best there, one row counting as much as all others."""

    def cost(name: str) -> float:
        relative = {size: medians[name][size] / min(us[size] for us in medians.values()) for size in medians[name]}
        others = [ratio for size, ratio in relative.items() if size != "1"]
        return relative["1"] + sum(others) / len(others)

    return min(medians, key=cost)
