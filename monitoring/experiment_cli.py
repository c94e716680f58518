"""The verbs `coppice experiment ...`: from a plan in a file to units that are assigned by it, and what became of them."""

from __future__ import annotations

from pathlib import Path
from time import time_ns
from typing import Annotated

import typer

from monitoring.cli import EngineName, Lake, Store
from monitoring.decide_cli import Checks, Now, Trust, tell
from monitoring.errors import MonitoringError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Experiments: plan, start, look at, report on, stop."
)

Model = Annotated[str, typer.Argument(help="the model's name")]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="a plan, TOML or JSON")]
Note = Annotated[str, typer.Option(help="why; kept with the generation")]


@app.command("start")
def start(
    model: Model,
    plan: PlanFile,
    arm: Annotated[list[str], typer.Option(help="NAME=DIGEST of each challenger that the plan names")],
    note: Note = "",
    now_us: Now = None,
    store: Store = Path("var/releases"),
    trust: Trust = "hashed",
) -> None:
    """Publish the generation that begins the experiment: the plan, and the first step of its ramp.

    \b
        coppice experiment start churn plan.toml --arm challenger=77c0...
    """
    import getpass

    from monitoring import beginning

    asked = beginning.read_plan(plan)
    bundles = dict(_pair(text) for text in arm)
    made = beginning.start(
        store, trust, model, asked, bundles, note=note, by=getpass.getuser(), now_us=now_us or time_ns() // 1000
    )
    typer.echo(f"{model} generation {made.generation}: {made.note}")
    typer.echo(
        f"the split answers at /predict/ab; next: coppice compact && coppice decide {model} --apply, every hour or so"
    )


@app.command("status")
def status(
    model: Model,
    now_us: Now = None,
    store: Store = Path("var/releases"),
    lake: Lake = "var/lake",
    checks: Checks = Path("var/checks"),
    engine: EngineName = "duckdb",
) -> None:
    """Say how the experiment stands now, and remember nothing.

    \b
        coppice experiment status churn
    """
    from monitoring import deciding
    from monitoring.times import told

    places = deciding.Places(store, lake, checks, engine)
    experiment, inputs, made = deciding.evaluate(places, model, now_us or time_ns() // 1000)
    typer.echo(f"{model}: {experiment.plan.name}, since {told(experiment.started_us)}")
    for phase in experiment.phases:
        shares = ", ".join(f"{arm} {share:.2%}" for arm, share in phase.shares.items())
        units = ", ".join(f"{arm} {count:,}" for arm, count in sorted(inputs.seen.assigned[phase.name].items()))
        typer.echo(f"  {phase.name}, {told(phase.at_us)}: {shares}; units: {units or 'none'}")
    tell(made)


@app.command("stop")
def stop(
    model: Model,
    note: Annotated[str, typer.Option(help="why; kept with the generation")],
    store: Store = Path("var/releases"),
    trust: Trust = "hashed",
) -> None:
    """End the experiment by hand: the routes before it come back, the champion stays.

    \b
        coppice experiment stop churn --note "the tracking of orders is broken"
    """
    import getpass

    from monitoring.experiment import running
    from monitoring.publishing import release

    experiment = running(store, model)
    to, generation = experiment.first.generation - 1, experiment.generation
    made = release(store, trust, "rollback", model, getpass.getuser(), to=to, note=note, generation=generation)
    typer.echo(f"{model} generation {made.generation}: {made.note}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, digest = text.strip().partition("=")
    if not (name and equals and digest):
        raise MonitoringError(f"--arm: must be NAME=DIGEST, got {text!r}")
    return name, digest
