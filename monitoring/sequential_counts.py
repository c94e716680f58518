"""Rare events and guardrails: exact from the first event on, by which arm each event landed in.

Units are assigned at random, the challenger getting the share pi of the two arms' units. Where both have the same rate, each
event lands in the challenger's arm with chance pi, whatever the rate is and however it moves: a coin, and a bet against it is
an e-process (Lindon and Malek, arXiv 2011.03567; mixture: HRMS, beta-binomial). No variance is estimated, so there is
nothing to wait for: one per cent of the traffic is enough, and few events are.

One event a unit: count units that had any, not how often. A unit that fails twenty times is one.

A phase is a stretch of time with one share; phases' evidence adds as logarithms. A rate ratio other than 1 shifts the coin to
pi r / (pi r + 1 - pi), so margins and intervals come from the same bet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from monitoring.evidence import Interval, NotEstimable
from monitoring.mixtures import log_beta_mixture, log_beta_mixture_above

STRENGTH = 20.0  # of the prior, in events: sees ratios of 1.5 to 3 soonest
FAR = 30.0  # log ratio
WIDEST = 60.0  # log ratio: a bound yet farther away is none


@dataclass(frozen=True, slots=True)
class Counts:
    """Units with the event, by arm, in a phase in which the challenger got `share` of the two arms' units."""

    champion: int
    challenger: int
    share: float

    def __post_init__(self) -> None:
        if self.champion < 0 or self.challenger < 0:
            raise ValueError(f"counts: can't be below zero, got {self.champion} and {self.challenger}")
        if not 0 < self.share < 1:
            raise ValueError(f"share: must be between 0 and 1, got {self.share}")

    def __add__(self, other: Counts) -> Counts:
        """Of one phase. Raises ValueError for another share: phases are kept apart."""
        if self.share != other.share:
            raise ValueError(f"share: phases of {self.share} and {other.share} can't be one")
        return Counts(self.champion + other.champion, self.challenger + other.challenger, self.share)


def log_excess(phases: Sequence[Counts], *, margin: float = 0.0) -> float:
    """log e that the challenger's rate is above (1 + margin) times the champion's; a guardrail is broken above log(1/alpha).

    At most 1 on average under every ratio up to 1 + margin, not at it alone. 0 where nothing happened.
    """
    if not margin > -1:
        raise ValueError(f"margin: must be above -1, got {margin}")
    return float(sum(_above(phase, 1 + margin) for phase in phases))


def log_difference(phases: Sequence[Counts], *, ratio: float = 1.0, strength: float = STRENGTH) -> float:
    """log e that the challenger's rate is not `ratio` times the champion's, either way."""
    if not 0 < ratio < math.inf:
        raise ValueError(f"ratio: must be above zero, got {ratio}")
    return float(
        sum(
            log_beta_mixture(phase.challenger, phase.champion, _shifted(phase.share, ratio), strength)
            for phase in phases
        )
    )


def rate_ratio(phases: Sequence[Counts], *, alpha: float) -> Interval | NotEstimable:
    """The challenger's rate over the champion's, one ratio for all phases; `p` is against 1, `se` that of the log ratio.

    The ratios that `log_difference` does not reject; the estimate is Mantel and Haenszel's. Where no event fell on a side, that
    side stays open.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: must be between 0 and 1, got {alpha}")
    here = sum(phase.challenger * (1 - phase.share) for phase in phases)
    there = sum(phase.champion * phase.share for phase in phases)
    champion, challenger = (sum(getattr(phase, arm) for phase in phases) for arm in ("champion", "challenger"))
    if not champion + challenger:
        return NotEstimable("no event in either arm yet")

    def left(log_ratio: float) -> float:
        return log_difference(phases, ratio=math.exp(log_ratio)) + math.log(alpha)

    if champion and challenger:
        near = math.log(here / there)
        middle = float(optimize.minimize_scalar(left, bounds=(near - 3, near + 3), method="bounded").x)
    else:
        middle = FAR if challenger else -FAR  # a side without events rejects no ratio that far out
    if left(middle) >= 0:
        return NotEstimable("the phases disagree: no one ratio fits them all")
    return Interval(
        estimate=here / there if there else math.inf,
        lower=math.exp(_crossing(left, middle, -1)) if challenger else 0.0,
        upper=math.exp(_crossing(left, middle, 1)) if champion else math.inf,
        p=math.exp(-max(log_difference(phases), 0.0)),
        se=math.sqrt(1 / champion + 1 / challenger) if champion and challenger else math.inf,
        units=champion + challenger,
    )


def discordant(better: int, worse: int) -> Counts:
    """For shadows of classifiers: units that one model alone got right are a fair coin where both are as good.

    `better` units the challenger alone got right, `worse` the champion alone; read by the functions above.
    """
    return Counts(champion=worse, challenger=better, share=0.5)


def _shifted(share: float, ratio: float) -> float:
    """The chance of the challenger's arm, kept off 0 and 1 by what a double can tell from them."""
    shifted = share * ratio / (share * ratio + 1 - share)
    return float(np.clip(shifted, 1e-300, 1 - 2**-53))


def _above(phase: Counts, ratio: float) -> float:
    share = _shifted(phase.share, ratio)
    return float(log_beta_mixture_above(phase.challenger, phase.champion, share, STRENGTH))


def _crossing(left: Callable[[float], float], inside: float, way: int) -> float:
    step = 0.25
    while left(inside + way * step) < 0:
        step *= 2
        if step > WIDEST:
            return way * math.inf
    return float(optimize.brentq(left, inside, inside + way * step, xtol=1e-10))
