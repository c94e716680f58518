"""What fires, what is fine, and what nobody can say."""

from __future__ import annotations

from typing import Any

import pytest

from monitoring.alert_findings import Evidence, Finding, findings
from monitoring.alert_rules import parse
from monitoring.checks import Check
from monitoring.scrapes import Figures

HOUR_US = 3_600_000_000
NOW_US = 1000 * HOUR_US


def drift(hour: int, verdict: str = "drift", version: str = "1", **found: Any) -> Check:
    window = ((hour - 1) * HOUR_US, hour * HOUR_US)
    return Check("drift", "churn", version, *window, verdict, f"{verdict} at {hour}", found, hour * HOUR_US)


def performance(hour: int, verdict: str = "fine", version: str = "1", **found: Any) -> Check:
    window = ((hour - 1) * HOUR_US, hour * HOUR_US)
    return Check("performance", "churn", version, *window, verdict, f"{verdict} at {hour}", found, hour * HOUR_US)


def operations(**found: Any) -> Check:
    return Check("operations", "churn", "", NOW_US - HOUR_US, NOW_US, "fine", "", found, NOW_US)


def found(rule: str, **evidence: Any) -> list[Finding]:
    return findings(parse(f'[[rule]]\nname = "r"\n{rule}'), Evidence("churn", NOW_US, **evidence))


def states(rule: str, **evidence: Any) -> dict[str, str]:
    return {finding.subject: finding.state for finding in found(rule, **evidence)}


DRIFT = 'kind = "drift"\n'
TWICE = DRIFT + "windows = 2"


@pytest.mark.parametrize(
    ("rule", "verdicts", "state"),
    [
        (DRIFT, ["drift"], "firing"),
        (DRIFT, ["drift", "no drift"], "fine"),
        (DRIFT, ["no drift", "drift"], "firing"),
        (DRIFT, ["too little data"], "unknown"),
        (DRIFT, ["drift", "too little data"], "firing"),
        (TWICE, ["drift"], "unknown"),
        (TWICE, ["drift", "drift"], "firing"),
        (TWICE, ["no drift", "drift"], "fine"),
        (TWICE, ["drift", "too little data", "drift"], "firing"),
        (TWICE, ["drift", "no drift", "drift"], "fine"),
    ],
)
def test_windows_running(rule: str, verdicts: list[str], state: str) -> None:
    checks = [drift(hour, verdict) for hour, verdict in enumerate(verdicts, 1)]
    assert states(rule, drift=checks) == {"version 1": state}


def test_a_window_looked_at_again_counts_as_it_was_found_last() -> None:
    assert states(DRIFT, drift=[drift(1), drift(1, "no drift")]) == {"version 1": "fine"}


def test_looks_at_the_same_rows_are_no_windows_running() -> None:
    """The last day, looked at three times within two hours; and a daily check that was early by some minutes."""

    def day(until: float) -> Check:
        return Check("drift", "churn", "1", round((until - 24) * HOUR_US), round(until * HOUR_US), "drift", "d")

    assert states(TWICE, drift=[day(100), day(101), day(102)]) == {"version 1": "unknown"}
    assert states(TWICE, drift=[day(77.9), day(100), day(101), day(101.8)]) == {"version 1": "firing"}
    assert states(TWICE, drift=[day(80.5), day(101.8)]) == {"version 1": "unknown"}


def test_a_version_that_left_is_not_judged_and_two_that_serve_are() -> None:
    left = [drift(1), drift(2), drift(3, "no drift", "2")]
    assert states(DRIFT, drift=left) == {"version 2": "fine"}
    both = [drift(1), drift(1, "no drift", "2")]
    assert states(DRIFT, drift=both) == {"version 1": "firing", "version 2": "fine"}


@pytest.mark.parametrize(
    ("measure", "said", "state"),
    [
        ('measure = "prediction"', {"prediction_drifted": True}, "firing"),
        ('measure = "prediction"', {"prediction_drifted": False}, "fine"),
        ('measure = "prediction"', {}, "unknown"),
        ('measure = "weight"\nabove = 0.3', {"importance_drifted": 0.4}, "firing"),
        ('measure = "weight"\nabove = 0.3', {"importance_drifted": 0.3}, "fine"),
        ('measure = "weight"\nabove = 0.3', {"importance_drifted": None}, "unknown"),
        ('measure = "weight"\nabove = 0.3', {"importance_drifted": "much"}, "unknown"),
    ],
)
def test_what_of_drift_is_measured(measure: str, said: dict[str, Any], state: str) -> None:
    assert states(DRIFT + measure, drift=[drift(1, **said)]) == {"version 1": state}


AUC = 'kind = "performance"\nmeasure = "value"\nmetric = "roc_auc"\n'


@pytest.mark.parametrize(
    ("rule", "said", "state"),
    [
        (AUC + "below = 0.7", {"value": 0.69}, "firing"),
        (AUC + "below = 0.7", {"value": 0.7}, "fine"),
        (AUC + "below = 0.7", {"value": None}, "unknown"),
        (AUC + "drop_by = 0.02", {"value": 0.75, "low": 0.73, "high": 0.77}, "firing"),
        (AUC + "drop_by = 0.02", {"value": 0.75, "low": 0.70, "high": 0.79}, "fine"),
        (AUC + "drop_by = 0.02\nbaseline = 0.85", {"value": 0.75, "low": 0.70, "high": 0.79}, "firing"),
        (AUC + "drop_by = 0.02", {"value": 0.75, "low": None, "high": None}, "unknown"),
        (AUC.replace("roc_auc", "log_loss") + "above = 0.5", {"value": 0.6}, "firing"),
        (
            AUC.replace("roc_auc", "log_loss") + "drop_by = 0.02",
            {"value": 0.5, "low": 0.47, "high": 0.53},
            "firing",
        ),
        (
            AUC.replace("roc_auc", "log_loss") + "drop_by = 0.02",
            {"value": 0.5, "low": 0.41, "high": 0.59},
            "fine",
        ),
    ],
)
def test_performance_against_a_bound_and_against_its_baseline(rule: str, said: dict[str, Any], state: str) -> None:
    metric = "log_loss" if "log_loss" in rule else "roc_auc"
    level = {"value": 0.4 if metric == "log_loss" else 0.8}
    seen = performance(1, metric=metric, level=level, figures={metric: said})
    assert states(rule, performance=[seen]) == {"version 1": state}
    assert states(rule, performance=[performance(1, figures={"accuracy": said})]) == {"version 1": "unknown"}


