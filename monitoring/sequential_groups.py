"""Group-sequential boundaries: a few planned looks, and the largest power when the number of units is known beforehand.

Lan and DeMets (Biometrika 1983): at information t (the share of the planned units that has come) the error spent so far is
alpha*(t); each look's bound is what makes the exact chance of a first crossing there the difference. The chance comes from
recursive integration of the density of the z statistic among those who did not cross (Armitage, McPherson and Rowe 1969), by
Gauss and Legendre's rule, cut off at |z| = 8.

A trap: the two-sided O'Brien-Fleming function spends alpha / 2 on each side, 4 (1 - Phi(z_{alpha/4} / sqrt t)) in all;
2 (1 - Phi(z_{alpha/2} / sqrt t)) is one side's at the full alpha, and its first of five bounds is 4.383, not 4.877.

Unlike a confidence sequence, this may be looked at when planned, and not in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, special

from monitoring.mixtures import Floats

Spending = Literal["obrien-fleming", "pocock"]
FARTHEST = 8.0
LEAST_STEP = 0.001
NODES_A_WIDTH = 8  # of the step's own normal density


def boundaries(
    fractions: Sequence[float], *, alpha: float, spending: Spending = "obrien-fleming", sides: int = 2
) -> list[float]:
    """|z| (or z, one-sided) to be passed at each look; `fractions` ascend and end at 1 or below.

    Raises ValueError for fractions that don't ascend by LEAST_STEP, and levels that are none.
    """
    _check(fractions)
    if not 0 < alpha < 1 or sides not in (1, 2):
        raise ValueError(f"alpha and sides: must be in (0, 1) and 1 or 2, got {alpha} and {sides}")
    bounds: list[float] = []
    walk, before = _Walk(0.0), 0.0
    for fraction in fractions:
        spent = sides * _spent(fraction, alpha / sides, spending)
        step = walk.to(fraction)
        bounds.append(_solve(step, spent - before, sides))
        crossed = step.beyond(bounds[-1], sides)
        before += crossed
        walk = step.kept(-bounds[-1] if sides == 2 else -FARTHEST, bounds[-1])
    return bounds


def crossing(fractions: Sequence[float], bounds: Sequence[float], *, drift: float = 0.0, sides: int = 2) -> list[float]:
    """The chance of a first crossing at each look; their sum is the error, or with a drift the power.

    `drift` is the mean of z at fraction 1. Bounds are met by |z|, or by z where sides = 1.
    """
    _check(fractions)
    if len(bounds) != len(fractions):
        raise ValueError(f"bounds: {len(bounds)} for {len(fractions)} looks")
    found = []
    walk = _Walk(drift)
    for fraction, bound in zip(fractions, bounds, strict=True):
        step = walk.to(fraction)
        found.append(step.beyond(bound, sides))
        walk = step.kept(-bound if sides == 2 else -math.inf, bound)
    return found


class _Walk:
    """The density of z, at one look, of those still going: `mass` at `nodes`."""

    def __init__(
        self, drift: float, fraction: float = 0.0, nodes: Floats | None = None, mass: Floats | None = None
    ) -> None:
        self.drift, self.fraction = drift, fraction
        self.nodes = np.zeros(1) if nodes is None else nodes
        self.mass = np.ones(1) if mass is None else mass

    def to(self, fraction: float) -> _Step:
        return _Step(self, fraction)


class _Step:
    """From one look to the next: given z before, z now is normal."""

    def __init__(self, walk: _Walk, fraction: float) -> None:
        self.walk, self.fraction = walk, fraction
        gained = fraction - walk.fraction
        self.width = math.sqrt(gained / fraction)
        self.means = (walk.nodes * math.sqrt(walk.fraction) + walk.drift * gained) / math.sqrt(fraction)

    def beyond(self, bound: float, sides: int) -> float:
        chance = special.ndtr((self.means - bound) / self.width)
        if sides == 2:
            chance = chance + special.ndtr((-bound - self.means) / self.width)
        return float(self.walk.mass @ chance)

    def kept(self, low: float, high: float) -> _Walk:
        centre = self.walk.drift * math.sqrt(self.fraction)
        low, high = max(low, centre - FARTHEST), min(high, centre + FARTHEST)
        if low >= high:
            return _Walk(self.walk.drift, self.fraction, np.array([centre]), np.zeros(1))
        at, weight = _rule(32 * max(2, math.ceil(NODES_A_WIDTH * (high - low) / self.width / 32)))
        nodes = (at * (high - low) + high + low) / 2
        offsets = (nodes[:, None] - self.means[None, :]) / self.width
        density = np.exp(-(offsets**2) / 2) @ self.walk.mass / (self.width * math.sqrt(2 * math.pi))
        return _Walk(self.walk.drift, self.fraction, nodes, density * weight * (high - low) / 2)


@lru_cache(maxsize=64)
def _rule(count: int) -> tuple[Floats, Floats]:
    """Nodes and weights on -1..1: Gauss's, or Simpson's where Gauss's take longer to find than to use."""
    if count <= 512:
        return np.polynomial.legendre.leggauss(count)
    at = np.linspace(-1, 1, count + 1)
    weight = np.full(count + 1, 2.0)
    weight[1::2] = 4.0
    weight[[0, -1]] = 1.0
    return at, weight * (2 / count / 3)


def _spent(fraction: float, alpha: float, spending: Spending) -> float:
    """One side's error by `fraction`."""
    if spending == "pocock":
        return alpha * math.log(1 + (math.e - 1) * fraction)
    if spending == "obrien-fleming":
        return float(2 * special.ndtr(special.ndtri(alpha / 2) / math.sqrt(fraction)))
    raise ValueError(f"spending: 'obrien-fleming' or 'pocock', got {spending!r}")


def _solve(step: _Step, wanted: float, sides: int) -> float:
    if step.beyond(FARTHEST, sides) >= wanted:
        return FARTHEST
    return float(
        optimize.brentq(lambda bound: step.beyond(bound, sides) - wanted, 0.0 if sides == 2 else -FARTHEST, FARTHEST)
    )


def _check(fractions: Sequence[float]) -> None:
    before = 0.0
    for fraction in fractions:
        if not before + LEAST_STEP <= fraction <= 1 + 1e-12:
            raise ValueError(f"fractions: must ascend by {LEAST_STEP} at least and end at 1, got {list(fractions)}")
        before = fraction
    if not fractions:
        raise ValueError("fractions: there is no look")
