"""The verb `coppice performance`."""

from __future__ import annotations

from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring.errors import MonitoringError, PerformanceDropped, TooLittleData

if TYPE_CHECKING:
    from monitoring.cohorts import Every
    from monitoring.performance import Arm, Performance

SHOWN = 8
LEAST_ROWS = 100


def performance(
    model: Annotated[str, typer.Argument(help="the model's name")],
    every: Annotated[str, typer.Option(help="windows: day, hour (UTC), or a number of rows")] = "day",
    since: Annotated[
        str | None, typer.Option(help="from this time on (ISO 8601, UTC unless it says otherwise)")
    ] = None,
    until: Annotated[str | None, typer.Option(help="before this time")] = None,
    label_window: Annotated[
        str, typer.Option(help="a row counts once this long has passed since it was scored: 7d, 12h, 0s")
    ] = "7d",
    segment: Annotated[
        list[str] | None, typer.Option(help="also by this feature, a category or boolean; repeatable")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="what must not drop; roc_auc, accuracy or mae by default")] = None,
    baseline: Annotated[
        float | None,
        typer.Option(help="the level to hold; default: of the first closed windows with 1,000 labelled rows"),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="a smaller drop is none: 0.02, and a tenth of the level of a loss")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate/--as-is", help="mend uncalibrated probabilities by labelled rows before estimating"),
    ] = True,
    out: Annotated[Path, typer.Option(help="folder for report.html and performance.json")] = Path("var/performance"),
    checks: Annotated[Path, typer.Option(help="folder that remembers what checks found")] = Path("var/checks"),
    store: Annotated[Path, typer.Option(envvar="COPPICE_STORE", help="release store")] = Path("var/releases"),
    lake: Annotated[str, typer.Option(help="the Parquet lake: a folder, or s3://bucket/prefix")] = "var/lake",
    engine: Annotated[str, typer.Option(help="duckdb, or the address of a Spark")] = "duckdb",
) -> None:
    """Tell how good each arm was over time: by its outcomes where they are due, and by an estimate where they are not.

    Exit code 0: fine; 1: performance dropped; 2: too little data, or bad input.

    \b
        coppice performance churn --label-window 30d
        coppice performance churn --every hour --since 2026-01-31 --segment contract --metric log_loss
    """
    import msgspec

    from monitoring import performance as measured
    from monitoring.arms_read import Bounds, read_all
    from monitoring.performance_page import page
    from monitoring.remembering import remember
    from monitoring.times import length_us, moment_us
    from monitoring.versions import present

    asked_every = _every(every)
    window_us = length_us("--label-window", label_window)
    bounds = Bounds(moment_us("--since", since), moment_us("--until", until))
    read = read_all(lake, engine, store, model, bounds, features=bool(segment))
    asked = measured.Asked(
        every=asked_every,
        label_window_us=window_us,
        now_us=time_ns() // 1000,
        metric=metric,
        level=baseline,
        margin=margin,
        segments=tuple(segment or ()),
        calibrate=calibrate,
        present=present(store, model, read.known),
    )
    manifests = {name: version.manifest for name, version in read.known.items()}
    found = measured.performance(model, read.arms, manifests, asked, walked=read.walked, left_out=read.left_out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "performance.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    (out / "report.html").write_text(page(found), encoding="utf-8")
    remembered = remember(checks, found)
    _tell(found)
    typer.echo(f"{found.verdict}: {found.reason}")
    typer.echo(f"{remembered} new findings in {checks / 'performance.jsonl'}; {out / 'report.html'}")
    if found.verdict == "drop":
        raise PerformanceDropped(f"{model}: {found.reason}")
    if found.verdict == "undecided":
        raise TooLittleData(
            f"{model}: {found.reason} (--label-window {label_window}); coppice compact takes outcomes in"
        )


def _every(text: str) -> Every:
    if text == "day":
        return "day"
    if text == "hour":
        return "hour"
    if not text.isdecimal() or int(text) < LEAST_ROWS:
        raise MonitoringError(f"--every: {text!r} is neither day, nor hour, nor a number of rows from {LEAST_ROWS} on")
    return int(text)


def _tell(found: Performance) -> None:
    for reason, rows in found.left_out.items():
        typer.echo(f"left out: {rows:,} rows, {reason}")
    for arm in found.arms:
        typer.echo(f"version {arm.version}, {arm.arm}" + ("" if arm.role == "served" else f", {arm.role}"))
        _tell_windows(arm)
        for alarm in arm.alarms[-SHOWN:]:
            what = "alarm" if alarm.worse else "improvement"
            typer.echo(
                f"  {what} ({alarm.detector}) {_when(alarm.at_us)}: errors {alarm.before:.3f} -> {alarm.after:.3f}"
            )
        for label, rows in list(arm.strange.items())[:SHOWN]:
            typer.echo(f"  {rows:,} outcomes are {label!r}, which is no label of this model")


def _tell_windows(arm: Arm) -> None:
    if len(arm.windows) > SHOWN:
        typer.echo(f"  ... {len(arm.windows) - SHOWN} earlier windows")
    for window in arm.windows[-SHOWN:]:
        said = window.estimate.figures.get(arm.metric)
        estimated = "" if said is None else f"; estimated {said:.4f}, {window.estimate.trust}"
        covered = "" if window.coverage is None else f", {window.coverage:.0%} labelled"
        typer.echo(f"  {_when(window.since_us)}  {window.verdict:<13} {window.reason}{covered}{estimated}")


def _when(us: int) -> str:
    from monitoring.times import told

    return told(us)
