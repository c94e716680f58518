"""SIGTERM, the supervisor's death, and the death of all, under load: what a client sees, and what the books say afterwards.

A client's pool keeps idle connections and looks at one before it sends on it: where the server has closed it, the pool opens
another, and no request was lost. What it can't see is a close that crosses its request on the way. So a server that stops says
`connection: close` with every answer while it still serves, which empties the pools, and closes what is left at the end; and
it is not ready meanwhile, so that a balancer sends the next request elsewhere. The pool here is httpx's; the balancer, who
asks `/readyz` ten times a second.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from cases import Release, mixed_body, mixed_rows
from pacing import Load
from running import Running

from monitoring.compaction import compact
from monitoring.reconcile import reconcile
from monitoring.segments import open_segments

DRAIN_S, STOP_S = 1.5, 10.0


class Balanced:
    """Threads that share one pool, until the server is no longer ready."""

    def __init__(self, port: int, threads: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.pool = httpx.Client(limits=httpx.Limits(max_keepalive_connections=threads), timeout=10, trust_env=False)
        self.bodies = [mixed_body(row) for row in mixed_rows(50)]
        self.ready = True
        self.answers: list[tuple[int, bool]] = []  # status, was it told to close the connection?
        self.failed: list[str] = []
        self.threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(threads)]
        self.threads.append(threading.Thread(target=self._look, daemon=True))

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def finish(self) -> None:
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()
        self.pool.close()

    def _ask(self, n: int) -> None:
        while self.ready:
            n += 1
            pause_s = 0.3 if n % 25 == 0 else 0.002  # now and then a connection is idle for a while
            try:
                answer = self.pool.post(
                    self.url + "/predict/ab",
                    content=self.bodies[n % len(self.bodies)],
                    headers={"content-type": "application/json"},
                )
                self.answers.append((answer.status_code, answer.headers.get("connection") == "close"))
            except httpx.HTTPError as failure:
                self.failed.append(repr(failure))
            time.sleep(pause_s)

    def _look(self) -> None:
        while self.ready:
            try:
                self.ready = httpx.get(self.url + "/readyz", timeout=5, trust_env=False).status_code == 200
            except httpx.HTTPError as failure:
                self.failed.append(f"/readyz: {failure!r}")
                self.ready = False
            time.sleep(0.1)


def test_sigterm_behind_a_keep_alive_pool_fails_no_request(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    server = serve(release.store, workers=2, drain_delay_s=DRAIN_S, stop_timeout_s=STOP_S)
    clients = Balanced(server.port, 8)
    clients.start()
    time.sleep(1.0)
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(DRAIN_S + 2 * STOP_S)
    clients.finish()
    assert status == 0
    assert not clients.failed
    assert {status for status, _ in clients.answers} == {200}
    closing = [closed for _, closed in clients.answers]
    assert any(closing)
    assert not closing[0]
    assert not open_segments(server.traffic)
    compact(server.traffic, tmp_path / "lake")
    books = reconcile(server.traffic, tmp_path / "lake")
    assert not books.faults, books
    assert books.total("served") == books.total("logged") == len(clients.answers)


def test_the_supervisor_dies_under_load_and_every_answered_row_is_logged(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    server = serve(release.store, workers=2, drain_delay_s=0.5)
    load = Load(server.port, 300, [mixed_body(row) for row in mixed_rows(20)], ["/predict/ab"], ["a", "b"])
    load.start()
    time.sleep(1.0)
    before = [*server.workers(), server.sync()]
    assert all(before)
    assert not load.failed
    server.process.kill()
    server.process.wait(10)
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in before):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    load.finish()
    server.process.returncode = 0  # was ended by this test, as it meant to
    assert {one.status for one in load.told} == {200}
    assert not [failure for failure in load.failed if "Timeout" in failure]  # refused at once, where it came too late
    assert not open_segments(server.traffic)
    compact(server.traffic, tmp_path / "lake")
    books = reconcile(server.traffic, tmp_path / "lake")
    assert not books.faults, books
    assert books.total("lost") == books.total("dropped") == 0
    assert books.total("served") == books.total("logged") == len(load.told)


def test_when_everything_is_killed_at_once_the_books_name_what_was_lost(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    server = serve(release.store, workers=2)
    load = Load(server.port, 300, [mixed_body(row) for row in mixed_rows(20)], ["/predict/ab"], ["a", "b"])
    load.start()
    time.sleep(2.5)  # more than the log's flush time: some blocks are acknowledged
    pids = [server.process.pid, *server.workers(), server.sync()]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: nobody reacts to the death of another
        for pid in pids:
            os.kill(pid, number)
    server.process.wait(10)
    server.process.returncode = 0  # was ended by this test, as it meant to
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    load.finish()
    answered = sum(one.status == 200 for one in load.told)
    compact(server.traffic, tmp_path / "lake")
    books = reconcile(server.traffic, tmp_path / "lake")
    assert not books.faults, books
    assert books.total("dropped") == books.total("pending") == 0
    assert books.total("served") == books.total("logged") + books.total("lost")
    assert 0 < books.total("logged") < books.total("served")
    assert answered <= books.total("served") <= answered + load.connections  # scored, and not yet answered


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
