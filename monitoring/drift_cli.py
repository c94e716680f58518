"""The verb `coppice drift`: which windows to look at, and what is told of each."""

from __future__ import annotations

import sys
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitoring.cli import EngineName, Lake, Store
from monitoring.errors import DriftFound, MonitoringError, TooLittleData
from monitoring.times import length_us, moment_us

if TYPE_CHECKING:
    from monitoring.drift import Column, Drift
    from monitoring.drift_looks import Look, Subject

REPORTS = ("all", "drifted", "last", "none")


def drift(
    model: Annotated[str, typer.Argument(help="the model's name")],
    arm: Annotated[str, typer.Option(help="the arm of the present routes whose bundle is the reference")] = "champion",
    bundle: Annotated[str | None, typer.Option(help="digest of the bundle, instead of an arm's")] = None,
    every: Annotated[
        str | None, typer.Option(metavar="day|hour|ROWS", help="a window for each day, hour (UTC) or so many rows")
    ] = None,
    last: Annotated[str | None, typer.Option(metavar="N[m|h|d]", help="the last minutes, hours or days")] = None,
    since: Annotated[
        str | None, typer.Option(help="from this time on (ISO 8601, UTC unless it says otherwise)")
    ] = None,
    until: Annotated[str | None, typer.Option(help="before this time")] = None,
    share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="share of the importance that drifted features must carry; default: the average feature's",
        ),
    ] = None,
    reports: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(REPORTS), help="windows that get Evidently's report; default: drifted, or the only one"
        ),
    ] = None,
    workspace: Annotated[
        Path | None, typer.Option(help="also add the reports to this folder, for `evidently ui --workspace FOLDER`")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for reports and summaries")] = Path("var/drift"),
    checks: Annotated[
        Path, typer.Option(help="folder of the checks' history, which gets a line for each window")
    ] = Path("var/checks"),
    store: Store = Path("var/releases"),
    lake: Lake = "var/lake",
    engine: EngineName = "duckdb",
) -> None:
    """Compare the traffic that a model served with what it was trained on.

    Each window is judged by one family of tests: if nothing changed, at most 5 % of windows alarm. Drift is said where
    the predictions moved, or features that matter to the model did. Exit code 0: no drift; 1: drift, in any window;
    2: too little data, or bad input.

    Without --every there is one window, and OUT holds its summary.json and report.html. With it OUT holds a folder for each
    window, named by its time, and drift.svg, a picture of all. A window that was looked at before may be looked at again:
    the history's newest line counts. docs/drift.md says what is tested, and what summary.json holds.

    \b
        coppice drift churn                          # the whole lake, one window
        coppice drift churn --every day --last 7d    # a table of days
        coppice drift churn --every day --last 1d    # cron's daily check
        coppice drift churn --every 5000             # of each 5,000 answers
        coppice drift churn --since 2026-01-31 --until 2026-02-01 --out january
    """
    if reports is not None and reports not in REPORTS:
        raise MonitoringError(f"--reports: {reports!r} is none of {', '.join(REPORTS)}")
    since_us, until_us = _span(last, since, until)
    from monitoring.drift_looks import look, open_subject, remember
    from monitoring.drift_windows import Served
    from monitoring.engine import open_engine

    subject = open_subject(store, model, arm=arm, digest=bundle)
    if subject.equally:
        typer.echo(subject.equally, err=True)
    served = Served(open_engine(lake, engine), subject.manifest)
    windows = served.windows(every, since_us, until_us)
    wanted = reports or ("all" if every is None else "drifted")
    seen: list[tuple[str, Drift | None]] = []
    for number, window in enumerate(windows):
        found = look(subject, served, window, share=share)
        remember(checks, subject, found)
        _tell(found, alone=every is None)
        folder = out if every is None else out / window.label
        final = number == len(windows) - 1
        _write(subject, found, folder, workspace, wanted=_wanted(wanted, found, final=final))
        seen.append((window.label, found.drift))
    _conclude(model, seen, out, alone=every is None)


