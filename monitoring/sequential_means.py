"""Asymptotic confidence sequences for differences of means and proportions, from sums alone.

Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences"
(arXiv 2103.06476v7, here WASKR): a normal-mixture bound (eq. 9) around the running estimate may be looked at after every unit.

Strata are never pooled: a ramp whose traffic differs from week to week would find effects that are none (Simpson). Each
stratum's difference of means is weighed by w = nT nC / (nT + nC), its inverse variance where units vary alike. These
weights don't look at the outcomes, and so (a) the weighted sum is a martingale, one and the same test over all phases,
and (b) a stratum does not gain weight because it happens to have few events, as it would by its own estimated variance.

Time is counted in `size` = 4 sum of w: as many units, evenly split, would tell as much. Fifty-fifty it is the number of
units; at 99 to 1 it is a twenty-fifth of it. `n_star`, the size at which the interval is to be narrowest, is part of the plan
and stays as it is: tuned along the way, the guarantee is gone.

The guarantee is asymptotic. With few events it does not hold yet (at 1 % of the traffic and none required, a false alarm in
up to four of five), so that each arm needs MIN_EVENTS events, and as many non-events of a proportion, before anything is said.
And a small arm that has not met its heavy tail yet thinks its spread small: the standard error is the larger of that by the
arms' own variances and that by their common one (`belted`). Without it, revenue at 10 % alarmed falsely in 13 of 100.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from monitoring.evidence import Evidence, Interval, Moments, NotEstimable, Sums, stacked
from monitoring.mixtures import (
    Floats,
    log_normal,
    log_normal_above,
    normal_bound,
    normal_bound_above,
    rho_for,
)

Side = Literal["two", "lower", "upper"]
Kind = Literal["mean", "proportion"]
MIN_EVENTS = 25
ROUNDING = 1e-12  # of the sum of squares: below it, a spread is what rounding left
AWAY_FROM_ZERO = 3.0  # standard errors that the champion's mean must be from zero before anything is divided by it


class Contrast(NamedTuple):
    """Challenger less champion, as arrays over the leading axes of the sums it was made of."""

    difference: Floats
    variance: Floats  # by each arm's own
    common: Floats  # the same, by the variance that both arms have together
    base: Floats  # the champion's mean
    base_variance: Floats
    covariance: Floats  # of difference and base
    size: Floats
    units: Floats


def difference(
    evidence: Evidence,
    champion: str,
    challenger: str,
    *,
    kind: Kind,
    alpha: float,
    n_star: float,
    side: Side = "two",
    null: float = 0.0,
    relative: bool = False,
    adjusted: bool = False,
) -> Interval | NotEstimable:
    """Challenger's mean less the champion's; `relative`, over the champion's (delta method; 0.1 is ten per cent more).

    `side` "lower" gives a lower bound alone (is it better?), "upper" an upper one. `p` is against `null`, so that
    null = -margin and side = "lower" is a test of non-inferiority. `adjusted` takes the covariate's share out (CUPED): it must
    not depend on the arm, as the champion's score of the unit does not. Raises ValueError for levels that are none, and
    for sums that are no proportion's.
    """
    base, other = evidence.sums(champion), evidence.sums(challenger)
    if (reason := _missing(base, other, kind, champion, challenger)) is not None:
        return NotEstimable(reason)
    found = belted(contrast(base, other, adjusted=adjusted))
    if relative:
        if abs(found.base) <= AWAY_FROM_ZERO * math.sqrt(found.base_variance):
            return NotEstimable(f"{champion}'s mean can't be told from zero, so nothing is relative to it")
        found = lifted(found)
    if not found.variance > 0:
        return NotEstimable("no variance within the arms")
    return sequence(
        float(found.difference),
        math.sqrt(found.variance),
        float(found.size),
        units=int(found.units),
        alpha=alpha,
        n_star=n_star,
        side=side,
        null=null,
    )


def paired(
    seen: Moments, *, alpha: float, n_star: float, side: Side = "two", null: float = 0.0
) -> Interval | NotEstimable:
    """The mean of x where each unit was scored by both models and x is their difference: for shadows (WASKR eq. 9).

    No assignment, so nothing to mismatch, and most of the variance cancels. Here n_star counts units.
    """
    if min(seen.n, seen.nonzero) < MIN_EVENTS:
        return NotEstimable(f"the models differ on {seen.nonzero} of {seen.n} units; at least {MIN_EVENTS} are needed")
    left = spread(stacked([seen]))[0]
    if not left > 0:
        return NotEstimable("the difference is the same for every unit")
    se = math.sqrt(left / (seen.n - 1) / seen.n)
    return sequence(seen.total / seen.n, se, seen.n, units=seen.n, alpha=alpha, n_star=n_star, side=side, null=null)


def sequence(
    estimate: float,
    se: float,
    size: float,
    *,
    units: int,
    alpha: float,
    n_star: float,
    side: Side = "two",
    null: float = 0.0,
) -> Interval:
    """Of any estimate with a standard error that falls as 1/sqrt(size): WASKR eq. 9, 155 and 161, and one-sided the exact
    mixture of HRMS (WASKR eq. 134 bounds it in closed form). Raises ValueError unless alpha and n_star are those of a plan.
    """
    if not (n_star > 0 and size > 0 and se > 0):
        raise ValueError(f"n_star, size and se: must be above zero, got {n_star}, {size} and {se}")
    width = se * float(critical(size, alpha=alpha, n_star=n_star, side=side))
    log_e = float(log_evidence((estimate - null) / se, size, alpha=alpha, n_star=n_star, side=side))
    return Interval(
        estimate=estimate,
        lower=-math.inf if side == "upper" else estimate - width,
        upper=math.inf if side == "lower" else estimate + width,
        p=math.exp(-max(log_e, 0.0)),
        se=se,
        units=units,
    )


def critical(size: Any, *, alpha: float, n_star: float, side: Side = "two") -> Floats:
    """How many standard errors the bound is away at `size` (an array, too).

    >>> round(float(critical(1000, alpha=0.05, n_star=1000)), 3)
    3.035
    """
    sides = 2 if side == "two" else 1
    bound = normal_bound if sides == 2 else normal_bound_above
    return np.asarray(bound(size, rho_for(n_star, alpha, sides=sides), alpha) / np.sqrt(np.asarray(size, np.float64)))


def log_evidence(z: Any, size: Any, *, alpha: float, n_star: float, side: Side = "two") -> Floats:
    """The log e-value of a deviation of `z` standard errors; above log(1/alpha) just where `critical` is passed."""
    sums = np.asarray(z, np.float64) * np.sqrt(np.asarray(size, np.float64))
    if side == "two":
        return log_normal(sums, size, rho_for(n_star, alpha))
    return log_normal_above(sums if side == "lower" else -sums, size, rho_for(n_star, alpha, sides=1))


def contrast(champion: Sums, challenger: Sums, *, adjusted: bool = False) -> Contrast:
    """Weighted over the strata in which both arms have two units or more."""
    held = (champion.n >= 2) & (challenger.n >= 2)
    n0, n1 = np.where(held, champion.n, 2.0), np.where(held, challenger.n, 2.0)
    weight = np.where(held, n0 * n1 / (n0 + n1), 0.0)
    share = weight / np.maximum(weight.sum(axis=-1, keepdims=True), 1e-300)
    theta = _theta(champion, challenger, held) if adjusted else np.zeros(weight.shape[:-1])
    slope = theta[..., None]
    gap = (challenger.total - slope * challenger.covariate) / n1 - (champion.total - slope * champion.covariate) / n0
    base_variance = (share**2 * _variance(champion, n0)).sum(axis=-1)
    crossed = (share**2 * _covariance(champion, n0)).sum(axis=-1)
    left0, left1 = _left(champion, n0, slope), _left(challenger, n1, slope)
    own = left0 / (n0 - 1) / n0 + left1 / (n1 - 1) / n1
    common = (left0 + left1) / (n0 + n1 - 2) * (1 / n0 + 1 / n1)
    return Contrast(
        difference=(share * gap).sum(axis=-1),
        variance=(share**2 * own).sum(axis=-1),
        common=(share**2 * common).sum(axis=-1),
        base=(share * champion.total / n0).sum(axis=-1),
        base_variance=base_variance,
        covariance=np.asarray(-(base_variance - theta * crossed)),
        size=4 * weight.sum(axis=-1),
        units=np.where(held, champion.n + challenger.n, 0.0).sum(axis=-1),
    )


def belted(found: Contrast) -> Contrast:
    """With the larger of the two variances."""
    return found._replace(variance=np.maximum(found.variance, found.common))


def lifted(found: Contrast) -> Contrast:
    """Relative to the champion's mean, by the delta method."""
    lift = found.difference / found.base
    variance = found.variance - 2 * lift * found.covariance + lift**2 * found.base_variance
    return found._replace(difference=lift, variance=variance / found.base**2)


