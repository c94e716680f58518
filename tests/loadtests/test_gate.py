"""The load test's gate: constant arrival against the real server, its figures, and the exit code that it sets."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pytest
from cases import Release
from locusts import by_profile, locust
from running import Running

from monitoring.compaction import compact
from monitoring.lake import window
from serving.outcomes import read_outcomes


def closed(port: int, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Without a profile, as `coppice demo` calls it."""
    users = ["--users", "10", "--spawn-rate", "10", "--run-time", "4s"]
    return locust(port, *users, "--summary", str(out), *options)


def test_rows_drawn_from_the_servers_schema_are_all_accepted_and_logged(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    server = serve(release.store)
    ran = closed(server.port, tmp_path / "s.json", "--rate", "100", "--slo-p95-ms", "5000", "--slo-rate-share", "0.1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    figures = json.loads((tmp_path / "s.json").read_text())
    assert figures["failures"] == 0
    assert figures["requests"] > 100
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    assert server.stop() == 0
    compact(server.traffic, tmp_path / "lake")
    served = window(tmp_path / "lake", "mixed", where=pc.field("role") == "served")
    assert served.num_rows == figures["requests"]
    assert set(served.column("arm").to_pylist()) == {"champion", "challenger"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--path", "/predict/none", "--rate", "50"], "requests failed"),
        (["--rate", "50", "--slo-p95-ms", "0.001"], "is not below"),
        (["--rate", "1000000"], "achieved"),
    ],
)
def test_a_broken_service_level_is_told_and_fails_the_run(
    release: Release, serve: Callable[..., Running], tmp_path: Path, options: list[str], words: str
) -> None:
    server = serve(release.store)
    ran = closed(server.port, tmp_path / "s.json", *options)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert words in " ".join(json.loads((tmp_path / "s.json").read_text())["broken"])


KINDS = {"single": "", "batch": "batch_rows = 7", "ab": "feedback = 0.3", "mixed": "feedback = 0.2\nbatch_rows = 5"}
PACE = "rate = 100\nseconds = 2\nwarm_s = 0.5\nconnections = 20\n"


def test_every_kind_of_traffic_is_answered_logged_and_its_outcomes_written(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    server = serve(release.store)
    rows: Counter[str] = Counter()
    outcomes = 0
    for arrivals in ("poisson", "closed"):
        for kind, more in KINDS.items():
            if arrivals == "closed" and kind != "mixed":
                continue
            profile = f'traffic = "{kind}"\narrivals = "{arrivals}"\n{PACE}{more}\n'
            code, figures, printed = by_profile(server.port, tmp_path, profile)
            assert code == 0, printed
            assert figures["failures"] == 0
            assert figures["requests"] > 100
            rows.update(figures["rows_answered"])
            outcomes += figures["outcomes_written"]
    assert set(rows) == {"/predict", "/predict/ab", "/predict/batch"}
    assert outcomes > 50
    assert server.stop() == 0
    told = [outcome.request_id for outcome in read_outcomes(server.traffic / "outcomes")]
    assert len(told) == outcomes
    compact(server.traffic, tmp_path / "lake")
    served = window(tmp_path / "lake", "mixed", where=pc.field("role") == "served")
    assert served.num_rows == sum(rows.values())
    assert len(set(served.column("unit").to_pylist())) > 100
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.count("**held**") == 5
    assert set(told) <= set(served.column("request_id").to_pylist())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[bounds]\np99_ms = 0.001", "p99"),
        ("rate = 50000\n[bounds]\nachieved = 0.98", "achieved"),
    ],
)
def test_a_broken_bound_of_a_profile_fails_the_run(
    release: Release, serve: Callable[..., Running], tmp_path: Path, text: str, words: str
) -> None:
    server = serve(release.store)
    pace = PACE if "rate" not in text else PACE.partition("\n")[2]
    code, figures, printed = by_profile(server.port, tmp_path, f'traffic = "ab"\n{pace}{text}\n')
    assert code == 1, printed
    assert words in " ".join(figures["broken"])
    assert f"BROKEN: {figures['broken'][0]}" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_a_wrong_profile_or_server_is_one_line_and_another_exit_code(tmp_path: Path) -> None:
    code, _, printed = by_profile(1, tmp_path, 'traffic = "ab"\nrate = -1\n')
    assert (code, "profile.toml: rate must be" in printed) == (2, True), printed
    code, _, printed = by_profile(1, tmp_path, 'traffic = "ab"\n')
    assert (code, "load: " in printed, "Traceback" in printed) == (2, True, False), printed
