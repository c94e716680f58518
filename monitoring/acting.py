"""What is to be done about a verdict: a function of the plan, the phases, the sums and the time. The first that applies:

    hold        invalid: nothing more is concluded from these data, and no unit is moved; a person looks, and ends it
    roll back   a guardrail is violated, or every challenger loses: the routes before the experiment, at once
    promote     a winner, once approved where the plan asks for that
    end         no difference, or futile: the champion stays, and the traffic is free again
    ramp        the present step had its hours and units, and the next is approved where the plan asks for that: one step
    wait        anything else

A guardrail that one of several challengers violates ends the experiment of all, unless another has won: an arm's units
can't be given back without moving them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from monitoring.plan import CHAMPION, Plan, Step
from monitoring.verdict import HOUR_US, Seen, Verdict

Verb = Literal["hold", "roll back", "promote", "end", "ramp", "wait"]
POINT = 1e-4  # the least share


class Phase(NamedTuple):
    """`name` is a key of `Seen.shares`."""

    name: str
    at_us: int


@dataclass(frozen=True)
class Action:
    """`arm`: the one to promote; `percent`: of each arm, to ramp to."""

    verb: Verb
    reason: str
    arm: str | None = None
    percent: float | None = None


def act(plan: Plan, phases: Sequence[Phase], seen: Seen, verdict: Verdict, now_us: int, *, approved: bool) -> Action:
    """`phases` as in `seen.shares`, in their order; at least one."""
    state, reason = verdict.state, f"{verdict.state}: {verdict.reason}"
    if state == "invalid":
        return Action("hold", reason)
    if state in ("guardrail", "loser"):
        return Action("roll back", reason)
    if state in ("no difference", "futile"):
        return Action("end", reason)
    if state == "winner":
        if plan.approval and not approved:
            return Action("wait", f"{reason}; the plan asks for --approve")
        return Action("promote", reason, arm=verdict.winner)
    if state == "no data":
        return Action("wait", reason)
    return _ramp(plan, phases, seen, now_us, approved=approved)


def step_of(plan: Plan, share: float) -> int:
    """The step that gives each arm that share: the last that gives no more."""
    return max((at for at, step in enumerate(plan.ramp) if step.share <= share + POINT), default=0)


def _ramp(plan: Plan, phases: Sequence[Phase], seen: Seen, now_us: int, *, approved: bool) -> Action:
    at = step_of(plan, _share(plan, seen, phases[-1]))
    if at + 1 == len(plan.ramp):
        return Action("wait", "the ramp's last step is reached")
    since = [phase for phase in phases if step_of(plan, _share(plan, seen, phase)) == at]
    if (wanting := _wanting(plan, plan.ramp[at], since, seen, now_us)) is not None:
        return Action("wait", f"step {at + 1}: {wanting}")
    following = plan.ramp[at + 1]
    if following.approval and not approved:
        return Action("wait", f"step {at + 2} asks for --approve")
    percent = 100 * following.share
    return Action("ramp", f"step {at + 1} is over: {percent:g} % each", percent=percent)


def _wanting(plan: Plan, step: Step, since: Sequence[Phase], seen: Seen, now_us: int) -> str | None:
    """What a step has not had yet."""
    hours = (now_us - since[0].at_us) / HOUR_US
    if hours < step.hours:
        return f"{hours:.1f} of {step.hours:g} hours"
    for arm in (CHAMPION, *plan.challengers):
        units = sum(seen.assigned.get(phase.name, {}).get(arm, 0) for phase in since)
        if units < step.units:
            return f"{units:,} of {step.units:,} units of {arm}"
    return None


def _share(plan: Plan, seen: Seen, phase: Phase) -> float:
    return min(seen.shares[phase.name].get(arm, 0.0) for arm in (CHAMPION, *plan.challengers))
