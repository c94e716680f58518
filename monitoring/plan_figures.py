"""What a plan can be expected to do, in lines for people: by calculation, and from experiments that were played through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from monitoring.errors import MonitoringError
from monitoring.evidence import NotEstimable
from monitoring.plan import Plan
from monitoring.planning import Design, days_for, fixed_units, foresee, proportions, units_for
from monitoring.replaying import Replayed

POWER = 0.8
WORLD_ROWS = 20_000


def figures(plan: Plan, champion: float, effect: float, sd: float | None, daily: float | None) -> Iterator[str]:
    """Units of a challenger and its control. Raises MonitoringError for figures that the metric can't have."""
    design = _design(plan, champion, effect, sd)
    try:
        units = units_for(design, POWER)
    except ValueError as beyond:
        raise MonitoringError(f"--effect: {beyond}") from None
    fixed = fixed_units(design, POWER)
    yield f"{POWER:.0%} power: {units:,.0f} units of a challenger and its control; {fixed:,.0f} if looked at once, at the end"
    planned = foresee(design, plan.max_units, n_star=plan.n_star)
    yield f"max_units {plan.max_units:,} at n_star {plan.n_star:,.0f}: power {planned.power:.1%}, error {planned.error:.2%}"
    if daily:
        steps = [(step.hours / 24, 2 * step.share * daily) for step in plan.ramp[:-1]]
        steps.append((math.inf, 2 * plan.ramp[-1].share * daily))
        days = days_for(units, steps, label_window_days=plan.label_window_hours / 24)
        yield (
            days.reason
            if isinstance(days, NotEstimable)
            else f"{max(days, plan.min_days):.1f} days at {daily:,.0f} units a day"
        )


def churn_rate(plan: Plan) -> float:
    """The rate of the built-in world, for whoever has none of their own yet."""
    if plan.metric.kind == "mean":
        raise MonitoringError(f"--champion: say the champion's mean of {plan.metric.name}, and --sd")
    from training.simulator import simulate

    return float(simulate(WORLD_ROWS).churned.mean())


def table(plan: Plan, none: Replayed, some: Replayed) -> Iterator[str]:
    runs = len(none.ends)
    yield f"{'':<12}{'winner':>9}{'loser':>9}{'other end':>11}{'no end':>9}{'median units':>15}{'median days':>13}"
    for name, found in (("no effect", none), ("the effect", some)):
        won, lost, going = (found.share(state) for state in ("winner", "loser", "running"))
        rest = 1 - won - lost - going
        ended = f"{median(found.units):>15,.0f}{median(found.days):>13.1f}"
        yield f"{name:<12}{won:>9.1%}{lost:>9.1%}{rest:>11.1%}{going:>9.1%}{ended}"
    error, power = none.share("winner", "loser"), some.share("winner")
    yield f"type-I error {error:.1%} (at most {plan.alpha:.0%} is promised), power {power:.1%}, of {runs} experiments each"


def _design(plan: Plan, champion: float, effect: float, sd: float | None) -> Design:
    moved = (effect - plan.min_effect) * (-1 if plan.metric.better == "lower" else 1)
    try:
        if plan.metric.kind != "mean":
            return proportions(champion, champion + moved, alpha=plan.each_alpha)
        if sd is None:
            raise MonitoringError("--sd: a mean needs the standard deviation of one unit's outcome")
        return Design(effect=moved, sd=sd, sd_challenger=sd, alpha=plan.each_alpha)
    except ValueError as impossible:
        raise MonitoringError(f"--champion, --effect: {impossible}") from None
