"""A disk too slow for the log: requests are answered all the same, and served = logged + dropped + lost to the row, from the
answers that clients got, over the shared page and `/metrics`, to the lake."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import Release, mixed_body, mixed_rows
from running import Running
from test_changes import metric, wait_for

from monitoring.compaction import compact
from monitoring.lake import window
from monitoring.reconcile import reconcile
from serving import page

SLOW = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

ssize_t write(int file, const void *data, size_t length) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t found = readlink(link, path, sizeof path - 1);
    if (found > 4 && !memcmp(path + found - 4, ".seg", 4) && !access(FLAG, F_OK)) usleep(400000);
    return real(file, data, length);
}
"""
ASKED = 24_000
AT_ONCE = 400


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file is there, each block that the log writes takes 0.4 s longer."""
    flag = tmp_path / "slow"
    (tmp_path / "slow.c").write_text(SLOW, encoding="utf-8")
    call = ["gcc", "-shared", "-fPIC", "-O1", f'-DFLAG="{flag}"', "slow.c", "-o", "slow.so", "-ldl"]
    subprocess.run(call, cwd=tmp_path, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "slow.so"))
    return flag


def ask_many(port: int, bodies: list[bytes]) -> int:
    """All of them pipelined on one connection, AT_ONCE at a time; how many were answered with 200."""
    answered = 0
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for first in range(0, len(bodies), AT_ONCE):
            group = bodies[first : first + AT_ONCE]
            head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            connection.sendall(b"".join(head % len(body) + body for body in group))
            got = b""
            while got.count(b'"request_id"') < len(group):
                got += connection.recv(1 << 16)
            answered += got.count(b"HTTP/1.1 200 OK")
    return answered


def test_the_books_balance_when_a_slow_disk_forces_drops(
    release: Release, serve: Callable[..., Running], slow: Path, tmp_path: Path
) -> None:
    server = serve(release.store)
    rows = [mixed_body(row) for row in mixed_rows(200, 1)]
    slow.touch()
    assert ask_many(server.port, [rows[n % 200] for n in range(ASKED)]) == ASKED
    slow.unlink()
    dropped = metric(server, "coppice_traffic_rows_dropped_total")
    assert dropped > 0
    slot = server.page().slot(0)
    wait_for(lambda: slot.cells[page.ROWS] == slot.cells[page.ROWS_LOGGED] + dropped, server)
    assert server.stop() == 0
    lake = tmp_path / "lake"
    compact(server.traffic, lake)
    books = reconcile(server.traffic, lake)
    assert not books.faults
    assert books.total("served") == ASKED == books.total("logged") + books.total("dropped") + books.total("lost")
    assert (books.total("dropped"), books.total("lost")) == (dropped, 0)
    seqs = window(lake, "mixed", columns=["seq"]).column("seq").to_pylist()
    assert len(seqs) == len(set(seqs)) == books.total("logged")
    absent = set(range(1, ASKED + 1)) - set(seqs)
    (writer,) = books.writers
    assert {seq for first, last in writer.ranges for seq in range(first, last + 1)} == absent
