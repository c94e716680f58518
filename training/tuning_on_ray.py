"""The trials of a study on Ray Tune: here, or on the cluster at RAY_ADDRESS=HOST:PORT; ASHA ends those that fall behind.

The study stays where it was: this process asks it for settings and tells it the scores, so that it is resumed, recorded
and drawn as any other. The folds travel once, through Ray's object store. On a cluster each node needs the same Coppice
with its extra `train`. A trial takes one CPU. Ray is imported when a search begins, never when this module is.
"""

from __future__ import annotations

import tempfile
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from training.cross_validation import EVERY, Fold, Score, score
from training.errors import RecipeRefused
from training.ray_session import connected
from training.recipe import Recipe
from training.tuning import Told, grace, keep, suggested


def run(
    study: optuna.Study, recipe: Recipe, made: list[Fold], trials: int, timeout_s: float | None, told: Told
) -> None:
    """Bring `trials` more to an end. Raises RecipeRefused with what the first failed one said."""
    longest = recipe.rounds.most + EVERY  # what a trial's last report counts as: no first fold gets there
    with connected("--engine ray"), tempfile.TemporaryDirectory() as folder:
        from ray import tune

        trial = tune.with_parameters(_trial, recipe=recipe, made=made, longest=longest)
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                search_alg=_asking(study, recipe, told),
                scheduler=tune.schedulers.ASHAScheduler("round", max_t=longest, grace_period=grace(recipe)),
                num_samples=trials,
                reuse_actors=True,  # a new process would take longer than many a trial
                time_budget_s=timeout_s,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        failed = tuner.fit().errors
    if failed:
        raise RecipeRefused(f"a trial failed: {str(failed[0]).strip().splitlines()[-1]}")


def _trial(config: dict[str, Any], *, recipe: Recipe, made: list[Fold], longest: int) -> None:
    """On a worker."""
    from ray import tune

    found = score(recipe.with_settings(config), made, lambda round_, loss: tune.report({"round": round_, "loss": loss}))
    whole = {"loss": found.loss, "deviation": found.deviation, "rounds": found.rounds, "whole": True}
    tune.report(whole | {"round": longest})


def _asking(study: optuna.Study, recipe: Recipe, told: Told) -> Any:
    """Ray's way to a study: asks it for a trial, and tells it how that ended."""
    from ray.tune.search import Searcher

    class Asking(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(metric="loss", mode="min")
            self._open: dict[str, Trial] = {}

        def suggest(self, trial_id: str) -> dict[str, Any]:
            trial = study.ask()
            self._open[trial_id] = trial
            return dict(suggested(recipe, trial))

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            trial = self._open.pop(trial_id)
            if error or not result:
                ended = study.tell(trial, state=TrialState.FAIL)
            elif result.get("whole"):
                keep(trial, Score(result["loss"], result["deviation"], result["rounds"]))
                ended = study.tell(trial, result["loss"])
            else:
                trial.report(result["loss"], result["round"])
                ended = study.tell(trial, state=TrialState.PRUNED)
            told(study, ended)

        def save(self, checkpoint_path: str) -> None:
            """The study is kept as it is told: Ray need not keep it, too."""

        def restore(self, checkpoint_path: str) -> None:
            """As `save`."""

    return Asking()
