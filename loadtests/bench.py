"""Coppice, with everything on, beside the least a Python server can do and beside the endpoint as tutorials write it.

    python -m loadtests.bench [--rounds 5] [--seconds 3]        (make bench; needs wrk)

One model for all: 30 numeric features, XGBoost, 300 trees of depth 6; Coppice splits its traffic evenly with a LightGBM
challenger of 300 trees and logs every row. Each server has one core and one process, wrk has another core; the servers
take turns within every round, so that a busy machine is busy for all of them. Each figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, sleep
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np

HERE = Path(__file__).parent
WIDTH, TREES, ROWS = 30, 300, 2_000
PAUSE_S = 0.5  # in which a server answers what wrk left behind, and not in the next one's time
PARAMS = {
    "xgboost": "eta = 0.03, max_depth = 6",
    "lightgbm": "learning_rate = 0.03, num_leaves = 63, max_depth = 6",
}


class Sample(NamedTuple):
    """One run of wrk. Latencies in µs."""

    per_second: float
    errors: int
    p50_us: float
    p95_us: float
    p99_us: float


@dataclass(frozen=True)
class Server:
    title: str
    address: str
    pid: int
    ready_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each run of wrk")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for bench.md and bench.json")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("loadtests.bench needs wrk: apt-get install wrk")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("loadtests.bench needs two cores: one for the server, one for wrk")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as running:
        folder = Path(temporary)
        _say("making the data, training and compiling the models")
        rows = _prepare(folder)
        servers = [running.enter_context(_serving(*each, cores[0])) for each in _servers(folder)]
        samples: dict[tuple[str, int], list[Sample]] = {}
        for connections in (64, 1):
            for server in servers:
                _wrk(server, rows, connections, 1, cores[1])  # warm: caches, branch predictors, the allocator
            for round_ in range(options.rounds):
                for server in servers:
                    sample = _wrk(server, rows, connections, options.seconds, cores[1])
                    samples.setdefault((server.title, connections), []).append(sample)
                told = ", ".join(f"{s.title} {samples[s.title, connections][-1].per_second:,.0f}" for s in servers)
                _say(f"{connections} connections, round {round_ + 1} of {options.rounds}: {told} requests/s")
        memory = _worker_rss_mb(servers[1].pid)
        ready_s = servers[1].ready_s
    text, figures = _report(samples, memory, ready_s, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.md").write_text(text, encoding="utf-8")
    (options.out / "bench.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(text)
    if any(sample.errors for taken in samples.values() for sample in taken):
        sys.exit("some requests failed: those figures mean nothing")


def _prepare(folder: Path) -> Path:
    """Data, a store with routes, the naive endpoint's model, and the bodies to send."""
    from xgboost import XGBClassifier

    rng = np.random.default_rng(5)
    names = [f"x{n:02d}" for n in range(WIDTH)]
    table = rng.normal(size=(20_000, WIDTH)).round(6)
    score = (
        table[:, :6].sum(1) + 2 * table[:, 6] * table[:, 7] + np.sin(3 * table[:, 8]) * 2 + rng.normal(size=len(table))
    )
    label = score > 0
    lines = [",".join([*names, "label"])]
    lines += [",".join([*map(repr, row), str(int(hit))]) for row, hit in zip(table.tolist(), label, strict=True)]
    (folder / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    digests: dict[str, str] = {}
    for algorithm, params in PARAMS.items():
        path = folder / f"{algorithm}.toml"
        recipe = f'model = "bench"\nalgorithm = "{algorithm}"\nparams = {{ {params} }}\n'
        path.write_text(recipe + f"rounds = {{ most = {TREES}, patience = {TREES} }}\n", encoding="utf-8")
        train = ["train", str(path), "--data", "rows.csv", "--target", "label", "--alias", algorithm]
        printed = _coppice(folder, *train, *(["--schema-from", "bench@xgboost"] if digests else []))
        if f"{TREES} rounds kept" not in printed:
            sys.exit(f"the {algorithm} model did not keep {TREES} rounds: {printed}")
        digests[algorithm] = _coppice(folder, "compile", f"bench@{algorithm}").split()[-1]
    arms = ["--arm", f"champion={digests['xgboost']}", "--arm", f"challenger={digests['lightgbm']}"]
    _coppice(folder, "routes", "publish", "bench", *arms, "--split", "champion=50,challenger=50")
    naive = XGBClassifier(n_estimators=TREES, max_depth=6, learning_rate=0.03, n_jobs=1)
    naive.fit(table, label).save_model(folder / "naive.ubj")
    rows = folder / "rows.jsonl"
    fresh = rng.normal(size=(ROWS, WIDTH)).round(6).tolist()
    rows.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in fresh), encoding="utf-8")
    return rows


def _servers(folder: Path) -> list[tuple[str, list[str], Path, str]]:
    """(title, command, working folder, path that answers once it is ready)."""
    uvicorn = [sys.executable, "-m", "uvicorn", "--no-access-log", "--log-level", "warning", "--loop", "uvloop"]
    uvicorn += ["--http", "httptools", "--app-dir", str(HERE.parent), "--port"]
    ours = [sys.executable, "-m", "coppice", "serve", "--workers", "1", "--model", "bench", "--port"]
    return [
        ("bare", [*uvicorn, "18710", "loadtests.peers.bare:app"], folder, "/"),
        ("coppice", [*ours, "18711"], folder, "/readyz"),
        ("DataFrame", [*uvicorn, "18712", "loadtests.peers.naive:frame"], folder, "/docs"),
        ("NumPy", [*uvicorn, "18713", "loadtests.peers.naive:matrix"], folder, "/docs"),
    ]


