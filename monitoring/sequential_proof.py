"""How often the sequential tests are wrong, and how soon right, when looked at after every batch: `make prove-sequential`.

Writes its tables between the marks in docs/sequential.md. Seeds are fixed; each share is of `runs` made-up experiments, and the
page says its standard error. The tests call the same functions with fewer runs.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer

from monitoring.mixtures import log_beta_mixture, tightness
from monitoring.planning import Method, foresee, proportions
from monitoring.sequential_bounded import TUNED_ALPHA, log_bernstein
from monitoring.sequential_counts import STRENGTH
from monitoring.sequential_means import Kind
from monitoring.sequential_worlds import (
    Phase,
    Rng,
    World,
    always,
    binary,
    counts,
    delayed,
    ever,
    first_units,
    gate,
    groups,
    median,
    naive,
    revenue,
)
from monitoring.srm import STRENGTH as SHARES_STRENGTH
from monitoring.srm import log_dirichlet

PAGE = Path("docs/sequential.md")
MARKS = ("<!-- measured -->", "<!-- /measured -->")
ALPHA = 0.05
SHARE_ALPHA = 0.01
LOOKS = 50
RAMP = ((0.01, 0.05), (0.05, 0.08), (0.10, 0.06), (0.25, 0.10), (0.50, 0.05))
LATE = Phase(100, 400, 0.5, 0.05)
HEAVY = {"sigma": 2.0, "cap": 105.0}  # log-normal, cut at its 99th percentile
METHODS: dict[str, Method] = {
    "fixed test, one look at the end": "fixed",
    "fixed test, looked at each time": "naive",
    "confidence sequence, N* = 20,000": "always",
    "O'Brien-Fleming, 50 planned looks": "groups",
}


@dataclass(frozen=True)
class Row:
    """One line of a table: what was looked at, and its figures by column; infinite where fewer than half the runs ended."""

    name: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Null:
    """A world without an effect, and how it is to be read."""

    name: str
    world: Callable[[int, Rng], World]
    n_star: float = 20_000.0
    kind: Kind = "proportion"


def looking_often(runs: int, seed: int = 1) -> list[Row]:
    """50 looks, 400 units an arm between them, at 5 %: error, power, and the units at which half the runs were done."""
    found: dict[str, dict[str, float]] = {}
    for title, lift in (("error", 0.0), ("5 to 6 %", 0.01), ("5 to 5.5 %", 0.005)):
        world = binary([Phase(LOOKS, 800, 0.5, 0.05, lift)], runs, np.random.default_rng(seed))
        read = {
            "fixed": naive(world, alpha=ALPHA) & (np.arange(1, LOOKS + 1) == LOOKS),
            "naive": naive(world, alpha=ALPHA),
            "always": _sequence(world),
            "groups": groups(world, alpha=ALPHA),
        }
        for name, alarms in [
            *((name, read[method]) for name, method in METHODS.items()),
            ("count e-process", _counts(world)),
        ]:
            row = found.setdefault(name, {})
            row[title] = ever(alarms)
            if lift == 0.01:
                row["median units"] = median(first_units(alarms, world.units))
    return [Row(name, row) for name, row in found.items()]


def foreseen(_: int = 0) -> list[Row]:
    """The same without chance, by integration; the gate of 25 events is part of it."""
    design, smaller = proportions(0.05, 0.06, looks=LOOKS), proportions(0.05, 0.055, looks=LOOKS)
    rows = []
    for name, method in METHODS.items():
        seen, other = (foresee(each, 40_000, method, n_star=20_000) for each in (design, smaller))
        figures = {"error": seen.error, "5 to 6 %": seen.power, "median units": seen.median_units or math.inf}
        rows.append(Row(name, figures | {"5 to 5.5 %": other.power}))
    return rows


def nulls() -> list[Null]:
    found = []
    for share in (0.5, 0.1, 0.01):
        for rate in (0.2, 0.02, 0.002):
            phase = Phase(100, round(2 / (rate * share)), share, rate)
            name = f"{1 - share:.0%} / {share:.0%}, {rate:.1%} of units"
            found.append(Null(name, partial(_binary, phase), 4 * share * (1 - share) * phase.units * phase.looks))
    for share in (0.5, 0.1, 0.01):
        phase = Phase(100, round(20 / share), share, 0.05)
        name = f"revenue, {1 - share:.0%} / {share:.0%}: 5 % pay, log-normal (2), cut at its 99th percentile"
        found.append(Null(name, partial(_revenue, phase), kind="mean"))
    found.append(Null("ramp 1, 5, 10, 25, 50 %; the rate differs by phase and hour", _ramp))
    found.append(Null("outcomes up to 10 looks late, one in ten never, the challenger’s later", _late))
    return found


def errors(runs: int, seed: int = 4) -> list[Row]:
    """Alarms at any of 100 looks (the ramp: 200) in worlds without an effect; .05 is what was asked for."""
    rows = []
    for null in nulls():
        world = null.world(runs, np.random.default_rng(seed))
        figures = {
            "confidence sequence": ever(always(world, kind=null.kind, alpha=ALPHA, n_star=null.n_star)),
            "count e-process": ever(_counts(world)),
            "fixed test, looked at each time": ever(naive(world, alpha=ALPHA)),
        }
        rows.append(Row(null.name, figures))
    return rows


def mistakes(runs: int, seed: int = 5) -> list[Row]:
    """The same confidence sequence with evidence, or a variance, put together wrongly, each beside the right way."""
    rng = np.random.default_rng(seed)
    ramp, paying = _ramp(runs, rng), _revenue(Phase(100, 400, 0.1, 0.05), runs, rng)
    reading: Any = {"kind": "mean", "alpha": ALPHA, "n_star": 20_000}
    late = delayed(LATE, runs, rng, window=10, known=0.9, slow=1.5, closed=False)
    return [
        Row(name, {"error": ever(alarms)})
        for name, alarms in (
            ("the ramp, pooled over its phases", _sequence(ramp.pooled)),
            ("the ramp, each phase a stratum", _sequence(ramp)),
            ("late outcomes, counted as they come", _sequence(late)),
            ("late outcomes, counted when their window is over", _sequence(_late(runs, rng))),
            ("revenue at 10 %, the arms’ own variances", always(paying, belt=False, **reading)),
            ("revenue at 10 %, the larger of both standard errors", always(paying, **reading)),
        )
    ]


def few_events(runs: int, seed: int = 2) -> list[Row]:
    """Error at 2 %, looked at every 40 units up to 40,000, by the events asked for; the arms' own variances but in "belted"."""
    rows = []
    for share in (0.5, 0.1, 0.01):
        world = binary([Phase(1000, 40, share, 0.02)], runs, np.random.default_rng(seed))
        alarms = always(world, kind="proportion", alpha=ALPHA, n_star=20_000, gated=False, belt=False)
        figures = {f"{least} events": ever(alarms & gate(world, least)) for least in (0, 5, 10, 25, 50)}
        figures |= {"25, belted": ever(_sequence(world)), "count e-process": ever(_counts(world))}
        rows.append(Row(f"{share:.0%} to the challenger", figures))
    return rows


