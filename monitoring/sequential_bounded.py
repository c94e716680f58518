"""Exact confidence sequences for what is bounded: a rate of one arm, a mean between known limits.

They hold from the first unit on and for every sample size together, with no appeal to large numbers, and are wider for it than
`sequential_means`. Two ways: for coins, a beta mixture; for anything between `low` and `high`, an empirical-Bernstein bet that
is a function of n, sum x and sum x^2 alone, and so, unlike the usual predictable plug-in, knows no order of units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize, special

from monitoring.evidence import Interval, Moments, NotEstimable
from monitoring.mixtures import Floats, log_beta_mixture, tightness
from monitoring.sequential_means import Side

TUNED_ALPHA = 0.05
EDGE = 1e-12  # a chance of 0 or 1 can't be bet against
# Bets from 1/2 down to 1/6000, each by the root of two: sharp from a handful of units to hundreds of millions.
BETS = 0.5 * 2.0 ** (-np.arange(24) / 2)
COSTS = -np.log1p(-BETS) - BETS


def bernoulli(events: int, units: int, *, alpha: float, n_star: float) -> Interval | NotEstimable:
    """The chance of an event, by the two-sided beta-binomial mixture (HRMS), tightest about `n_star` units.

    `p` is 1: there is no one chance that all would call the null. Raises ValueError for counts that are none.
    """
    if not 0 <= events <= units:
        raise ValueError(f"events: must be within 0..{units}, got {events}")
    if not (0 < alpha < 1 and n_star > 0):
        raise ValueError(f"alpha and n_star: must be in (0, 1) and above zero, got {alpha} and {n_star}")
    if not units:
        return NotEstimable("no units yet")
    strength = max(n_star / tightness(TUNED_ALPHA) - 1, 1e-3)
    rate = events / units
    inside = min(max(rate, EDGE), 1 - EDGE)

    def left(chance: float) -> float:
        return float(log_beta_mixture(events, units - events, chance, strength)) + math.log(alpha)

    return Interval(
        estimate=rate,
        lower=_root(left, 0.0, inside, EDGE) if events else 0.0,
        upper=_root(left, 1.0, inside, -EDGE) if events < units else 1.0,
        p=1.0,
        se=math.sqrt(rate * (1 - rate) / units),
        units=units,
    )


def bounded_mean(
    seen: Moments, *, low: float, high: float, alpha: float, side: Side = "two", null: float | None = None
) -> Interval | NotEstimable:
    """The mean of values known to lie within low..high, by an empirical-Bernstein bet; `p` is against `null`, if given.

    For xi >= -1 and 0 <= b < 1: exp(b xi - (-log(1 - b) - b) xi^2) <= 1 + b xi (Fan, Grama and Liu 2015, which HRMS's
    empirical Bernstein bound rests on, too). With xi = x - m of values scaled to 0..1, the product over units is an
    e-process for a mean of at most m, and its log is b (sum x - n m) - cost (sum x^2 - 2 m sum x + n m^2). Bets are averaged;
    with b <= 1/2 the result falls in m, so that what is not rejected is an interval.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low and high: must be finite and ascending, got {low} and {high}")
    if not seen.n:
        return NotEstimable("no units yet")
    total = (seen.total - seen.n * low) / (high - low)
    squares = (seen.squares - 2 * low * seen.total + seen.n * low**2) / (high - low) ** 2
    if not (-1e-9 <= total / seen.n <= 1 + 1e-9 and squares <= total + 1e-9 * seen.n):
        raise ValueError(f"low and high: values lie outside of {low}..{high}")
    mean = min(max(total / seen.n, 0.0), 1.0)
    each = alpha / 2 if side == "two" else alpha
    lower = 0.0 if side == "upper" else _least(seen.n, mean, squares, each)
    upper = 1.0 if side == "lower" else 1 - _least(seen.n, 1 - mean, squares + seen.n - 2 * total, each)
    return Interval(
        estimate=low + mean * (high - low),
        lower=low + lower * (high - low),
        upper=low + upper * (high - low),
        p=1.0 if null is None else _p_value(seen.n, mean, squares, (null - low) / (high - low), side),
        se=math.sqrt(max(squares / seen.n - mean**2, 0.0) / seen.n) * (high - low),
        units=seen.n,
    )


def bounded_difference(
    champion: Moments, challenger: Moments, *, low: float, high: float, alpha: float
) -> Interval | NotEstimable:
    """Challenger's mean less the champion's, each arm's interval at alpha / 2. Pools over time: for one phase alone."""
    ours = bounded_mean(challenger, low=low, high=high, alpha=alpha / 2)
    theirs = bounded_mean(champion, low=low, high=high, alpha=alpha / 2)
    if isinstance(ours, NotEstimable):
        return ours
    if isinstance(theirs, NotEstimable):
        return theirs
    return Interval(
        estimate=ours.estimate - theirs.estimate,
        lower=ours.lower - theirs.upper,
        upper=ours.upper - theirs.lower,
        p=1.0,
        se=math.hypot(ours.se, theirs.se),
        units=ours.units + theirs.units,
    )


def log_bernstein(n: Any, mean: Any, squares: Any, null: Any) -> Floats:
    """log e that the mean of values in 0..1 is above `null`; takes arrays, too."""
    n, mean = np.asarray(n, np.float64), np.asarray(mean, np.float64)
    deviation = n * (mean - null)
    spread = squares - 2 * null * n * mean + n * null**2
    mixed = special.logsumexp(deviation[..., None] * BETS - spread[..., None] * COSTS, axis=-1)
    return np.asarray(mixed - math.log(len(BETS)))


def _least(n: int, mean: float, squares: float, alpha: float) -> float:
    """The smallest mean that is not rejected from below."""

    def left(null: float) -> float:
        return float(log_bernstein(n, mean, squares, null)) + math.log(alpha)

    return _root(left, 0.0, mean)


def _p_value(n: int, mean: float, squares: float, null: float, side: Side) -> float:
    above = float(log_bernstein(n, mean, squares, null))
    below = float(log_bernstein(n, 1 - mean, squares + n - 2 * n * mean, 1 - null))
    log_e = {"lower": above, "upper": below, "two": max(above, below) - math.log(2)}[side]
    return math.exp(-max(log_e, 0.0))


def _root(left: Callable[[float], float], edge: float, inside: float, off: float = 0.0) -> float:
    """Where `left` goes from below zero, at `inside`, to above it; `edge` if it does not, looked for from `edge + off`."""
    return float(optimize.brentq(left, edge + off, inside, xtol=1e-12)) if left(edge + off) > 0 else edge
