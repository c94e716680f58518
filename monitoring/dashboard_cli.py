"""The verb `coppice dashboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monitoring.errors import MonitoringError


def dashboard(
    lake: Annotated[str, typer.Option(help="the Parquet lake: a folder, or s3://BUCKET/PREFIX")] = "var/lake",
    traffic: Annotated[
        Path, typer.Option(envvar="COPPICE_TRAFFIC", help="folder of the traffic log, for what was shed and dropped")
    ] = Path("var/traffic"),
    store: Annotated[
        str, typer.Option(envvar="COPPICE_STORE", help="release store: a folder or s3://bucket/prefix")
    ] = "var/releases",
    checks: Annotated[Path, typer.Option(help="folder of what checks found")] = Path("var/checks"),
    cache: Annotated[Path, typer.Option(help="folder of its summaries of the lake; may be deleted at any time")] = Path(
        "var/dashboard"
    ),
    server: Annotated[
        list[str] | None, typer.Option(help="address of a server, to show its /metrics live; may be given again")
    ] = None,
    engine: Annotated[str, typer.Option(help="duckdb, or the address of a Spark")] = "duckdb",
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0 takes a free one and prints it")] = 8050,
    name: Annotated[
        list[str] | None,
        typer.Option(help="a name that it may be asked by, besides its host; may be given again; *: any"),
    ] = None,
    every: Annotated[float, typer.Option(min=1, help="seconds between two looks at the lake")] = 30,
) -> None:
    """Show one page of how a model does: predictions, drift, performance, latency, errors, arms and lineage.

    Reads what the other verbs wrote and writes nothing but its own summaries. Asks nobody who they are: put a proxy that
    does in front of it before it listens on more than loopback.

    \b
        coppice dashboard
        coppice dashboard --lake s3://bucket/lake --server http://127.0.0.1:8000 --port 8051
    """
    from monitoring.dashboard import LOOPBACK, Places, create
    from monitoring.dashboard_serve import serve
    from monitoring.engine import open_engine

    for url in server or ():
        if not url.startswith(("http://", "https://")):
            raise MonitoringError(f"--server: {url!r} is no http:// or https:// address")
    open_engine(lake, engine)  # refuses an address that is none, before anybody waits for it
    names = (host, *(name or ())) if host in LOOPBACK or name else ("*",)
    places = Places(lake, traffic, store, checks, cache, engine, tuple(server or ()), names, every)
    serve(create(places), host, port)
