"""The service level on this machine: a server with everything on and Locust beside it, by turns with a bare app.

    python -m loadtests.level [--runs 5] [--seconds 60]          (make bench-load; writes loadtests/results/level.md)
    python -m loadtests.level --runs 1 --alone --out var/load    (make load-gate, in CI)

Coppice splits its traffic between two models, logs every row and shows every row to a shadow; the bare app
(loadtests.peers.bare) parses the body and answers a constant. Both are sent the same profile by the same generator, in turns
within every run. Server and generator share the cores. Exit code 1 when one of Coppice's runs broke a bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from loadtests import materials
from loadtests.servers import HERE, Plan, Server, clean_environment, commit, coppice_plan, machine, say, serving

OURS, BARE = "coppice", "bare ASGI app"
MOST_RATIO = 1.3


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as running:
        folder = Path(temporary)
        rows = materials.data(folder)
        materials.shadowed_store(folder, materials.small_models(folder))
        cores = sorted(os.sched_getaffinity(0))
        plans = [coppice_plan(OURS, 18740, "bench", "--workers", str(options.workers), "--store", "shadowed")]
        if not options.alone:
            plans.append(_bare(18741))
        servers = [running.enter_context(serving(plan, folder, cores)) for plan in plans]
        runs: dict[str, list[dict[str, Any]]] = {plan.title: [] for plan in plans}
        for n in range(options.runs):
            for server in servers:
                figures = _run(server, rows, options)
                runs[server.title].append(figures)
                told = f"p50 {figures['p50_ms']:.2f}, p95 {figures['p95_ms']:.2f}, p99 {figures['p99_ms']:.2f} ms"
                say(f"run {n + 1} of {options.runs}, {server.title}: {figures['rate']:.0f}/s, {told}")
    if not options.alone:
        text = _page(runs, options)
        (options.out / "level.md").write_text(text, encoding="utf-8")
        print(text)
    broken = [told for figures in runs[OURS] for told in figures["broken"]]
    sys.exit(f"service level broken: {'; '.join(broken)}" if broken else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--profile", default="constant", help="a shipped profile's name, or a TOML file")
    parser.add_argument("--rate", type=float, help="requests a second; default: the profile's")
    parser.add_argument("--seconds", type=float, help="of each run; default: the profile's")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="without the bare app")
    parser.add_argument(
        "--out", type=Path, default=HERE / "results", help="folder for level.md; of --alone for Locust's files"
    )
    return parser.parse_args()


def _bare(port: int) -> Plan:
    command = [sys.executable, "-m", "uvicorn", "--no-access-log", "--log-level", "warning", "--loop", "uvloop"]
    return Plan(
        BARE, [*command, "--http", "httptools", "--app-dir", str(HERE.parent), "loadtests.peers.bare:app"], port, "/"
    )


def _run(server: Server, rows: Path, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out.resolve() if options.alone else Path(temporary)
        call = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
        call += [
            "--loglevel",
            "WARNING",
            "--load-profile",
            options.profile,
            "--host",
            server.address,
            "--rows",
            str(rows),
        ]
        call += [f"--{name}={value:g}" for name in ("rate", "seconds") if (value := getattr(options, name))]
        call += [f"--csv={out}/locust", f"--html={out}/report.html", f"--markdown={out}/summary.md"]
        ran = subprocess.run(
            [*call, f"--summary={out}/summary.json"],
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode not in (0, 1) or not (out / "summary.json").exists():
            sys.exit(f"locust: {ran.stdout}{ran.stderr}")
        figures: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        return figures


def _page(runs: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    given = [f"--{name} {getattr(options, name):g}" for name in ("rate", "seconds") if getattr(options, name)]
    call = ["python -m loadtests.level", f"--runs {options.runs}", f"--profile {options.profile}", *given]
    lines = [
        "# Service level",
        "",
        f"`{' '.join(call)}`, commit "
        f"{commit()}, {datetime.now(UTC):%Y-%m-%d}, {machine()}. Server ({options.workers} worker) and Locust share the cores; "
        f"medians of {options.runs} runs by turns, lowest and highest beside them; milliseconds from when a request was due.",
        "",
        "| server | achieved | p50 | p95 | p99 | failed | held | generator, of a core |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, each in runs.items():
        cells = [_spread([figures[name] for figures in each]) for name in ("rate", "p50_ms", "p95_ms", "p99_ms")]
        held = sum(not figures["broken"] for figures in each)
        cpu = max(figures["generator"]["cpu"] for figures in each)
        failed = sum(figures["failures"] for figures in each)
        lines.append(f"| {title} | {' | '.join(cells)} | {failed} | {held} of {len(each)} | {cpu:.0%} |")
    lines.append("")
    for name in ("p95_ms", "p99_ms"):
        ratios = [ours[name] / bare[name] for ours, bare in zip(runs[OURS], runs[BARE], strict=True)]
        ratio = float(np.median(ratios))
        kept = "met" if ratio <= MOST_RATIO else "MISSED"
        lines.append(
            f"- {kept}: {name[:3]} {ratio:.2f} x the bare app's, median of the runs' ratios (at most {MOST_RATIO:g})"
        )
    return "\n".join([*lines, ""])


def _spread(values: list[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


if __name__ == "__main__":
    main()