def test_the_verdict_of_performance() -> None:
    rule = 'kind = "performance"'
    told = {"drop": "firing", "fine": "fine", "level": "fine", "not estimable": "unknown", "open": "unknown"}
    for verdict, state in told.items():
        assert states(rule, performance=[performance(1, verdict)]) == {"version 1": state}


def test_arms_are_judged_apart_and_shadows_not_at_all() -> None:
    checks = [
        performance(1, "drop", arm="champion", role="served"),
        performance(1, "fine", arm="challenger", role="served", version="2"),
        performance(1, "drop", arm="candidate", role="shadow", version="3"),
    ]
    assert states('kind = "performance"', performance=checks) == {
        "version 1, champion": "firing",
        "version 2, challenger": "fine",
    }


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ({"coverage": 0.4, "closed": 100}, "firing"),
        ({"coverage": 0.5, "closed": 100}, "fine"),
        ({"coverage": 0.0, "closed": 9}, "unknown"),
        ({"closed": 100}, "unknown"),
    ],
)
def test_missing_labels(said: dict[str, Any], state: str) -> None:
    rule = 'kind = "labels"\ncoverage_below = 0.5\nleast_rows = 10'
    assert states(rule, performance=[performance(1, "not estimable", **said)]) == {"version 1": state}


LIVE = Figures(seconds=60, requests=1000, errors=20, shed=5, rows=900, dropped=0, buckets={0.1: 900, 0.25: 1000})


@pytest.mark.parametrize(
    ("rule", "live", "checked", "state"),
    [
        ('kind = "latency"\nquantile = 0.99\nabove_ms = 100', LIVE, {}, "firing"),  # 235 ms by interpolation
        ('kind = "latency"\nquantile = 0.5\nabove_ms = 100', LIVE, {"p50_ms": 500, "rows": 9}, "fine"),
        ('kind = "latency"\nquantile = 0.5\nabove_ms = 100', None, {"p50_ms": 500, "rows": 9}, "firing"),
        ('kind = "latency"\nabove_ms = 1\nleast_requests = 1001', LIVE, {}, "unknown"),
        ('kind = "latency"\nabove_ms = 1', None, None, "unknown"),
        ('kind = "error_rate"\nabove = 0.01', LIVE, None, "firing"),
        ('kind = "error_rate"\nabove = 0.02', LIVE, None, "fine"),
        ('kind = "error_rate"\nabove = 0.01', None, {"rows": 100, "error_rate": 0.5}, "firing"),
        ('kind = "error_rate"\nabove = 0.01', None, {"closed": 100}, "unknown"),
        ('kind = "shed_rate"\nabove = 0.001', LIVE, None, "firing"),
        ('kind = "shed_rate"\nabove = 0.005', LIVE, None, "fine"),
        ('kind = "lost_rows"', LIVE, None, "fine"),
        ('kind = "lost_rows"', LIVE, {"dropped": 0, "lost": 3}, "firing"),
        ('kind = "lost_rows"\nabove = 3', LIVE, {"dropped": 0, "lost": 3}, "fine"),
        ('kind = "lost_rows"', Figures(dropped=1), {"dropped": 0, "lost": 0}, "firing"),
        ('kind = "lost_rows"', None, {"rows": 10}, "unknown"),
    ],
)
def test_operations_live_and_as_last_checked(
    rule: str, live: Figures | None, checked: dict[str, Any] | None, state: str
) -> None:
    checks = [] if checked is None else [operations(**checked)]
    assert states(rule, live=live, operations=checks) == {"churn": state}


def test_servers() -> None:
    rule = 'kind = "server"'
    assert states(rule) == {}
    servers = {"http://a": "", "http://b": "no metrics: ConnectError"}
    assert states(rule, servers=servers) == {"http://a": "fine", "http://b": "firing"}


@pytest.mark.parametrize(
    ("check", "evidence", "state"),
    [
        ("drift", {}, "firing"),
        ("drift", {"drift": [drift(975)]}, "fine"),
        ("drift", {"drift": [drift(973)]}, "firing"),
        ("performance", {"drift": [drift(999)]}, "firing"),
        ("operations", {"operations": [operations()]}, "fine"),
        ("traffic", {}, "firing"),
        ("traffic", {"operations": [operations(rows=0)]}, "firing"),
        ("traffic", {"operations": [operations(rows=1)]}, "fine"),
        ("traffic", {"traffic_us": NOW_US - 27 * HOUR_US}, "firing"),
        ("traffic", {"traffic_us": NOW_US - 25 * HOUR_US}, "fine"),
    ],
)
def test_what_was_not_looked_at_for_long(check: str, evidence: dict[str, Any], state: str) -> None:
    assert states(f'kind = "stale"\ncheck = "{check}"\nafter = "26h"', **evidence) == {"churn": state}
