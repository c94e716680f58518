"""What an experiment has seen, as sums that add: over hours, shards, phases, in any order.

A cell is one arm in one stratum (ramp phase, segment, hour: whatever the caller must not pool over) and holds `Moments`.
Nothing here is a mean or a variance, so that `a + b` is what would have been counted had both been one, and the same plan
reads the same evidence from DuckDB, Spark or a list.

Count a unit once, with its outcome matured by one rule for both arms; a unit whose outcome is unknown is not a zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

from monitoring.mixtures import Floats

Stratum = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over `n` units of a metric x, and of a covariate y where there is one (0 where there is none).

    `nonzero` counts x != 0: the events of a proportion, the payers of a revenue. Raises ValueError for sums that no n
    finite numbers have.
    """

    n: int = 0
    nonzero: int = 0
    total: float = 0.0
    squares: float = 0.0
    covariate: float = 0.0
    covariate_squares: float = 0.0
    product: float = 0.0

    def __post_init__(self) -> None:
        for name in ("total", "squares", "covariate", "covariate_squares", "product"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: must be a finite number, got {getattr(self, name)}")
        if not 0 <= self.nonzero <= self.n:
            raise ValueError(f"nonzero: must be within 0..n = {self.n}, got {self.nonzero}")
        if self.squares < 0 or self.covariate_squares < 0:
            raise ValueError("squares: a sum of squares is not below zero")

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(Moments)))


def moments(values: Iterable[float], covariate: Iterable[float] | None = None) -> Moments:
    """Of units at hand; both of one length.

    >>> moments([0.0, 1.0, 1.0]) + moments([3.0])
    Moments(n=4, nonzero=3, total=5.0, squares=11.0, covariate=0.0, covariate_squares=0.0, product=0.0)
    """
    x = np.asarray(list(values), np.float64)
    y = np.zeros_like(x) if covariate is None else np.asarray(list(covariate), np.float64)
    if x.shape != y.shape:
        raise ValueError(f"covariate: {len(y)} values beside {len(x)}")
    sums = (x.sum(), (x * x).sum(), y.sum(), (y * y).sum(), (x * y).sum())
    return Moments(len(x), int(np.count_nonzero(x)), *map(float, sums))


def winsorised(values: Iterable[float], cap: float) -> list[float]:
    """Values cut to `cap` from above: for revenue, with a cap that the plan fixed beforehand."""
    if not cap > 0:
        raise ValueError(f"cap: must be above zero, got {cap}")
    return [min(value, cap) for value in values]


@dataclass(frozen=True)
class Evidence:
    """Moments by (stratum, arm). A cell that is absent has seen nothing."""

    cells: Mapping[tuple[Stratum, str], Moments] = field(default_factory=dict)

    def __add__(self, other: Evidence) -> Evidence:
        both = dict(self.cells)
        for cell, seen in other.cells.items():
            both[cell] = both.get(cell, Moments()) + seen
        return Evidence(both)

    def arm(self, arm: str) -> Moments:
        """Over all strata: for counting, not for comparing."""
        return sum((seen for (_, name), seen in sorted(self.cells.items()) if name == arm), Moments())

    def strata(self) -> list[Stratum]:
        return sorted({stratum for stratum, _ in self.cells})

    def sums(self, arm: str) -> Sums:
        """The arm's cells as arrays along `strata()`, zeros where a cell is absent."""
        return stacked([self.cells.get((stratum, arm), Moments()) for stratum in self.strata()])


class Sums(NamedTuple):
    """Moments as arrays; strata lie along the last axis. Leading axes may be anything (a simulation's runs and looks)."""

    n: Floats
    nonzero: Floats
    total: Floats
    squares: Floats
    covariate: Floats
    covariate_squares: Floats
    product: Floats


def stacked(cells: Sequence[Moments]) -> Sums:
    return Sums(*(np.array([getattr(cell, item.name) for cell in cells], np.float64) for item in fields(Moments)))


@dataclass(frozen=True, slots=True)
class Interval:
    """lower < estimate < upper covers the truth at all times together with probability 1 - alpha; an open side is infinite.

    `p` is an always-valid p-value: below alpha where the interval leaves the null out. `units` were counted.
    """

    estimate: float
    lower: float
    upper: float
    p: float
    se: float
    units: int


@dataclass(frozen=True, slots=True)
class NotEstimable:
    """There is no figure yet, or none at all, for this reason. Never a zero."""

    reason: str
