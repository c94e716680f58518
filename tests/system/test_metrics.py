"""A scrape has all workers' counts, whichever answers it, and those of the workers that were killed."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from cases import Release, mixed_body, mixed_rows
from running import Running
from test_changes import wait_for

from serving.page import READY

ROOT = Path(__file__).parent.parent.parent
BODY = mixed_body(mixed_rows(1)[0])


def test_the_sum_of_a_scrape_is_what_was_sent_also_after_a_kill(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    keys = tmp_path / "api.keys"
    keys.write_text(
        "".join(
            f"{hashlib.sha256(key.encode()).hexdigest()} {key} {more}\n"
            for key, more in (("shop", ""), ("test", "override"), ("slow", "rate=0.001 burst=2"))
        )
    )
    server = serve(release.store, workers=2, api_keys=keys)
    asked: list[tuple[str, bytes | None, dict[str, str]]] = [
        ("/predict", BODY, {"x-api-key": "shop"}),
        ("/predict/ab", BODY, {"x-api-key": "shop"}),
        ("/predict?x=1", BODY, {"x-api-key": "shop"}),
        ("/predict", BODY, {"x-api-key": "test", "x-arm": "challenger"}),
        ("/predict", b"{", {"x-api-key": "shop"}),
        ("/predict", BODY, {"x-api-key": "wrong"}),
        ("/predict", BODY, {}),
        ("/v1/models", None, {"x-api-key": "shop"}),
        ("/nowhere", None, {"x-api-key": "shop"}),
    ]
    rounds = 30
    told: dict[str, int] = {}

    def send() -> None:
        for _ in range(rounds):
            for path, body, headers in asked:
                status = server.ask(path, body, headers)[0]
                told[f"{status // 100}xx"] = told.get(f"{status // 100}xx", 0) + 1

    def judge(sent: int) -> None:
        for _ in range(10):  # of either worker
            found = scrape(server)
            assert {outcome: count for (name, outcome), count in found.items() if name == "coppice_requests_total"} == {
                "2xx": told["2xx"], "4xx": told["4xx"], "5xx": 0, "shed": 0,
            }  # fmt: skip
            assert found["coppice_request_seconds_count", ""] == sum(told.values()) == sent * len(asked)
            assert (
                found["coppice_unauthorised_total", "missing"] == found["coppice_unauthorised_total", "wrong"] == sent
            )
            assert found["coppice_overrides_total", ""] == sent
            assert found["coppice_traffic_rows_total", ""] == 4 * sent

    send()
    serving = [int(slot.cells[16]) for slot in server.page().slots()]
    assert all(serving), "both workers must have answered, or this shows nothing"
    judge(rounds)
    (victim, other) = server.workers()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(server.workers()) == 2 and victim not in server.workers(), server)
    wait_for(lambda: all(slot.state == READY for slot in server.page().slots()), server)
    assert other in server.workers()
    judge(rounds)
    send()
    judge(2 * rounds)
    statuses = [server.ask("/predict", BODY, {"x-api-key": "slow"})[0] for _ in range(8)]
    assert set(statuses) <= {200, 429}
    assert 1 <= statuses.count(200) <= 2  # a burst of 2, one for each worker that was asked
    assert scrape(server)["coppice_shed_total", "rate"] == statuses.count(429)


def test_every_metric_is_told_of_in_the_documentation(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store)
    server.ask("/predict", BODY)
    text = server.ask("/metrics")[2].decode()
    assert 'coppice_request_seconds_bucket{le="0.1"}' in text
    documented = set(re.findall(r"`(coppice_\w+)`", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")))
    families = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    assert families == documented


def scrape(server: Running) -> dict[tuple[str, str], float]:
    """By name and the value of the one label that it has."""
    text = server.ask("/metrics")[2].decode()
    found = re.findall(r'^(\w+)(?:\{\w+="([^"]*)"\})? (\S+)$', text, re.MULTILINE)
    return {(name, label): float(value) for name, label, value in found}
