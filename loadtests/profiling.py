"""Where a worker's time goes: a flame graph of it under load, and what each step of a request costs, added up and compared.

    python -m loadtests.profiling [--rounds 5] [--seconds 3]      (make profile; needs wrk, and py-spy where it may look)

The CPU time of a request is measured from outside, as the worker's main thread spent it (/proc) over so many requests of wrk.
Beside that stand its parts, each measured by itself: what the kernel and the event loop take for a request of the same
size, of a server that answers a constant (loadtests.peers.floor), under the same load, by turns; and the steps between the
bytes read and the bytes written, of `python -m serving.steps`. The parts should add up to the whole within `WITHIN`. The
thread that writes the log is measured by its own time. Writes loadtests/results/profile.md; the flame graph goes to
var/profile.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loadtests import materials
from loadtests.servers import (
    HERE,
    Plan,
    Server,
    clean_environment,
    commit,
    coppice_plan,
    machine,
    say,
    serving,
    thread_cpu_s,
    two_cores,
    workers_of,
)
from loadtests.wrk import need_wrk, run_wrk

OURS, FLOOR = "coppice", "floor"
PATH, CONNECTIONS = "/predict/ab", 64
WITHIN = 0.10
WHOLE = "the whole"  # how the last line of serving.steps begins
NOISE_S = 0.5  # of the first load: caches and predictors


@dataclass(frozen=True)
class Costs:
    """µs a request, of one round each: the main thread's CPU time, of ours and of the floor's; that of our other threads."""

    loop_us: list[float]
    floor_us: list[float]
    others_us: list[float]


def main() -> None:
    options = _options()
    need_wrk()
    cores = two_cores("loadtests.profiling")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = materials.data(folder)
        materials.small_models(folder)
        with ExitStack() as running:
            plans = [coppice_plan(OURS, 18760, "bench", "--workers", "1"), floor_plan(18761)]
            ours, floor = (running.enter_context(serving(plan, folder, cores[:1])) for plan in plans)
            costs = measured(ours, floor, rows, options.rounds, options.seconds, cores[1:2])
            graph = flame_graph(ours, rows, options.graphs, max(3, options.seconds), cores[1:2])
        steps = steps_of(folder / "var/releases", "bench", cores[:1])
    text, met = page(costs, steps, graph, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "profile.md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit(0 if met else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each run of wrk")
    parser.add_argument("--graphs", type=Path, default=Path("var/profile"), help="folder for the flame graph")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for profile.md")
    return parser.parse_args()


def floor_plan(port: int, size: int = 420) -> Plan:
    return Plan(FLOOR, [sys.executable, "-m", "loadtests.peers.floor", "--bytes", str(size)], port, "/")


def measured(ours: Server, floor: Server, rows: Path, rounds: int, seconds: float, client: list[int]) -> Costs:
    costs = Costs([], [], [])
    for server in (ours, floor):
        run_wrk(server, PATH, rows, CONNECTIONS, NOISE_S, client)
    for n in range(rounds):
        loop_us, others_us = _of_threads(ours, rows, seconds, client)
        floor_us, _ = _of_threads(floor, rows, seconds, client)
        costs.loop_us.append(loop_us)
        costs.others_us.append(others_us)
        costs.floor_us.append(floor_us)
        told = f"the loop {loop_us:.2f} µs a request, the floor's {floor_us:.2f}, the log {others_us:.2f}"
        say(f"round {n + 1} of {rounds}: {told}")
    return costs


def _of_threads(server: Server, rows: Path, seconds: float, client: list[int]) -> tuple[float, float]:
    """(of the main thread, of all others): CPU µs a request."""
    (pid,) = workers_of(server)
    before = thread_cpu_s(pid)
    sample = run_wrk(server, PATH, rows, CONNECTIONS, seconds, client)
    after = thread_cpu_s(pid)
    if sample.errors:
        sys.exit(f"{server.title}: {sample.errors} requests failed: these figures mean nothing")
    requests = sample.requests
    spent = {thread: after[thread] - before.get(thread, 0.0) for thread in after}
    main_s = spent.pop(pid)
    return 1e6 * main_s / requests, 1e6 * sum(spent.values()) / requests


def flame_graph(server: Server, rows: Path, folder: Path, seconds: float, client: list[int]) -> Path | str:
    """The SVG's path, or why there is none."""
    spy = Path(sys.executable).with_name("py-spy")
    found = str(spy) if spy.exists() else shutil.which("py-spy")
    if found is None:
        return "py-spy is not installed"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "worker.svg"
    out.unlink(missing_ok=True)
    (pid,) = workers_of(server)
    load = threading.Thread(target=run_wrk, args=(server, PATH, rows, CONNECTIONS, seconds + 2, client))
    load.start()
    call = [
        found,
        "record",
        "--native",
        "--threads",
        "--rate",
        "500",
        "--duration",
        f"{seconds:.0f}",
        "--pid",
        str(pid),
    ]
    spied = subprocess.run([*call, "--output", str(out)], capture_output=True, text=True, check=False)
    load.join()
    if spied.returncode or not out.exists():
        return f"py-spy could not look: {(spied.stderr or spied.stdout).strip().splitlines()[-1:]}"
    return out


