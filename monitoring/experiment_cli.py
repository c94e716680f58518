"""The verbs `coppice experiment ...`: from a plan in a file to units that are assigned by it, and what became of them."""

from __future__ import annotations

from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring.cli import EngineName, Lake, Store
from monitoring.decide_cli import Checks, Now, Trust, tell
from monitoring.errors import MonitoringError

if TYPE_CHECKING:
    from compile.bundle import Manifest

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Experiments: plan, start, look at, report on, stop."
)

Model = Annotated[str, typer.Argument(help="the model's name")]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="a plan, TOML or JSON")]
Note = Annotated[str, typer.Option(help="why; kept with the generation")]


@app.command("plan")
def plan_figures(
    plan: PlanFile,
    champion: Annotated[float | None, typer.Option(help="the champion's mean, or rate, of the metric")] = None,
    effect: Annotated[float | None, typer.Option(help="how much better a challenger has to be to be found")] = None,
    sd: Annotated[float | None, typer.Option(help="of one unit's outcome: of means")] = None,
    daily: Annotated[float | None, typer.Option(min=0, help="units a day in the whole split")] = None,
) -> None:
    """Check a plan, and say how many units and days it takes to find an effect.

    \b
        coppice experiment plan plan.toml --champion 0.05 --effect 0.005 --daily 20000
    """
    from monitoring.beginning import read_plan
    from monitoring.plan_figures import figures

    asked = read_plan(plan)
    typer.echo(f"{asked.name}: plan {asked.digest[:12]} is in order")
    if champion is not None and effect is not None:
        for line in figures(asked, champion, effect, sd, daily):
            typer.echo(line)


@app.command("simulate")
def simulate(
    plan: PlanFile,
    daily: Annotated[float, typer.Option(help="units a day in the whole split")],
    effect: Annotated[float, typer.Option(help="how much better the challengers are, in the second half of the runs")],
    champion: Annotated[
        float | None, typer.Option(help="the champion's mean, or rate [default: the rate of the churn world]")
    ] = None,
    sd: Annotated[float, typer.Option(help="of one unit's outcome: of means")] = 1.0,
    every: Annotated[float, typer.Option(help="hours between two decisions")] = 24.0,
    runs: Annotated[int, typer.Option(min=1, help="experiments to play through, each way")] = 200,
    seed: Annotated[int, typer.Option(help="the same seed plays the same experiments")] = 0,
) -> None:
    """Play the plan through before it starts: how often it is wrong, how often it finds the effect, and how long it takes.

    \b
        coppice experiment simulate plan.toml --daily 5000 --effect 0.02
    """
    from monitoring.beginning import read_plan
    from monitoring.plan_figures import churn_rate, table
    from monitoring.replaying import Supposed, replay

    asked = read_plan(plan)
    mean = churn_rate(asked) if champion is None else champion
    better = -effect if asked.metric.better == "lower" else effect
    with typer.progressbar(length=2 * runs, label="experiments") as bar:
        found = [
            replay(asked, Supposed(daily, mean, moved, sd, every), runs, seed=seed, progress=lambda: bar.update(1))
            for moved in (0.0, better)
        ]
    for line in table(asked, *found):
        typer.echo(line)


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


@app.command("report")
def report(
    model: Model,
    out: Annotated[Path, typer.Option(help="the page to write")] = Path("var/experiments/report.html"),
    now_us: Now = None,
    store: Store = Path("var/releases"),
    lake: Lake = "var/lake",
    checks: Checks = Path("var/checks"),
    engine: EngineName = "duckdb",
) -> None:
    """Write a page about the experiment that runs, or the last that did: what is thought of it, and why.

    \b
        coppice experiment report churn --out report.html
    """
    from monitoring import deciding
    from monitoring.checks import read
    from monitoring.decisions import KIND
    from monitoring.decisions import decide as decided
    from monitoring.errors import NoExperiment
    from monitoring.experiment import newest
    from monitoring.experiment_page import page

    experiment = newest(store, model)
    if experiment is None:
        raise NoExperiment(f"{model}: there was no experiment yet")
    until_us = now_us or experiment.ended_us or time_ns() // 1000
    inputs = deciding.gather(deciding.Places(store, lake, checks, engine), experiment, until_us)
    made = decided(inputs)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(experiment, inputs, made, read(checks, KIND, model)), encoding="utf-8")
    typer.echo(f"{made.verdict.state}: {made.verdict.reason}; {out}")


@app.command("shadow")
def shadow(
    model: Model,
    name: Annotated[str | None, typer.Option("--shadow", help="which, where the routes have several")] = None,
    loss: Annotated[
        str | None, typer.Option(help="log_loss (usual) or brier of binary models; squared of regressions")
    ] = None,
    label_window: Annotated[
        str, typer.Option(metavar="N[m|h|d]", help="rows younger than this wait for outcomes")
    ] = "0s",
    n_star: Annotated[float, typer.Option(min=1, help="units at which you hope to know")] = 10_000.0,
    now_us: Now = None,
    store: Store = Path("var/releases"),
    lake: Lake = "var/lake",
    engine: EngineName = "duckdb",
) -> None:
    """Compare a shadow with the champion on the same rows: agreement, scores, and loss where outcomes have come.

    \b
        coppice experiment shadow churn --label-window 7d
    """
    from monitoring import shadowing
    from monitoring.engine import open_engine
    from monitoring.times import length_us

    named, champion, shadowed = _shadow_of(store, model, name)
    known = shadowing.losses(champion)
    asked = next((one for one in known if loss in (None, one)), None)
    if asked is None:
        raise MonitoringError(f"--loss: {loss!r} is not of a {champion.task} model; it has {', '.join(known)}")
    window_us = length_us("--label-window", label_window)
    question = shadowing.Asked(named, asked, window_us, now_us or time_ns() // 1000, n_star=n_star)
    found = shadowing.compare(open_engine(lake, engine), champion, shadowed, question)
    for line in shadowing.told(found, question):
        typer.echo(line)


def _shadow_of(store: Path, model: str, name: str | None) -> tuple[str, Manifest, Manifest]:
    """(its name, the champion's manifest, the shadow's)."""
    from compile.bundle import locate
    from compile.bundle import read as read_bundle
    from monitoring.plan import CHAMPION
    from serving.routes import read

    now = read(store, model)
    shadows = {one.name: one.bundle for one in now.shadow}
    wanted = name or next(iter(shadows), "")
    if wanted not in shadows or (name is None and len(shadows) > 1):
        raise MonitoringError(f"--shadow: {model} has {', '.join(shadows) or 'no shadow'}; say which")
    champion, shadowed = (read_bundle(locate(store, digest)) for digest in (now.arms[CHAMPION], shadows[wanted]))
    return wanted, champion, shadowed


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
