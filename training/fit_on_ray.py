"""One booster fitted by several processes on Ray, each to its share of a file's rows: here, or at RAY_ADDRESS=HOST:PORT.

XGBoost's own way of distributed training: the workers form a communicator (`xgboost.collective`) around a tracker in this
process, and every round adds up the histograms of all of them, so that they grow the same trees. A worker reads every n-th
row group of the Parquet file, encodes what it read to its own disk (`training.out_of_core`) and validates on every n-th
validation row; the losses are added up, too. Each node needs Coppice with its extras `train` and `ray`, and the file under the
same path. A worker takes one CPU. Ray is imported when a fit begins, never when this module is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from training import boosters
from training.errors import RecipeRefused, TrainingError
from training.features import FeatureSchema
from training.out_of_core import OutOfCore, row_groups, temporary
from training.parts import Part
from training.ray_session import connected
from training.recipe import Recipe
from training.splitting import Indices


def refuse_unfit(recipe: Recipe, path: Path, workers: int) -> None:
    """Raises RecipeRefused for what is not fitted by several."""
    if recipe.algorithm != "xgboost":
        raise RecipeRefused(f"--workers: {recipe.algorithm} is fitted by one process; several fit xgboost")
    if recipe.task not in ("binary", "regression") or recipe.weights != "equal":
        raise RecipeRefused("--workers: several fit two classes or a regression, with weights = 'equal'")
    groups = row_groups(path)
    if groups < workers:
        raise RecipeRefused(
            f"--workers {workers}: {path.name} has {groups} row groups, and each worker needs one; write smaller ones"
        )


def fit(
    recipe: Recipe,
    schema: FeatureSchema,
    given: OutOfCore,
    rows: Mapping[str, Indices],
    validation: Part,
    workers: int,
) -> boosters.Fitted:
    """What `boosters.fit` makes of all the file's rows but those that judge. Raises RecipeRefused, DataRefused."""
    from xgboost.tracker import RabitTracker

    # Workers end with Ray, which ends first: to cancel one just as it finishes makes Ray abort this process (its issue 54846).
    with ExitStack() as last, connected("--workers", workers) as cluster:
        import ray

        tracker = RabitTracker(n_workers=workers, host_ip=ray.util.get_node_ip_address() if cluster else "127.0.0.1")
        last.callback(_freed, tracker)
        try:
            tracker.start()
            work = ray.remote(num_cpus=1, max_retries=0)(_work)
            task = [ray.put(part) for part in (recipe, schema, given, rows, validation)]
            told = [work.remote(number, workers, tracker.worker_args(), *task) for number in range(workers)]
            first: boosters.Fitted = ray.get(told)[0]
            return first
        except ray.exceptions.RayTaskError as failed:
            cause = failed.as_instanceof_cause()
            raise (cause if isinstance(cause, TrainingError) else RecipeRefused(f"a worker failed: {cause}")) from None
        except ray.exceptions.RayError as lost:
            raise RecipeRefused(f"a worker was lost: {str(lost).strip().splitlines()[0]}") from None


def _freed(tracker: Any) -> None:
    from xgboost.core import XGBoostError

    with suppress(XGBoostError):  # where workers never met, to end their meeting is an error of its own
        tracker.free()


def _work(
    number: int,
    workers: int,
    communicator: Mapping[str, Any],
    recipe: Recipe,
    schema: FeatureSchema,
    given: OutOfCore,
    rows: Mapping[str, Indices],
    validation: Part,
) -> boosters.Fitted | None:
    """On a worker. The booster is the same on all of them; the first one's is taken."""
    from xgboost import collective

    with temporary() as folder:
        mine = dataclasses.replace(given, folder=Path(folder))
        groups = range(number, row_groups(given.path), workers)
        on_disk = mine.fitting(schema, rows, lambda _: None, groups=list(groups))
        share = dataclasses.replace(
            validation,
            matrix=validation.matrix[number::workers].copy(),
            labels=validation.labels[number::workers].copy(),
        )
        with collective.CommunicatorContext(**communicator):
            fitted = boosters.fit(recipe, schema, on_disk, share, lambda *_: None)
    return fitted if number == 0 else None