def steps_of(store: Path, model: str, cores: list[int]) -> dict[str, float]:
    """µs by step, on the core that the server had."""
    call = [
        "taskset",
        "-c",
        ",".join(map(str, cores)),
        sys.executable,
        "-m",
        "serving.steps",
        str(store),
        model,
        "--json",
    ]
    ran = subprocess.run(call, env=clean_environment(), capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"serving.steps: {ran.stderr}")
    steps: dict[str, float] = json.loads(ran.stdout)
    return steps


def page(costs: Costs, steps: dict[str, float], graph: Path | str, options: argparse.Namespace) -> tuple[str, bool]:
    whole = next(us for name, us in steps.items() if name.startswith(WHOLE))
    parts = {name: us for name, us in steps.items() if not name.startswith(WHOLE)}
    loop, floor, others = (statistics.median(each) for each in (costs.loop_us, costs.floor_us, costs.others_us))
    total = floor + sum(parts.values())
    off = total / loop - 1
    met = abs(off) <= WITHIN
    sum_ = f"the steps add up to {total:.2f} µs, {off:+.1%} of the {loop:.2f} measured (within {WITHIN:.0%})"
    inner = f"{whole:.2f} µs in one piece, {sum(parts.values()):.2f} by steps"
    lines = [
        "# Profile",
        "",
        f"`python -m loadtests.profiling --rounds {options.rounds} --seconds {options.seconds:g}`, commit {commit()}, "
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. One worker on one core, wrk with {CONNECTIONS} connections on another; "
        f"{materials.WIDTH} numeric features, {materials.TREES} trees of depth 6, a split, every row logged. CPU time of the "
        f"worker's main thread a request, by /proc; medians of {options.rounds} rounds by turns.",
        "",
        "| step of a request | µs | share | how it was measured |",
        "|---|---|---|---|",
        _row("socket and event loop: epoll, recv, send", floor, total, "CPU time of a server that answers a constant"),
        *(_row(name, us, total, "difference of two places where the request is stopped") for name, us in parts.items()),
        _row("together", total, total, "sum"),
        _row("measured", loop, total, f"CPU time of the worker, {min(costs.loop_us):.2f} - {max(costs.loop_us):.2f}"),
        "",
        f"- {'met' if met else 'MISSED'}: {sum_}",
        f"- from bytes in to bytes out, without socket and loop: {inner}",
        f"- other threads, which write the log: {others:.2f} µs a request, beside the loop",
        f"- flame graph: {graph}",
        "",
    ]
    return "\n".join(lines), met


def _row(name: str, us: float, total: float, how: str) -> str:
    return f"| {name} | {us:.2f} | {us / total:.0%} | {how} |"


if __name__ == "__main__":
    main()
