"""Coppice, with everything on, beside the least a Python server can do and beside the endpoint as tutorials write it.

    python -m loadtests.bench [--rounds 5] [--seconds 3] [--only small|large]      (make bench; needs wrk)

One model for all: 30 numeric features, XGBoost, 300 trees of depth 6; Coppice splits its traffic evenly with a LightGBM
challenger of 300 trees and logs every row. Then the same with a shadow on every request, by two workers, and a large model
(LightGBM, 1,500 trees of 31 leaves) with and without batches. Each server has one core, wrk has another; the servers take
turns within every round, so that a busy machine is busy for all of them. Two workers have two cores, which wrk shares: what
is compared there is requests per CPU-second of the workers. Each figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loadtests import materials
from loadtests.servers import (
    HERE,
    Plan,
    Server,
    commit,
    coppice_plan,
    machine,
    rss_mb,
    say,
    serving,
    two_cores,
    workers_of,
)
from loadtests.wrk import Taken, need_wrk, run_wrk

BARE, OURS, SHADOWED, PAIR = "bare", "coppice", "coppice, shadow on every request", "coppice, two workers"
BATCHED, ALONE = "large model", "large model, batching off"
MANY, ONE = 64, 1


@dataclass(frozen=True)
class Entry:
    """A server that takes its turn: where it is asked, with how many connections, and on how many cores."""

    plan: Plan
    path: str
    connections: tuple[int, ...] = (MANY, ONE)
    cores: int = 1


def main() -> None:
    options = _options()
    need_wrk()
    cores = two_cores("loadtests.bench")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as running:
        folder = Path(temporary)
        rows = materials.data(folder)
        entries = (_small(folder) if options.only != "large" else []) + (
            _large(folder) if options.only != "small" else []
        )
        servers = {e.plan.title: running.enter_context(serving(e.plan, folder, cores[: e.cores])) for e in entries}
        taken = _measure(entries, servers, rows, cores, options)
        facts = _facts(servers)
    text = _page(taken, facts, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.md").write_text(text, encoding="utf-8")
    samples = {f"{title}/{n}": [s._asdict() for s in each] for (title, n), each in taken.samples.items()}
    (options.out / "bench.json").write_text(json.dumps({"samples": samples, **facts}, indent=1), encoding="utf-8")
    print(text)
    if taken.errors:
        sys.exit("some requests failed: those figures mean nothing")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each run of wrk")
    parser.add_argument("--only", choices=["small", "large"], help="a part of it")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for bench.md and bench.json")
    return parser.parse_args()


def _small(folder: Path) -> list[Entry]:
    digests = materials.small_models(folder)
    materials.naive_model(folder)
    materials.shadowed_store(folder, digests)
    return [
        Entry(_peer(BARE, 18710, "loadtests.peers.bare:app", "/"), "/predict/ab"),
        Entry(coppice_plan(OURS, 18711, "bench", "--workers", "1"), "/predict/ab"),
        Entry(coppice_plan(SHADOWED, 18714, "bench", "--workers", "1", "--store", "shadowed"), "/predict/ab"),
        Entry(_peer("DataFrame", 18712, "loadtests.peers.naive:frame", "/docs"), "/predict/ab"),
        Entry(_peer("NumPy", 18713, "loadtests.peers.naive:matrix", "/docs"), "/predict/ab"),
        Entry(coppice_plan(PAIR, 18715, "bench", "--workers", "2"), "/predict/ab", (MANY,), cores=2),
    ]


def _large(folder: Path) -> list[Entry]:
    materials.large_model(folder)
    return [
        Entry(coppice_plan(BATCHED, 18716, "large", "--workers", "1"), "/predict"),
        Entry(coppice_plan(ALONE, 18717, "large", "--workers", "1", max_batch_rows="1"), "/predict"),
    ]


def _peer(title: str, port: int, app: str, path: str) -> Plan:
    command = [sys.executable, "-m", "uvicorn", "--no-access-log", "--log-level", "warning", "--loop", "uvloop"]
    return Plan(title, [*command, "--http", "httptools", "--app-dir", str(HERE.parent), app], port, path)


def _measure(
    entries: list[Entry], servers: dict[str, Server], rows: Path, cores: list[int], options: argparse.Namespace
) -> Taken:
    taken = Taken()

    def run(entry: Entry, connections: int, seconds: float) -> None:
        client = cores[1:2] if entry.cores == 1 else cores
        sample = run_wrk(servers[entry.plan.title], entry.path, rows, connections, seconds, client)
        if seconds == options.seconds:
            taken.add(entry.plan.title, connections, sample)

    for connections in (MANY, ONE):
        turns = [entry for entry in entries if connections in entry.connections]
        for entry in turns:
            run(entry, connections, 1 if options.seconds != 1 else 1.001)  # warm: caches, predictors, the allocator
        for round_ in range(options.rounds):
            for entry in turns:
                run(entry, connections, options.seconds)
            rates = [(e.plan.title, taken.samples[e.plan.title, connections][-1].per_second) for e in turns]
            told = ", ".join(f"{title} {rate:,.0f}" for title, rate in rates)
            say(f"{connections} connections, round {round_ + 1} of {options.rounds}: {told} requests/s")
    return taken


def _facts(servers: dict[str, Server]) -> dict[str, object]:
    ours = {title: server for title, server in servers.items() if server.ours}
    return {
        "ready_s": {title: server.ready_s for title, server in ours.items()},
        "worker_rss_mb": {title: [rss_mb(pid) for pid in workers_of(server)] for title, server in ours.items()},
    }


def _page(taken: Taken, facts: dict[str, object], options: argparse.Namespace) -> str:
    only = f" --only {options.only}" if options.only else ""
    lines = [
        "# Bench",
        "",
        f"`python -m loadtests.bench --rounds {options.rounds} --seconds {options.seconds:g}{only}`, commit {commit()}, "
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. One core for the server, one for wrk (two workers have two cores, "
        f"which wrk shares); {materials.WIDTH} numeric features, {materials.TREES} trees of depth 6, {materials.ROWS:,} "
        f"distinct rows; medians of {options.rounds} interleaved rounds, lowest and highest beside them.",
        "",
        *taken.lines(),
        "",
    ]
    if options.only != "large":
        lines += [*_small_lines(taken), *_told(facts, OURS)]
    if options.only != "small":
        lines += _large_lines(taken)
    if options.only != "large":
        lines += ["", f"ratio to bare with a shadow: {taken.ratio(SHADOWED, BARE, MANY):.2f}"]
        lines += ["", f"ratio to bare: {taken.ratio(OURS, BARE, MANY):.2f}"]
    return "\n".join([*lines, ""])


def _small_lines(taken: Taken) -> list[str]:
    lines = [
        f"- ratio to {title}, {n} connections: {taken.ratio(OURS, title, n):.2f}"
        for title, n in taken.samples
        if title in (BARE, "DataFrame", "NumPy")
    ]
    lone_us = taken.median(OURS, ONE, "p50_us") - taken.median(BARE, ONE, "p50_us")
    p99s = [taken.median(title, MANY, "p99_us") for title in (OURS, SHADOWED, BARE)]
    shares = [sample.largest_share for sample in taken.samples[PAIR, MANY]]
    within = sum(share <= 0.6 for share in shares)
    return [
        *lines,
        f"- p99 with {MANY} connections: {p99s[0]:,.0f} µs, with a shadow {p99s[1]:,.0f} µs, the bare app's {p99s[2]:,.0f} µs",
        f"- a lone request: {lone_us:+.0f} µs beside the bare app's median",
        f"- two workers: {taken.ratio(PAIR, OURS, MANY, 'per_cpu_s'):.2f} of one worker's requests per CPU-second",
        f"- of two workers the busier served {', '.join(f'{share:.0%}' for share in shares)} of the requests: between 40 and "
        f"60 % each in {within} of {len(shares)} rounds",
    ]


def _large_lines(taken: Taken) -> list[str]:
    lone_us = taken.median(BATCHED, ONE, "p50_us") - taken.median(ALONE, ONE, "p50_us")
    return [
        f"- batching: {taken.ratio(BATCHED, ALONE, MANY):.2f} x the throughput of off, {MANY} connections, the large model",
        f"- a lone request to the large model: {lone_us:+.0f} µs beside off",
    ]


def _told(facts: dict[str, object], title: str) -> list[str]:
    ready, memory = facts["ready_s"], facts["worker_rss_mb"]
    assert isinstance(ready, dict)
    assert isinstance(memory, dict)
    megabytes = ", ".join(f"{mb:.0f} MB" for mb in memory[title])
    return [
        f"- start-up, from the command to ready with two {materials.TREES}-tree models: {ready[title]:.2f} s",
        f"- RSS per worker after the load: {megabytes}",
    ]


if __name__ == "__main__":
    main()
