"""Checks are remembered in order; a line that was torn costs itself alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring.checks import Check, append, latest, read
from monitoring.errors import MonitoringError


def check(model: str = "churn", since: int = 0, verdict: str = "no drift", at: int = 1) -> Check:
    return Check("drift", model, "1", since, since + 10, verdict, "because", {"share": 0.5, "name": "é"}, at)


def test_what_is_appended_is_read_in_order(tmp_path: Path) -> None:
    given = [check(), check("fraud", 5), check(since=20)]
    for each in given:
        append(tmp_path, each)
    assert read(tmp_path, "drift") == given
    assert read(tmp_path, "drift", "fraud") == given[1:2]
    assert read(tmp_path, "performance") == []


def test_the_newest_look_at_a_window_counts() -> None:
    given = [check(since=20), check(), check(since=20, verdict="drift", at=2)]
    assert latest(given) == [given[1], given[2]]


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_torn_line_costs_itself_alone(kept: int, tmp_path: Path) -> None:
    append(tmp_path, check())
    file = tmp_path / "drift.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:kept])
    assert read(tmp_path, "drift") == [check()]
    append(tmp_path, check(since=30))
    assert read(tmp_path, "drift") == [check(), check(since=30)]


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MonitoringError, match="of kind 'weather'"):
        append(tmp_path, Check("weather", "m", "1", 0, 1, "fine", ""))
