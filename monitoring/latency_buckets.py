"""Latencies counted in fixed buckets, which can be added up over hours, as quantiles can't.

A time of w µs is in the bucket `place(w)`: its own below 32 µs, and above it the sixteenth of its octave. So a bucket is at
most a sixteenth of its lower edge wide, and a quantile read from its middle is at most `ERROR`, 1/32, from the exact one
(which, as everywhere, is interpolated between the two rows that it falls between).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ibis
import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
FINE = 16  # buckets of an octave
OCTAVES = range(4, 34)
BUCKETS = FINE * (len(OCTAVES) + 1)
ERROR = 1 / (2 * FINE)


def place(whole_us: Any) -> Any:
    """The bucket of an Ibis column of whole µs, in whole numbers alone, so that every engine finds the same."""
    octaves = [
        (whole_us < 2 ** (k + 1), FINE * (k - 4) + (whole_us / 2 ** (k - 4)).floor().cast("int64")) for k in OCTAVES
    ]
    return ibis.cases((whole_us < 0, 0), *octaves, else_=BUCKETS - 1).cast("int64")


def middle_us(bucket: int) -> float:
    """
    >>> middle_us(31), middle_us(32), middle_us(33)
    (31.0, 32.5, 34.5)
    """
    if bucket < 2 * FINE:
        return float(bucket)
    shift = bucket // FINE - 1
    return ((bucket - FINE * shift) << shift) + ((1 << shift) - 1) / 2


MIDDLES_US = np.array([middle_us(bucket) for bucket in range(BUCKETS)])


def quantiles_us(counts: Counts, wanted: Sequence[float]) -> list[float | None]:
    """Of rows counted by bucket; None where there are none.

    >>> quantiles_us(np.bincount([20, 30], minlength=BUCKETS), [0, 0.5, 1])
    [20.0, 25.0, 30.0]
    """
    reached = np.cumsum(counts)
    whole = int(reached[-1])
    if not whole:
        return [None] * len(wanted)
    ranks = np.asarray(wanted) * (whole - 1)
    below, above = (
        MIDDLES_US[np.searchsorted(reached, edge, side="right")] for edge in (np.floor(ranks), np.ceil(ranks))
    )
    return [float(value) for value in below + (above - below) * (ranks - np.floor(ranks))]
