"""`coppice watch`: from what the checks found, retrain, wait, or investigate; for a scheduler to act on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import time_ns
from typing import Annotated

import typer

from monitoring.alerts_cli import Checks
from monitoring.cli import Lake, Store, Traffic
from monitoring.errors import MonitoringError

EXIT_CODES = {"wait": 0, "retrain": 10, "investigate": 11}
LONGEST_CHECK_S = 3600


def watch(
    model: Annotated[str, typer.Argument(help="the model's name")],
    version: Annotated[
        str | None, typer.Option(help="the version to judge; the champion of the routes by default")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="first make the checks: drift, performance, operations")
    ] = False,
    last: Annotated[
        str, typer.Option(metavar="N[m|h|d]", help="with --check: the window of drift and operations")
    ] = "1d",
    windows: Annotated[int, typer.Option(min=1, help="windows running that make a drift to act on")] = 2,
    labelled: Annotated[int, typer.Option(min=1, help="labelled rows that are enough to train on")] = 1000,
    cooldown: Annotated[str, typer.Option(metavar="N[h|d]", help="time between two decisions to retrain")] = "7d",
    stale_after: Annotated[
        str, typer.Option(metavar="N[h|d]", help="a check older than this tells of nothing")
    ] = "36h",
    as_json: Annotated[bool, typer.Option("--json", help="print the decision alone, a line of JSON")] = False,
    checks: Checks = Path("var/checks"),
    store: Store = Path("var/releases"),
    traffic: Traffic = Path("var/traffic"),
    lake: Lake = "var/lake",
) -> None:
    """Decide whether to retrain, from the checks that were made; docs/watch.md has the rules.

    Decided again from the same findings, it decides the same, and remembers it once.

    Exit code 0: wait; 10: retrain; 11: investigate; 2: bad input.

    \b
        coppice watch churn --check
        coppice watch churn --json | jq -r .verdict
    """
    from monitoring import watch_facts
    from monitoring.times import length_us
    from monitoring.watch import Limits

    limits = Limits(
        stale_after_us=length_us("--stale-after", stale_after),
        cooldown_us=length_us("--cooldown", cooldown),
        drift_windows=windows,
        least_labelled=labelled,
    )
    judged = version or _champion(store, model)
    if check:
        length_us("--last", last)
        _make_checks(model, last, checks, store, traffic, lake)
    verdict, remembered = watch_facts.watch(checks, model, judged, limits, now_us=time_ns() // 1000)
    if as_json:
        typer.echo(json.dumps(asdict(remembered), ensure_ascii=False))
    else:
        typer.echo(f"{verdict.decision} (version {judged}, inputs {verdict.inputs[:12]})")
        for reason in verdict.reasons:
            typer.echo(f"  {reason}")
    raise typer.Exit(EXIT_CODES[verdict.decision])


def _champion(store: Path, model: str) -> str:
    """The version that the present routes' champion is of."""
    from compile.bundle import locate, read
    from serving.routes import read as read_routes

    digest = read_routes(store, model).arms.get("champion")
    if digest is None:
        raise MonitoringError(f"{model!r} has no champion; --version says which version to judge")
    return read(locate(store, digest)).version


def _make_checks(model: str, last: str, checks: Path, store: Path, traffic: Path, lake: str) -> None:
    """Each in a process of its own: what one of them can't do is said, and keeps no other from being made."""
    remembers = ["--checks", str(checks), "--lake", lake]
    books = ["--traffic", str(traffic), "--books"] if (traffic / "pages").is_dir() else []
    _run("drift", model, "--last", last, "--store", str(store), *remembers)
    _run("performance", model, "--store", str(store), *remembers)
    _run("operations", model, "--last", last, *books, *remembers)


def _run(*words: str) -> None:
    call: Sequence[str] = [sys.executable, "-m", "coppice", *words]
    try:
        ran = subprocess.run(call, capture_output=True, text=True, timeout=LONGEST_CHECK_S, check=False)
        said = ran.stderr.strip() if ran.returncode else ""
    except subprocess.TimeoutExpired:
        said = f"was given up after {LONGEST_CHECK_S} s"
    if said:
        typer.echo(f"{words[0]}: {said.splitlines()[-1]}", err=True)
