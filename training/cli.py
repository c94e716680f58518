"""The verbs of training: `coppice train`, `coppice models`, `coppice simulate`; `coppice tune` is in `training.tuning_cli`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from training.errors import RecipeRefused

if TYPE_CHECKING:
    from training.data import Dataset
    from training.recipe import Recipe


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="a recipe: churn-xgboost, churn-lightgbm, tabular-xgboost, tabular-lightgbm, tabular-random-forest, "
            "tabular-extra-trees, or the path of a TOML file"
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="CSV or Parquet to train on, instead of the recipe's data")] = None,
    target: Annotated[
        str | None, typer.Option(help="the column to predict; two labels, unless the recipe names another task")
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="the label whose probability is served; default: yes, 1, the rarer")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="name to register under; default: the recipe's, or the file's")
    ] = None,
    algorithm: Annotated[
        str, typer.Option(help="xgboost, lightgbm, random_forest or extra_trees, where no recipe is named")
    ] = "xgboost",
    alias: Annotated[
        list[str] | None, typer.Option(help="alias to give the new version, such as champion; may be repeated")
    ] = None,
    schema_from: Annotated[
        str | None,
        typer.Option(metavar="NAME@ALIAS", help="keep this version's input contract, so that both can share traffic"),
    ] = None,
    out_of_core: Annotated[
        bool,
        typer.Option(help="leave the rows of a Parquet file on disk, for a file larger than memory; needs --data"),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            min=0, help="with --out-of-core: so many processes fit, on Ray, here or at RAY_ADDRESS; 0: this one"
        ),
    ] = 0,
) -> None:
    """Train on the built-in churn world or your own table, measure on a holdout, and register what passes the gates.

    \b
        coppice train                                        # the churn champion
        coppice train churn-lightgbm --alias challenger
        coppice train --data rows.csv --target churned
        coppice train --data rows.csv --target churned --algorithm lightgbm --schema-from rows@champion
        coppice train my-recipe.toml
        coppice train --data huge.parquet --target churned --out-of-core    # spools to TMPDIR, 8 bytes a cell
        RAY_ADDRESS=head:6379 coppice train --data /mnt/huge.parquet --target churned --out-of-core --workers 8
    """
    from training import fit_on_ray, registry
    from training import recipe as recipes
    from training.out_of_core import read as read_out_of_core
    from training.out_of_core import temporary
    from training.training import train as run

    began = perf_counter()

    def progress(text: str) -> None:
        typer.echo(f"  {perf_counter() - began:6.1f} s  {text}")

    if algorithm not in recipes.RESERVED:
        raise RecipeRefused(f"--algorithm: {algorithm!r} is none of {', '.join(recipes.RESERVED)}")
    if algorithm in recipes.FORESTS and not (recipe or data):
        raise RecipeRefused(f"--algorithm {algorithm}: needs --data, or a recipe")
    chosen = recipes.load(recipe or f"{'tabular' if data else 'churn'}-{algorithm.replace('_', '-')}")
    if workers and not out_of_core:
        raise RecipeRefused("--workers: is for rows that stay on disk: --out-of-core")
    with ExitStack() as passing:
        on_disk = None
        if out_of_core:
            if data is None or target is None:
                raise RecipeRefused("--out-of-core: name the Parquet file and its target: --data and --target")
            folder = Path(passing.enter_context(temporary()))
            if workers:
                fit_on_ray.refuse_unfit(chosen, data, workers)
            on_disk = read_out_of_core(data, target, chosen, folder, positive=positive)
        trained = run(
            chosen,
            on_disk.dataset if on_disk else dataset_of(chosen, data, target, positive, progress),
            on_disk=on_disk,
            workers=workers,
            name=name or chosen.model or (data.name.split(".")[0] if data else "model"),
            schema=registry.download(schema_from).schema if schema_from else None,
            aliases=tuple(alias or ()),
            progress=progress,
        )
    typer.echo(trained.registered.reference)


def models(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """List the registered versions, newest first, with aliases and holdout figures."""
    from training import registry

    rows = [version for model in registry.models() for version in registry.history(model)]
    if as_json:
        for row in rows:
            typer.echo(json.dumps({"model": row.model, "version": row.version, "aliases": row.aliases, **row.tags}))
        return
    if not rows:
        typer.echo("nothing is registered yet: coppice train")
        return
    from datetime import UTC, datetime

    from training.measures import TOLD

    typer.echo(f"{'version':24} {'aliases':24} {'algorithm':13} {'registered':16}  on its holdout")
    for row in rows:
        when = datetime.fromtimestamp(row.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        known = TOLD.get(row.tags.get("task", "binary"), ())
        figures = ", ".join(f"{metric} {row.tags[metric]}" for metric in known if metric in row.tags)
        typer.echo(
            f"{row.reference:24} {', '.join(row.aliases):24} {row.tags.get('algorithm', '-'):13} {when}  {figures}"
        )


def simulate(
    out: Annotated[
        Path, typer.Option(help="where to write: .jsonl (bodies for /predict), .csv or .parquet (with the target)")
    ],
    rows: Annotated[int, typer.Option(min=1, help="customers")] = 10_000,
    seed: Annotated[int, typer.Option(help="the same seed gives the same customers")] = 0,
    covariate_drift: Annotated[
        float, typer.Option(help="0 none, 1 plain to see: the inputs move, P(churn | inputs) stays")
    ] = 0.0,
    concept_drift: Annotated[float, typer.Option(help="0 none, 1 plain to see: P(churn | inputs) moves")] = 0.0,
) -> None:
    """Write customers of the built-in churn world.

    \b
        coppice simulate --rows 20000 --out rows.csv
        coppice simulate --rows 5000 --covariate-drift 1 --out drifted.jsonl
    """
    from training.simulator import simulate as world_of

    world = world_of(rows, seed=seed, covariate_drift=covariate_drift, concept_drift=concept_drift)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".jsonl":
        records = json.loads(world.features.to_json(orient="records"))
        out.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    elif out.suffix == ".csv":
        world.frame.to_csv(out, index=False)
    elif out.suffix == ".parquet":
        world.frame.to_parquet(out, index=False)
    else:
        raise RecipeRefused(f"--out: {out} ends neither in .jsonl nor in .csv nor in .parquet")
    typer.echo(f"{rows:,} customers, {world.churned.mean():.1%} leave, best possible AUC {world.best_auc:.4f}: {out}")


def dataset_of(
    recipe: Recipe,
    data: Path | None,
    target: str | None,
    positive: str | None,
    progress: Callable[[str], None] = typer.echo,
) -> Dataset:
    """What the command line or else the recipe names; with the features of a feature store, where the recipe says so."""
    from training.data import from_frame, read_dataset
    from training.inference import tidy
    from training.simulator import TARGET
    from training.simulator import simulate as world_of

    named = recipe.data
    if data is None and not named.path:
        if not named.simulated_rows:
            raise RecipeRefused("no data: give --data FILE --target COLUMN, or a recipe with a [data] table")
        world = world_of(named.simulated_rows, seed=recipe.seed)
        return from_frame(
            tidy(world.frame), TARGET, source=f"simulated churn ({named.simulated_rows:,} rows, seed {recipe.seed})"
        )
    column = target or named.target
    if not column:
        raise RecipeRefused("--target: name the column to predict")
    if named.features and recipe.lookup:
        from training.feature_store import dataset

        return dataset(recipe, data or Path(named.path), column, positive or named.positive, progress)
    return read_dataset(data or named.path, column, positive=positive or named.positive, task=recipe.task)
