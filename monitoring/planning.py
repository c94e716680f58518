"""How many units a comparison needs, how long that takes, and what looking at it early costs.

Power, error and stopping times come from the same recursive integration as the group-sequential bounds, not from simulation:
a sequence that is looked at K times is a set of K bounds. The usual rule for always-valid tests asks for enough units to pass
the bound at the last look, and so forgets the chances along the way; `units_for` counts them.

Fixed-size formula: N = (z_{alpha/2} + z_power)^2 (sd0^2 / (1 - share) + sd1^2 / share) / effect^2. Always valid, by the last
look alone and at N* = N: 1.92 times that at 5 % and 80 % (arXiv 2103.06476v7 eq. 9 with eq. 161).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, special, stats

from monitoring.evidence import Interval, Moments, NotEstimable, stacked
from monitoring.sequential_groups import boundaries, crossing
from monitoring.sequential_means import MIN_EVENTS, Side, critical, spread

Method = Literal["always", "groups", "fixed", "naive"]
MOST_UNITS = 1e12


@dataclass(frozen=True, kw_only=True)
class Design:
    """A comparison to come. `effect` is challenger less champion, in the metric's unit; `share` the challenger's of the units.

    `sd` and `sd_challenger` are of one unit's outcome. `looks` are evenly spaced, the last at the end. Where `rate` is known
    (the smaller share of units that count as events), looks before MIN_EVENTS are expected in each arm are not taken.
    """

    effect: float
    sd: float
    sd_challenger: float
    share: float = 0.5
    alpha: float = 0.05
    side: Side = "two"
    looks: int = 20
    rate: float | None = None

    def __post_init__(self) -> None:
        if not (self.sd > 0 and self.sd_challenger > 0 and math.isfinite(self.effect) and self.effect):
            raise ValueError("effect and sd: an effect other than zero and spreads above zero are needed")
        if not (0 < self.share < 1 and 0 < self.alpha < 0.5 and self.looks >= 1):
            raise ValueError("share, alpha and looks: must be in (0, 1), in (0, 0.5) and at least 1")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise ValueError(f"rate: must be above 0 and at most 1, got {self.rate}")

    def drift(self, units: float) -> float:
        """The mean of z after `units` of both arms."""
        each = self.sd**2 / (1 - self.share) + self.sd_challenger**2 / self.share
        drift = self.effect * math.sqrt(units / each)
        return -drift if self.side == "upper" else drift

    def size(self, units: float) -> float:
        """As `sequential_means` counts time."""
        return 4 * self.share * (1 - self.share) * units


@dataclass(frozen=True, slots=True)
class Foreseen:
    """`error` is the chance of a finding where there is no effect; `median_units` None where most runs find none."""

    power: float
    error: float
    expected_units: float
    median_units: float | None


def proportions(champion: float, challenger: float, **design: float | int | str) -> Design:
    """The design that compares two rates.

    >>> round(fixed_units(proportions(0.05, 0.06)))
    16310
    """
    for name, rate in (("champion", champion), ("challenger", challenger)):
        if not 0 < rate < 1:
            raise ValueError(f"{name}: a rate is between 0 and 1, got {rate}")
    low, high = min(champion, challenger), max(champion, challenger)
    return Design(
        effect=challenger - champion,
        sd=math.sqrt(champion * (1 - champion)),
        sd_challenger=math.sqrt(challenger * (1 - challenger)),
        rate=min(low, 1 - high),
        **design,  # type: ignore[arg-type]
    )


def fixed_units(design: Design, power: float = 0.8) -> float:
    """Units of both arms for a single look at the end."""
    tail = design.alpha / 2 if design.side == "two" else design.alpha
    wanted = float(special.ndtri(power) - special.ndtri(tail))
    return (wanted / abs(design.drift(1.0))) ** 2


def units_for(design: Design, power: float = 0.8, method: Method = "always") -> float:
    """The fewest units with which `foresee` reaches `power`; N* follows along. Raises ValueError beyond MOST_UNITS."""
    if not 0 < power < 1:
        raise ValueError(f"power: must be between 0 and 1, got {power}")

    def short(log_units: float) -> float:
        return sum(_found(design, math.exp(log_units), method)[1]) - power

    low = high = math.log(fixed_units(design, power))
    while short(high) < 0:
        high += 0.5
        if high > math.log(MOST_UNITS):
            raise ValueError(f"effect: {design.effect} would need more than {MOST_UNITS:.0e} units")
    while short(low) > 0:
        low -= 0.25
    return math.exp(float(optimize.brentq(short, low, high, xtol=1e-3)))


def foresee(design: Design, units: float, method: Method = "always", n_star: float | None = None) -> Foreseen:
    """What happens with at most `units` of both arms; `n_star` is the size at the end unless given."""
    fractions, chances = _found(design, units, method, n_star)
    found, spent = np.array(chances), np.array(fractions) * units
    power, reached = float(found.sum()), np.cumsum(found)
    return Foreseen(
        power=power,
        error=sum(_found(design, units, method, n_star, drift=0.0)[1]),
        expected_units=float(found @ spent) + (1 - power) * units,
        median_units=float(spent[int(np.argmax(reached >= 0.5))]) if power >= 0.5 else None,
    )


def days_for(
    units: float, daily: Sequence[tuple[float, float]], *, label_window_days: float = 0.0
) -> float | NotEstimable:
    """Days until `units` of both arms have come and their outcomes are known.

    `daily` is the ramp: (days, units a day in both arms), the last entry's days may be infinite.

    >>> days_for(10_000, [(2, 500), (2, 1000), (math.inf, 5000)], label_window_days=7)
    12.4
    """
    left, passed = units, 0.0
    for days, each in daily:
        if days < 0 or each < 0:
            raise ValueError(f"daily: days and units can't be below zero, got {days} and {each}")
        if each * days >= left and each > 0:
            return passed + left / each + label_window_days
        left, passed = left - (each * days if each else 0.0), passed + days
    return NotEstimable(f"{units:,.0f} units are needed, and {units - left:,.0f} come")


def welch(champion: Moments, challenger: Moments, *, alpha: float) -> Interval | NotEstimable:
    """The two-sided fixed-size interval of the difference (Welch's t): valid for one look, made beforehand. To compare with."""
    if min(champion.n, challenger.n) < 2:
        return NotEstimable("fewer than two units in an arm")
    n = np.array([champion.n, challenger.n], np.float64)
    parts = spread(stacked([champion, challenger])) / (n - 1) / n
    if not parts.sum() > 0:
        return NotEstimable("no variance within the arms")
    se = math.sqrt(parts.sum())
    freedom = parts.sum() ** 2 / (parts**2 / (n - 1)).sum()
    estimate = challenger.total / challenger.n - champion.total / champion.n
    width = float(stats.t.isf(alpha / 2, freedom)) * se
    p = float(2 * stats.t.sf(abs(estimate) / se, freedom))
    return Interval(estimate, estimate - width, estimate + width, p, se, champion.n + challenger.n)


def _fractions(design: Design, units: float, method: Method) -> list[float]:
    looks = [1.0] if method == "fixed" else [look / design.looks for look in range(1, design.looks + 1)]
    if method == "always" and design.rate is not None:
        first = MIN_EVENTS / (design.rate * min(design.share, 1 - design.share))
        return [look for look in looks if look * units >= first] or [1.0]
    return looks


def _found(
    design: Design, units: float, method: Method, n_star: float | None = None, drift: float | None = None
) -> tuple[list[float], list[float]]:
    """The looks, and the chance of a first finding at each."""
    fractions = _fractions(design, units, method)
    bounds = _bounds(design, units, method, fractions, n_star or design.size(units))
    moved = design.drift(units) if drift is None else drift
    return fractions, crossing(fractions, bounds, drift=moved, sides=2 if design.side == "two" else 1)


def _bounds(design: Design, units: float, method: Method, fractions: list[float], n_star: float) -> list[float]:
    sides = 2 if design.side == "two" else 1
    if method == "groups":
        return list(_planned(tuple(fractions), design.alpha, sides))
    if method == "always":
        side: Side = "two" if sides == 2 else "lower"
        sizes = design.size(units) * np.array(fractions)
        return [float(bound) for bound in critical(sizes, alpha=design.alpha, n_star=n_star, side=side)]
    return [-float(special.ndtri(design.alpha / sides))] * len(fractions)


@lru_cache(maxsize=16)
def _planned(fractions: tuple[float, ...], alpha: float, sides: int) -> tuple[float, ...]:
    return tuple(boundaries(fractions, alpha=alpha, sides=sides))
