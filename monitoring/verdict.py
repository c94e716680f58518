"""What is to be thought of an experiment now: a function of its plan, its sums and the time, with the reasons in words.

States are tried in this order, and the first that holds is it:

    invalid         shares not kept, units in two arms, or rows and outcomes lost unevenly: no winner ever from these data
    guardrail       a challenger is worse than a guardrail's margin: roll it back, at any size
    no data         nothing came, or nothing any more
    insufficient    too few outcomes to say anything
    loser           the interval lies below zero: roll it back
    winner          it lies above the least effect asked for, every guardrail is held, and the least time is over
    no difference   it lies within what the plan calls none: keep the champion
    futile          units or days are spent, or a win by then is unlikely: keep the champion
    running

Nothing is remembered or written here, so the same sums give the same verdict to anyone. Effects are turned so that more is
better. Of several challengers each is judged at its share of alpha; of several winners the highest lower bound wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from scipy import special

from monitoring.evidence import Evidence, Interval, Moments, NotEstimable, Stratum
from monitoring.plan import CHAMPION, Guardrail, Metric, Plan
from monitoring.sequential_bounded import bernoulli
from monitoring.sequential_counts import Counts, log_difference, log_excess, rate_ratio
from monitoring.sequential_means import Kind, Side, critical, difference
from monitoring.srm import Assigned, mismatched

State = Literal[
    "invalid", "guardrail", "no data", "insufficient", "loser", "winner", "no difference", "futile", "running"
]
INVALID_ALPHA = 0.01
IN_TWO_ARMS = 0.01  # of all units
HALF_WAY = 0.5  # of the units planned, before which nothing is called futile
HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Seen:
    """An experiment's sums. The first part of every stratum is its phase, a key of `shares`, which lists phases in their order.

    Where the control is a part of the champion's traffic, "champion" is that part, and the rest an arm of another name.
    """

    shares: Mapping[str, Mapping[str, float]]  # phase -> arm -> share of all units
    assigned: Mapping[str, Mapping[str, int]]  # phase -> arm -> units
    metrics: Mapping[str, Evidence]  # by metric name, of units whose window is over; guardrails at once
    started_us: int
    last_us: int | None = None  # when the newest row came
    in_two_arms: int = 0
    lost: Evidence = field(default_factory=Evidence)  # 1 a unit with rows that the log should have and has not
    unlabelled: Evidence = field(default_factory=Evidence)  # 1 a unit whose window is over without an outcome


@dataclass(frozen=True)
class Judged:
    """One challenger. `effect` is turned so that more is better, relative if the plan is; None where there is none yet."""

    challenger: str
    state: State
    reason: str
    effect: Interval | None = None


@dataclass(frozen=True)
class Verdict:
    """`state` is the experiment's: its invalidity, its winner's, or that of its first challenger in the order above."""

    state: State
    reason: str
    plan: str  # its digest
    winner: str | None
    challengers: tuple[Judged, ...]


ORDER: tuple[State, ...] = (
    "winner", "guardrail", "running", "insufficient", "no data", "loser", "futile", "no difference"
)  # fmt: skip


def judge(plan: Plan, seen: Seen, now_us: int) -> Verdict:
    """Raises ValueError for sums that no experiment has, such as a proportion of more than one."""
    if (broken := _broken(plan, seen)) is not None:
        judged = tuple(Judged(name, "invalid", broken) for name in plan.challengers)
        return Verdict("invalid", broken, plan.digest, None, judged)
    judged = tuple(_judge(plan, seen, name, now_us) for name in plan.challengers)
    winners = [one for one in judged if one.state == "winner" and one.effect is not None]
    best = max(winners, key=lambda one: one.effect.lower if one.effect else -math.inf, default=None)
    told = best or min(judged, key=lambda one: ORDER.index(one.state))
    return Verdict(told.state, told.reason, plan.digest, best.challenger if best else None, judged)


def _broken(plan: Plan, seen: Seen) -> str | None:
    """Why nothing may be concluded from these data."""
    phases = [Assigned(seen.assigned.get(phase, {}), shares) for phase, shares in seen.shares.items()]
    if (at := mismatched(phases, INVALID_ALPHA)) is not None:
        name = list(seen.shares)[at]
        return f"shares: phase {name!r} gave {phases[at].units}, meant {dict(phases[at].shares)}"
    units = sum(sum(phase.units.values()) for phase in phases)
    if seen.in_two_arms > IN_TWO_ARMS * max(units, 1):
        return f"exposure: {seen.in_two_arms} of {units} units were in two arms"
    level = math.log(2 * len(plan.challengers) / INVALID_ALPHA)
    for name, told in (("lost", "rows are lost"), ("unlabelled", "outcomes are missing")):
        for challenger in plan.challengers:
            counted = _counts(getattr(seen, name), seen, challenger)
            if log_difference(counted) > level:
                hits = [sum(getattr(phase, arm) for phase in counted) for arm in ("challenger", "champion")]
                return f"log: {told} unevenly, {hits[0]} of {challenger}'s and {hits[1]} of the champion's"
    return None


def _judge(plan: Plan, seen: Seen, challenger: str, now_us: int) -> Judged:
    """One challenger, once the data are sound."""
    for guardrail in plan.guardrails:
        if (harm := _violated(plan, guardrail, seen, challenger)) is not None:
            return Judged(challenger, "guardrail", harm)
    if (silence := _silent(plan, seen, challenger, now_us)) is not None:
        return Judged(challenger, "no data", silence)
    evidence = seen.metrics.get(plan.metric.name, Evidence())
    for arm in (CHAMPION, challenger):
        if (came := evidence.arm(arm).n) < plan.min_outcomes:
            return Judged(challenger, "insufficient", f"{arm}: {came} outcomes, {plan.min_outcomes} are needed")
    effect = _effect(plan, plan.metric, seen, challenger, alpha=plan.each_alpha)
    if isinstance(effect, NotEstimable):
        return Judged(challenger, "insufficient", effect.reason)
    state, reason = _weigh(plan, seen, challenger, effect, now_us)
    return Judged(challenger, state, reason, effect)


def _weigh(plan: Plan, seen: Seen, challenger: str, effect: Interval, now_us: int) -> tuple[State, str]:
    told = f"{plan.metric.name}: {effect.estimate:+.4g} better, {effect.lower:+.4g} to {effect.upper:+.4g}"
    if effect.upper < 0:
        return "loser", told
    wanting = []
    if effect.lower > plan.min_effect:
        wanting = list(_wanting(plan, seen, challenger, now_us))
        if not wanting:
            return "winner", told
    if -plan.no_difference < effect.lower and effect.upper < plan.no_difference:
        return "no difference", f"{told}; within {plan.no_difference:g} either way"
    if (spent := _spent(plan, seen, challenger, effect, now_us)) is not None:
        return "futile", "; ".join([told, spent, *wanting])
    return "running", "; ".join([told, *wanting])


def _wanting(plan: Plan, seen: Seen, challenger: str, now_us: int) -> Iterator[str]:
    """What a challenger whose effect is large enough still lacks."""
    if (days := (now_us - seen.started_us) / (24 * HOUR_US)) < plan.min_days:
        yield f"after {days:.1f} days, {plan.min_days:g} are asked for"
    for guardrail in plan.guardrails:
        if not _held(plan, guardrail, seen, challenger):
            yield f"guardrail {guardrail.metric.name}: not known to be within its margin"


def _violated(plan: Plan, guardrail: Guardrail, seen: Seen, challenger: str) -> str | None:
    """How a challenger is worse than the guardrail's margin; None where that is not known."""
    alpha = plan.guardrail_alpha / len(plan.guardrails) / len(plan.challengers)
    name = guardrail.metric.name
    if guardrail.metric.kind == "rare":
        counted = _counts(seen.metrics.get(name, Evidence()), seen, challenger)
        if log_excess(counted, margin=guardrail.margin) <= -math.log(alpha) or _negligible(guardrail, seen, challenger):
            return None
        ours, theirs = (seen.metrics[name].arm(arm) for arm in (challenger, CHAMPION))
        return f"guardrail {name}: {ours.nonzero} of {ours.n} units, the champion's {theirs.nonzero} of {theirs.n}"
    effect = _effect(plan, guardrail.metric, seen, challenger, alpha=alpha, side="upper")
    if isinstance(effect, NotEstimable) or effect.upper >= -guardrail.margin:
        return None
    return f"guardrail {name}: worse by {-effect.upper:.4g} at least, {guardrail.margin:g} is the margin"


