"""h2load, an arrival rate that does not wait for answers, as a function: every request with its start, status and time.

What it really does: each of its clients (connections) sends at a fixed rate, but over HTTP/1.1 has one request under way; one
that falls due meanwhile is sent when the answer is there. The load is open as long as a client is answered before its next
request is due, so there are so many clients that each has `CLIENT_S` for it. All clients of a process send at one moment, a
burst as large as their number; so there are several processes, started one after the other while all connect,
`CONNECTS_PER_S`. What was sent, not what was asked for, is told.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import sleep

import numpy as np
import numpy.typing as npt

from loadtests.servers import Server

CLIENT_S = 0.4
MOST_CLIENTS = 4_000
CONNECTS_PER_S = 1_000  # more at once overflow a listener's queue, and whoever is dropped comes back after seconds
PROCESSES = 16

Floats = npt.NDArray[np.float64]


class Requests:
    """Of one run: `start_s` since its first, `status` (-1: none came), `took_ms`."""

    def __init__(self, table: npt.NDArray[np.int64]) -> None:
        table = table.reshape(-1, 3)
        table = table[np.argsort(table[:, 0], kind="stable")]
        self.start_s: Floats = (table[:, 0] - (table[0, 0] if len(table) else 0)) / 1e6
        self.status = table[:, 1]
        self.took_ms: Floats = table[:, 2] / 1e3

    def within(self, begin_s: float, end_s: float) -> Requests:
        kept = (self.start_s >= begin_s) & (self.start_s < end_s)
        return Requests(
            np.column_stack([self.start_s[kept] * 1e6, self.status[kept], self.took_ms[kept] * 1e3]).astype(int)
        )

    def per_second(self, status: int | None, seconds: float) -> float:
        return float(len(self.status) if status is None else (self.status == status).sum()) / seconds

    def ms(self, status: int, percent: float) -> float:
        times = self.took_ms[self.status == status]
        return float(np.percentile(times, percent)) if len(times) else float("nan")


def need_h2load() -> None:
    if shutil.which("h2load") is None:
        sys.exit("this needs h2load: apt-get install nghttp2-client")


def clients_for(per_second: float) -> int:
    return int(min(MOST_CLIENTS, max(16, per_second * CLIENT_S)))


def ramp_s(clients: int) -> float:
    """How long it takes until all are connected."""
    return clients / CONNECTS_PER_S


def run_h2load(
    server: Server, path: str, body: Path, clients: int, per_second: float | None, seconds: float, cores: Sequence[int]
) -> Requests:
    """`per_second` None: a closed loop, each client sending when it is answered."""
    shares = [clients] if per_second is None else [len(part) for part in np.array_split(np.arange(clients), PROCESSES)]
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for n, share in enumerate(shares):
            call = [
                "taskset",
                "-c",
                ",".join(map(str, cores)),
                "h2load",
                "--h1",
                "-t1",
                f"-c{share}",
                f"-D{seconds:g}s",
            ]
            call += ["-d", str(body), "-H", "content-type: application/json", f"--log-file={folder}/{n}"]
            call += [f"--rps={per_second / clients:.4f}"] if per_second else []
            running.append(subprocess.Popen([*call, server.address + path], stdout=subprocess.DEVNULL))
            if per_second:
                sleep((ramp_s(clients) + clients / per_second) / len(shares))
        if any(process.wait() for process in running):
            sys.exit("h2load failed; it says why above")
        logs = [(Path(folder) / str(n)).read_text(encoding="utf-8").split() for n in range(len(shares))]
    return Requests(np.array([cell for log in logs for cell in log], dtype=np.int64))
