"""wrk, a closed loop of so many connections, as a function: one run, one sample."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from typing import NamedTuple

from loadtests.servers import Server, cpu_s, served_by_worker

SCRIPT = Path(__file__).parent / "post.lua"
PAUSE_S = 0.5  # in which a server answers what wrk left behind, and not in the next one's time


class Sample(NamedTuple):
    """One run of wrk. Latencies in µs."""

    per_second: float
    errors: int
    p50_us: float
    p95_us: float
    p99_us: float
    per_cpu_s: float  # requests per CPU-second of the server's processes that answer
    largest_share: float  # of the requests: what the busiest worker served; NaN where there are no workers
    requests: int = 0


def need_wrk() -> None:
    if shutil.which("wrk") is None:
        sys.exit("this needs wrk: apt-get install wrk")


def run_wrk(server: Server, path: str, rows: Path, connections: int, seconds: float, cores: Sequence[int]) -> Sample:
    sleep(PAUSE_S)
    call = ["taskset", "-c", ",".join(map(str, cores)), "wrk", "-t1", f"-c{connections}", f"-d{max(1, seconds):.0f}s"]
    call += ["--timeout", "10s", "-s", str(SCRIPT), server.address, "--", path, str(rows)]
    cpu_before, served_before = cpu_s(server), served_by_worker(server)
    printed = subprocess.run(call, capture_output=True, text=True, check=True)
    sleep(0.1)
    served = [after - before for before, after in zip(served_before, served_by_worker(server), strict=True)]
    spent_s = cpu_s(server) - cpu_before
    told = re.search(r"^BENCH (.+)$", printed.stdout, re.MULTILINE)
    if told is None:
        sys.exit(f"wrk said nothing of {server.title}: {printed.stdout}{printed.stderr}")
    requests, us, errors, p50, p95, p99 = map(float, told[1].split())
    return Sample(
        per_second=requests / us * 1e6,
        errors=int(errors),
        p50_us=p50,
        p95_us=p95,
        p99_us=p99,
        per_cpu_s=requests / spent_s if spent_s > 0 else float("nan"),
        largest_share=max(served) / sum(served) if sum(served) else float("nan"),
        requests=int(requests),
    )


class Taken:
    """All samples of a bench: of each server and number of connections, one a round."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, int], list[Sample]] = {}

    def add(self, title: str, connections: int, sample: Sample) -> None:
        self.samples.setdefault((title, connections), []).append(sample)

    def median(self, title: str, connections: int, field: str) -> float:
        return float(statistics.median(getattr(sample, field) for sample in self.samples[title, connections]))

    def ratio(self, title: str, to: str, connections: int, field: str = "per_second") -> float:
        """Of each round its own ratio, then the median: what slows a round slows both."""
        pairs = zip(self.samples[title, connections], self.samples[to, connections], strict=True)
        return float(statistics.median(getattr(ours, field) / getattr(theirs, field) for ours, theirs in pairs))

    @property
    def errors(self) -> int:
        return sum(sample.errors for taken in self.samples.values() for sample in taken)

    def lines(self) -> list[str]:
        lines = [
            "| server | connections | requests/s | lowest - highest | p50 µs | p95 µs | p99 µs | errors |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for (title, connections), taken in self.samples.items():
            rates = [sample.per_second for sample in taken]
            p50, p95, p99 = (self.median(title, connections, field) for field in ("p50_us", "p95_us", "p99_us"))
            lines.append(
                f"| {title} | {connections} | {statistics.median(rates):,.0f} | {min(rates):,.0f} - {max(rates):,.0f} "
                f"| {p50:,.0f} | {p95:,.0f} | {p99:,.0f} | {sum(sample.errors for sample in taken)} |"
            )
        return lines
