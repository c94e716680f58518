"""An experiment's plan: what is asked, and what will be done about the answer, written down before the first unit.

A plan travels in the routes' `plan` as JSON. It is checked when it is published and never edited: another question is another
experiment, under a new salt. `digest` is what a verdict names, so that anyone can tell which plan it was made by.

    {"format": 1, "name": "churn-4-against-3", "unit": "customer_id", "alpha": 0.05, "n_star": 20000,
     "metric": {"name": "converted", "kind": "proportion", "better": "higher"},
     "min_effect": 0.0, "no_difference": 0.005,
     "challengers": ["challenger"],
     "ramp": [{"share": 0.01, "hours": 24, "units": 1000}, {"share": 0.5, "hours": 24, "units": 1000}],
     "guardrails": [{"metric": {"name": "failed", "kind": "rare", "better": "lower"}, "margin": 0.5, "negligible": 0.001}],
     "label_window_hours": 168, "min_days": 7, "max_days": 60, "max_units": 200000, "min_outcomes": 500}

Effects, `min_effect`, `no_difference` and margins of means and proportions are in the metric's unit, or `relative`, parts of
the champion's mean; a margin of something rare is a part of the champion's rate (0.5: half as many again).
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal

import msgspec

from monitoring.errors import PlanRefused

FORMAT = 1
CHAMPION = "champion"
CONTROL = "control"  # the arm of the champion's bundle that challengers are compared with


class Metric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`mean`: values, cut to within `cap` of zero where there is one; `proportion`: 0 or 1; `rare`: 0 or 1, and seldom 1."""

    name: str
    kind: Literal["mean", "proportion", "rare"]
    better: Literal["higher", "lower"]
    cap: float | None = None


class Guardrail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Worse by more than `margin` ends the experiment, and a winner must be known not to be.

    `negligible`: a rate that nobody minds, whatever the champion's is. Of failures that hardly happen no ratio is known well
    enough for long, and without it a winner waits for them in vain.
    """

    metric: Metric
    margin: float
    negligible: float = 0.0


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each challenger and its control get `share` of all units, for `hours` and until `units` came to each."""

    share: float
    hours: float = 24.0
    units: int = 0
    approval: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: int = FORMAT
    name: str
    unit: str
    metric: Metric
    n_star: float
    alpha: float = 0.05
    min_effect: float = 0.0
    no_difference: float = 0.0
    relative: bool = False
    adjusted: bool = False
    challengers: tuple[str, ...] = ("challenger",)
    ramp: tuple[Step, ...]
    guardrails: tuple[Guardrail, ...] = ()
    guardrail_alpha: float = 0.01
    label_window_hours: float = 0.0
    grace_hours: float = 24.0
    min_days: float = 7.0
    max_days: float = 90.0
    max_units: int
    min_outcomes: int = 100
    futile_below: float = 0.05
    approval: bool = False
    cooldown_hours: float = 24.0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def each_alpha(self) -> float:
        """Bonferroni's share of alpha for one challenger."""
        return self.alpha / len(self.challengers)

    @property
    def digest(self) -> str:
        """sha256 of the plan as `encode` writes it."""
        return hashlib.sha256(encode(self)).hexdigest()


def decode(plan: Any) -> Plan:
    """From what the routes hold (a dict), or from JSON. Raises PlanRefused, naming the field."""
    try:
        if isinstance(plan, bytes | str):
            return msgspec.json.decode(plan, type=Plan)
        return msgspec.convert(plan, type=Plan)
    except (msgspec.MsgspecError, RecursionError) as malformed:
        raise PlanRefused(f"plan: {malformed}") from None


def encode(plan: Plan) -> bytes:
    """One plan, one text: every field, in the order of their names; 9 days are 9.0 days."""
    return msgspec.json.encode(decode(msgspec.json.encode(plan)), order="sorted")


def as_routes(plan: Plan) -> dict[str, Any]:
    """For `Routes.plan`."""
    made: dict[str, Any] = msgspec.to_builtins(plan)
    return made


