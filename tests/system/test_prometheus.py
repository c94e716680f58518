"""The alert rules and the Grafana dashboard ask for what a real server exports, by a real Prometheus that scrapes it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cases import Release, mixed_body, mixed_rows, publish_routes
from running import Running

DOCKER = Path(__file__).parent.parent.parent / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "coppice.json").read_text(encoding="utf-8"))
pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="needs Prometheus: apt-get install prometheus"
)


@dataclass
class Prometheus:
    port: int

    def get(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as refused:
            raise AssertionError(f"{query}: {refused.read().decode()}") from refused

    def value(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


@pytest.fixture
def scraped(release: Release, serve: Callable[..., Running], tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a server under a little traffic of every sort, more than once."""
    store = tmp_path / "store"
    shutil.copytree(release.store, store)
    arms = {"champion": release.digest("champion"), "challenger": release.digest("challenger")}
    publish_routes(store, arms, {"champion": 50, "challenger": 50}, shadow=release.digest("challenger"))
    server = serve(store, workers=2)
    _traffic(server)
    with _prometheus(server, tmp_path) as prometheus:
        _wait_for(lambda: _scrapes(prometheus) >= 1)
        for _ in range(2):
            _traffic(server)
            done = _scrapes(prometheus)
            _wait_for(lambda done=done: _scrapes(prometheus) >= done + 2)  # type: ignore[misc]
        yield prometheus


def _traffic(server: Running) -> None:
    bodies = [mixed_body(row) for row in mixed_rows(20)]
    for body in bodies:
        for path in ("/predict", "/predict/ab"):
            assert server.ask(path, body)[0] == 200
    batch = b'{"rows":[' + b",".join(bodies) + b"]}"
    status, _, answer = server.ask("/predict/batch", batch)
    assert status == 200
    outcome = {"request_id": json.loads(answer)["request_id"], "row": 0, "value": True}
    assert server.ask("/feedback", json.dumps(outcome).encode())[0] == 202
    assert server.ask("/predict", b"{")[0] == 400


def _scrapes(prometheus: Prometheus) -> int:
    found = prometheus.value("count_over_time(up[10m])")
    return int(found[0]["value"][1]) if found else 0


@contextmanager
def _prometheus(server: Running, folder: Path) -> Iterator[Prometheus]:
    """On loopback, by our example's configuration but for addresses and the pace; stopped with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        made = Prometheus(free.getsockname()[1])
    config = (DOCKER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    config = config.replace("coppice:8000", f"127.0.0.1:{server.port}").replace("15s", "250ms")
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    shutil.copy(DOCKER / "prometheus" / "rules.yml", folder)
    call = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    log = folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen([*call, f"--web.listen-address=127.0.0.1:{made.port}"], stdout=out, stderr=out)

    def ready() -> bool:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            return bool(made.value("up"))
        except (OSError, AssertionError):  # not listening yet, or not ready
            return False

    try:
        _wait_for(ready)
        yield made
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def _asked_by_the_dashboard() -> dict[str, str]:
    """Expressions by where they are, with Grafana's variables as it would fill them in."""
    asked = {
        f"{panel['title']} {target['refId']}": target["expr"] for panel in _panels() for target in panel["targets"]
    }
    asked |= {f"annotation {one['name']}": one["expr"] for one in DASHBOARD["annotations"]["list"]}
    filled = {"$__rate_interval": "10s", "$__interval": "10s", "$__range": "1m"}
    for name in ("job", "instance", "model"):
        filled[f"${name}"] = ".*"
    return {where: re.sub(r"\$\w+", lambda found: filled[found[0]], expr) for where, expr in asked.items()}


def _selectors(expression: str) -> list[str]:
    return re.findall(r"coppice_\w+(?:\{[^}]*\})?", expression)


def test_the_rules_are_sound_and_fire_when_they_should_and_not_when_not() -> None:
    for call in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ):
        ran = subprocess.run(
            ["promtool", *call], cwd=DOCKER / "prometheus", capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    rules = set(re.findall(r"- alert: (\w+)", (DOCKER / "prometheus" / "rules.yml").read_text(encoding="utf-8")))
    tests = (DOCKER / "prometheus" / "rules_test.yml").read_text(encoding="utf-8")
    assert rules == set(re.findall(r"alertname: (\w+)\n +exp_alerts:\n", tests)), "each is seen to fire"


def test_every_expression_of_rules_and_dashboard_meets_series_of_a_real_server(scraped: Prometheus) -> None:
    groups = scraped.get("rules")["groups"]
    rules = {rule["name"]: rule["query"] for group in groups for rule in group["rules"]}
    assert len(rules) == 17
    for where, expression in (rules | _asked_by_the_dashboard()).items():
        for selector in _selectors(expression):
            series = scraped.value(selector)
            assert series, (where, selector)
            labels = {label for one in series for label in one["metric"]}
            for listed in re.findall(r"\b(?:by|on) ?\(([^)]*)\)", expression):
                if len(set(_selectors(expression))) == 1:
                    assert {label.strip() for label in listed.split(",")} <= labels, (where, listed)
        scraped.value(expression)  # it is asked, and is no error
    health = {
        rule["name"]: rule.get("lastError", "")
        for group in groups
        for rule in group["rules"]
        if rule["health"] == "err"
    }
    assert health == {}
    firing = {alert["labels"]["alertname"] for alert in scraped.get("alerts")["alerts"] if alert["state"] == "firing"}
    assert firing == set(), "a server that is well makes no alarm"


def test_every_panel_shows_something_and_every_metric_has_its_panel(scraped: Prometheus) -> None:
    for where, expression in _asked_by_the_dashboard().items():
        if not where.startswith("annotation"):
            assert scraped.value(expression), (where, expression)
    answered = {
        one["metric"]["outcome"]: float(one["value"][1])
        for one in scraped.value("sum by (outcome) (coppice_requests_total)")
    }
    assert answered == {"2xx": 3 * 42, "4xx": 3, "5xx": 0, "shed": 0}
    exported = {name for name in scraped.get("label/__name__/values") if name.startswith("coppice_")}
    told = re.sub(r"_(bucket|sum|count)\b", "", " ".join(_asked_by_the_dashboard().values()))
    shown = {re.split(r"\{", selector)[0] for selector in _selectors(told)}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported} == shown
    rows = sum(float(one["value"][1]) for one in scraped.value("coppice_arm_rows_total"))
    assert rows == 3 * 60, "a shadow's rows are no answers"


def test_the_dashboards_panels_have_their_places() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    asked = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {
        "__rate_interval",
        "__interval",
        "__range",
        "__all",
    }
    assert asked <= variables
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == [
        "Now", "Traffic", "Latency", "Errors and sheds", "Arms", "Log", "Shadows", "Changes"
    ]  # fmt: skip