def rare_events(runs: int, seed: int = 3) -> list[Row]:
    """Power within 400 looks, and the units at which half the runs were done."""
    rows = []
    for share, rate, lift, units, n_star in (
        (0.5, 0.02, 0.01, 40_000, 10_000),
        (0.1, 0.02, 0.01, 100_000, 10_000),
        (0.01, 0.02, 0.04, 150_000, 2_000),
        (0.5, 0.20, 0.02, 60_000, 20_000),
    ):
        world = binary([Phase(400, units // 400, share, rate, lift)], runs, np.random.default_rng(seed))
        figures = {}
        for name, alarms in (
            ("count", _counts(world)),
            ("sequence", always(world, kind="proportion", alpha=ALPHA, n_star=n_star)),
        ):
            figures[f"{name}, power"] = ever(alarms)
            figures[f"{name}, median units"] = median(first_units(alarms, world.units))
        rows.append(Row(f"{rate:.0%} to {rate + lift:.0%}, {share:.0%} to the challenger", figures))
    return rows


def exact_sequences(runs: int, seed: int = 6) -> list[Row]:
    """How often the truth was left out at any look, one after each of 400 units; .05 is what was asked for."""
    rng, n = np.random.default_rng(seed), np.arange(1.0, 401)
    rows = []
    for rate in (0.5, 0.02):
        hits = np.cumsum(rng.random((runs, len(n))) < rate, axis=1)
        log_e = log_beta_mixture(hits, n - hits, rate, 100 / tightness(TUNED_ALPHA) - 1)
        rows.append(Row(f"bernoulli, {rate:.0%}", {"error": ever(log_e > -math.log(ALPHA))}))
    for name, a, b in (("uniform", 1.0, 1.0), ("Beta(0.1, 0.9)", 0.1, 0.9)):
        left_out, truth = np.zeros((runs, 1)), a / (a + b)
        for run in range(runs):  # one by one: every bet of every look would not fit the memory
            x = rng.beta(a, b, len(n))
            total, squares = np.cumsum(x), np.cumsum(x**2)
            above = log_bernstein(n, total / n, squares, truth)
            below = log_bernstein(n, 1 - total / n, squares + n - 2 * total, 1 - truth)
            left_out[run] = max(above.max(), below.max()) > math.log(2 / ALPHA)
        rows.append(Row(f"bounded_mean, {name}", {"error": ever(left_out)}))
    return rows


def mismatches(runs: int, seed: int = 7) -> list[Row]:
    """500 looks, 40 units between them: the share of runs accused, and the units at which half of them were."""
    rows = []
    n = np.arange(40.0, 20_001.0, 40.0)
    for meant, given in ((0.5, 0.5), (0.1, 0.1), (0.01, 0.01), (0.5, 0.48), (0.1, 0.09)):
        hits = np.cumsum(np.random.default_rng(seed).binomial(40, given, (runs, 500)), axis=1)
        log_e = log_dirichlet(np.stack([n - hits, hits], axis=-1), [1 - meant, meant], strength=SHARES_STRENGTH)
        statistic = (hits - n * meant) ** 2 / (n * meant * (1 - meant))
        accused = log_e > -math.log(SHARE_ALPHA)
        figures = {
            "e-process, .01": ever(accused),
            "its median units": median(first_units(accused, n)),
            "chi-square, p < .001": ever(statistic > 10.828),
            "chi-square, p < .01": ever(statistic > 6.635),
        }
        rows.append(Row(f"meant {meant:.0%}, given {given:.0%}", figures))
    return rows


TABLES: dict[str, Callable[[int], list[Row]]] = {
    "Looking fifty times": looking_often,
    "The same, foreseen": foreseen,
    "Errors after every batch": errors,
    "What breaks it": mistakes,
    "Why 25 events": few_events,
    "Rare events": rare_events,
    "Exact sequences": exact_sequences,
    "Sample-ratio mismatch": mismatches,
}


def _binary(phase: Phase, runs: int, rng: Rng) -> World:
    return binary([phase], runs, rng)


def _revenue(phase: Phase, runs: int, rng: Rng) -> World:
    return revenue([phase], runs, rng, **HEAVY)


def _ramp(runs: int, rng: Rng) -> World:
    """The champion keeps the rest, and the rate goes up and down within a phase."""
    wave = 1 + 0.3 * np.sin(np.arange(40) * 2 * math.pi / 8)
    return binary([Phase(40, 400, share, tuple(rate * wave)) for share, rate in RAMP], runs, rng)


def _late(runs: int, rng: Rng) -> World:
    return delayed(LATE, runs, rng, window=10, known=0.9, slow=1.5, closed=True)


def _sequence(world: World) -> Any:
    return always(world, kind="proportion", alpha=ALPHA, n_star=20_000)


def _counts(world: World) -> Any:
    return counts(world, alpha=ALPHA, strength=STRENGTH)


def table(rows: list[Row]) -> list[str]:
    columns = list(rows[0].figures)
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    return [
        *lines,
        *("| " + " | ".join([row.name, *(_figure(row.figures[at]) for at in columns)]) + " |" for row in rows),
    ]


def _figure(value: float) -> str:
    if math.isinf(value):
        return "not half"
    return f"{value:.4f}" if value <= 1 else f"{value:,.0f}"


def page(runs: int) -> str:
    """The measured part of the page."""
    began = time.perf_counter()
    parts = [(title, (made.__doc__ or "").strip(), table(made(runs))) for title, made in TABLES.items()]
    lines = [
        f"`make prove-sequential`, commit {_commit()}, {datetime.now(UTC):%Y-%m-%d}, one core of {os.cpu_count()} x "
        f"{_processor()}, Python {platform.python_version()}, {time.perf_counter() - began:.0f} s. Each share is of {runs:,} "
        f"made-up experiments: its standard error is {math.sqrt(0.05 * 0.95 / runs):.4f} about .05 and at most "
        f"{math.sqrt(0.25 / runs):.4f}.",
        "",
    ]
    for title, told, rows in parts:
        lines += [f"### {title}", "", told, "", *rows, ""]
    return "\n".join(lines)


def write(runs: int = 4_000, out: Path = PAGE) -> None:
    """Measure, and put the tables between the page's marks."""
    before, rest = out.read_text(encoding="utf-8").split(MARKS[0])
    _, after = rest.split(MARKS[1])
    out.write_text(f"{before}{MARKS[0]}\n{page(runs)}{MARKS[1]}{after}", encoding="utf-8")
    typer.echo(f"wrote {out}")


def _commit() -> str:
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    return head.stdout.strip() or "unknown"


def _processor() -> str:
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return model[1] if model else platform.processor()


if __name__ == "__main__":
    typer.run(write)
