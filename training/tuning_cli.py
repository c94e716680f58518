"""`coppice tune`: search, train with what was found, measure, register."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from training.errors import RecipeRefused


def tune(
    recipe: Annotated[str, typer.Argument(help="a built-in recipe with a search, or the path of a TOML file")],
    data: Annotated[Path | None, typer.Option(help="CSV or Parquet, instead of the recipe's data")] = None,
    target: Annotated[str | None, typer.Option(help="the column to predict")] = None,
    positive: Annotated[str | None, typer.Option(help="the label whose probability is served")] = None,
    holdout: Annotated[
        Path | None, typer.Option(help="a file to measure on, once, at the end; no trial sees it")
    ] = None,
    name: Annotated[str | None, typer.Option(help="name to register under")] = None,
    trials: Annotated[int, typer.Option(min=1, help="trials in all, those before a resumption too")] = 40,
    timeout: Annotated[float | None, typer.Option(min=1, help="seconds after which no further trial begins")] = None,
    seed: Annotated[int | None, typer.Option(help="of the search; default: the recipe's")] = None,
    nested: Annotated[
        int, typer.Option(metavar="FOLDS", help="first measure the whole way by so many outer folds; 0: do not")
    ] = 0,
    engine: Annotated[
        str, typer.Option(help="optuna: here, one trial after another; ray: on Ray, here or at RAY_ADDRESS")
    ] = "optuna",
    storage: Annotated[Path, typer.Option(help="the studies' SQLite file")] = Path("var/studies.db"),
    alias: Annotated[list[str] | None, typer.Option(help="alias to give the new version; may be repeated")] = None,
) -> None:
    """Search the recipe's space by cross-validation, train with the best settings, measure on the holdout, register.

    Killed, the same call goes on where it stopped.

    \b
        coppice tune tuned-xgboost --data rows.csv --target churned --nested 5
        coppice tune tuned-lightgbm --data train.csv --target y --holdout test.csv --trials 60 --timeout 1800
    """
    from training import nested as outer
    from training import recipe as recipes
    from training import registry
    from training.cli import dataset_of
    from training.data import joined, read_dataset
    from training.training import train as run
    from training.tuning import tune as search

    began = perf_counter()

    def progress(text: str) -> None:
        typer.echo(f"  {perf_counter() - began:6.1f} s  {text}")

    if engine not in ("optuna", "ray"):
        raise RecipeRefused(f"--engine: {engine!r} is neither optuna nor ray")
    if nested < 0 or nested == 1:
        raise RecipeRefused("--nested: at least 2 outer folds are needed, or 0 for none")
    chosen = recipes.load(recipe)
    dataset = dataset_of(chosen, data, target, positive)
    if holdout:
        label = dataset.classes[1] if chosen.task == "binary" else None
        dataset = joined(dataset, read_dataset(holdout, dataset.target, positive=label, task=chosen.task))
    named = name or chosen.model or (data.name.split(".")[0] if data else "model")
    tags = {}
    if nested:
        expected = outer.nested(
            chosen,
            dataset,
            name=named,
            outer=nested,
            trials=trials,
            timeout_s=timeout,
            seed=seed,
            storage=storage,
            progress=progress,
        )
        for line in expected.lines():
            progress(line)
        tags["nested_run"] = expected.run_id
    found = search(
        chosen,
        dataset,
        name=named,
        trials=trials,
        timeout_s=timeout,
        seed=seed,
        storage=storage,
        engine="ray" if engine == "ray" else "optuna",
        progress=progress,
    )
    trained = run(found.recipe, dataset, name=named, aliases=tuple(alias or ()), progress=progress)
    for key, value in (tags | {"study_run": found.run_id}).items():
        registry.connect().set_tag(trained.registered.run_id, key, value)
    typer.echo(trained.registered.reference)
