"""The verbs of the lake: `coppice compact`, `coppice outcomes`, `coppice reconcile`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from monitoring.errors import MonitoringError, OutOfBalance

Traffic = Annotated[Path, typer.Option(envvar="COPPICE_TRAFFIC", help="folder of the traffic log")]
Lake = Annotated[str, typer.Option(help="the Parquet lake: a folder, or s3://BUCKET/PREFIX")]
EngineName = Annotated[
    str, typer.Option("--engine", help="who answers: duckdb, or a Spark: local[2], spark://HOST:PORT, sc://HOST:PORT")
]
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