@contextmanager
def _serving(title: str, command: list[str], folder: Path, path: str, core: int) -> Iterator[Server]:
    _say(f"starting {title}")
    port = next(part for part in command if part.isdigit() and len(part) == 5)
    address = f"http://127.0.0.1:{port}"
    with (folder / f"{title}.log").open("wb") as log:
        began = perf_counter()
        pinned = ["taskset", "-c", str(core), *command]
        process = subprocess.Popen(pinned, cwd=folder, env=_environment(folder), stdout=log, stderr=log)
    try:
        while not _answers(address + path):
            if process.poll() is not None or perf_counter() - began > 60:
                sys.exit(f"{title} did not start: {(folder / f'{title}.log').read_text(encoding='utf-8')[-1000:]}")
            sleep(0.02)
        yield Server(title, address, process.pid, perf_counter() - began)
    finally:
        process.terminate()
        process.wait(60)


def _wrk(server: Server, rows: Path, connections: int, seconds: int, core: int) -> Sample:
    sleep(PAUSE_S)
    call = [
        "taskset",
        "-c",
        str(core),
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "10s",
        "-s",
        str(HERE / "post.lua"),
    ]
    printed = subprocess.run(
        [*call, server.address, "--", "/predict/ab", str(rows)], capture_output=True, text=True, check=True
    )
    told = re.search(r"^BENCH (.+)$", printed.stdout, re.MULTILINE)
    if told is None:
        sys.exit(f"wrk said nothing of {server.title}: {printed.stdout}{printed.stderr}")
    requests, us, errors, p50, p95, p99 = map(float, told[1].split())
    return Sample(requests / us * 1e6, int(errors), p50, p95, p99)


def _report(
    samples: dict[tuple[str, int], list[Sample]], memory: list[float], ready_s: float, options: argparse.Namespace
) -> tuple[str, dict[str, object]]:
    titles = list(dict.fromkeys(title for title, _ in samples))
    lines = [
        "# Bench",
        "",
        f"`python -m loadtests.bench --rounds {options.rounds} --seconds {options.seconds}`, commit {_commit()}, "
        f"{datetime.now(UTC):%Y-%m-%d}, {_machine()}. One core for the server, one for wrk; {WIDTH} numeric features, "
        f"{TREES} trees of depth 6, {ROWS:,} distinct rows; medians of {options.rounds} interleaved rounds, lowest and "
        "highest beside them.",
        "",
        "| server | connections | requests/s | lowest - highest | p50 µs | p95 µs | p99 µs | errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (title, connections), taken in samples.items():
        rates = [sample.per_second for sample in taken]
        p50, p95, p99 = (statistics.median(column) for column in list(zip(*taken, strict=True))[2:])
        lines.append(
            f"| {title} | {connections} | {statistics.median(rates):,.0f} | {min(rates):,.0f} - {max(rates):,.0f} "
            f"| {p50:,.0f} | {p95:,.0f} | {p99:,.0f} | {sum(sample.errors for sample in taken)} |"
        )
    ratios = {
        f"ratio to {title}, {connections} connections": _median_ratio(samples, title, connections)
        for title in titles
        if title != "coppice"
        for connections in (64, 1)
    }
    lone_us = _median(samples, "coppice", 1, 2) - _median(samples, "bare", 1, 2)
    lines += [
        "",
        *[f"- {name}: {ratio:.2f}" for name, ratio in ratios.items()],
        f"- a lone request: {lone_us:+.0f} µs beside the bare app's median",
        f"- start-up, from the command to ready with two {TREES}-tree models: {ready_s:.2f} s",
        f"- RSS per worker after the load: {', '.join(f'{mb:.0f} MB' for mb in memory)}",
        "",
        f"ratio to bare: {ratios['ratio to bare, 64 connections']:.2f}",
        "",
    ]
    figures: dict[str, object] = {
        "samples": {f"{title}/{connections}": taken for (title, connections), taken in samples.items()},
        "ratios": ratios,
        "lone_request_us_beside_bare": lone_us,
        "ready_s": ready_s,
        "worker_rss_mb": memory,
    }
    return "\n".join(lines), figures


def _median_ratio(samples: dict[tuple[str, int], list[Sample]], title: str, connections: int) -> float:
    """Of each round its own ratio, then the median: what slows a round slows both."""
    pairs = zip(samples["coppice", connections], samples[title, connections], strict=True)
    return statistics.median(ours.per_second / theirs.per_second for ours, theirs in pairs)


def _median(samples: dict[tuple[str, int], list[Sample]], title: str, connections: int, column: int) -> float:
    return float(statistics.median(sample[column] for sample in samples[title, connections]))


def _worker_rss_mb(supervisor: int) -> list[float]:
    """Of the supervisor's children; the supervisor serves nothing."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text(encoding="utf-8").split()
    found = []
    for pid in children:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        kilobytes = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        found.append(int(kilobytes[1]) / 1024 if kilobytes else float("nan"))
    return found


def _coppice(folder: Path, *call: str) -> str:
    command = [sys.executable, "-m", "coppice", *call]
    ran = subprocess.run(command, cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"{shlex.join(command)}: {ran.stderr}")
    return ran.stdout


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COPPICE_", "MLFLOW_"))}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return kept | threads | {"BENCH_MODEL": str(folder / "naive.ubj")}


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1):
            return True
    except (URLError, OSError) as refused:
        return getattr(refused, "code", 503) not in (503,)


def _commit() -> str:
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=HERE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def _machine() -> str:
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    processor = model[1] if model else platform.processor()
    return f"{os.cpu_count()} x {processor}, Linux {platform.release()}, Python {platform.python_version()}"


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


if __name__ == "__main__":
    main()
