"""How long a call takes on the machine at hand, and which proven backend is the fastest there."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from compile.bundle import Measured
from compile.runtime import Scorer

Matrix = npt.NDArray[np.float64]
Run = Callable[[int], object]
Samples = dict[str, list[list[float]]]  # µs of each call, by run and by round

BATCHES = (1, 8, 32, 128)
MOST_S = 0.1  # of one batch size, at a build
MOST_CALLS = 100  # of one turn


def measure(scorers: Mapping[str, Scorer], rows: Matrix) -> Measured:
    """µs of one call, medians, interleaved over distinct rows: a repeated row would flatter trees.

    The fastest for one row is chosen, unless another is far faster in batches and hardly slower for one.
    """
    medians: dict[str, dict[str, float]] = {name: {} for name in scorers}
    for count in BATCHES:
        buffer = np.zeros((count, rows.shape[1]))
        runs = {name: scorer.bound(buffer, np.zeros((count, scorer.outputs)), 5.0) for name, scorer in scorers.items()}
        for name, rounds in taken(runs, feed(rows, buffer), count, rounds=5, most_s=MOST_S).items():
            medians[name][str(count)] = round(float(np.median(np.concatenate(rounds))), 2)
    return Measured(fastest(medians), medians, machine())


def taken(
    runs: Mapping[str, Run],
    feed: Callable[[int], None],
    count: int,
    *,
    rounds: int,
    most_s: float,
    most_calls: int = MOST_CALLS,
) -> Samples:
    """What each run took, in about `most_s`. In every round each has its turn of some calls, with its own caches warm.

    `feed(n)` puts the n-th rows to where the runs read them; it is not timed. A turn has one call at the least, and all runs
    see the same rows.
    """
    samples: Samples = {name: [] for name in runs}
    feed(0)
    for run in runs.values():
        run(count)
    turn_s = most_s / (rounds * max(1, len(runs)))
    for number in range(rounds):
        for name, run in runs.items():
            samples[name].append(_turn(run, feed, count, number * most_calls, most_calls, turn_s))
    return samples


def feed(rows: Matrix, *buffers: npt.NDArray[np.floating]) -> Callable[[int], None]:
    """For `taken`: fills each of the buffers, all of one length, with the rows that follow; after the last comes the first."""
    count = len(buffers[0])

    def fill(number: int) -> None:
        following = np.take(rows, range(number * count, (number + 1) * count), axis=0, mode="wrap")
        for buffer in buffers:
            buffer[:] = following

    return fill


def fastest(medians: Mapping[str, Mapping[str, float]]) -> str:
    """By the mean over the batch sizes of the cost relative to the best there, one row counting as much as all others."""

    def cost(name: str) -> float:
        relative = {size: medians[name][size] / min(us[size] for us in medians.values()) for size in medians[name]}
        others = [ratio for size, ratio in relative.items() if size != "1"]
        return relative["1"] + sum(others) / len(others)

    return min(medians, key=cost)


def machine() -> str:
    """This host in a few words."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        named = None
    processor = named[1].strip() if named else platform.processor() or platform.machine()
    return (
        f"{os.cpu_count()} x {processor}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def _turn(run: Run, feed: Callable[[int], None], count: int, first: int, most_calls: int, most_s: float) -> list[float]:
    samples: list[float] = []
    ends = perf_counter() + most_s
    for number in range(first, first + most_calls):
        feed(number)
        began = perf_counter()
        run(count)
        ended = perf_counter()
        samples.append(1e6 * (ended - began))
        if ended > ends:
            break
    return samples
