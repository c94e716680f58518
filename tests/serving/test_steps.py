"""The steps of a request are those of the whole: each place stops where it says, and the door is as it was afterwards."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cases import Release

from serving import steps


def test_the_steps_add_up_to_the_whole_and_none_is_missing(release: Release) -> None:
    told = asyncio.run(steps.split(release.store, "mixed", passes=5))
    *parts, whole = told.items()
    assert [name.split(":")[0] for name, _ in parts] == [
        "receive", "parse", "route", "decode", "queue", "score", "encode", "log",
    ]  # fmt: skip
    assert sum(us for _, us in parts) == pytest.approx(whole[1])
    assert whole[0].startswith("the whole")
    by_name = {name.split(":")[0]: us for name, us in parts}
    assert min(by_name[name] for name in ("receive", "score", "log")) > 0
    assert by_name["queue"] == 0


def test_a_request_that_was_stopped_has_changed_nothing_and_the_next_is_answered(release: Release) -> None:
    """The same door, place after place: each asserts that it was stopped, or answered, and the last is the whole."""
    first = asyncio.run(steps.split(release.store, "mixed", passes=2))
    again = asyncio.run(steps.split(release.store, "mixed", passes=2))
    assert list(first) == list(again)


def test_the_command_prints_a_line_a_step_or_json(
    release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["steps", str(release.store), "mixed", "--json"])
    steps.main()
    assert json.loads(capsys.readouterr().out)["queue: scored at once"] == 0


def test_a_server_without_c_has_nothing_to_split_and_says_so(release: Release) -> None:
    with pytest.raises(steps.StepsUnknown, match="answered by Python"):
        asyncio.run(steps.split(release.store, "mixed", passes=1, http="python"))


def test_an_unknown_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="mixed"):
        asyncio.run(steps.split(tmp_path, "mixed", passes=1))
