"""What is told of answers never holds one up: a blocked stdout, a full queue, a write that is refused."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from time import perf_counter_ns

import pytest

from serving import page
from serving.tracing import Trace
from serving.watching import LIMIT, MAX_TEXT, Watch

HEAD = b"content-length: 2\r\nx-request-id: r\r\nx-model-version: 7\r\nx-arm: champion\r\nset-cookie: secret\r\n"


@pytest.fixture
def slot(tmp_path: Path) -> page.Slot:
    return page.Page.create(tmp_path / "a.page", 1).slot(0)


def see(watch: Watch, status: int = 200, path: str = "/predict", trace: Trace | None = None) -> None:
    watch.see(perf_counter_ns(), "POST", path, status, HEAD, (3, 4), "shop", trace)


def test_a_blocked_stdout_drops_and_counts(slot: page.Slot) -> None:
    lines: list[bytes] = []
    stuck, goes_on = threading.Event(), threading.Event()

    def write(line: bytes) -> None:
        stuck.set()
        assert goes_on.wait(60)
        lines.append(line)

    watch = Watch(1.0, None, slot, write)
    see(watch)
    assert stuck.wait(60)
    for _ in range(LIMIT + 100):
        see(watch)
    assert slot.cells[page.UNSEEN] == 100
    watch.close(0.01)  # no deadline is missed for it
    goes_on.set()
    watch.close(60)
    assert len(lines) == LIMIT + 1
    assert json.loads(lines[-1])["key"] == "shop"


def test_a_write_that_is_refused_is_counted_and_the_next_is_tried(slot: page.Slot) -> None:
    lines: list[bytes] = []

    def write(line: bytes) -> None:
        if len(lines) % 2:
            lines.append(b"")
            raise BrokenPipeError
        lines.append(line)

    watch = Watch(1.0, None, slot, write)
    for _ in range(10):
        see(watch)
    watch.close(60)
    assert slot.cells[page.UNSEEN_UNWRITTEN] == 5
    assert len([line for line in lines if line]) == 5


def test_a_share_is_sampled_and_trouble_always(slot: page.Slot) -> None:
    lines: list[bytes] = []
    watch = Watch(1e-12, None, slot, lines.append)
    for status in (200, 404, 429, 500, 503):
        for _ in range(20):
            see(watch, status)
    watch.close(60)
    assert sorted(json.loads(line)["status"] for line in lines) == [429] * 20 + [500] * 20 + [503] * 20
    lines.clear()
    now = 0.0
    watch = Watch(1e-12, None, slot, lines.append, lambda: now)
    for _ in range(1000):
        see(watch, 503)
    now = 0.5
    for _ in range(1000):
        see(watch, 503)
    watch.close(60)
    assert len(lines) == 100 + 50  # an overload is not told of line by line
    sampled: list[bytes] = []
    watch = Watch(0.25, None, slot, sampled.append)
    for _ in range(4000):
        see(watch)
    watch.close(60)
    assert 0.25 * 4000 - 6 * 28 < len(sampled) < 0.25 * 4000 + 6 * 28  # six times sqrt(n p (1 - p))


def test_a_line_is_json_and_short_enough_for_a_pipe(slot: page.Slot) -> None:
    lines: list[bytes] = []
    watch = Watch(1.0, None, slot, lines.append)
    odd = '/"\n\x00é\u2028日' * 1000
    see(watch, path=odd, trace=Trace(b"a" * 32, b"b" * 16, True, b"secret=state"))
    watch.close(60)
    (line,) = lines
    told = json.loads(line)
    assert told["path"] == odd[:MAX_TEXT]
    assert told["trace_id"] == "a" * 32
    assert (told["version"], told["arm"], told["request_id"]) == ("7", "champion", "r")
    assert b"secret" not in line
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= os.pathconf("/", "PC_PIPE_BUF")
