"""The verbs of the lake: `coppice compact`, `coppice reconcile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monitoring.errors import MonitoringError, OutOfBalance

Traffic = Annotated[Path, typer.Option(envvar="COPPICE_TRAFFIC", help="folder of the traffic log")]
Lake = Annotated[Path, typer.Option(help="folder of the Parquet lake")]
Store = Annotated[Path, typer.Option(envvar="COPPICE_STORE", help="release store")]


def compact(traffic: Traffic = Path("var/traffic"), lake: Lake = Path("var/lake")) -> None:
    """Turn sealed traffic segments, and open ones of dead workers, into the Parquet lake.

    Safe to run at any time, twice, beside a running server, and to kill: no row is lost or doubled.
    """
    from monitoring.lake import compact as run

    done = run(traffic, lake)
    salvaged = f", {done.salvaged} of them salvaged from dead workers" if done.salvaged else ""
    typer.echo(f"{done.segments} segments{salvaged}: {done.rows:,} rows in {len(done.parts)} parts under {lake}")
    if done.duplicates:
        typer.echo(f"{done.duplicates:,} rows were in the lake already")
    if done.bad_bytes:
        typer.echo(f"{done.bad_bytes:,} bytes could not be read (a block that was torn, or spoiled)")
    for path in done.damaged:
        typer.echo(f"kept because a block in it is spoiled: {path}")


def reconcile(traffic: Traffic = Path("var/traffic"), lake: Lake = Path("var/lake")) -> None:
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
