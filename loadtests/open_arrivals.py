"""An open loop for tens of thousands of requests a second: `open_arrivals.c`, built where it is needed, as a function.

h2load and wrk send over each connection only when it was answered, so at a server that falls behind they ask less, and what
they did not ask is in no figure. Here every request has its instant, and its time counts from that. A client is patient for
so long; then its request is given up, and counts as not answered.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

SOURCE = Path(__file__).parent / "open_arrivals.c"
DRAIN_S = 1.0
NEVER = float("inf")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Arrivals:
    """Of one run, in the order of arrival. `took_ms` from when it was due; inf: not answered, or not with 200."""

    due_s: Floats
    took_ms: Floats
    sent_late_ms: Floats  # NaN: not sent
    cpu: float  # of the generator's core

    def within(self, begin_s: float, end_s: float) -> Arrivals:
        kept = (self.due_s >= begin_s) & (self.due_s < end_s)
        return Arrivals(self.due_s[kept], self.took_ms[kept], self.sent_late_ms[kept], self.cpu)

    def ms(self, percent: float) -> float:
        """Of all that were due: what was not answered took for ever."""
        if not len(self.took_ms):
            return float("nan")
        return float(np.percentile(self.took_ms, percent, method="inverted_cdf"))

    def answered(self, begin_s: float, end_s: float) -> float:
        """Answers a second between these instants, whenever their requests were due."""
        ended = self.due_s + self.took_ms / 1e3
        return float(((ended >= begin_s) & (ended < end_s)).sum()) / (end_s - begin_s)


def build(folder: Path) -> Path:
    """The program, compiled into `folder`."""
    if shutil.which("gcc") is None:
        sys.exit("this needs gcc")
    made = folder / "open_arrivals"
    call = ["gcc", "-O2", "-std=c99", "-Wall", "-Wextra", "-Werror", "-o", str(made), str(SOURCE), "-lm"]
    built = subprocess.run(call, capture_output=True, text=True, check=False)
    if built.returncode:
        sys.exit(f"{SOURCE.name}: {built.stderr}")
    return made


def run(
    program: Path,
    port: int,
    path: str,
    bodies: Path,
    stages: Sequence[tuple[float, float]],
    *,
    connections: int,
    patience_s: float = 1.0,
    seed: int = 1,
    cores: Sequence[int] = (),
) -> Arrivals:
    """`stages`: (requests a second, for so many seconds). `seed` 0: even arrivals."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        call = [*pinned, str(program), str(port), path, str(bodies), str(connections), str(seed), str(DRAIN_S)]
        call += [str(patience_s), str(out), *(f"{rate:.3f}:{seconds:g}" for rate, seconds in stages)]
        ran = subprocess.run(call, capture_output=True, text=True, check=False)
        if ran.returncode:
            sys.exit(ran.stderr.strip() or f"open_arrivals ended with {ran.returncode}")
        table = np.fromfile(out, dtype=np.int64).reshape(-1, 4)
    cpu_s, wall_s = map(float, ran.stdout.split())
    due, sent, answered, status = table.T
    took = np.where((answered >= 0) & (status == 200), (answered - due) / 1e6, NEVER)
    return Arrivals(due / 1e9, took, np.where(sent >= 0, (sent - due) / 1e6, np.nan), cpu_s / wall_s)
