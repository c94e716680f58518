"""The verbs of the lake: `coppice compact`, `coppice outcomes`, `coppice reconcile`, `coppice drift`."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from monitoring.errors import DriftFound, MonitoringError, OutOfBalance

Traffic = Annotated[Path, typer.Option(envvar="COPPICE_TRAFFIC", help="folder of the traffic log")]
Lake = Annotated[str, typer.Option(help="the Parquet lake: a folder, or s3://BUCKET/PREFIX")]
Store = Annotated[Path, typer.Option(envvar="COPPICE_STORE", help="release store")]


def compact(
    traffic: Traffic = Path("var/traffic"),
    lake: Lake = "var/lake",
    keep_days: Annotated[
        float | None, typer.Option(min=0, help="delete rows and outcomes older than this many days [default: keep all]")
    ] = None,
    merge: Annotated[bool, typer.Option(help="merge the small files of hours that have passed")] = True,
) -> None:
    """Turn sealed traffic segments, and open ones of dead workers, into the Parquet lake; outcomes as well.

    Safe to run at any time, twice, beside a running server, and to kill: no row is lost or doubled. Meant to be run every
    few minutes to an hour by a scheduler.

    \b
        coppice compact
        coppice compact --lake s3://bucket/lake --keep-days 90
    """
    from monitoring.compaction import compact as run
    from monitoring.merging import SETTLED_S, tidy

    done = run(traffic, lake)
    salvaged = f", {done.salvaged} of them salvaged from dead workers" if done.salvaged else ""
    typer.echo(f"{done.segments} segments{salvaged}: {done.rows:,} rows in {len(done.parts)} parts under {lake}")
    if done.outcomes:
        typer.echo(f"{done.outcomes:,} outcomes")
    if done.duplicates:
        typer.echo(f"{done.duplicates:,} rows were in the lake already")
    if done.bad_bytes:
        typer.echo(f"{done.bad_bytes:,} bytes could not be read (a block that was torn, or spoiled)")
    for path in done.damaged:
        typer.echo(f"kept because a block in it is spoiled: {path}")
    if merge or keep_days is not None:
        tidied = tidy(lake, keep_days=keep_days, settled_s=SETTLED_S if merge else math.inf)
        if tidied.merged:
            typer.echo(f"{tidied.merged} parts of hours that have passed merged into {tidied.into}")
        if tidied.retired:
            typer.echo(
                f"{tidied.retired} parts with {tidied.retired_rows:,} rows deleted: older than {keep_days:g} days"
            )


def outcomes(
    file: Annotated[Path, typer.Argument(help="CSV, Parquet, or a JSON object a line")], lake: Lake = "var/lake"
) -> None:
    """Import what became of what was scored from a file, in `/feedback`'s place.

    Columns: request_id and value; if need be row (of a request of many) and ts (when it happened). All rows or none; the
    same file a second time changes nothing.

    \b
        coppice outcomes labels.csv
    """
    from monitoring.outcomes_import import import_outcomes

    count = import_outcomes(file, lake)
    typer.echo(f"{file}: was imported before" if count is None else f"{count:,} outcomes under {lake}")


def reconcile(traffic: Traffic = Path("var/traffic"), lake: Lake = "var/lake") -> None:
    """Prove that served = logged + dropped + lost, and name what was lost.

    Exit code 1 where the books do not balance: an acknowledged row is gone, or one is there twice. Rows lost to a crash are
    named and are no imbalance: they had not been acknowledged.
    """
    from monitoring.reconcile import reconcile as run

    books = run(traffic, lake)
    if not books.writers:
        raise MonitoringError(f"{traffic}: no server has logged here")
    served, logged, dropped, lost, pending = (
        books.total(name) for name in ("served", "logged", "dropped", "lost", "pending")
    )
    waiting = f" + pending {pending:,}" if pending else ""
    typer.echo(f"served {served:,} = logged {logged:,} + dropped {dropped:,} + lost {lost:,}{waiting}")
    for writer in books.writers:
        if writer.lost or writer.dropped:
            where = ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in writer.ranges)
            typer.echo(f"  {writer.writer}: lost {writer.lost:,}, dropped {writer.dropped:,}; absent seq: {where}")
    if books.faults:
        raise OutOfBalance("; ".join(books.faults))


def drift(
    model: Annotated[str, typer.Argument(help="the model's name")],
    arm: Annotated[str, typer.Option(help="the arm of the present routes whose bundle is the reference")] = "champion",
    bundle: Annotated[str | None, typer.Option(help="digest of the bundle, instead of an arm's")] = None,
    since: Annotated[
        str | None, typer.Option(help="from this time on (ISO 8601, UTC unless it says otherwise)")
    ] = None,
    until: Annotated[str | None, typer.Option(help="before this time")] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="share of drifted features that makes a drift")] = 0.2,
    out: Annotated[Path, typer.Option(help="folder for report.html and summary.json")] = Path("var/drift"),
    store: Store = Path("var/releases"),
    lake: Lake = "var/lake",
) -> None:
    """Compare the traffic that a model served with what it was trained on.

    Exit code 0: no drift; 1: drift; 2: too little data, or bad input.

    \b
        coppice drift churn
        coppice drift churn --since 2026-01-31T00:00 --until 2026-02-01T00:00 --out reports/january-31
    """
    import io

    import pandas as pd
    import pyarrow.compute as pc

    from compile.bundle import REFERENCE, load, locate, read
    from monitoring.drift import find_drift
    from monitoring.lake import window
    from serving.routes import read as read_routes

    digest = bundle or read_routes(store, model).arms.get(arm)
    if digest is None:
        raise MonitoringError(f"--arm: {model!r} has no arm {arm!r}")
    folder = locate(store, digest)
    manifest = read(folder)
    if not (folder / REFERENCE).exists():
        raise MonitoringError(f"{folder}: holds no {REFERENCE}; compile the model from the registry to have one")
    rows = window(
        lake,
        model,
        since_us=_micros("--since", since),
        until_us=_micros("--until", until),
        columns=["ts_us", "features", "score", "scores", "schema", "status", "version", "role"],
        where=(pc.field("version") == manifest.version) & (pc.field("role") == "served"),
    )
    found = find_drift(
        manifest.schema,
        pd.read_parquet(io.BytesIO(load(folder, manifest, REFERENCE))),
        rows,
        model=model,
        version=manifest.version,
        out=out,
        outputs=manifest.outputs,
        share=share,
    )
    for column in found.columns:
        mark = "DRIFT" if column.drifted else "-"
        score = "" if column.score is None else f"{column.score:.4g} against {column.threshold:.4g}, {column.method}"
        gaps = (
            f", missing {column.missing_reference:.1%} -> {column.missing_window:.1%}" if column.missing_drifted else ""
        )
        typer.echo(f"  {column.name:<24} {mark:<6} {score}{gaps}{column.note and '; ' + column.note}")
    typer.echo(f"{found.verdict}: {found.reason}")
    typer.echo(f"{found.window_rows:,} rows against {found.reference_rows:,}: {out / 'report.html'}")
    if found.found:
        raise DriftFound(f"{model}: {found.reason}")


def _micros(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise MonitoringError(f"{option}: {text!r} is not a time such as 2026-01-31T09:30") from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return round(when.timestamp() * 1_000_000)