def _check(plan: Plan) -> None:
    if plan.format != FORMAT:
        raise PlanRefused(f"format: this version reads {FORMAT}, got {plan.format}")
    for field in ("name", "unit"):
        if not getattr(plan, field).strip():
            raise PlanRefused(f"{field}: is empty")
    _check_numbers(plan)
    _check_arms(plan)
    _check_ramp(plan)
    names = [plan.metric.name, *(guardrail.metric.name for guardrail in plan.guardrails)]
    if len(set(names)) != len(names):
        raise PlanRefused(f"guardrails: two metrics share a name: {sorted(names)}")
    if plan.metric.kind == "rare" and (plan.relative or plan.adjusted):
        raise PlanRefused("metric: of something rare, effects are ratios already, and no covariate is used")
    for at, guardrail in enumerate(plan.guardrails):
        _check_metric(guardrail.metric, f"guardrails[{at}].metric")
        if guardrail.metric.kind == "rare" and guardrail.metric.better != "lower":
            raise PlanRefused(f"guardrails[{at}].metric.better: what is rare and guarded is better the lower")
        if not (0 <= guardrail.margin < math.inf and 0 <= guardrail.negligible < 1):
            raise PlanRefused(f"guardrails[{at}]: margin and negligible are zero or more, negligible below 1")
    _check_metric(plan.metric, "metric")


def _check_numbers(plan: Plan) -> None:
    for field, low, high in (
        ("alpha", 0.0, 0.5),
        ("guardrail_alpha", 0.0, 0.5),
        ("n_star", 0.0, math.inf),
        ("max_units", 0, math.inf),
        ("max_days", 0.0, math.inf),
    ):
        if not low < getattr(plan, field) < high:
            raise PlanRefused(f"{field}: must be above {low:g} and below {high:g}, got {getattr(plan, field)}")
    for field in ("min_effect", "no_difference", "label_window_hours", "grace_hours", "min_days", "cooldown_hours"):
        if not 0 <= getattr(plan, field) < math.inf:
            raise PlanRefused(f"{field}: must be zero or more, got {getattr(plan, field)}")
    if not 0 <= plan.futile_below < 1:
        raise PlanRefused(f"futile_below: must be within 0..1, got {plan.futile_below}")
    if plan.min_outcomes < 2:
        raise PlanRefused(f"min_outcomes: must be 2 or more, got {plan.min_outcomes}")
    if plan.min_days > plan.max_days:
        raise PlanRefused(f"max_days: {plan.max_days:g} ends the experiment before min_days, {plan.min_days:g}")


def _check_arms(plan: Plan) -> None:
    if not plan.challengers or len(set(plan.challengers)) != len(plan.challengers):
        raise PlanRefused(f"challengers: must be one or more, each once, got {list(plan.challengers)}")
    for name in (CHAMPION, CONTROL):
        if name in plan.challengers:
            raise PlanRefused(f"challengers: {name!r} is what they are compared with")


def _check_ramp(plan: Plan) -> None:
    """Shares ascend, and leave every challenger a control of its own size; an arm that grows never shrinks."""
    if not plan.ramp:
        raise PlanRefused("ramp: has no step")
    most, before = 1 / (len(plan.challengers) + 1), 0.0
    for at, step in enumerate(plan.ramp):
        if not before < step.share <= most + 1e-9:
            raise PlanRefused(f"ramp[{at}].share: must be above {before:g} and at most {most:.4g}, got {step.share}")
        if not (0 <= step.hours < math.inf and step.units >= 0):
            raise PlanRefused(f"ramp[{at}]: hours and units are zero or more")
        before = step.share


def _check_metric(metric: Metric, field: str) -> None:
    if not metric.name.strip():
        raise PlanRefused(f"{field}.name: is empty")
    if metric.cap is not None and (metric.kind != "mean" or not 0 < metric.cap < math.inf):
        raise PlanRefused(f"{field}.cap: is for means, and above zero; got {metric.cap}")
