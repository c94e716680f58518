"""How good the whole way of tuning is: each outer fold is measured by a model whose settings it had no part in choosing.

The best score of a search flatters: it was chosen for being the best. Here, outer fold by outer fold, the search sees the
other folds alone, its best settings are fitted to them, and the fold is measured once. The mean and the spread of those
figures are what tuning on rows like these may be expected to reach. The studies are kept beside the search's own, so that
this goes on, too, where it was killed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import boosters, measures, search_runs, tuning
from training.data import Dataset
from training.features import FeatureSchema, infer
from training.parts import part_of
from training.recipe import Recipe
from training.splitting import Indices, folds


@dataclass(frozen=True)
class Expected:
    """The measured figures of each outer fold, by metric. `run_id`: their MLflow run."""

    figures: Mapping[str, tuple[float, ...]]
    run_id: str

    def lines(self) -> list[str]:
        """A line for each metric: mean and standard deviation over the folds."""
        return [
            f"nested {metric:20} {statistics.fmean(found):.4f} ± {statistics.stdev(found):.4f}   "
            f"({', '.join(f'{value:.4f}' for value in found)})"
            for metric, found in self.figures.items()
        ]


def nested(
    recipe: Recipe,
    dataset: Dataset,
    *,
    name: str,
    outer: int,
    trials: int,
    timeout_s: float | None = None,
    seed: int | None = None,
    storage: Path = Path("var/studies.db"),
    schema: FeatureSchema | None = None,
    progress: tuning.Progress = lambda _: None,
) -> Expected:
    """`trials` and `timeout_s` are each outer fold's. Rows of a holdout file take no part."""
    rows = np.arange(len(dataset.labels) - dataset.held_out)
    found: list[dict[str, float]] = []
    title = f"{name}-{tuning.digest(recipe, dataset)}-nested"
    with tuning.alone(recipe, storage, title):
        for number, (train, measured) in enumerate(folds(dataset, recipe, rows, outer), 1):
            study = tuning.opened(
                recipe, f"{title}-{number}-of-{outer}", storage, (recipe.seed if seed is None else seed) + number
            )

            def told(line: str, number: int = number) -> None:
                progress(f"fold {number}/{outer}: {line}")

            tuning.search(
                study, recipe, dataset, train, trials=trials, timeout_s=timeout_s, schema=schema, progress=told
            )
            found.append(_measured(tuning.best(recipe, study), dataset, train, measured, schema))
    figures = {metric: tuple(fold[metric] for fold in found) for metric in found[0]}
    return Expected(figures, search_runs.nested_run(name, recipe, dataset, figures))


def _measured(
    recipe: Recipe, dataset: Dataset, train: Indices, measured: Indices, schema: FeatureSchema | None
) -> dict[str, float]:
    known = schema or recipe.schema or infer(dataset.features.iloc[train], exclude=[recipe.split.column])
    fitted_to, unseen = (part_of(dataset, known, rows, recipe.query) for rows in (train, measured))
    fitted = boosters.fit(recipe, known, fitted_to, unseen, lambda *_: None)  # stops at the recipe's rounds, no sooner
    said = boosters.probability(fitted.booster, known, unseen.matrix)
    return measures.measure(recipe.task, unseen, said, fitted_to)
