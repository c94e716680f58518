"""How soon the dashboard's page is there over 90 days of traffic: `make bench-dashboard` writes loadtests/results/dashboard.md.

A lake of DAYS x 24 hours, two arms and a shadow, and the checks of as many days; the real `coppice dashboard` over it; and
a real Chromium that opens the page, for several windows, rounds interleaved. Told: how long the lake took to be summed up,
the time to the page's first and last byte, and the browser's own first-contentful-paint. Servers listen on loopback alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from urllib.request import urlopen

import numpy as np
import pyarrow as pa

from monitoring.checks import Check, append
from monitoring.lake import HOUR_US, SCHEMA
from monitoring.lake_files import LakeFiles, open_files, put_table

DAYS, ROWS, WIDTH, ROUNDS = 90, 3000, 12, 7
DAY_US = 24 * HOUR_US
WINDOWS = ("day", "week", "90d")
ARMS = (("champion", "3", "served", 0.7), ("challenger", "4", "served", 0.2), ("candidate", "5", "shadow", 0.1))
RESULTS = Path("loadtests/results/dashboard.md")


def hour_of_rows(begin_us: int, rows: int, seed: int) -> pa.Table:
    """An hour of traffic: scores that drift slowly, latency with a tail, few failures."""
    rng = np.random.default_rng(seed)
    which = rng.choice(len(ARMS), rows, p=[share for *_, share in ARMS])
    failed = rng.random(rows) < 0.002
    times = {"parse_us": rng.integers(5, 40, rows), "queue_us": rng.exponential(30, rows).astype(np.int64)}
    times["score_us"] = (rng.lognormal(4.2 + 0.3 * (which == 1), 0.6, rows)).astype(np.int64) + 1
    drifted = 2.0 + 0.0003 * (begin_us // HOUR_US % 2160)
    columns = {
        "ts_us": np.sort(begin_us + rng.integers(0, HOUR_US, rows)),
        "request_id": [f"{seed:x}-{n:x}" for n in range(rows)],
        "row": np.zeros(rows, np.int64),
        "unit": [f"u{n}" for n in rng.integers(0, 1000, rows)],
        "features": pa.FixedSizeListArray.from_arrays(rng.normal(size=rows * WIDTH), WIDTH).cast(
            pa.list_(pa.float64())
        ),
        "score": np.where(failed, np.nan, rng.beta(drifted, 5 - which, rows)),
        "status": np.where(failed, 500, 200),
        "batch_rows": np.ones(rows, np.int64),
        "seq": np.arange(rows) + 1,
        "scores": pa.nulls(rows, pa.list_(pa.float64())),
        "version": [ARMS[n][1] for n in which],
        "arm": [ARMS[n][0] for n in which],
        "generation": np.full(rows, 7),
        "role": [ARMS[n][2] for n in which],
        "schema": ["s"] * rows,
        "writer": [f"w{seed}"] * rows,
        **times,
    }
    return pa.table({name: pa.array(columns[name]).cast(SCHEMA.field(name).type) for name in SCHEMA.names}, SCHEMA)


def build_lake(files: LakeFiles, end_us: int, days: int, rows: int) -> None:
    for hour in range(24 * days):
        begin = end_us // HOUR_US * HOUR_US - hour * HOUR_US
        when = datetime.fromtimestamp(begin / 1e6, UTC)
        path = f"model=churn/date={when:%Y-%m-%d}/hour={when:%H}/part-{hour}.parquet"
        put_table(files, path, hour_of_rows(begin, rows, hour))


def build_checks(folder: Path, end_us: int, days: int) -> None:
    """A look at drift and at performance for each day."""
    rng = np.random.default_rng(0)
    for day in range(days, 0, -1):
        since, until = end_us - day * DAY_US, end_us - (day - 1) * DAY_US
        moved = rng.random(WIDTH) < 0.06
        columns = [
            {"name": f"f{n}", "weight": 1 / WIDTH, "drifted": bool(moved[n]), "found": ["values"] if moved[n] else [],
             "p": 0.001 if moved[n] else float(rng.random()), "effect": 0.1 if moved[n] else float(rng.random() * 0.04),
             "missing_reference": 0.0, "missing_window": 0.0, "note": ""}
            for n in range(WIDTH)
        ]  # fmt: skip
        found = {"window_rows": 24 * ROWS, "prediction_drifted": False, "columns": columns}
        append(
            folder, Check("drift", "churn", "3", since, until, "drift" if moved.any() else "no drift", "", found, until)
        )
        value = 0.85 - 0.0004 * (days - day) + float(rng.normal() * 0.004)
        figures = {"roc_auc": {"value": value, "low": value - 0.012, "high": value + 0.012}}
        estimate = {"figures": {"roc_auc": value + 0.004}, "trust": "trusted", "reasons": []}
        told = {"arm": "champion", "role": "served", "metric": "roc_auc", "figures": figures, "estimate": estimate,
                "coverage": 0.6, "labelled": 1200, "rows": 24 * ROWS, "alarms": []}  # fmt: skip
        append(folder, Check("performance", "churn", "3", since, until, "fine", "", told, until))


@contextmanager
def dashboard(folder: Path) -> Iterator[str]:
    """The real one over the folder's lake; its address."""
    call = [sys.executable, "-m", "coppice", "dashboard", "--port", "0", "--lake", "lake", "--checks", "checks"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    log = folder / "dashboard.log"
    with log.open("wb") as out:
        process = subprocess.Popen(call, cwd=folder, env=environment, stdout=out, stderr=out)
    try:
        while (ready := re.search(r"dashboard on (http://\S+)", log.read_text(encoding="utf-8"))) is None:
            if process.poll() is not None:
                raise RuntimeError(log.read_text(encoding="utf-8"))
            time.sleep(0.02)
        yield ready[1]
    finally:
        process.terminate()
        process.wait(20)


def summed_up_s(address: str) -> float:
    """How long until no hour of the lake waits."""
    began = time.perf_counter()
    while True:
        text = _get(f"{address}api/panels/latency?window=90d")[2]
        if b'"whole"' in text and b"still to be" not in text:
            return time.perf_counter() - began
        time.sleep(0.1)


def _get(url: str) -> tuple[float, float, bytes]:
    """(ms to the first byte, ms to the last, the body)."""
    began = time.perf_counter()
    with urlopen(url, timeout=120) as answer:
        first = answer.read(1)
        reached = time.perf_counter()
        body = first + answer.read()
    return 1e3 * (reached - began), 1e3 * (time.perf_counter() - began), body


def measure(folder: Path, days: int, rows: int, rounds: int) -> list[str]:
    """The lines of the page."""
    from loadtests.browser import browser

    end_us = time.time_ns() // 1000
    build_lake(open_files(folder / "lake"), end_us, days, rows)
    build_checks(folder / "checks", end_us, days)
    with dashboard(folder) as address:
        began_s = summed_up_s(address)
    with dashboard(folder) as address, browser(folder) as chromium:
        cold = chromium.visit(f"{address}?window=90d").first_paint_ms()
        again_s = summed_up_s(address)
        found: dict[str, list[tuple[float, float, float]]] = {window: [] for window in WINDOWS}
        sizes = {}
        for _ in range(rounds):
            for window in WINDOWS:
                first, last, body = _get(f"{address}?window={window}")
                sizes[window] = len(body)
                found[window].append((first, last, chromium.visit(f"{address}?window={window}").first_paint_ms()))
    head = (
        f"| window | first byte, ms | whole page, ms | first contentful paint, ms | spread | page, kB |\n|{'---|' * 6}"
    )
    table = [
        f"| {window} | {median(a for a, _, _ in got):.0f} | {median(b for _, b, _ in got):.0f} | "
        f"{median(c for *_, c in got):.0f} | {min(c for *_, c in got):.0f} to {max(c for *_, c in got):.0f} | "
        f"{sizes[window] / 1000:.0f} |"
        for window, got in found.items()
    ]
    return [
        head,
        *table,
        "",
        f"{days} days x 24 hours x {rows:,} rows = {days * 24 * rows:,} rows of {WIDTH} features, two arms and a shadow; "
        f"{days} looks at drift and {days} at performance; {rounds} rounds, interleaved; medians.",
        "",
        f"The first start summed up the whole lake in {began_s:.1f} s, in the background, the newest day first. The second "
        f"start found the summaries: its first page, asked for at once, painted after {cold:.0f} ms, and it was up to date "
        f"after {again_s:.1f} s.",
    ]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--days", type=int, default=DAYS)
    asked.add_argument("--rows", type=int, default=ROWS, help="of an hour")
    asked.add_argument("--rounds", type=int, default=ROUNDS)
    asked.add_argument("--keep", type=Path, help="build the lake here, and leave it")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = given.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        lines = measure(folder, given.days, given.rows, given.rounds)
    told = "\n".join(["# The dashboard over 90 days", "", _certificate(), "", *lines, ""])
    print(told)
    if (given.days, given.rows) == (DAYS, ROWS):
        RESULTS.write_text(told, encoding="utf-8")


def _certificate() -> str:
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    load = os.getloadavg()[0]
    return (
        f"`make bench-dashboard`, commit {head.stdout.strip() or 'unknown'}, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} x "
        f"{model[1] if model else platform.processor()}, load {load:.1f}, Python {platform.python_version()}."
    )


if __name__ == "__main__":
    main()
