"""Locust as `make load` calls it, and slow servers to call it on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPT = HERE.parent.parent / "loadtests" / "locustfile.py"


def locust(port: int, *options: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "locust", "-f", str(SCRIPT), "--headless", "--only-summary", "--loglevel", "WARNING"]
    call += ["--host", f"http://127.0.0.1:{port}", *options]
    return subprocess.run(call, cwd=SCRIPT.parent.parent, capture_output=True, text=True, timeout=90, check=False)


def by_profile(port: int, folder: Path, text: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, figures, what was printed) of a run by the profile with this text."""
    profile, summary = folder / "profile.toml", folder / "summary.json"
    profile.write_text(text, encoding="utf-8")
    summary.unlink(missing_ok=True)
    ran = locust(port, "--load-profile", str(profile), "--summary", str(summary), "--markdown", str(folder / "page.md"))
    figures = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    return ran.returncode, figures, ran.stdout + ran.stderr


@contextmanager
def slow_server(folder: Path, latency_s: float, stall_at_s: float = 0, stall_s: float = 0) -> Iterator[int]:
    """Its port."""
    port_file = folder / "port"
    port_file.unlink(missing_ok=True)
    call = [sys.executable, str(HERE / "slow_server.py"), str(port_file)]
    process = subprocess.Popen([*call, *map(str, (latency_s, stall_at_s, stall_s))])
    try:
        deadline = time.monotonic() + 20
        while not port_file.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield int(port_file.read_text(encoding="ascii"))
    finally:
        process.terminate()
        process.wait(10)
