"""A plan that is played through ends as its verdicts say, is wrong no more often than it promises, and finds what is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from monitoring.errors import MonitoringError
from monitoring.plan import Guardrail, Metric, Plan, Step
from monitoring.plan_figures import figures, table
from monitoring.planning import fixed_units, proportions
from monitoring.replaying import Supposed, replay

ROOT = Path(__file__).parents[2]
RATE = Plan(
    name="x",
    unit="c",
    metric=Metric(name="converted", kind="proportion", better="higher"),
    n_star=5_000.0,
    no_difference=0.04,
    ramp=(Step(share=0.1), Step(share=0.5)),
    guardrails=(
        Guardrail(metric=Metric(name="failed", kind="rare", better="lower"), margin=0.5, negligible=0.01),
        Guardrail(metric=Metric(name="latency_ms", kind="mean", better="lower"), margin=2.0),
    ),
    label_window_hours=48,
    min_days=5,
    max_days=30,
    max_units=30_000,
)
MEAN = msgspec.structs.replace(
    RATE, metric=Metric(name="cost", kind="mean", better="lower", cap=50.0), no_difference=0.5
)
EARLY = Supposed(daily=2000, champion=0.2)


@pytest.mark.parametrize(
    ("plan", "supposed", "better"), [(RATE, EARLY, 0.06), (MEAN, Supposed(2000, 10.0, sd=5.0), -0.8)]
)
def test_no_effect_is_found_seldom_and_a_large_one_nearly_always(plan: Plan, supposed: Supposed, better: float) -> None:
    from dataclasses import replace

    none = replay(plan, supposed, 60)
    assert none.share("winner", "loser") <= plan.alpha + 2 * (plan.alpha * (1 - plan.alpha) / 60) ** 0.5
    assert none.share("invalid", "guardrail") <= 0.05
    assert none.share("no difference", "futile") > 0.9
    some = replay(plan, replace(supposed, effect=better), 60)
    assert some.share("winner") > 0.9
    assert min(some.days) >= plan.min_days
    worse = replay(plan, replace(supposed, effect=-better), 60)
    assert worse.share("loser") > 0.9
    assert replay(plan, supposed, 60) == none
    told = list(table(plan, none, some))
    assert "of 60 experiments each" in told[-1]


def test_a_plan_without_units_has_no_end() -> None:
    found = replay(RATE, Supposed(daily=1, champion=0.2), 2)
    assert found.ends == ("running", "running")
    assert min(found.days) > RATE.max_days


def test_the_figures_of_a_plan_are_those_of_planning() -> None:
    told = list(figures(RATE, 0.2, 0.03, None, 2000.0))
    fixed = fixed_units(proportions(0.2, 0.23))
    assert f"{fixed:,.0f} if looked at once" in told[0]
    assert told[1].startswith("max_units 30,000 at n_star 5,000: power 100.0%")
    assert "days at 2,000 units a day" in told[2]
    for given, words in (((0.2, 0.9, None, None), "--champion, --effect"), ((0.2, 0.0, None, None), "effect")):
        with pytest.raises(MonitoringError, match=words):
            list(figures(RATE, *given))
    with pytest.raises(MonitoringError, match="--sd"):
        list(figures(MEAN, 10.0, 1.0, None, None))


@pytest.mark.parametrize(
    ("given", "words"), [({"daily": 0.0}, "--daily"), ({"effect": 0.9}, "converted is a rate, and would be 1.1")]
)
def test_a_world_that_can_not_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(MonitoringError, match=words):
        replay(RATE, Supposed(**{"daily": 10.0, "champion": 0.2} | given), 1)


def test_the_verbs_check_a_plan_and_play_it(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(RATE))
    for words, told in (
        (["plan", "plan.json", "--champion", "0.2", "--effect", "0.03", "--daily", "2000"], "is in order\n80% power"),
        (["simulate", "plan.json", "--daily", "2000", "--effect", "0.08", "--runs", "3"], "of 3 experiments each"),
    ):
        ran = subprocess.run(
            [sys.executable, "-m", "coppice", "experiment", *words],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told in ran.stdout, ran.stderr