def ready(champion: Sums, challenger: Sums, kind: Kind) -> Any:
    """Whether both arms have events enough, over the leading axes."""
    enough = np.minimum(champion.nonzero.sum(axis=-1), challenger.nonzero.sum(axis=-1)) >= MIN_EVENTS
    if kind == "proportion":
        without = [(arm.n - arm.nonzero).sum(axis=-1) for arm in (champion, challenger)]
        enough = enough & (np.minimum(*without) >= MIN_EVENTS)
    return enough


def _missing(champion: Sums, challenger: Sums, kind: Kind, *names: str) -> str | None:
    """Why these arms can't be compared yet."""
    for name, arm in zip(names, (champion, challenger), strict=True):
        units, events = int(arm.n.sum()), int(arm.nonzero.sum())
        if not units:
            return f"{name}: no units with an outcome yet"
        if kind == "proportion" and not (
            np.array_equal(arm.total, arm.nonzero) and np.array_equal(arm.squares, arm.total)
        ):
            raise ValueError(f"{name}: a proportion is of zeros and ones, and these sums are not")
        if events < MIN_EVENTS:
            return f"{name}: {events} events among {units} units; at least {MIN_EVENTS} are needed"
        if kind == "proportion" and units - events < MIN_EVENTS:
            return f"{name}: {units - events} units without the event; at least {MIN_EVENTS} are needed"
    if not np.any((champion.n >= 2) & (challenger.n >= 2)):
        return "no stratum has two units of each arm"
    return None


