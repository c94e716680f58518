"""What happened between two scrapes: counters that start again count from 0, quantiles are Prometheus' own."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import pytest
from receivers import receiver

from monitoring.errors import ServerSilent
from monitoring.scrapes import Figures, between, parse, quantile_ms, scrape, together
from serving import metrics, page


def counted(path: Path, *, requests: int = 0, errors: int = 0, us: int = 800) -> str:
    """A page as a server renders it."""
    shared = page.Page.create(path, 2)
    for index in range(2):
        slot = shared.slot(index)
        slot.state = page.READY
        slot.cells[page.REQUESTS_2XX] = requests
        slot.cells[page.REQUESTS_5XX] = errors
        slot.cells[slot.series("churn/1/champion")] = requests
        slot.cells[slot.series("fraud/1/champion")] = 7
        for _ in range(requests + errors):
            slot.observe(page.REQUEST_SECONDS, us)
    return metrics.render(shared).decode()


def test_the_counters_of_a_real_page_are_read(tmp_path: Path) -> None:
    seen = parse(counted(tmp_path / "a", requests=10, errors=2), "churn")
    assert (seen.requests, seen.errors, seen.shed, seen.rows, seen.dropped) == (24, 4, 0, 20, 0)
    assert (seen.workers, seen.ready) == (2, 2)
    figures = between(None, seen)
    assert figures.found()["error_rate"] == pytest.approx(4 / 24)
    assert 0.5 < figures.found()["p99_ms"] <= 1.0  # the bucket of 0.8 ms


def test_only_what_happened_in_between_counts_and_a_restart_counts_from_0(tmp_path: Path) -> None:
    first = parse(counted(tmp_path / "a", requests=10, us=200_000), "churn", at_us=0)
    second = parse(counted(tmp_path / "b", requests=30, errors=1, us=800), "churn", at_us=10_000_000)
    grown = between(first, second)
    assert (grown.requests, grown.errors, grown.rows, grown.seconds) == (42, 2, 40, 10.0)
    assert grown.found()["rate"] == pytest.approx(4.2)
    again = between(second, parse(counted(tmp_path / "c", requests=4), "churn", at_us=20_000_000))
    assert (again.requests, again.errors, again.rows) == (8, 0, 8)


def test_servers_add_up() -> None:
    one = Figures(seconds=10, requests=10, errors=1, buckets={0.1: 10, math.inf: 10})
    other = Figures(seconds=9, requests=30, shed=3, buckets={0.1: 0, math.inf: 30})
    both = together([one, other])
    assert (both.requests, both.errors, both.shed, both.seconds) == (40, 1, 3, 10)
    assert both.buckets == {0.1: 10, math.inf: 40}
    assert together([]) == Figures()


@pytest.mark.parametrize(
    ("buckets", "q", "ms"),
    [
        ({}, 0.5, None),
        ({0.1: 0, math.inf: 0}, 0.5, None),
        ({0.1: 10, math.inf: 10}, 0.5, 50.0),
        ({0.1: 10, 0.2: 20, math.inf: 20}, 0.95, 190.0),
        ({0.1: 10, 0.2: 10, math.inf: 20}, 0.99, 200.0),
    ],
)
def test_quantiles(buckets: dict[float, int], q: float, ms: float | None) -> None:
    assert quantile_ms(buckets, q) == (None if ms is None else pytest.approx(ms))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no server of Coppice"),
        ("up 1\n", "no server of Coppice"),
        ("<html>{", "not in Prometheus' text format"),
        ("coppice_requests_total NaN\n", "not in Prometheus' text format"),
        ("coppice_requests_total +Inf\n", "not in Prometheus' text format"),
        ('coppice_requests_total 1\ncoppice_request_seconds_bucket{le="x"} 1\n', "not in Prometheus' text format"),
        ("coppice_requests_total 1\ncoppice_request_seconds_bucket 1\n", "not in Prometheus' text format"),
    ],
)
def test_what_is_no_page_of_ours_is_named(text: str, words: str) -> None:
    with pytest.raises(ServerSilent, match=f"http://x: {words}"):
        parse(text, "churn", where="http://x")


def test_servers_that_are_away_slow_or_another_are_told_and_keep_no_other_waiting() -> None:
    with receiver() as other, socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()  # takes the connection, and says nothing
        slow, another = f"http://127.0.0.1:{mute.getsockname()[1]}", other.url("")
        away = "http://127.0.0.1:1"
        seen = scrape([away, slow, another, "no address"], "churn", timeout_s=1)
    assert {url: str(why) for url, why in seen.items()} == {
        away: f"{away}: no metrics: ConnectError",
        slow: f"{slow}: no metrics within 1 s",
        another: f"{another}: no metrics: answered 501",
        "no address": "no address: no metrics: UnsupportedProtocol",
    }
