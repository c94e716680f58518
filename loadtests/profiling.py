"""Where a worker's time goes: a flame graph of it under load, and what each step of a request costs, added up and compared.

    python -m loadtests.profiling [--rounds 5] [--seconds 3]      (make profile; needs wrk, and py-spy where it may look)

The CPU time of a request is measured from outside, as the worker's main thread spent it (/proc) over so many requests of wrk.
Beside that stand servers that stop a request on its way and answer a constant (`python -m serving.steps --serve`), under the
same load, by turns: a step is the difference of two of them. What the last of them takes, which goes all the way, should be
what the worker takes, within `WITHIN`: then no more is in the worker than the steps. The log's own thread is measured by its
own time. Writes loadtests/results/profile.md; the flame graph goes to var/profile.
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

OURS = "coppice"
PATH, CONNECTIONS = "/predict/ab", 64
WITHIN = 0.10
PLACES = ("floor", "head", "arm", "row", "score", "answer", "whole")  # of serving.steps
NOISE_S = 0.5  # of the first load: caches and predictors


@dataclass(frozen=True)
class Costs:
    """CPU µs a request, one a round: of the worker's main thread, of its others, and of each place's main thread."""

    loop_us: list[float]
    others_us: list[float]
    places_us: dict[str, list[float]]


def main() -> None:
    options = _options()
    need_wrk()
    cores = two_cores("loadtests.profiling")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = materials.data(folder)
        materials.small_models(folder)
        with ExitStack() as running:
            ours = running.enter_context(
                serving(coppice_plan(OURS, 18760, "bench", "--workers", "1"), folder, cores[:1])
            )
            places = [running.enter_context(serving(plan, folder, cores[:1])) for plan in place_plans("bench", 18761)]
            costs = measured(ours, places, rows, options.rounds, options.seconds, cores[1:2])
            graph = flame_graph(ours, rows, options.graphs, max(3, options.seconds), cores[1:2])
        warm = steps_of(folder / "var/releases", "bench", rows, cores[:1])
    text, met = page(costs, warm, graph, options)
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


def place_plans(model: str, port: int, store: str = "var/releases") -> list[Plan]:
    call = [sys.executable, "-m", "serving.steps", store, model, "--serve"]
    return [Plan(place, [*call, place], port + n, "/") for n, place in enumerate(PLACES)]


def measured(ours: Server, places: list[Server], rows: Path, rounds: int, seconds: float, client: list[int]) -> Costs:
    costs = Costs([], [], {place.title: [] for place in places})
    for server in (ours, *places):
        run_wrk(server, PATH, rows, CONNECTIONS, NOISE_S, client)
    for n in range(rounds):
        loop_us, others_us = _of_threads(ours, rows, seconds, client)
        costs.loop_us.append(loop_us)
        costs.others_us.append(others_us)
        for place in places:
            costs.places_us[place.title].append(_of_threads(place, rows, seconds, client)[0])
        told = ", ".join(f"{name} {each[-1]:.2f}" for name, each in costs.places_us.items())
        say(f"round {n + 1} of {rounds}: the worker {loop_us:.2f} µs a request; {told}")
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


def steps_of(store: Path, model: str, rows: Path, cores: list[int]) -> dict[str, float]:
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
    call += ["--rows", str(rows)]
    ran = subprocess.run(call, env=clean_environment(), capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"serving.steps: {ran.stderr}")
    steps: dict[str, float] = json.loads(ran.stdout)
    return steps


def steps(at: dict[str, float], log_us: float) -> dict[str, float]:
    """µs by step, from what the places take."""
    return {
        "socket and event loop: epoll, recv, send": at["floor"],
        "parse: call into C, request line, headers": at["head"] - at["floor"],
        "route: request id, arm of the unit": at["arm"] - at["head"],
        "decode: JSON to a row": at["row"] - at["arm"],
        "queue: none, it is scored at once": 0.0,
        "score: the model": at["score"] - at["row"],
        "encode: the answer, and to count it": at["answer"] - at["score"] - log_us,
        "log: a row into the block": log_us,
        "protocol: the class in Python around it": at["whole"] - at["answer"],
    }


def page(costs: Costs, warm: dict[str, float], graph: Path | str, options: argparse.Namespace) -> tuple[str, bool]:
    """`warm`: µs by step as serving.steps tells them."""
    log_us = next(us for name, us in warm.items() if name.startswith("log"))
    parts = steps({place: statistics.median(each) for place, each in costs.places_us.items()}, log_us)
    loop, others, total = statistics.median(costs.loop_us), statistics.median(costs.others_us), sum(parts.values())
    off = total / loop - 1
    met = abs(off) <= WITHIN
    sum_ = f"the steps add up to {total:.2f} µs, {off:+.1%} of the {loop:.2f} measured (within {WITHIN:.0%})"
    cached = ", ".join(f"{name} {us:.2f}" for name, us in warm.items())
    lines = [
        "# Profile",
        "",
        f"`python -m loadtests.profiling --rounds {options.rounds} --seconds {options.seconds:g}`, commit {commit()}, "
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Servers on one core, wrk with {CONNECTIONS} connections on another; "
        f"{materials.WIDTH} numeric features, {materials.TREES} trees of depth 6, a split, every row logged. CPU time of the "
        f"main thread a request; medians of {options.rounds} rounds by turns.",
        "",
        "| step of a request | µs | share |",
        "|---|---|---|",
        *(f"| {name} | {us:.2f} | {us / total:.0%} |" for name, us in parts.items()),
        f"| together | {total:.2f} | 100% |",
        f"| the worker, measured: {min(costs.loop_us):.2f} - {max(costs.loop_us):.2f} | {loop:.2f} | {loop / total:.0%} |",
        "",
        f"- {'met' if met else 'MISSED'}: {sum_}",
        f"- other threads, which write the log: {others:.2f} µs a request, beside the loop",
        f"- without sockets and with warm caches (`python -m serving.steps`): {cached}",
        f"- flame graph: {graph}",
        "",
    ]
    return "\n".join(lines), met


if __name__ == "__main__":
    main()
