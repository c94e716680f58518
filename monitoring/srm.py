"""Sample-ratio mismatch: did the arms get the shares they were meant to? If not, no figure of the experiment is to be believed.

A chi-square test looked at after every batch accuses a sound splitter sooner or later. The Dirichlet e-process here does not
(at 0.01, of 100 sound experiments at most one is ever accused): Lindon and Malek, arXiv 2011.03567. It counts units, of
which each is assigned once; requests of one unit are not independent. One phase has one set of shares; phases add.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from monitoring.mixtures import Floats

STRENGTH = 200.0  # of the prior, in units: looks for shares that are off by a few per cent


@dataclass(frozen=True)
class Assigned:
    """Units by arm, in a phase that gave each arm its share (any scale; arms with no share may get no unit)."""

    units: Mapping[str, int]
    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        if strange := set(self.units) - set(self.shares):
            raise ValueError(f"units: arms without a share: {sorted(strange)}")
        if not self.shares or min(self.shares.values()) < 0 or not 0 < sum(self.shares.values()) < math.inf:
            raise ValueError(f"shares: must be zero or more and not all zero, got {dict(self.shares)}")
        if any(count < 0 for count in self.units.values()):
            raise ValueError(f"units: can't be below zero, got {dict(self.units)}")

    @property
    def counts(self) -> list[int]:
        return [self.units.get(arm, 0) for arm in self._arms]

    @property
    def expected(self) -> list[float]:
        whole = sum(self.shares[arm] for arm in self._arms)
        return [self.shares[arm] / whole for arm in self._arms]

    @property
    def misplaced(self) -> int:
        """Units in arms that have no share."""
        return sum(count for arm, count in self.units.items() if not self.shares[arm])

    @property
    def _arms(self) -> list[str]:
        return [arm for arm, share in self.shares.items() if share]


def log_mismatch(phases: Sequence[Assigned], *, strength: float = STRENGTH) -> float:
    """log e that the shares were not kept; above log(1/alpha) the experiment is invalid. Infinite for a misplaced unit."""
    if any(phase.misplaced for phase in phases):
        return math.inf
    return float(sum(log_dirichlet(phase.counts, phase.expected, strength=strength) for phase in phases))


def mismatched(phases: Sequence[Assigned], alpha: float) -> int | None:
    """The first phase whose shares were not kept, by its own evidence; phases without end are accused with chance alpha.

    The i-th, from 1, is held to alpha / (i (i + 1)), which sum to alpha: sound phases can't hide a broken one behind them.
    """
    for at, phase in enumerate(phases):
        if log_mismatch([phase]) > math.log((at + 1) * (at + 2) / alpha):
            return at
    return None


def chi_square(phase: Assigned) -> float:
    """Pearson's p-value of one phase, for a single look, and for people who expect to see it. 1 where nobody came."""
    if phase.misplaced:
        return 0.0
    total = sum(phase.counts)
    if not total or len(phase.counts) < 2:
        return 1.0
    wanted = np.array(phase.expected) * total
    statistic = float(((np.array(phase.counts) - wanted) ** 2 / wanted).sum())
    return float(stats.chi2.sf(statistic, len(phase.counts) - 1))


def log_dirichlet(counts: Any, shares: Any, *, strength: float = STRENGTH) -> Floats:
    """Arms along the last axis; shares above zero that sum to 1. Dirichlet(strength shares) against the shares."""
    counts, shares = np.asarray(counts, np.float64), np.asarray(shares, np.float64)
    prior = strength * shares
    gained = special.gammaln(prior + counts) - special.gammaln(prior) - counts * np.log(shares)
    total = counts.sum(axis=-1)
    return np.asarray(gained.sum(axis=-1) - special.gammaln(strength + total) + special.gammaln(strength))