def _held(plan: Plan, guardrail: Guardrail, seen: Seen, challenger: str) -> bool:
    """Known not to be worse by more than the margin, at the plan's alpha: all guardrails must be, so none needs a share."""
    if guardrail.metric.kind == "rare":
        ratio = rate_ratio(
            _counts(seen.metrics.get(guardrail.metric.name, Evidence()), seen, challenger), alpha=plan.alpha
        )
        within = isinstance(ratio, Interval) and ratio.upper < 1 + guardrail.margin
        return within or _surely_negligible(plan, guardrail, seen, challenger)
    effect = _effect(plan, guardrail.metric, seen, challenger, alpha=plan.alpha, side="lower")
    return isinstance(effect, Interval) and effect.lower > -guardrail.margin


def _negligible(guardrail: Guardrail, seen: Seen, challenger: str) -> bool:
    ours = seen.metrics[guardrail.metric.name].arm(challenger)
    return ours.nonzero < guardrail.negligible * ours.n


def _surely_negligible(plan: Plan, guardrail: Guardrail, seen: Seen, challenger: str) -> bool:
    ours = seen.metrics.get(guardrail.metric.name, Evidence()).arm(challenger)
    rate = bernoulli(ours.nonzero, ours.n, alpha=plan.alpha, n_star=plan.n_star)
    return isinstance(rate, Interval) and rate.upper < guardrail.negligible


