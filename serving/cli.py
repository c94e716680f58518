"""The verbs of serving: `coppice serve` and `coppice routes`."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import Annotated

import typer

from compile.bundle import locate
from compile.trust import Trust
from serving.errors import RoutesRefused
from serving.routes import CHAMPION, Routes, Shadow, Slot, history, new_salt, publish, read, split_slots, stamp

routes = typer.Typer(no_args_is_help=True, help="Who serves what: publish a generation, look at it, list them.")

Store = Annotated[Path, typer.Option(envvar="COPPICE_STORE", help="release store (a folder)")]


def serve(
    workers: Annotated[int | None, typer.Option(help="worker processes; 0: one for each CPU")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port; 0 takes a free one and prints it")] = None,
    store: Annotated[Path | None, typer.Option(help="release store: bundles and routes")] = None,
    traffic: Annotated[Path | None, typer.Option(help="folder of the traffic log")] = None,
    model: Annotated[str | None, typer.Option(help="model that /predict serves")] = None,
    http: Annotated[str | None, typer.Option(help="direct (fast) or asgi (through FastAPI)")] = None,
) -> None:
    """Serve the model that the store routes, until SIGTERM or Ctrl-C.

    Every flag is also an environment variable, COPPICE_ and its name; the README lists them all.

    \b
        coppice serve --workers 2 --port 8000
        curl -s localhost:8000/v1/models            what is served
        curl -s localhost:8000/predict -H 'content-type: application/json' -d @row.json
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # a worker is one core; set before any library counts the cores
    from serving import supervisor
    from serving.settings import Settings

    settings = Settings.from_env(
        workers=workers, host=host, port=port, store=store, traffic=traffic, model=model, http=http
    )
    raise typer.Exit(supervisor.run(settings))


@routes.command("publish")
def publish_routes(
    model: Annotated[str, typer.Argument(help="the model's name")],
    arm: Annotated[list[str], typer.Option(help="NAME=DIGEST of a bundle in the store; `champion` is required")],
    split: Annotated[str, typer.Option(help="shares of /predict/ab, as champion=50,challenger=50")] = "champion=100",
    shadow: Annotated[list[str] | None, typer.Option(help="NAME=DIGEST[:SAMPLE], scored but never answering")] = None,
    note: Annotated[str, typer.Option(help="why")] = "",
    keep_salt: Annotated[bool, typer.Option(help="a ramp: keep the units where they are")] = False,
    store: Store = Path("var/releases"),
    trust: Annotated[
        str, typer.Option(envvar="COPPICE_TRUST", help="signed: route only bundles that a trusted key signed")
    ] = "hashed",
) -> None:
    """Write the model's next routes generation. What serves changes by this and by nothing else.

    \b
        coppice routes publish churn --arm champion=3f2a... --note "first release"
        coppice routes publish churn --arm champion=3f2a... --arm challenger=77c0... \\
            --split champion=90,challenger=10 --shadow candidate=a41b...:0.25
    """
    before = history(store, model)
    routed = Routes(
        model=model,
        generation=(before[-1] if before else 0) + 1,
        salt=read(store, model).salt if keep_salt and before else new_salt(),
        slots=_slots(split),
        arms=dict(_pair("--arm", text) for text in arm),
        shadow=tuple(_shadow(text) for text in shadow or ()),
        note=note,
        by=getpass.getuser(),
        at=stamp(),
    )
    Trust.of(trust).admit([locate(store, bundle) for bundle in routed.bundles])
    typer.echo(publish(store, routed))


@routes.command("show")
def show_routes(
    model: Annotated[str, typer.Argument(help="the model's name")],
    generation: Annotated[int | None, typer.Option(help="an older one; default: the present one")] = None,
    store: Store = Path("var/releases"),
) -> None:
    """Print a generation: arms, shares, shadows, who published it and why."""
    routed = read(store, model, generation)
    typer.echo(f"{model} generation {routed.generation}, {routed.at} by {routed.by}: {routed.note or '(no note)'}")
    for name, bundle in routed.arms.items():
        share = sum(slot.hi - slot.lo for slot in routed.slots if slot.arm == name) / 100
        typer.echo(f"  {name:<16} {share:6.2f} %  {bundle}")
    for shadow in routed.shadow:
        typer.echo(f"  {shadow.name:<16} shadow of {shadow.sample:.0%}  {shadow.bundle}")


@routes.command("history")
def show_history(
    model: Annotated[str, typer.Argument(help="the model's name")], store: Store = Path("var/releases")
) -> None:
    """List all generations, oldest first."""
    for generation in history(store, model):
        routed = read(store, model, generation)
        typer.echo(f"{generation:>6}  {routed.at}  {routed.by}  {routed.note}")


def _slots(split: str) -> tuple[Slot, ...]:
    shares = {}
    for part in split.split(","):
        name, share = _pair("--split", part)
        try:
            shares[name] = float(share)
        except ValueError:
            raise RoutesRefused(f"--split: {share!r} is not a number, in {part!r}") from None
    return split_slots(shares)


def _shadow(text: str) -> Shadow:
    name, rest = _pair("--shadow", text)
    digest, _, sample = rest.partition(":")
    try:
        return Shadow(name=name, bundle=digest, sample=float(sample or 1))
    except ValueError:
        raise RoutesRefused(f"--shadow: {sample!r} is not a number, in {text!r}") from None


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.strip().partition("=")
    if not (name and equals and value):
        raise RoutesRefused(f"{option}: must be NAME=VALUE ({CHAMPION}=...), got {text!r}")
    return name, value
