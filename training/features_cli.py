"""The verbs of the feature store: `coppice features init|apply|materialize|show`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from training.errors import RecipeRefused
from training.view import ViewRefused

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="""Features by entity: declared once, joined to labels as they were known, looked up by the server.

    \b
        coppice features init             # the churn world, in var/features
        coppice features apply            # compute, and tell the store
        coppice train var/features/recipe.toml
        coppice features materialize      # var/views/churn.view
        coppice features show

    Compile, publish and serve as any model, then ask by {"entity": {"customer_id": "c000007"}}. docs/features.md has it all.
    """,
)
FOLDER = Annotated[Path, typer.Argument(help="the feature repository: a folder with a features.toml")]
VIEWS = Annotated[
    str, typer.Option(envvar="COPPICE_VIEWS", help="where views are put: a folder, or redis://host:port/db")
]
VIEW = Annotated[list[str] | None, typer.Option(help="only this view; may be repeated")]
DEFAULT = Path("var/features")


@app.command()
def init(
    folder: FOLDER = DEFAULT,
    data: Annotated[Path | None, typer.Option(help="CSV or Parquet of your own, in place of the churn world")] = None,
    entity: Annotated[str, typer.Option(help="its column that says whose features a row has")] = "",
    target: Annotated[
        str, typer.Option(help="its column to predict, put aside as labels; none: no recipe is made")
    ] = "",
    time: Annotated[str, typer.Option(help="its column that says when a row became known; none: always")] = "",
    name: Annotated[str, typer.Option(help="name of the view; default: the file's")] = "",
    rows: Annotated[int, typer.Option(min=100, help="customers of the churn world")] = 5000,
    seed: Annotated[int, typer.Option(help="the same seed gives the same customers")] = 0,
) -> None:
    """Make a feature repository: declarations, labels and a recipe that trains by entity.

    \b
        coppice features init
        coppice features init var/telco --data telco_churn.csv --entity customerID --target Churn
        coppice features init var/visits --data visits.parquet --entity user --time seen_at --target bought
    """
    from training import feature_init

    if data is None:
        if entity or target or time or name:
            raise RecipeRefused("--entity, --target, --time and --name are of a table of your own: add --data FILE")
        written = feature_init.churn(folder, rows=rows, seed=seed)
    else:
        if not entity:
            raise RecipeRefused("--entity: name the column that says whose features a row has")
        chosen = name or "".join(letter if letter.isalnum() else "_" for letter in data.name.split(".")[0])
        written = feature_init.own(folder, data, entity=entity, target=target, time=time, view=chosen)
    for path in written:
        typer.echo(f"  {path}")
    typer.echo(f"next: coppice features apply {folder}")


@app.command()
def apply(folder: FOLDER = DEFAULT) -> None:
    """Compute each view's table from the repository's tables and events, and make the views known to the store.

    A value is made of what was known at its instant and of nothing later. Apply again when a table or features.toml has
    changed: tables are replaced whole, and the store's views with them.
    """
    from training import feature_repo, feature_store, feature_tables

    progress = _progress()
    repository = feature_repo.load(folder)
    for view in repository.declared.views:
        table = feature_tables.make(repository, view)
        owners = table[view.entity].nunique()
        progress(f"{view.name}: {len(view.kinds)} features, {owners:,} of {view.entity}, {len(table):,} rows")
    feature_store.opened(repository).apply(repository.declared.views)
    progress(f"known to {repository.declared.store}")


@app.command()
def materialize(
    folder: FOLDER = DEFAULT,
    view: VIEW = None,
    views: VIEWS = "var/views",
    as_of: Annotated[
        str,
        typer.Option(help="the instant, such as 2024-04-01T00:00:00Z, that no value may be later than; default: now"),
    ] = "",
) -> None:
    """Bring the store's online side up to an instant, and fill the views that servers look up, each replaced whole.

    A server that is running goes on with the new view from the next request on. Killed half-way, the old view stays; run
    again, it is the same.

    \b
        coppice features materialize
        coppice features materialize --as-of 2024-04-01T00:00:00Z --views /srv/views
        coppice features materialize --view churn --views redis://cache:6379/0
    """
    from training import feature_repo, feature_store

    progress = _progress()
    instant = _instant(as_of)
    repository = feature_repo.load(folder)
    chosen = [repository.view(name) for name in view] if view else repository.declared.views
    store = feature_store.opened(repository)
    for one in chosen:
        facts = feature_store.materialize(store, repository, one, instant, views)
        progress(f"{one.name}: {facts.rows:,} of {one.entity} as of {facts.as_of}, in {views}")


@app.command()
def show(folder: FOLDER = DEFAULT, views: VIEWS = "var/views") -> None:
    """Say what the repository declares, what was computed, and how old what servers look up is."""
    from training import feature_repo, feature_store, feature_tables
    from training.feature_tables import TIME

    repository = feature_repo.load(folder)
    declared = repository.declared
    typer.echo(f"{folder}: {declared.store}, online in {declared.online}")
    for view in declared.views:
        typer.echo(f"\n{view.name}, by {view.entity}")
        made = {transform.name: transform.compute for transform in view.transforms}
        for name, kind in view.kinds.items():
            typer.echo(f"  {name:28} {kind:10} {made.get(name, '')}".rstrip())
        if repository.table_of(view).exists():
            table = feature_tables.read(repository, view)
            typer.echo(f"  table: {len(table):,} rows, {table[TIME].min()} to {table[TIME].max()}")
        else:
            typer.echo(f"  table: none yet: coppice features apply {folder}")
        try:
            facts = feature_store.present_facts(views, view.name)
        except ViewRefused as refused:
            typer.echo(f"  view: {refused}")
            continue
        typer.echo(
            f"  view: {facts.rows:,} rows as of {facts.as_of}, in {views}"
            if facts
            else f"  view: none in {views}: coppice features materialize {folder}"
        )


def _progress() -> Callable[[str], None]:
    began = perf_counter()
    return lambda text: typer.echo(f"  {perf_counter() - began:6.1f} s  {text}")


def _instant(text: str) -> datetime:
    if not text:
        return datetime.now(UTC)
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise RecipeRefused(f"--as-of: {text!r} is no instant, such as 2024-04-01T00:00:00Z") from None
    return instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)
