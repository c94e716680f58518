"""The load test's gate: constant arrival against the real server, its figures, and the exit code that it sets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pytest
from cases import Release
from running import Running

from monitoring.compaction import compact
from monitoring.lake import window

SCRIPT = Path(__file__).parent.parent.parent / "loadtests" / "locustfile.py"


def locust(port: int, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "locust", "-f", str(SCRIPT), "--headless", "--only-summary", "--users", "10"]
    call += [
        "--spawn-rate",
        "10",
        "--host",
        f"http://127.0.0.1:{port}",
        "--run-time",
        "4s",
        "--summary",
        str(out),
        *options,
    ]
    return subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)


def test_rows_drawn_from_the_servers_schema_are_all_accepted_and_logged(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    server = serve(release.store)
    ran = locust(server.port, tmp_path / "s.json", "--rate", "100", "--slo-p95-ms", "5000", "--slo-rate-share", "0.1")
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
    ran = locust(server.port, tmp_path / "s.json", *options)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert words in " ".join(json.loads((tmp_path / "s.json").read_text())["broken"])