def _silent(plan: Plan, seen: Seen, challenger: str, now_us: int) -> str | None:
    grace = plan.grace_hours * HOUR_US
    if now_us - seen.started_us <= grace:
        return None
    if not sum(phase.get(challenger, 0) for phase in seen.assigned.values()):
        return f"no unit of {challenger} in {(now_us - seen.started_us) / HOUR_US:.0f} hours"
    if seen.last_us is None or now_us - seen.last_us > grace:
        return f"no row within the last {plan.grace_hours:g} hours"
    return None


def _spent(plan: Plan, seen: Seen, challenger: str, effect: Interval, now_us: int) -> str | None:
    """Why going on is of no use."""
    units = sum(phase.get(arm, 0) for phase in seen.assigned.values() for arm in (CHAMPION, challenger))
    if units >= plan.max_units:
        return f"all {plan.max_units:,} units have come"
    if (now_us - seen.started_us) / (24 * HOUR_US) >= plan.max_days:
        return f"all {plan.max_days:g} days are over"
    part = effect.units / plan.max_units
    if plan.metric.kind != "rare" and HALF_WAY <= part < 1 and effect.lower <= plan.min_effect:
        z = (effect.estimate - plan.min_effect) / effect.se
        bound = float(critical(plan.max_units, alpha=plan.each_alpha, n_star=plan.n_star))
        chance = float(special.ndtr((z / math.sqrt(part) - bound) / math.sqrt(1 - part)))
        if chance < plan.futile_below:
            return f"a win with the units left has a chance of {chance:.1%}"
    return None


def _effect(
    plan: Plan, metric: Metric, seen: Seen, challenger: str, *, alpha: float, side: Side = "two"
) -> Interval | NotEstimable:
    """How much better the challenger is; of something rare, by which part of the champion's rate."""
    evidence = seen.metrics.get(metric.name, Evidence())
    lower_is_better = metric.better == "lower"
    if metric.kind == "rare":
        ratio = rate_ratio(_counts(evidence, seen, challenger), alpha=alpha)
        found = ratio if isinstance(ratio, NotEstimable) else _less_one(ratio)
    else:
        _check_cap(metric, evidence)
        kind: Kind = metric.kind
        turned: Side = {"lower": "upper", "upper": "lower"}.get(side, "two") if lower_is_better else side  # type: ignore[assignment]
        found = difference(
            evidence, CHAMPION, challenger, kind=kind, alpha=alpha, n_star=plan.n_star, side=turned,
            relative=plan.relative, adjusted=plan.adjusted and metric == plan.metric,
        )  # fmt: skip
    if isinstance(found, NotEstimable) or not lower_is_better:
        return found
    return Interval(-found.estimate, -found.upper, -found.lower, found.p, found.se, found.units)


def _check_cap(metric: Metric, evidence: Evidence) -> None:
    for seen in evidence.cells.values():
        if metric.cap is not None and seen.squares > (1 + 1e-9) * metric.cap**2 * seen.nonzero:
            raise ValueError(f"{metric.name}: has values beyond the plan's cap, {metric.cap:g}")


def _less_one(ratio: Interval) -> Interval:
    return Interval(ratio.estimate - 1, ratio.lower - 1, ratio.upper - 1, ratio.p, ratio.se, ratio.units)


def _counts(evidence: Evidence, seen: Seen, challenger: str) -> list[Counts]:
    """By phase in which both arms had a share, units with the event."""
    found = []
    for phase, shares in seen.shares.items():
        ours, theirs = shares.get(challenger, 0.0), shares.get(CHAMPION, 0.0)
        if ours > 0 and theirs > 0:
            cells = [_phase(evidence, phase, arm).nonzero for arm in (CHAMPION, challenger)]
            found.append(Counts(cells[0], cells[1], ours / (ours + theirs)))
    return found


def _phase(evidence: Evidence, phase: str, arm: str) -> Moments:
    here = (seen for (stratum, name), seen in evidence.cells.items() if name == arm and _of(stratum) == phase)
    return sum(here, Moments())


def _of(stratum: Stratum) -> str:
    return stratum[0] if stratum else ""
