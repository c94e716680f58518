"""The verbs `coppice routes ...`: each change is one new generation, published or refused in one line."""

from __future__ import annotations

import getpass
import time
from pathlib import Path
from typing import Annotated

import typer

from compile.bundle import locate
from serving import aliases
from serving.errors import RoutesRefused
from serving.releasing import Change, Verb, release
from serving.routes import CHAMPION, Routes, Shadow, history, read
from serving.store import FolderStore, Store, open_store

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Who serves what: publish, promote, ramp, roll back, look."
)

Model = Annotated[str, typer.Argument(help="the model's name")]
Where = Annotated[str, typer.Option("--store", envvar="COPPICE_STORE", help="release store: a folder, or s3://...")]
Signed = Annotated[
    str, typer.Option("--trust", envvar="COPPICE_TRUST", help="signed: route only bundles that a trusted key signed")
]
Note = Annotated[str, typer.Option(help="why; kept with the generation")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be published, and publish nothing")]
STORE, TRUST = "var/releases", "hashed"
WATCH_S = 0.5


@app.command("publish")
def publish(
    model: Model,
    arm: Annotated[list[str], typer.Option(help="NAME=DIGEST of a bundle in the store; `champion` is required")],
    split: Annotated[str, typer.Option(help="shares of /predict/ab, as champion=50,challenger=50")] = "champion=100",
    shadow: Annotated[list[str] | None, typer.Option(help="NAME=DIGEST[:SAMPLE], scored but never answering")] = None,
    note: Note = "",
    keep_salt: Annotated[bool, typer.Option(help="keep the units where they are")] = False,
    dry_run: DryRun = False,
    bundles: Annotated[Path, typer.Option(help="for S3: folder of the bundles to upload")] = Path(STORE),
    store: Where = STORE,
    trust: Signed = TRUST,
) -> None:
    """Write the model's next routes generation. What serves changes by such a generation and by nothing else.

    \b
        coppice routes publish churn --arm champion=3f2a... --note "first release"
        coppice routes publish churn --arm champion=3f2a... --arm challenger=77c0... \\
            --split champion=90,challenger=10 --shadow candidate=a41b...:0.25
    """
    change = Change(
        arms=dict(_pair("--arm", text) for text in arm),
        split=_shares("--split", split.split(",")),
        shadow=tuple(_shadow(text) for text in shadow or ()),
        keep_salt=keep_salt,
        note=note,
        dry_run=dry_run,
    )
    opened = open_store(store)
    if not dry_run and not isinstance(opened, FolderStore):
        _upload(opened, [*change.arms.values(), *(shadowed.bundle for shadowed in change.shadow)], bundles)
    _do("publish", opened, model, change, trust)


@app.command("promote")
def promote(
    model: Model,
    arm: Annotated[str, typer.Option(help="the arm, or shadow, that becomes the champion")] = "challenger",
    note: Note = "",
    dry_run: DryRun = False,
    store: Where = STORE,
    trust: Signed = TRUST,
) -> None:
    """Make the challenger the champion, alone: the experiment is over.

    \b
        coppice routes promote churn --note "better by 0.8 points of AUC, see the verdict"
    """
    _do("promote", open_store(store), model, Change(arm=arm, note=note, dry_run=dry_run), trust)


@app.command("rollback")
def rollback(
    model: Model,
    to: Annotated[int, typer.Option(min=0, help="the generation whose content comes back; 0: the previous one")] = 0,
    note: Note = "",
    dry_run: DryRun = False,
    store: Where = STORE,
    trust: Signed = TRUST,
) -> None:
    """Publish the content of an older generation as the newest.

    \b
        coppice routes rollback churn
        coppice routes rollback churn --to 7 --note "8 and 9 answer late"
    """
    _do("rollback", open_store(store), model, Change(to=to, note=note, dry_run=dry_run), trust)


@app.command("ramp")
def ramp(
    model: Model,
    shares: Annotated[list[str], typer.Argument(help="ARM=PERCENT, as challenger=25")],
    note: Note = "",
    dry_run: DryRun = False,
    store: Where = STORE,
    trust: Signed = TRUST,
) -> None:
    """Let an arm grow to a share, out of the champion's. No other unit moves, and none is ever taken back.

    \b
        coppice routes ramp churn challenger=25
    """
    change = Change(shares=_shares("ramp", shares), note=note, dry_run=dry_run)
    _do("ramp", open_store(store), model, change, trust)


@app.command("show")
def show(
    model: Model,
    generation: Annotated[int | None, typer.Option(help="an older one; default: the present one")] = None,
    store: Where = STORE,
) -> None:
    """Print a generation: arms, shares, shadows, who published it and why."""
    _print(read(store, model, generation))


@app.command("history")
def show_history(model: Model, store: Where = STORE) -> None:
    """List all generations, oldest first."""
    opened = open_store(store)
    for generation in history(opened, model):
        _print_line(read(opened, model, generation))


@app.command("watch")
def watch(model: Model, store: Where = STORE) -> None:
    """Print each new generation as it is published, until Ctrl-C."""
    opened = open_store(store)
    known = read(opened, model).generation - 1
    while True:
        newest = opened.newest(model, max(0, known))
        for generation in range(known + 1, newest + 1):
            _print_line(read(opened, model, generation))
        known = newest
        time.sleep(WATCH_S)


def _do(verb: Verb, store: Store, model: str, change: Change, trust: str) -> None:
    made = release(store, verb, model, change, trust=trust, by=getpass.getuser())
    if change.dry_run:
        typer.echo("dry run: nothing is published")
    _print(made)
    if not change.dry_run:
        aliases.follow(store, made)


def _upload(store: Store, digests: list[str], folder: Path) -> None:
    for digest in dict.fromkeys(digests):
        path = locate(folder, digest)
        if path.is_dir() and not store.holds(digest):
            store.put(path)
            typer.echo(f"uploaded {digest} to {store.name}")


def _print(routed: Routes) -> None:
    typer.echo(
        f"{routed.model} generation {routed.generation}, {routed.at} by {routed.by}: {routed.note or '(no note)'}"
    )
    for name, bundle in routed.arms.items():
        share = sum(slot.hi - slot.lo for slot in routed.slots if slot.arm == name) / 100
        typer.echo(f"  {name:<16} {share:6.2f} %  {bundle}")
    for shadow in routed.shadow:
        typer.echo(f"  {shadow.name:<16} shadow of {shadow.sample:.0%}  {shadow.bundle}")


def _print_line(routed: Routes) -> None:
    typer.echo(f"{routed.generation:>6}  {routed.at}  {routed.by}  {routed.note}")


def _shares(option: str, parts: list[str]) -> dict[str, float]:
    shares = {}
    for part in parts:
        name, share = _pair(option, part)
        try:
            shares[name] = float(share)
        except ValueError:
            raise RoutesRefused(f"{option}: {share!r} is not a number, in {part!r}") from None
    return shares


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
