"""The tests that one window is judged by, as one family: each a p-value and a share of the 5 %, adjusted together.

A family is a list of `Member`s. Its level, ALPHA, is shared among them by weight (Holm's procedure with weights): the chance
that anything at all is found in a window from the reference's own population is at most ALPHA, however many tests there
are and however they depend on each other. `adjusted` gives each test the p-value that may be compared with ALPHA itself.

Every test measures its effect in one unit, the share of rows that would have to be others for the two sides to agree: the
largest distance of the distribution functions for numbers, the total variation of the shares for categories, the difference
of two shares. With many rows a p-value finds differences that nobody cares about; `FLOORS` are the least effects that count.

    values         numbers: the rank sum with three quarters of the level, which sees a shift soonest, and Kolmogorov-Smirnov
                   (by the limit law with Stephens' correction) with a quarter, which sees any change.
                   categories: chi-square of homogeneity; categories that are expected fewer than 5 times are taken together
    missing        two shares, Fisher's exact test
    infinite       the same
    new category   the share of one category that the reference lacks, exact and one-sided, times the number of categories

All but Kolmogorov-Smirnov condition on what the two sides hold together, ties included; it is cautious where there are ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Kind = Literal["values", "missing", "infinite", "new category"]

ALPHA = 0.05
FLOORS: dict[Kind, float] = {"values": 0.03, "missing": 0.01, "infinite": 0.001, "new category": 0.005}
LEVEL_PART = 0.75  # of a number's level, for the rank sum
NOT_TIED = 50.0  # rows of the smaller side that differ from the commonest value, for the rank sum's law to be normal
EXPECTED = 5.0  # rows of a category on the smaller side, for chi-square


@dataclass(frozen=True)
class Member:
    """One test of one column. `weight`: its part of the family's level, of whatever sum. `effect`: share of rows."""

    column: str
    kind: Kind
    p: float
    effect: float
    weight: float

    @property
    def matters(self) -> bool:
        return self.effect >= FLOORS[self.kind]


def adjusted(tests: Sequence[Member]) -> list[float]:
    """Each test's p-value within the family, by Holm's procedure with weights: at most ALPHA, and it is found.

    >>> [round(p, 6) for p in adjusted([Member("a", "values", 0.01, 1, 3), Member("b", "values", 0.04, 1, 1)])]
    [0.013333, 0.04]
    """
    weights = np.array([test.weight for test in tests], dtype=np.float64)
    values = np.array([test.p for test in tests], dtype=np.float64)
    order = np.argsort(values / weights, kind="stable")
    remaining = np.cumsum(weights[order][::-1])[::-1]
    steps = np.maximum.accumulate(np.minimum(1.0, values[order] * remaining / weights[order]))
    found = np.empty(len(tests))
    found[order] = steps
    return found.tolist()


def numbers_differ(known: Floats, now: Floats) -> tuple[float, float]:
    """(p, largest distance of the distribution functions) of finite values, at least one on each side.

    >>> numbers_differ(np.arange(9.0), np.arange(9.0))
    (1.0, 0.0)
    """
    known, now = np.sort(known), np.sort(now)
    distinct, counts = np.unique(np.concatenate([known, now]), return_counts=True)
    below = np.searchsorted(known, distinct, "right") / len(known), np.searchsorted(now, distinct, "right") / len(now)
    distance = float(np.abs(below[0] - below[1]).max())
    root = np.sqrt(len(known) * len(now) / (len(known) + len(now)))
    shape = float(special.kolmogorov((root + 0.12 + 0.11 / root) * distance))
    level = _ranks_differ(known, now, counts)
    return (shape if level is None else min(1.0, shape / (1 - LEVEL_PART), level / LEVEL_PART)), distance


def categories_differ(known: Counts, now: Counts) -> tuple[float, float]:
    """(p, total variation) of the counts of each category, at least one row on each side.

    >>> p, moved = categories_differ(np.array([90, 10]), np.array([70, 30])); p < 0.001, round(moved, 6)
    (True, 0.2)
    """
    moved = float(np.abs(known / known.sum() - now / now.sum()).sum() / 2)
    table = _pooled(np.stack([known, now]))
    if table.shape[1] < 2:
        return 1.0, moved
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return float(special.chdtrc(table.shape[1] - 1, statistic)), moved


def shares_differ(known_hits: int, known_rows: int, now_hits: int, now_rows: int) -> tuple[float, float]:
    """(exact p, difference) of two shares: twice the smaller tail of the hypergeometric law.

    >>> shares_differ(0, 100, 0, 50)
    (1.0, 0.0)
    """
    law = (known_rows + now_rows, known_hits + now_hits, now_rows)
    tail = min(_at_most(now_hits, law), _at_least(now_hits, law))
    return min(1.0, 2 * tail), abs(known_hits / known_rows - now_hits / now_rows)


def new_category(known: Counts, now: Counts) -> tuple[float, float, int]:
    """(p, share of the window's rows, which category) of the most frequent category that the reference lacks.

    Of a column with many rare categories every window has some that the reference lacks: so each is asked alone whether the
    window has more of it than chance would give, and p is multiplied by the number of categories.

    >>> new_category(np.array([50, 50, 0]), np.array([10, 10, 0]))
    (1.0, 0.0, -1)
    """
    absent = np.flatnonzero((known == 0) & (now > 0))
    if not len(absent):
        return 1.0, 0.0, -1
    most = int(absent[np.argmax(now[absent])])
    present = int(((known + now) > 0).sum())
    count, rows = int(now[most]), int(now.sum())
    tail = _at_least(count, (int(known.sum()) + rows, count, rows))
    return min(1.0, tail * present), count / rows, most


def _ranks_differ(known: Floats, now: Floats, counts: Counts) -> float | None:
    """p of the rank sum, corrected for ties. `counts`: of each distinct value of both. None where nearly all are equal."""
    total, fewer = int(counts.sum()), min(len(known), len(now))
    if (total - counts.max()) * fewer / total < NOT_TIED:
        return None
    above = (np.searchsorted(known, now, "left") + np.searchsorted(known, now, "right")).mean() / 2 / len(known)
    cubes = counts.astype(np.float64)
    ties = float((cubes**3 - cubes).sum()) / (total * (total - 1))
    error = np.sqrt((total + 1 - ties) / (12 * len(known) * len(now)))
    return float(2 * special.ndtr(-abs(above - 0.5) / error))


def _pooled(table: Counts) -> Counts:
    """Without empty categories; the rare ones as one, which where rare itself joins the rarest of the others."""
    table = table[:, table.sum(0) > 0]
    expected = table.sum(0) * (table.sum(1).min() / table.sum())
    rare = expected < EXPECTED
    if not rare.any():
        return table
    kept, pool = table[:, ~rare], table[:, rare].sum(1, keepdims=True)
    if expected[rare].sum() < EXPECTED and kept.shape[1]:
        kept[:, [int(np.argmin(kept.sum(0)))]] += pool
        return kept
    return np.concatenate([kept, pool], axis=1)


def _at_least(hits: int, law: tuple[int, int, int]) -> float:
    return _probability(stats.hypergeom.sf(hits - 1, *law))


def _at_most(hits: int, law: tuple[int, int, int]) -> float:
    return _probability(stats.hypergeom.cdf(hits, *law))


def _probability(value: Any) -> float:
    """Sums of many small terms may end a rounding beyond 1, or below 0."""
    return float(np.clip(value, 0.0, 1.0))
