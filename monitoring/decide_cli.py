"""`coppice decide`: look at an experiment, and do what its plan says; for a scheduler to call as often as it likes."""

from __future__ import annotations

from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring.cli import EngineName, Lake, Store

if TYPE_CHECKING:
    from monitoring.deciding import Places
    from monitoring.decisions import Decision

Checks = Annotated[Path, typer.Option(help="folder that remembers decisions")]
Trust = Annotated[
    str, typer.Option("--trust", envvar="COPPICE_TRUST", help="signed: route only bundles that a trusted key signed")
]
Now = Annotated[int | None, typer.Option("--now-us", hidden=True)]
EXIT_CODES = {"wait": 0, "ramp": 0, "promote": 0, "end": 0, "roll back": 10, "hold": 11}


def decide(
    model: Annotated[str, typer.Argument(help="the model's name")],
    apply: Annotated[bool, typer.Option("--apply", help="do it: ramp, promote, roll back")] = False,
    approve: Annotated[
        bool, typer.Option("--approve", help="a person agrees to the step, or promotion, that waits for that")
    ] = False,
    recompute: Annotated[
        str | None, typer.Option(metavar="ID", help="make a remembered decision again, from its own inputs")
    ] = None,
    now_us: Now = None,
    store: Store = Path("var/releases"),
    lake: Lake = "var/lake",
    checks: Checks = Path("var/checks"),
    engine: EngineName = "duckdb",
    trust: Trust = "hashed",
) -> None:
    """Evaluate the model's experiment, remember the decision, and with --apply do it; docs/experiments.md has the rules.

    Safe to run at any time, twice, from two places, and to kill.

    Exit code 0: fine; 1: --recompute finds another decision; 2: bad input, or no experiment; 10: it is, or was, rolled back;
    11: the experiment is invalid.

    \b
        coppice compact && coppice decide churn --apply
        coppice decide churn --recompute 3fa1c07b22de
    """
    from monitoring.deciding import Places

    if recompute is not None:
        _recompute(checks, model, recompute)
        return
    places = Places(store, lake, checks, engine, trust)
    _decide(places, model, now_us or time_ns() // 1000, act=apply, approved=approve)


def _decide(places: Places, model: str, now_us: int, *, act: bool, approved: bool) -> None:
    import getpass

    from monitoring import deciding
    from monitoring.errors import NoExperiment, Overtaken
    from monitoring.publishing import follow
    from serving.routes import read

    try:
        experiment, inputs, made = deciding.evaluate(places, model, now_us, approved=approved)
    except NoExperiment:
        if act and (line := follow(places.store, places.checks, model)):
            typer.echo(line)
        raise
    deciding.log(places, experiment, inputs, made)
    tell(made)
    if not act:
        raise typer.Exit(EXIT_CODES[made.action.verb])
    try:
        routed = deciding.apply(places, experiment, made, getpass.getuser())
    except Overtaken as overtaken:
        now = read(places.store, model)
        typer.echo(f"overtaken ({overtaken}); generation {now.generation} by {now.by}: {now.note}")
        raise typer.Exit(0) from None
    if routed is not None:
        typer.echo(f"{model} generation {routed.generation}: {routed.note}")
    if line := follow(places.store, places.checks, model):
        typer.echo(line)
    raise typer.Exit(EXIT_CODES[made.action.verb])


def tell(made: Decision) -> None:
    typer.echo(f"{made.verdict.state} (decision {made.id}, plan {made.verdict.plan[:12]})")
    for one in made.verdict.challengers:
        typer.echo(f"  {one.challenger}: {one.state}: {one.reason}")
    typer.echo(f"{made.action.verb}: {made.action.reason}")


def _recompute(checks: Path, model: str, name: str) -> None:
    from monitoring.decisions import recompute
    from monitoring.times import told

    line, made = recompute(checks, model, name)
    typer.echo(f"decision {made.id} of {told(line.at_us)}, made again from its inputs: the same")
    tell(made)
