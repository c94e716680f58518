"""A verdict is the first state that holds, with its reason; a plan that makes no sense is refused by its field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from monitoring.errors import PlanRefused
from monitoring.evidence import Evidence, Moments, moments
from monitoring.plan import CHAMPION, Guardrail, Metric, Plan, Step, as_routes, decode, encode
from monitoring.verdict import HOUR_US, Seen, State, judge

DAY_US = 24 * HOUR_US
FAILED = Guardrail(metric=Metric(name="failed", kind="rare", better="lower"), margin=0.5, negligible=0.002)
LATENCY = Guardrail(metric=Metric(name="latency", kind="mean", better="lower", cap=100.0), margin=2.0)


def plan(**changes: Any) -> Plan:
    given: dict[str, Any] = {
        "name": "two against one",
        "unit": "customer_id",
        "metric": Metric(name="converted", kind="proportion", better="higher"),
        "n_star": 20_000.0,
        "no_difference": 0.02,
        "ramp": (Step(share=0.1), Step(share=0.5)),
        "guardrails": (FAILED,),
        "max_units": 100_000,
    }
    return Plan(**given | changes)


def events(n: int, k: int) -> Moments:
    return Moments(n, k, k, k)


def evidence(champion: Moments, challenger: Moments, phase: str = "half", name: str = "challenger") -> Evidence:
    return Evidence({((phase,), CHAMPION): champion, ((phase,), name): challenger})


def seen(**changes: Any) -> Seen:
    """A sound experiment after ten days, one outcome in twenty in both arms."""
    given: dict[str, Any] = {
        "shares": {"half": {CHAMPION: 0.5, "challenger": 0.5}},
        "assigned": {"half": {CHAMPION: 10_000, "challenger": 10_000}},
        "metrics": {"converted": evidence(events(10_000, 500), events(10_000, 500)), "failed": NO_FAILURES},
        "started_us": 0,
        "last_us": 10 * DAY_US,
    }
    return Seen(**given | changes)


NO_FAILURES = evidence(events(10_000, 0), events(10_000, 0))
BETTER = evidence(events(10_000, 500), events(10_000, 700))
WORSE = evidence(events(10_000, 700), events(10_000, 500))
FAILING = evidence(events(10_000, 10), events(10_000, 60))
SPLIT_WRONG = {"half": {CHAMPION: 10_000, "challenger": 9_000}}


def metrics(converted: Evidence, failed: Evidence = NO_FAILURES) -> dict[str, Evidence]:
    return {"converted": converted, "failed": failed}


STATES: list[tuple[str, Plan, Seen, float, State, str]] = [
    ("even", plan(), seen(), 10, "no difference", "within 0.02 either way"),
    ("better", plan(), seen(metrics=metrics(BETTER)), 10, "winner", "converted: +0.02 better"),
    ("worse", plan(), seen(metrics=metrics(WORSE)), 10, "loser", "converted: -0.02 better"),
    ("better, too soon", plan(), seen(metrics=metrics(BETTER)), 3, "running", "after 3.0 days, 7 are asked for"),
    ("worse, soon", plan(), seen(metrics=metrics(WORSE)), 3, "loser", "converted"),
    ("better, not by enough", plan(min_effect=0.03), seen(metrics=metrics(BETTER)), 10, "running", "converted"),
    ("better, unguarded", plan(), seen(metrics={"converted": BETTER}), 10, "running", "failed: not known"),
    (
        "better, guarded by a ratio",
        plan(guardrails=(msgspec.structs.replace(FAILED, negligible=0.0),)),
        seen(metrics=metrics(BETTER, evidence(events(10_000, 900), events(10_000, 900)))),
        10,
        "winner",
        "converted",
    ),
    ("too wide", plan(no_difference=0.001), seen(), 10, "running", "converted"),
    ("units spent", plan(no_difference=0.001, max_units=20_000), seen(), 10, "futile", "all 20,000 units"),
    ("days spent", plan(no_difference=0.001, max_days=9), seen(), 10, "futile", "all 9 days"),
    ("hopeless", plan(no_difference=0.001, max_units=24_000), seen(), 10, "futile", "has a chance of 0.0%"),
    ("better in the end", plan(max_units=20_000), seen(metrics=metrics(BETTER)), 10, "winner", "converted"),
    ("few outcomes", plan(min_outcomes=10_001), seen(), 10, "insufficient", "champion: 10000 outcomes, 10001"),
    (
        "few events",
        plan(),
        seen(metrics=metrics(evidence(events(400, 20), events(400, 50)))),
        10,
        "insufficient",
        "champion: 20 events among 400 units",
    ),
    ("no outcomes", plan(), seen(metrics={}), 10, "insufficient", "champion: 0 outcomes"),
    ("silent", plan(), seen(last_us=DAY_US), 10, "no data", "no row within the last 24 hours"),
    ("never came", plan(), seen(assigned={}), 10, "no data", "no unit of challenger in 240 hours"),
    ("just begun", plan(), seen(assigned={}, metrics={}, last_us=None), 0.5, "insufficient", "0 outcomes"),
    ("failing", plan(), seen(metrics=metrics(WORSE, FAILING)), 10, "guardrail", "60 of 10000 units, the champion's 10"),
    ("failing, yet better", plan(), seen(metrics=metrics(BETTER, FAILING)), 10, "guardrail", "failed"),
    ("failing at once", plan(), seen(metrics={"failed": FAILING}, last_us=None), 0.1, "guardrail", "failed"),
    (
        "failing, and nobody minds",
        plan(guardrails=(msgspec.structs.replace(FAILED, negligible=0.02),)),
        seen(metrics=metrics(BETTER, FAILING)),
        10,
        "winner",
        "converted",
    ),
    (
        "split wrong",
        plan(),
        seen(metrics=metrics(BETTER, FAILING), assigned=SPLIT_WRONG),
        10,
        "invalid",
        "shares: phase 'half'",
    ),
    ("in two arms", plan(), seen(metrics=metrics(BETTER), in_two_arms=201), 10, "invalid", "exposure: 201 of 20000"),
    ("in two arms, few", plan(), seen(metrics=metrics(BETTER), in_two_arms=200), 10, "winner", "converted"),
    (
        "rows lost",
        plan(),
        seen(metrics=metrics(BETTER), lost=evidence(events(10_000, 5), events(10_000, 60))),
        10,
        "invalid",
        "log: rows are lost unevenly, 60 of challenger's and 5",
    ),
    (
        "outcomes missing",
        plan(),
        seen(metrics=metrics(BETTER), unlabelled=evidence(events(10_000, 4_000), events(10_000, 3_500))),
        10,
        "invalid",
        "log: outcomes are missing unevenly",
    ),
    (
        "outcomes missing evenly",
        plan(),
        seen(metrics=metrics(BETTER), unlabelled=evidence(events(10_000, 4_000), events(10_000, 3_950))),
        10,
        "winner",
        "converted",
    ),
]


@pytest.mark.parametrize(
    ("asked", "given", "days", "state", "reason"), [case[1:] for case in STATES], ids=[case[0] for case in STATES]
)
def test_the_first_state_that_holds_is_the_verdict(
    asked: Plan, given: Seen, days: float, state: State, reason: str
) -> None:
    found = judge(asked, given, round(days * DAY_US))
    assert (found.state, found.plan) == (state, asked.digest)
    assert reason in found.reason
    assert found.winner == ("challenger" if state == "winner" else None)
    assert [one.state for one in found.challengers] == [state]
    assert judge(decode(encode(asked)), given, round(days * DAY_US)) == found


def test_what_is_better_lower_is_turned() -> None:
    costs = plan(metric=Metric(name="cost", kind="mean", better="lower", cap=50.0), no_difference=0.0, guardrails=())
    rng = np.random.default_rng(0)
    paid = rng.uniform(5, 15, 5_000)
    for shift, state in ((-1.0, "winner"), (1.0, "loser")):
        given = seen(metrics={"cost": evidence(moments(paid), moments(paid + shift))})
        found = judge(costs, given, 10 * DAY_US)
        assert found.state == state
        effect = found.challengers[0].effect
        assert effect is not None
        assert effect.estimate == pytest.approx(-shift)
        assert effect.lower < -shift < effect.upper
        relative = judge(msgspec.structs.replace(costs, relative=True), given, 10 * DAY_US).challengers[0].effect
        assert relative is not None
        assert relative.estimate == pytest.approx(-shift / paid.mean())
    beyond = seen(metrics={"cost": evidence(moments(paid), moments(paid + 60))})
    with pytest.raises(ValueError, match="beyond the plan's cap"):
        judge(costs, beyond, 10 * DAY_US)


def test_a_mean_has_a_guardrail_too() -> None:
    rng = np.random.default_rng(1)
    took = rng.uniform(10, 20, 10_000)
    guarded = plan(guardrails=(LATENCY,))
    for slower, state, reason in (
        (0.5, "winner", "converted"),
        (2.0, "running", "latency: not known to be within its margin"),
        (3.0, "guardrail", "worse by 2."),
    ):
        given = seen(metrics={"converted": BETTER, "latency": evidence(moments(took), moments(took + slower))})
        found = judge(guarded, given, 10 * DAY_US)
        assert found.state == state
        assert reason in found.reason


def test_something_rare_can_be_what_is_asked_about() -> None:
    rare = plan(
        metric=Metric(name="churned", kind="rare", better="lower"), guardrails=(), no_difference=0.3, max_units=60_000
    )
    for champion, challenger, state in (
        (200, 90, "winner"),
        (90, 200, "loser"),
        (6_000, 6_000, "no difference"),
        (3, 2, "running"),
    ):
        given = seen(metrics={"churned": evidence(events(100_000, champion), events(100_000, challenger))})
        assert judge(rare, given, 10 * DAY_US).state == state


def test_of_two_winners_the_surer_wins_and_a_failing_one_stops_no_other() -> None:
    names = ("second", "third", "fourth")
    asked = plan(challengers=names, ramp=(Step(share=0.25),))
    share = dict.fromkeys((CHAMPION, *names), 0.25)
    cells = {((("quarter",), CHAMPION)): events(10_000, 500)}
    for name, hits in zip(names, (680, 720, 720), strict=True):
        cells[(("quarter",), name)] = events(10_000, hits)
    failed = {(("quarter",), name): events(10_000, 90 if name == "fourth" else 0) for name in share}
    given = seen(
        shares={"quarter": share},
        assigned={"quarter": dict.fromkeys(share, 10_000)},
        metrics={"converted": Evidence(cells), "failed": Evidence(failed)},
    )
    found = judge(asked, given, 10 * DAY_US)
    assert [one.state for one in found.challengers] == ["winner", "winner", "guardrail"]
    assert (found.state, found.winner) == ("winner", "third")
    alone = judge(msgspec.structs.replace(asked, challengers=("second",), ramp=(Step(share=0.25),)), given, 10 * DAY_US)
    wide, narrow = found.challengers[0].effect, alone.challengers[0].effect
    assert wide is not None
    assert narrow is not None
    assert wide.lower < narrow.lower < narrow.upper < wide.upper


def test_a_ramp_on_changing_traffic_wins_nothing() -> None:
    """99/1 at 5 %, then 50/50 at 8 %: pooled, the challenger would win."""
    ramp = evidence(events(9_900, 495), events(100, 5), "week 1") + evidence(
        events(5_000, 400), events(5_000, 400), "week 2"
    )
    given = seen(
        shares={"week 1": {CHAMPION: 0.99, "challenger": 0.01}, "week 2": {CHAMPION: 0.5, "challenger": 0.5}},
        assigned={"week 1": {CHAMPION: 9_900, "challenger": 100}, "week 2": {CHAMPION: 5_000, "challenger": 5_000}},
        metrics=metrics(ramp),
        last_us=14 * DAY_US,
    )
    assert judge(plan(), given, 14 * DAY_US).state == "no difference"
    pooled = replace(
        given,
        shares={"both": {CHAMPION: 0.745, "challenger": 0.255}},
        assigned={"both": {CHAMPION: 14_900, "challenger": 5_100}},
        metrics=metrics(
            evidence(ramp.arm(CHAMPION), ramp.arm("challenger"), "both"), evidence(events(9, 0), events(9, 0))
        ),
    )
    assert judge(plan(guardrails=()), pooled, 14 * DAY_US).state == "winner"


def test_a_broken_later_phase_is_seen_behind_a_sound_long_one() -> None:
    shares = {CHAMPION: 0.5, "challenger": 0.5}
    given = seen(
        shares={"half": shares, "late": shares},
        assigned={"half": {CHAMPION: 10**6, "challenger": 10**6}, "late": {CHAMPION: 1_000, "challenger": 1_300}},
    )
    found = judge(plan(), given, 10 * DAY_US)
    assert found.state == "invalid"
    assert "phase 'late'" in found.reason


def test_a_plan_goes_through_the_routes_unchanged() -> None:
    asked = plan(guardrails=(FAILED, LATENCY))
    carried = json.loads(json.dumps(as_routes(asked)))
    assert decode(carried) == asked
    assert decode(encode(asked)).digest == asked.digest
    assert plan(alpha=0.04).digest != plan().digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format: this version reads 1"),
        ({"name": " "}, "name: is empty"),
        ({"alpha": 0.0}, "alpha: must be above 0"),
        ({"alpha": 0.5}, "alpha: must be above 0"),
        ({"alpha": float("nan")}, "alpha: must be above 0"),
        ({"n_star": 0.0}, "n_star: must be above 0"),
        ({"max_units": 0}, "max_units"),
        ({"min_effect": -0.1}, "min_effect: must be zero or more"),
        ({"no_difference": float("inf")}, "no_difference"),
        ({"futile_below": 1.0}, "futile_below"),
        ({"min_outcomes": 1}, "min_outcomes"),
        ({"min_days": 30.0, "max_days": 20.0}, "max_days: 20 ends the experiment before min_days"),
        ({"challengers": ()}, "challengers"),
        ({"challengers": ("a", "a")}, "challengers"),
        ({"challengers": ("champion",)}, "challengers: 'champion'"),
        ({"ramp": ()}, "ramp: has no step"),
        ({"ramp": (Step(share=0.5), Step(share=0.1))}, r"ramp\[1\].share: must be above 0.5"),
        ({"ramp": (Step(share=0.6),)}, r"ramp\[0\].share"),
        ({"ramp": (Step(share=0.4),), "challengers": ("a", "b")}, r"at most 0.3333"),
        ({"ramp": (Step(share=0.1, hours=-1.0),)}, r"ramp\[0\]: hours"),
        ({"guardrails": (FAILED, FAILED)}, "guardrails: two metrics share a name"),
        ({"guardrails": (msgspec.structs.replace(FAILED, margin=-1.0),)}, r"guardrails\[0\]: margin"),
        (
            {"guardrails": (Guardrail(metric=Metric(name="x", kind="rare", better="higher"), margin=0.0),)},
            "better the lower",
        ),
        ({"metric": Metric(name="", kind="mean", better="higher")}, "metric.name: is empty"),
        ({"metric": Metric(name="x", kind="mean", better="higher", cap=-1.0)}, "metric.cap"),
        ({"metric": Metric(name="x", kind="proportion", better="higher", cap=1.0)}, "metric.cap"),
        ({"metric": Metric(name="x", kind="rare", better="lower"), "relative": True}, "metric: of something rare"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_its_field(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanRefused, match=words):
        plan(**changes)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"name": "x"}', {"name": 3}, {"aplha": 0.1}, None])
def test_a_plan_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(PlanRefused, match="plan: "):
        decode(text)
    misspelt = as_routes(plan()) | {"min_efect": 0.1}
    with pytest.raises(PlanRefused, match="min_efect"):
        decode(misspelt)
