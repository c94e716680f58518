"""`coppice operations`: traffic, latency, errors and the log's books, over time from the lake, or live."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitoring.alerts_cli import Checks, Servers
from monitoring.cli import Lake, Traffic
from monitoring.errors import MonitoringError

if TYPE_CHECKING:
    from monitoring.operations import Stretch

MOST_STRETCHES = 10_000


def operations(
    model: Annotated[str, typer.Argument(help="the model's name")],
    last: Annotated[str, typer.Option(metavar="N[s|m|h|d]", help="how far to look back")] = "1d",
    since: Annotated[str | None, typer.Option(help="from this time on, instead (ISO 8601)")] = None,
    until: Annotated[str | None, typer.Option(help="before this time; now, to the end of the stretch it is in")] = None,
    every: Annotated[str, typer.Option(metavar="N[s|m|h|d]", help="length of a stretch, a line each")] = "1h",
    server: Servers = None,
    seconds: Annotated[
        float, typer.Option(min=0, max=3600, help="with --server: how long to watch; 0: since they started")
    ] = 10,
    errors: Annotated[float, typer.Option(min=0, max=1, help="share of errors above which it is broken")] = 0.01,
    books: Annotated[
        bool, typer.Option("--books", help="prove the log's books as well: what was lost (reads every row's number)")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the check alone, a line of JSON")] = False,
    checks: Checks = Path("var/checks"),
    traffic: Traffic = Path("var/traffic"),
    lake: Lake = "var/lake",
    engine: Annotated[str, typer.Option(help="duckdb, or the address of a Spark")] = "duckdb",
) -> None:
    """Say how the model was served: rows, requests a second, errors, and the quantiles of the time that it took.

    From the lake, which `coppice compact` fills; or, with --server, from what servers count while they are watched.

    Exit code 0: fine, or no traffic; 1: broken, which is rows dropped or lost, books out of balance, too many errors or
    sheds; 2: bad input.

    \b
        coppice operations churn
        coppice operations churn --last 7d --every 1d --books
        coppice operations churn --server http://127.0.0.1:8000
    """
    from monitoring import operations as served
    from monitoring.checks import read

    if server:
        found: dict[str, Any] = served.live(model, server, seconds)
        end = time_ns() // 1000
        window = (end - round(1e6 * found["seconds"]), end)
        lines: Sequence[Stretch] = ()
    else:
        from monitoring.engine import open_engine

        bucket_us, window = _window(last, since, until, every)
        opened = open_engine(lake, engine)
        lines = served.stretches(opened, model, bucket_us, since_us=window[0], until_us=window[1])
        arms = served.stretches(opened, model, served.LONGEST_US, since_us=window[0], until_us=window[1])
        found = served.from_lake(arms, (window[1] - window[0]) / 1e6)
    if (traffic / "pages").is_dir() and not (server and not books):
        found |= served.books(traffic, lake, read(checks, "operations", model), whole=books)
    elif books:
        raise MonitoringError(f"--traffic: {traffic}: no server has logged here")
    check = served.remember(checks, model, *window, found, served.Limits(error_rate=errors))
    if as_json:
        typer.echo(json.dumps(asdict(check), ensure_ascii=False))
    else:
        _table(lines)
        _tell(found)
        typer.echo(f"{check.verdict}: {check.reason}")
    if check.verdict == "broken":
        raise typer.Exit(1)


def _window(last: str, since: str | None, until: str | None, every: str) -> tuple[int, tuple[int, int]]:
    """(length of a stretch, (since, until)), all in µs. Asked again within a stretch, the window is the same."""
    from monitoring.times import length_us, moment_us

    bucket_us = length_us("--every", every)
    if not bucket_us:
        raise MonitoringError("--every: is no time at all")
    end = moment_us("--until", until)
    if end is None:
        end = -(-(time_ns() // 1000) // bucket_us) * bucket_us
    begin = moment_us("--since", since)
    if begin is None:
        begin = end - length_us("--last", last)
    if begin >= end:
        raise MonitoringError("--since: is not before --until")
    if (end - begin) / bucket_us > MOST_STRETCHES:
        raise MonitoringError(f"--every: makes more than {MOST_STRETCHES:,} stretches")
    return bucket_us, (begin, end)


def _table(lines: Sequence[Stretch]) -> None:
    from monitoring.times import told

    if lines:
        typer.echo(
            f"  {'from':<19}  {'arm':<14} {'version':<8} {'rows':>10} {'errors':>7} {'p50':>8} {'p95':>8} {'p99':>8} ms"
        )
    for line in lines:
        times = " ".join(f"{_ms(ms):>8}" for ms in (line.p50_ms, line.p95_ms, line.p99_ms))
        named = f"{told(line.begin_us):<19}  {line.arm:<14} {line.version:<8}"
        typer.echo(f"  {named} {line.rows:>10,} {line.errors:>7,} {times}")


def _tell(found: dict[str, Any]) -> None:
    times = ", ".join(f"{q} {_ms(found.get(f'{q}_ms'))} ms" for q in ("p50", "p95", "p99"))
    asked = f"{found.get('requests', 0):,} requests of {found.get('rows', 0):,} rows"
    typer.echo(f"{asked}, {found.get('rate', 0):,.1f} a second; {found.get('errors', 0):,} errors; {times}")
    more = [f"{found[name]:,} {name}" for name in ("shed", "fallbacks", "dropped", "lost") if name in found]
    if more:
        typer.echo(", ".join(more))


def _ms(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.3f}"
