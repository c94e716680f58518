"""A search for settings: Optuna's TPE over the recipe's space, each trial a cross-validation, kept in SQLite.

The holdout takes no part. A trial's score is the mean validation loss of its folds (`training.cross_validation`); the
first fold's curve tells the pruner whether the others are worth their time. What is found is the best trial's settings,
with the rounds that its folds wanted on average: the fit that follows stops there and not where its own rows say.

A study is named by what it searches: the model's name, the recipe and the data. Killed and called again, it goes on: a
trial that was cut off is marked as failed and its settings are asked first. One process searches a study at a time; a
second one is refused. In MLflow the study is a run, and each trial a run below it. Where the trials run - here, one after
another, or on a Ray cluster (`training.tuning_on_ray`) - is no part of the study, so that either goes on with the other's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import msgspec
import numpy as np
import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from training import search_runs
from training.cross_validation import Fold, Score, folds_of, score
from training.data import Dataset
from training.errors import RecipeRefused
from training.features import FeatureSchema
from training.recipe import Range, Recipe, Value
from training.splitting import Indices, split

Engine = Literal["optuna", "ray"]
Progress = Callable[[str], None]
Told = Callable[[optuna.Study, FrozenTrial], None]


@dataclass(frozen=True)
class Found:
    """`recipe` has the best trial's settings and rounds. `run_id`: the study's MLflow run."""

    recipe: Recipe
    loss: float
    trials: int
    run_id: str
    study: str


def tune(
    recipe: Recipe,
    dataset: Dataset,
    *,
    name: str,
    trials: int,
    timeout_s: float | None = None,
    seed: int | None = None,
    storage: Path = Path("var/studies.db"),
    schema: FeatureSchema | None = None,
    engine: Engine = "optuna",
    progress: Progress = lambda _: None,
) -> Found:
    """Search until the study has `trials` finished ones, or `timeout_s` passed. Raises RecipeRefused without a space."""
    title = f"{name}-{digest(recipe, dataset)}"
    parts = split(dataset, recipe)
    rows = np.concatenate([parts["train"], parts["validation"]])
    with alone(recipe, storage, title):
        study = opened(recipe, title, storage, recipe.seed if seed is None else seed)
        run_id = search_runs.study_run(study, name, recipe, dataset)
        search(
            study,
            recipe,
            dataset,
            rows,
            trials=trials,
            timeout_s=timeout_s,
            schema=schema,
            engine=engine,
            progress=progress,
            told=lambda _, trial: search_runs.trial_run(run_id, trial),
        )
        search_runs.close(study, run_id)
        return Found(best(recipe, study), study.best_value, len(finished(study)), run_id, title)


def search(
    study: optuna.Study,
    recipe: Recipe,
    dataset: Dataset,
    rows: Indices,
    *,
    trials: int,
    timeout_s: float | None = None,
    schema: FeatureSchema | None = None,
    engine: Engine = "optuna",
    progress: Progress = lambda _: None,
    told: Told = lambda _, __: None,
) -> None:
    """Bring the study to `trials` finished ones by cross-validation among `rows`. `told` hears of each that ended."""
    _clear_up(study)
    done = len(finished(study))
    if done:
        progress(f"study {study.study_name} goes on after {done} trials")
    began = perf_counter()

    def ended(study: optuna.Study, trial: FrozenTrial) -> None:
        told(study, trial)
        progress(_line(study, trial, trials))

    if done < trials:
        made = folds_of(recipe, dataset, rows, schema)
        if engine == "ray":
            from training import tuning_on_ray

            tuning_on_ray.run(study, recipe, made, trials - done, timeout_s, ended)
        else:
            study.optimize(
                partial(_objective, recipe, made), n_trials=trials - done, timeout=timeout_s, callbacks=[ended]
            )
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise RecipeRefused(f"{study.study_name}: no trial was finished; allow more time, or a narrower space")
    progress(
        f"searched for {perf_counter() - began:.0f} s; best of {len(finished(study))} trials: {study.best_value:.5f}"
    )


def suggested(recipe: Recipe, trial: Trial) -> dict[str, Value]:
    return {key: _suggested(trial, key, span) for key, span in recipe.search.space.items()}


def keep(trial: Trial, found: Score) -> None:
    trial.set_user_attr("rounds", found.rounds)
    trial.set_user_attr("deviation", found.deviation)


def best(recipe: Recipe, study: optuna.Study) -> Recipe:
    """The recipe with the best trial's settings, fitted for the rounds that its folds wanted."""
    found = recipe.with_settings(study.best_params)
    rounds = msgspec.structs.replace(found.rounds, most=int(study.best_trial.user_attrs["rounds"]), patience=0)
    return msgspec.structs.replace(found, rounds=rounds)


