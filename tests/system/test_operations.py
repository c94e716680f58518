"""Live figures are those of what was really asked; alerts are told of a real server that is well, and then down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from cases import Release, mixed_body, mixed_rows
from receivers import receiver
from running import Running
from typer.testing import CliRunner, Result

from monitoring import checks
from monitoring.alerts_cli import alerts
from monitoring.compaction import compact
from monitoring.operations_cli import operations
from monitoring.watch_cli import watch

BODY = mixed_body(mixed_rows(1)[0])
RULES = """
[[rule]]
name = "down"
kind = "server"
severity = "critical"

[[rule]]
name = "slow"
kind = "latency"
above_ms = 2499

[[rule]]
name = "errors"
kind = "error_rate"
above = 0.01

[[rule]]
name = "quiet"
kind = "stale"
check = "traffic"
after = "1h"

[[deliver]]
name = "hook"
kind = "webhook"
url_env = "HOOK_URL"
"""


def call(verb: Callable[..., None], *words: str) -> Result:
    app = typer.Typer()
    app.command()(verb)
    return CliRunner().invoke(app, ["mixed", *words])


def test_live_figures_are_those_of_what_was_asked(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    server = serve(release.store, workers=2)
    for _ in range(20):
        assert server.ask("/predict", BODY)[0] == 200
    assert server.ask("/predict/batch", b'{"rows":[' + b",".join([BODY] * 5) + b"]}")[0] == 200
    assert server.ask("/predict", b"{")[0] == 400
    url = f"http://127.0.0.1:{server.port}"
    ran = call(operations, "--server", url, "--seconds", "0", "--json", "--checks", str(tmp_path / "checks"))
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.output)["found"]
    told = {name: found[name] for name in ("requests", "rows", "errors", "error_rate", "shed", "dropped", "arm_errors")}
    assert told == {
        "requests": 22,
        "rows": 25,
        "errors": 0,
        "error_rate": 0.0,
        "shed": 0,
        "dropped": 0,
        "arm_errors": 0,
    }
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"] <= 2500
    ran = call(operations, "--server", url, "--seconds", "0.1", "--json", "--checks", str(tmp_path / "checks"))
    assert json.loads(ran.output)["verdict"] == "no traffic", "what was asked before is not of this while"
    assert [check.verdict for check in checks.read(tmp_path / "checks", "operations", "mixed")] == [
        "fine",
        "no traffic",
    ]


def test_alerts_of_a_server_that_is_well_then_down(
    release: Release, serve: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = tmp_path / "rules.toml"
    server = serve(release.store)
    words = ("--rules", str(rules), "--server", f"http://127.0.0.1:{server.port}", "--checks", str(tmp_path / "checks"))
    rules.write_text(RULES)
    with receiver() as hook:
        monkeypatch.setenv("HOOK_URL", hook.url())
        assert server.ask("/predict", BODY)[0] == 200
        ran = call(alerts, *words)
        assert ran.exit_code == 0, ran.output
        assert [line.split()[0] for line in ran.output.splitlines()] == 4 * ["fine"]
        ran = call(alerts, *words)
        assert ran.exit_code == 0, ran.output
        states = [line.split()[0] for line in ran.output.splitlines()]
        assert states == ["fine", "unknown", "unknown", "fine"], "nobody asked since the last run"
        rules.write_text(RULES.replace("2499", "0.001"))
        assert server.ask("/predict", BODY)[0] == 200
        ran = call(alerts, *words)
        assert ran.exit_code == 1, ran.output
        assert server.stop() == 0
        for _ in range(2):
            assert call(alerts, *words).exit_code == 1
    told = [(event["event"], event["rule"]) for event in map(json.loads, hook.bodies)]
    assert told == [("firing", "slow"), ("firing", "down")]
    assert not call(alerts, *words, "--dry-run").output.count("would tell")


def test_watch_makes_the_checks_first_and_says_what_could_not_be_checked(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    """The bundle has no reference for drift, and there are no labels yet; the books are proved."""
    server = serve(release.store)
    for _ in range(20):
        assert server.ask("/predict", BODY)[0] == 200
    assert server.stop() == 0
    compact(server.traffic, tmp_path / "lake")
    folders = ("--checks", str(tmp_path / "checks"), "--lake", str(tmp_path / "lake"), "--traffic", str(server.traffic))
    ran = call(watch, "--check", "--store", str(release.store), *folders)
    assert ran.exit_code == 11, ran.output
    assert "drift: " in ran.output
    assert "investigate (version 1, inputs " in ran.output
    assert "unseen: neither drift nor performance was checked" in ran.output
    (made,) = checks.read(tmp_path / "checks", "operations", "mixed")
    assert (made.verdict, made.found["rows"], made.found["lost"], made.found["faults"]) == ("fine", 20, 0, [])
    (decided,) = checks.read(tmp_path / "checks", "watch", "mixed")
    assert decided.verdict == "investigate"