def _span(last: str | None, since: str | None, until: str | None) -> tuple[int | None, int | None]:
    until_us = moment_us("--until", until)
    if last is None:
        return moment_us("--since", since), until_us
    if since is not None:
        raise MonitoringError("--last: says where to begin, as --since does; give one of them")
    end = time_ns() // 1000 if until_us is None else until_us
    return end - length_us("--last", last), until_us


def _wanted(reports: str, found: Look, *, final: bool) -> bool:
    if found.drift is None:
        return False
    return reports == "all" or (reports == "drifted" and found.drift.found) or (reports == "last" and final)


def _tell(found: Look, *, alone: bool) -> None:
    drift, window = found.drift, found.window
    if drift is None:
        typer.echo(found.too_few if alone else f"  {window.label:<27} {window.rows:>11,} rows  too few to judge")
    elif alone:
        for column in drift.columns:
            typer.echo(_line(column))
        sampled = f", {drift.used_rows:,} of them by chance" if drift.used_rows < drift.window_rows else ""
        typer.echo(f"{drift.verdict}: {drift.reason}")
        typer.echo(f"{drift.window_rows:,} rows{sampled}, against {drift.reference_rows:,} of the reference")
    else:
        told = drift.reason if drift.found or drift.importance_drifted else ""
        typer.echo(f"  {window.label:<27} {window.rows:>11,} rows  {drift.verdict:<9} {told}")
    sys.stdout.flush()


def _line(column: Column) -> str:
    mark = "DRIFT" if column.drifted else "-"
    weight = " " * 6 if column.weight is None else f"{column.weight:6.1%}"
    figures = "" if column.p is None or column.effect is None else f"p {column.p:.2g}, {column.effect:.1%} of rows"
    found = f" ({', '.join(column.found)})" if column.found else ""
    gaps = (
        f"; missing {column.missing_reference:.1%} -> {column.missing_window:.1%}" if "missing" in column.found else ""
    )
    return f"  {column.name:<24} {weight} {mark:<6} {figures}{found}{gaps}{column.note and '; ' + column.note}"


def _write(subject: Subject, found: Look, folder: Path, workspace: Path | None, *, wanted: bool) -> None:
    from monitoring.drift_looks import write

    if found.drift is None:
        return
    report = _report(subject, found) if wanted or workspace is not None else None
    write(folder, found, found.drift, report)
    if report is not None:
        typer.echo(f"    {folder / 'report.html'}")
        if workspace is not None:
            from monitoring.evidently_report import export

            export(report, workspace, subject.manifest.model)


def _report(subject: Subject, found: Look) -> Any:
    """None where Evidently can't make one: the verdict stands without."""
    from monitoring.evidently_report import report

    manifest = subject.manifest
    try:
        return report(
            manifest.schema,
            subject.known,
            found.side,
            outputs=manifest.outputs,
            model=manifest.model,
            version=manifest.version,
            at_us=found.window.since_us,
        )
    except MonitoringError as refused:
        typer.echo(f"    no report: {refused}", err=True)
        return None


def _conclude(model: str, seen: list[tuple[str, Drift | None]], out: Path, *, alone: bool) -> None:
    judged = [(label, drift) for label, drift in seen if drift is not None]
    drifted = [(label, drift) for label, drift in judged if drift.found]
    if seen and not alone:
        from monitoring.drift_looks import replace
        from monitoring.drift_page import picture

        out.mkdir(parents=True, exist_ok=True)
        replace(out / "drift.svg", picture(f"Drift of {model}, by window", seen))
        typer.echo(f"{len(judged)} windows judged, {len(drifted)} drifted: {out / 'drift.svg'}")
    if not judged:
        raise TooLittleData(f"{model}: no window holds enough rows of this version; see `coppice compact`, and --since")
    if drifted:
        told = drifted[0][1].reason if alone else ", ".join(label for label, _ in drifted[-10:])
        raise DriftFound(f"{model}: {told}" if alone else f"{model}: {len(drifted)} windows drifted, the last: {told}")