def grace(recipe: Recipe) -> int:
    """Rounds in which no trial is pruned: slow learners are behind at first, and often the best in the end."""
    return max(1, recipe.rounds.most // 4)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def digest(recipe: Recipe, dataset: Dataset) -> str:
    told = msgspec.json.encode(recipe, order="sorted") + dataset.digest.encode()
    return hashlib.sha256(told).hexdigest()[:12]


def opened(recipe: Recipe, title: str, storage: Path, seed: int) -> optuna.Study:
    """New, or as it was left. The sampler's numbers go on from the trials there are, or they would repeat themselves."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        kept = optuna.storages.RDBStorage(
            f"sqlite:///{storage.resolve()}", engine_kwargs={"connect_args": {"timeout": 30}}
        )
    except (SQLAlchemyError, RuntimeError, StorageInternalError) as unreadable:
        raise RecipeRefused(f"--storage {storage}: is no file of studies: {str(unreadable).splitlines()[0]}") from None
    pruners: dict[str, Any] = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=grace(recipe)),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(grace(recipe), recipe.rounds.most),
        "none": optuna.pruners.NopPruner,
    }
    study = optuna.create_study(
        storage=kept,
        study_name=title,
        direction="minimize",
        load_if_exists=True,
        pruner=pruners[recipe.search.pruner](),
    )
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


@contextmanager
def alone(recipe: Recipe, storage: Path, title: str) -> Iterator[None]:
    """The lock falls with the process, however it ends."""
    if not recipe.search.space:
        raise RecipeRefused("search.space: the recipe has none; say there what may be tried")
    try:
        storage.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(storage.with_name(f"{title}.lock"), os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as refused:
        raise RecipeRefused(f"--storage {storage}: {refused.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise RecipeRefused(f"{title}: another process is searching this study") from None
    try:
        yield
    finally:
        os.close(handle)


def _objective(recipe: Recipe, made: list[Fold], trial: Trial) -> float:
    def look(round_: int, loss: float) -> None:
        trial.report(loss, round_)
        if trial.should_prune():
            raise optuna.TrialPruned

    found = score(recipe.with_settings(suggested(recipe, trial)), made, look)
    keep(trial, found)
    return found.loss


def _suggested(trial: Trial, key: str, span: Range) -> Value:
    if span.choices:
        chosen = trial.suggest_categorical(key, span.choices)
        assert chosen is not None
        return chosen
    assert span.low is not None
    assert span.high is not None
    if isinstance(span.low, int) and isinstance(span.high, int):
        return trial.suggest_int(key, span.low, span.high, log=span.log)
    return trial.suggest_float(key, span.low, span.high, log=span.log)


def _clear_up(study: optuna.Study) -> None:
    """What was running when the process was killed: failed, and asked again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def _line(study: optuna.Study, trial: FrozenTrial, trials: int) -> str:
    ended = {TrialState.COMPLETE: f"loss {trial.value or np.nan:.5f}", TrialState.PRUNED: "pruned"}
    losses = [t.value for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.value is not None]
    settings = ", ".join(f"{key} {_short(value)}" for key, value in trial.params.items())
    score = ended.get(trial.state, "failed: its loss was no number")
    return f"trial {len(finished(study))}/{trials}: {score} (best {min(losses, default=np.nan):.5f}); {settings}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
