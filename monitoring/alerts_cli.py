"""`coppice alerts`: hold the rules against the checks and the live servers, and tell who is to know."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

Checks = Annotated[Path, typer.Option(help="folder of what checks found")]
Servers = Annotated[
    list[str] | None, typer.Option("--server", help="address of a server, to read its /metrics; may be given again")
]
NOT_DELIVERED = 3


def alerts(
    model: Annotated[str, typer.Argument(help="the model's name")],
    rules: Annotated[Path | None, typer.Option(help="TOML file of rules, instead of those that come along")] = None,
    server: Servers = None,
    every: Annotated[
        float, typer.Option(min=0, help="look again after so many seconds, until stopped; 0: look once")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be told; tell and write nothing")] = False,
    checks: Checks = Path("var/checks"),
) -> None:
    """Find what fires, and tell it once: by webhook, Slack, a line of the log; `docs/alerts.md` has the rules.

    What could not be delivered is kept and told by the next run. Live figures are those since the run before.

    Exit code 0: nothing fires; 1: something does; 2: bad input; 3: nothing fires, but something could not be delivered.

    \b
        coppice alerts churn
        coppice alerts churn --rules alerts.toml --server http://127.0.0.1:8000 --every 60
    """
    from monitoring.alert_rules import read
    from monitoring.alerts import run

    while True:
        outcome = run(model, read(rules), checks, servers=server or (), environ=os.environ, dry=dry_run)
        for finding in outcome.findings:
            typer.echo(f"  {finding.state:<8} {finding.rule.name:<24} {finding.subject:<24} {finding.reason}")
        for event in outcome.events:
            typer.echo(f"{'would tell' if dry_run else 'to tell'}: {event.event} {event.rule} of {event.subject}")
        for name, why in outcome.failed.items():
            typer.echo(f"coppice: deliver {name!r}: {why}; kept for the next run", err=True)
        if outcome.given_up:
            typer.echo(f"coppice: {outcome.given_up} events were given up: too many were waiting", err=True)
        if not every:
            break
        time.sleep(every)
    if outcome.firing:
        raise typer.Exit(1)
    if outcome.failed:
        raise typer.Exit(NOT_DELIVERED)
