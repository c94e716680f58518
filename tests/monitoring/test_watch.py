"""Each rule decides what it says, broken data before anything that is concluded from data; and the same again is the same."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from monitoring import checks
from monitoring.checks import Check
from monitoring.watch import DAY_US, RULES, Facts, Limits, decide
from monitoring.watch_cli import watch as verb
from monitoring.watch_facts import gather, watch

HOUR_US = 3_600_000_000
NOW_US = 10_000 * HOUR_US
LIMITS = Limits()
WELL = Facts("churn", "3", performance="fine", performance_says="AUC is 0.81", labelled=5000, served=10_000)
DRIFTING: dict[str, Any] = {"drifted": 2, "drift_says": "the prediction drifted"}

# what makes each rule apply, from WELL on
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "unseen": ("investigate", {"unseen": True}),
    "books": ("investigate", {"faults": ("w: 3 rows are there twice",)}),
    "dropped": ("investigate", {"dropped": 11}),
    "inputs": ("investigate", {"inputs": ("tenure has no values",)}),
    "gap": ("investigate", {"rows": 99, "usual_rows": 1000}),
    "broken": ("investigate", {"broken": "3 % of what was asked failed"}),
    "drop": ("retrain", {"performance": "drop", "performance_says": "AUC fell"}),
    "unlabelled": ("investigate", {"performance": "drop", "performance_says": "AUC fell", "labelled": 999}),
    "drift": ("retrain", DRIFTING),
    "alarm": ("investigate", {"alarms": ("adwin saw errors rise",)}),
    "estimate": ("investigate", {"estimate": "drop", "estimate_says": "AUC is estimated as 0.7"}),
    "harmless": ("wait", {**DRIFTING, "labelled": 10, "estimate": "fine", "estimate_says": "AUC is estimated as 0.8"}),
    "unknown": ("investigate", {**DRIFTING, "labelled": 10}),
    "passing": ("wait", {"drifted": 1, "drift_says": "the prediction drifted"}),
    "calm": ("wait", {}),
}


def test_the_cases_are_those_of_the_rules_in_their_order() -> None:
    assert list(CASES) == [name for name, _, _ in RULES]


@pytest.mark.parametrize("rule", CASES)
def test_each_rule_decides_what_it_says(rule: str) -> None:
    decision, changes = CASES[rule]
    verdict = decide(replace(WELL, **changes), LIMITS)
    assert (verdict.rule, verdict.decision) == (rule, decision)
    assert verdict.reasons[0].startswith(f"{rule}: ")
    assert len(verdict.reasons) == 1


PAIRS = [
    (first, second)
    for first, second in itertools.combinations(list(CASES)[:-1], 2)
    if not (first in ("drop", "drift") and "labelled" in CASES[second][1])  # labelled rows are enough, or they are not
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_of_two_that_apply_the_earlier_decides_and_the_later_is_told(first: str, second: str) -> None:
    changes = CASES[second][1] | CASES[first][1]
    verdict = decide(replace(WELL, **changes), LIMITS)
    applying = [name for name, _, rule in RULES if rule(replace(WELL, **changes), LIMITS)]
    assert verdict.rule == applying[0]
    assert verdict.rule == first or list(CASES).index(verdict.rule) < list(CASES).index(first)
    assert verdict.decision == CASES[verdict.rule][0]
    assert [reason.split(":")[0] for reason in verdict.reasons] == [name for name in applying if name != "calm"]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"lost": 1}, "books"),
        ({"dropped": 10}, "calm"),  # of 10,010 rows: no more than one in a thousand
        ({"dropped": 1, "served": 0}, "dropped"),
        ({"rows": 0, "usual_rows": 1000}, "gap"),
        ({"rows": 100, "usual_rows": 1000}, "calm"),
        ({"rows": 0, "usual_rows": None}, "calm"),
        ({"performance": "drop", "labelled": 1000}, "drop"),
        ({"performance": ""}, "calm"),
        ({**DRIFTING, "labelled": 1000}, "drift"),
        ({**DRIFTING, "labelled": 10, "estimate": "drop", "estimate_says": "AUC fell"}, "estimate"),
    ],
)
def test_bounds(changes: dict[str, Any], rule: str) -> None:
    assert decide(replace(WELL, **changes), LIMITS).rule == rule


def test_a_second_retraining_waits_for_the_first_to_show() -> None:
    facts = replace(WELL, **CASES["drop"][1])
    assert decide(facts, LIMITS, since_retrain_us=7 * DAY_US).decision == "retrain"
    cooled = decide(facts, LIMITS, since_retrain_us=7 * DAY_US - 1)
    assert (cooled.decision, cooled.rule) == ("wait", "cooldown")
    assert [reason.split(":")[0] for reason in cooled.reasons] == ["cooldown", "drop"]
    broken = decide(replace(facts, lost=1), LIMITS, since_retrain_us=1)
    assert (broken.decision, broken.rule) == ("investigate", "books"), "what is broken waits for nothing"


def test_the_hash_is_of_all_that_was_decided_from() -> None:
    hashes = {decide(replace(WELL, **changes), LIMITS).inputs for _, changes in CASES.values()}
    hashes.add(decide(WELL, replace(LIMITS, drift_windows=3)).inputs)
    assert len(hashes) == len(CASES) + 1
    assert decide(WELL, LIMITS, since_retrain_us=1).inputs == decide(WELL, LIMITS).inputs


def put(folder: Path, kind: str, hours_ago: int, verdict: str, version: str = "3", **found: Any) -> None:
    until = NOW_US - hours_ago * HOUR_US
    checks.append(
        folder, Check(kind, "churn", version, until - HOUR_US, until, verdict, f"{verdict} it is", found, until)
    )


def measured(folder: Path, hours_ago: int, verdict: str, **found: Any) -> None:
    told = {"arm": "champion", "role": "served", "metric": "roc_auc", "every": "hour", "labelled": 600, "alarms": []}
    put(folder, "performance", hours_ago, verdict, **told | {"level": {"value": 0.8}} | found)


def test_facts_are_what_the_checks_found(tmp_path: Path) -> None:
    assert gather(tmp_path, "churn", "3", LIMITS, now_us=NOW_US) == Facts("churn", "3", unseen=True)
    for hour, rows in ((5, 1000), (4, 1200), (3, 900), (2, 1100), (1, 50)):
        put(tmp_path, "drift", hour, "drift" if hour < 3 else "no drift", window_rows=rows, columns=[
            {"name": "tenure", "missing_reference": 0.1, "missing_window": 1.0, "note": ""},
            {"name": "plan", "missing_reference": 0.0, "missing_window": 0.2, "note": "in the window: not in the schema"},
            {"name": "fine", "missing_reference": 0.0, "missing_window": 0.9, "note": ""},
        ])  # fmt: skip
    put(tmp_path, "drift", 1, "no drift", version="2", window_rows=1)
    alarm = {"detector": "adwin", "worse": True, "before": 0.1, "after": 0.2}
    measured(tmp_path, 3, "fine", alarms=[alarm | {"worse": False}])
    measured(tmp_path, 2, "drop", alarms=[alarm])
    estimate = {"trust": "trusted", "figures": {"roc_auc": 0.7}}
    measured(tmp_path, 1, "open", labelled=0, estimate=estimate)
    put(tmp_path, "operations", 2, "broken", "", rows=1000, dropped=2, lost=1, faults=[])
    put(tmp_path, "operations", 1, "broken", "", rows=500, dropped=0, lost=0, error_rate=0.1)
    facts = gather(tmp_path, "churn", "3", LIMITS, now_us=NOW_US)
    assert facts == Facts(
        model="churn",
        version="3",
        dropped=2,
        lost=1,
        served=500,
        broken="broken it is",
        inputs=("tenure has no values", "plan: in the window: not in the schema"),
        rows=50,
        usual_rows=1050,
        performance="drop",
        performance_says="drop it is",
        labelled=1200,
        alarms=("adwin saw errors rise from 0.1 to 0.2",),
        estimate="drop",
        estimate_says="roc_auc is estimated as 0.7, against 0.8 before",
        drifted=2,
        drift_says="drift it is",
    )
    assert decide(facts, LIMITS).rule == "books"


@pytest.mark.parametrize(
    ("estimate", "says"),
    [
        ({"trust": "trusted", "figures": {"roc_auc": 0.79}}, "fine"),
        ({"trust": "trusted", "figures": {"roc_auc": None}}, ""),
        ({"trust": "unverified", "figures": {"roc_auc": 0.1}}, ""),
        (None, ""),
    ],
)
def test_an_estimate_counts_where_it_can_be_trusted(estimate: Any, says: str, tmp_path: Path) -> None:
    measured(tmp_path, 1, "open", estimate=estimate)
    assert gather(tmp_path, "churn", "3", LIMITS, now_us=NOW_US).estimate == says


def test_a_check_made_twice_is_no_drift_in_two_windows(tmp_path: Path) -> None:
    for hours_ago in (2, 1):
        until = NOW_US - hours_ago * HOUR_US
        checks.append(tmp_path, Check("drift", "churn", "3", until - 24 * HOUR_US, until, "drift", "x", {}, until))
    assert gather(tmp_path, "churn", "3", LIMITS, now_us=NOW_US).drifted == 1


def test_labelled_rows_are_counted_once(tmp_path: Path) -> None:
    measured(tmp_path, 3, "fine", labelled=500)
    measured(tmp_path, 2, "fine", labelled=600)
    measured(tmp_path, 2, "fine", labelled=650)  # looked at again
    measured(tmp_path, 2, "fine", labelled=70, arm="challenger")
    measured(tmp_path, 2, "fine", labelled=1000, every="day")  # the same rows, in windows of another length
    measured(tmp_path, 2, "fine", labelled=1000, role="shadow")
    put(tmp_path, "performance", 9, "fine", version="2", labelled=30, every="hour")
    assert gather(tmp_path, "churn", "3", LIMITS, now_us=NOW_US).labelled == 500 + 650 + 70 + 30


def test_decided_again_from_the_same_it_is_the_same_and_remembered_once(tmp_path: Path) -> None:
    measured(tmp_path, 3, "drop")
    measured(tmp_path, 2, "drop")
    first, told = watch(tmp_path, "churn", "3", LIMITS, now_us=NOW_US)
    assert first.decision == "retrain"
    assert first.inputs[:12] in told.reason
    for later_us in (0, HOUR_US, 30 * HOUR_US):
        assert watch(tmp_path, "churn", "3", LIMITS, now_us=NOW_US + later_us) == (first, told)
    measured(tmp_path, 1, "drop")
    second, _ = watch(tmp_path, "churn", "3", LIMITS, now_us=NOW_US + HOUR_US)
    assert (second.decision, second.rule) == ("wait", "cooldown"), "a retraining was decided an hour ago"
    again, _ = watch(tmp_path, "churn", "3", LIMITS, now_us=NOW_US + 2 * HOUR_US)
    assert again.rule == "cooldown"
    stale, _ = watch(tmp_path, "churn", "3", LIMITS, now_us=NOW_US + 40 * HOUR_US)
    assert (stale.decision, stale.rule) == ("investigate", "unseen")
    remembered = checks.read(tmp_path, "watch", "churn")
    assert [check.verdict for check in remembered] == ["retrain", "wait", "investigate"]


@pytest.mark.parametrize(
    ("verdict", "code", "decision"), [("fine", 0, "wait"), ("drop", 10, "retrain"), ("", 11, "investigate")]
)
def test_the_exit_code_is_the_decision(verdict: str, code: int, decision: str, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(verb)
    if verdict:
        measured(tmp_path, 1, verdict, labelled=5000)
    call = ["churn", "--version", "3", "--checks", str(tmp_path), "--stale-after", "90000d"]
    ran = CliRunner().invoke(app, call)
    assert ran.exit_code == code, ran.output
    assert ran.output.startswith(f"{decision} (version 3, inputs ")
    ran = CliRunner().invoke(app, [*call, "--json"])
    assert ran.exit_code == code
    told = json.loads(ran.output)
    assert (told["verdict"], told["kind"]) == (decision, "watch")
