"""What tests share: their size, real data, small models compiled once, and a real server to ask.

LAWS=full runs every law at full size (`make prove`); `--page FILE` writes what was run, and how it went, as Markdown.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from cases import MIXED, Release, mixed_rows, publish_routes, train_mixed
from running import Running
from s3 import Bucket, bucket_server

from compile import build_bundle
from compile.bundle import publish

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
FULL = os.environ.get("LAWS") == "full"

settings.register_profile(
    "everyday", max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
settings.register_profile("full", max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("full" if FULL else "everyday")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--page", type=Path, help="write the laws that were run, and how they went, to this file")
    parser.addoption("--kinds", type=Path, help="write the table of model kinds to this file")


@dataclass
class Page:
    """Collects one line a test."""

    path: Path
    began: float

    @pytest.hookimpl
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        passed, failed = reporter.stats.get("passed", []), reporter.stats.get("failed", [])
        skipped = reporter.stats.get("skipped", [])
        by_file: dict[str, list[Any]] = {}
        for report in [*passed, *failed]:
            by_file.setdefault(report.nodeid.split("::")[0], []).append(report)
        lines = [
            "# Laws at full size",
            "",
            f"`make prove`, commit {_commit()}, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} x {_processor()}, "
            f"Python {platform.python_version()}: {len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped in "
            f"{time.perf_counter() - self.began:.0f} s. Property tests run {settings().max_examples} examples each.",
            "",
        ]
        for file, reports in sorted(by_file.items()):
            lines += [f"## {file}", ""]
            for report in reports:
                claim = report.nodeid.split("::")[-1].removeprefix("test_").replace("_", " ")
                lines.append(f"- {claim}: {report.outcome}, {report.duration:.1f} s")
            lines.append("")
        self.path.write_text("\n".join(lines), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    page = config.getoption("--page")
    if page:
        config.pluginmanager.register(Page(page, time.perf_counter()))


@pytest.fixture(scope="session")
def size() -> Callable[[int, int], int]:
    """size(everyday, full)."""
    return lambda everyday, full: full if FULL else everyday


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{name} is not in {SHARED.parent.name}/data beside the project")
        return path

    return find


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    natives = {arm: train_mixed(library) for arm, library in (("champion", "xgboost"), ("challenger", "lightgbm"))}
    bundles = {}
    for version, (arm, native) in enumerate(natives.items(), start=1):
        built = build_bundle(
            native,
            MIXED,
            mixed_rows(500, 1),
            folder / "built",
            name="mixed",
            version=str(version),
            classes=("no", "yes"),
        )
        bundles[arm] = folder / "store" / "bundles" / publish(built, folder / "store")
    publish_routes(
        folder / "store", {arm: path.name for arm, path in bundles.items()}, {"champion": 50, "challenger": 50}
    )
    return Release(folder / "store", bundles["champion"], bundles["challenger"], natives)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest bundle that has everything: 25 KB. Not to be changed: `hostile.copy` it."""
    return build_bundle(
        train_mixed("xgboost", trees=2),
        MIXED,
        mixed_rows(40, 1),
        tmp_path_factory.mktemp("tiny"),
        name="m",
        version="1",
    )


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with bucket_server(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(store: Path | str, **knobs: object) -> Running:
        traffic = Path(str(knobs.get("traffic", tmp_path / f"traffic{len(started)}")))
        log = tmp_path / f"serve{len(started)}.log"
        given = {"store": store, "traffic": traffic, "port": 0, "workers": 1, "drain_delay_s": 0.1} | knobs
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COPPICE_")}
        environment |= {f"COPPICE_{name.upper()}": str(value) for name, value in given.items()}
        with log.open("wb") as out:
            call = [sys.executable, "-m", "coppice", "serve"]
            process = subprocess.Popen(
                call, cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=out, stderr=out
            )
        deadline = time.monotonic() + 60
        while not (ready := re.search(r"ready on (?:https?://127.0.0.1:(\d+)|unix:)", log.read_text(encoding="utf-8"))):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.02)
        started.append(Running(process, int(ready[1] or 0), traffic, log))
        return started[-1]

    yield start
    for running in started:
        assert running.stop() == 0, running.log.read_text(encoding="utf-8")


def _commit() -> str:
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return head.stdout.strip() or "unknown"


def _processor() -> str:
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return model[1] if model else platform.processor()