def spread(arm: Sums) -> Floats:
    """Sum of squared deviations from the mean; 0 where it is no more than rounding."""
    left = arm.squares - arm.total**2 / np.maximum(arm.n, 1)
    return np.where(left > ROUNDING * arm.squares, left, 0.0)


def _left(arm: Sums, n: Floats, slope: Floats) -> Floats:
    """The spread of x - slope y."""
    crossed = arm.product - arm.total * arm.covariate / n
    return np.maximum(spread(arm) - 2 * slope * crossed + slope**2 * spread(_swapped(arm)), 0.0)


def _variance(arm: Sums, n: Floats) -> Floats:
    """Of the arm's mean."""
    return spread(arm) / (n - 1) / n


def _covariance(arm: Sums, n: Floats) -> Floats:
    return (arm.product - arm.total * arm.covariate / n) / (n - 1) / n


def _swapped(arm: Sums) -> Sums:
    return arm._replace(total=arm.covariate, squares=arm.covariate_squares)


def _theta(champion: Sums, challenger: Sums, held: Any) -> Floats:
    """The slope of x on y within arms and strata, one for all (Deng et al. 2013, CUPED)."""
    along, across = 0.0, 0.0
    for arm in (champion, challenger):
        n = np.maximum(arm.n, 1)
        along = along + np.where(held, arm.product - arm.total * arm.covariate / n, 0.0).sum(axis=-1)
        across = across + np.where(held, spread(_swapped(arm)), 0.0).sum(axis=-1)
    return np.asarray(np.where(across > 0, along / np.where(across > 0, across, 1.0), 0.0))
