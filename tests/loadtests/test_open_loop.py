"""The open loop says what is so: its times are those of an independent client, and a server's stall is in them."""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path

import numpy as np
import pytest
from locusts import by_profile, slow_server

from loadtests.connection import AnswerFailed, Connection

ROUNDS = 3
RATE = 200
OPEN = f'traffic = "single"\narrivals = "constant"\nrate = {RATE}\nseconds = 3\nwarm_s = 1\nconnections = 32\n'


def h2load_ms(port: int, folder: Path) -> float:
    """Median of an arrival rate of `RATE` over as many connections."""
    body, log = folder / "body.json", folder / "h2load.log"
    body.write_text('{"x": 0.5}', encoding="ascii")
    log.unlink(missing_ok=True)
    call = ["h2load", "--h1", "-t1", "-c32", "-D2s", f"--rps={RATE / 32}", "-d", str(body), f"--log-file={log}"]
    subprocess.run([*call, f"http://127.0.0.1:{port}/predict"], check=True, stdout=subprocess.DEVNULL, timeout=60)
    starts, statuses, took_us = np.loadtxt(log, dtype=np.int64).T
    assert (statuses == 200).all()
    return float(np.median(took_us[starts >= starts.min() + 500_000])) / 1e3


def test_the_open_loops_median_is_h2loads(tmp_path: Path) -> None:
    """At 200/s on a server that takes 20 ms; medians of rounds by turns."""
    ours, theirs = [], []
    with slow_server(tmp_path, 0.02) as port:
        for _ in range(ROUNDS):
            theirs.append(h2load_ms(port, tmp_path))
            code, figures, printed = by_profile(port, tmp_path, OPEN.replace("seconds = 3", "seconds = 2"))
            assert code == 0, printed
            ours.append(figures["p50_ms"])
    independent = statistics.median(theirs)
    assert abs(statistics.median(ours) - independent) <= max(0.1 * independent, 1.0), (ours, theirs)
    assert statistics.median(ours) >= 20


def test_a_stall_of_half_a_second_is_in_the_open_loops_times_and_not_in_the_closed_ones(tmp_path: Path) -> None:
    """The open loop: 100 of 200/s fall due within it, the first waits 500 ms for its answer and the last none, so among the
    400 of 2 s it is every tenth that is later than 300 ms. The closed loop: each of its 4 users is late once."""
    stalled = OPEN + "[bounds]\np99_ms = 300\n"
    with slow_server(tmp_path, 0.001, stall_at_s=1.8, stall_s=0.5) as port:
        code, figures, printed = by_profile(port, tmp_path, stalled)
    assert code == 1, printed
    assert figures["failures"] == 0
    assert figures["p95_ms"] >= 350, figures  # of 400, 20 are later than 400 ms
    assert figures["p99_ms"] >= 400, figures
    closed = stalled.replace('"constant"', '"closed"').replace("connections = 32", "connections = 4")
    with slow_server(tmp_path, 0.001, stall_at_s=1.8, stall_s=0.5) as port:
        _, figures, printed = by_profile(port, tmp_path, closed)
    assert figures["requests"] >= 100, printed
    assert figures["p95_ms"] < 300, figures
    assert figures["max_ms"] >= 400, figures  # it was there to be seen


def test_what_cannot_be_in_flight_is_late_or_not_sent_and_never_left_out(tmp_path: Path) -> None:
    """Two connections to a server that takes 100 ms can do 20/s; 60/s are due for 2 s, and 2 s more are there to catch up."""
    profile = 'traffic = "single"\nrate = 60\nseconds = 2\nwarm_s = 0\nconnections = 2\n[bounds]\nachieved = 0.98\n'
    with slow_server(tmp_path, 0.1) as port:
        code, figures, printed = by_profile(port, tmp_path, profile)
    assert code == 1, printed
    assert figures["requests"] == 120
    sent = 120 - figures["not_sent"]
    assert 20 < sent <= 84  # 20/s for 4 s, and those in flight then
    assert figures["failures"] == figures["not_sent"]
    assert figures["max_ms"] > 1000
    assert "not sent" in printed
    assert "achieved" in printed


def test_a_server_that_is_gone_or_hangs_up_is_a_failure(tmp_path: Path) -> None:
    with slow_server(tmp_path, 0.001) as port:
        connection = Connection(f"http://127.0.0.1:{port}")
        assert connection.ask(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n")[0] == 200
    with pytest.raises(AnswerFailed, match="closed the connection"):
        connection.ask(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(AnswerFailed, match="refused"):
        connection.ask(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
