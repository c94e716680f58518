"""What a shadow on every request does to who is answered: the same load, with it and without, in turns.

    python -m loadtests.shadows [--rounds 7] [--seconds 4] [--share 0.5]      (make bench-shadow; needs h2load)

Two servers of the small models of `make bench`, one worker on one core each, h2load on another core; one of them scores each
answered row a second time, on a shadow. Both are sent the same requests a second, `--share` of what the one with the shadow
can do at most, by an arrival rate that does not wait for answers; they take turns within every round. Writes
loadtests/results/shadows.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from loadtests import materials
from loadtests.open_loop import Requests, need_h2load, run_h2load
from loadtests.servers import HERE, Server, commit, coppice_plan, machine, metrics, say, serving, two_cores

PLAIN, SHADOWED = "without", "with a shadow"
PATH = "/predict/ab"
CLIENTS = 64  # of the closed loop that finds the peak
OPEN_CLIENTS = 512
SETTLE_S = 1.0  # of each run, not judged: connections are made


def main() -> None:
    options = _options()
    need_h2load()
    cores = two_cores("loadtests.shadows")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as running:
        folder = Path(temporary)
        body = materials.one_body(folder)
        materials.shadowed_store(folder, materials.small_models(folder))
        plans = [
            coppice_plan(PLAIN, 18731, "bench", "--workers", "1"),
            coppice_plan(SHADOWED, 18732, "bench", "--workers", "1", "--store", "shadowed"),
        ]
        servers = [running.enter_context(serving(plan, folder, cores[:1])) for plan in plans]
        peak = run_h2load(servers[1], PATH, body, CLIENTS, None, 3, cores[1:2]).per_second(200, 3)
        rate = options.share * peak
        say(f"at most {peak:,.0f}/s with the shadow; now {rate:,.0f}/s to each")
        runs: dict[str, list[Requests]] = {PLAIN: [], SHADOWED: []}
        for round_ in range(options.rounds):
            for server in servers:
                sent = run_h2load(server, PATH, body, OPEN_CLIENTS, rate, options.seconds, cores[1:2])
                runs[server.title].append(sent.within(SETTLE_S, options.seconds))
            said = ", ".join(f"{title} p99 {runs[title][-1].ms(200, 99):.2f} ms" for title in runs)
            say(f"round {round_ + 1} of {options.rounds}: {said}")
        scored, shed = _of_shadow(servers[1])
    text = _page(runs, peak, rate, scored, shed, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "shadows.md").write_text(text, encoding="utf-8")
    print(text)
    if any((run.status != 200).any() for each in runs.values() for run in each):
        sys.exit("some requests failed: those figures mean nothing")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4, help="of each run")
    parser.add_argument("--share", type=float, default=0.5, help="of the most that the server with the shadow can do")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for shadows.md")
    return parser.parse_args()


def _of_shadow(server: Server) -> tuple[float, float]:
    """Rows that the shadow scored, and those that were shed."""
    told = metrics(server)
    answered = sum(count for name, count in told.items() if name.startswith("coppice_arm_rows_total"))
    scored = told["coppice_traffic_rows_total"] - answered
    shed = told['coppice_shed_total{reason="shadow"}']
    return scored, shed


def _page(
    runs: dict[str, list[Requests]], peak: float, rate: float, scored: float, shed: float, options: argparse.Namespace
) -> str:
    lines = [
        "# Shadows",
        "",
        f"`python -m loadtests.shadows --rounds {options.rounds} --seconds {options.seconds:g} --share {options.share:g}`, "
        f"commit {commit()}, {datetime.now(UTC):%Y-%m-%d}, {machine()}. One worker on one core, h2load on another; "
        f"{rate:,.0f} requests/s, {options.share:.0%} of the {peak:,.0f} that the server with the shadow answers at most. "
        f"Medians of {options.rounds} interleaved rounds, lowest and highest beside them; milliseconds.",
        "",
        "| shadow | sent a second | p50 | p95 | p99 |",
        "|---|---|---|---|---|",
    ]
    seconds = options.seconds - SETTLE_S
    for title, each in runs.items():
        cells = [_spread([run.ms(200, percent) for run in each]) for percent in (50, 95, 99)]
        sent = float(np.median([run.per_second(None, seconds) for run in each]))
        lines.append(f"| {title} | {sent:,.0f} | {' | '.join(cells)} |")
    p99s = {title: np.median([run.ms(200, 99) for run in each]) for title, each in runs.items()}
    return "\n".join(
        [
            *lines,
            "",
            f"- shadow rows scored {scored:,.0f}, shed {shed:,.0f}",
            f"- p99 with a shadow: {p99s[SHADOWED] / p99s[PLAIN]:.2f} x that without",
            "",
        ]
    )


def _spread(values: list[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


if __name__ == "__main__":
    main()
