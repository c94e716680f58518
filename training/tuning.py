"""A search for settings: Optuna's TPE over the recipe's space, each trial a cross-validation, kept in SQLite.

The holdout takes no part. A trial's score is the mean validation loss of its folds, each at its own best round; the mean
of those rounds, as `rounds`, and the spread over the folds, as `deviation`, stand beside it. The first fold's curve tells
the pruner whether the others are worth their time.

A study is named by what it searches: the model's name, the recipe and the data. Killed and called again, it goes on: a
trial that was cut off is marked as failed and its settings are asked first. One process searches a study at a time; a
second one is refused. In MLflow the study is a run, and each trial a run below it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from training import boosters, search_runs
from training.data import Dataset
from training.errors import RecipeRefused
from training.features import FeatureSchema, infer
from training.parts import Part, part_of
from training.recipe import Range, Recipe, Value
from training.splitting import folds, split

EVERY = 10  # rounds between two looks of the pruner
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """`recipe` has the best trial's settings. `run_id`: the study's MLflow run."""

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
    progress: Progress = lambda _: None,
) -> Found:
    """Search until the study has `trials` finished ones, or `timeout_s` passed. Raises RecipeRefused without a space."""
    if not recipe.search.space:
        raise RecipeRefused("search.space: the recipe has none; say there what may be tried")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage.parent.mkdir(parents=True, exist_ok=True)
    title = f"{name}-{_digest(recipe, dataset)}"
    with _alone(storage, title):
        study = _study(recipe, title, storage, recipe.seed if seed is None else seed)
        run_id = search_runs.study_run(study, name, recipe, dataset)
        _clear_up(study)
        done = _finished(study)
        if done:
            progress(f"study {title} goes on after {len(done)} trials")
        tables = _tables(recipe, dataset, schema)
        began = perf_counter()

        def told(study: optuna.Study, trial: FrozenTrial) -> None:
            search_runs.trial_run(run_id, trial)
            if trial.state == TrialState.FAIL:
                return
            score = f"loss {trial.value:.5f}" if trial.state == TrialState.COMPLETE else "pruned"
            best = min((t.value for t in study.get_trials(states=(TrialState.COMPLETE,)) if t.value), default=np.nan)
            settings = ", ".join(f"{key} {_short(value)}" for key, value in trial.params.items())
            progress(f"trial {len(_finished(study))}/{trials}: {score} (best {best:.5f}); {settings}")

        if len(done) < trials:
            study.optimize(
                lambda trial: _score(recipe, tables, trial),
                n_trials=trials - len(done),
                timeout=timeout_s,
                callbacks=[told],
            )
        if not study.get_trials(states=(TrialState.COMPLETE,)):
            raise RecipeRefused(f"{name}: no trial was finished in time; allow more of it")
        search_runs.close(study, run_id)
        progress(
            f"searched for {perf_counter() - began:.0f} s; best of {len(_finished(study))} trials: {study.best_value:.5f}"
        )
        best = recipe.with_settings(study.best_params)
        return Found(best, study.best_value, len(_finished(study)), run_id, title)


def _score(recipe: Recipe, tables: list[_Fold], trial: Trial) -> float:
    tried = recipe.with_settings({key: _suggested(trial, key, r) for key, r in recipe.search.space.items()})
    losses, rounds = [], []
    for number, fold in enumerate(tables):

        def look(round_: int, loss: float, first: bool = number == 0) -> None:
            if first:
                trial.report(loss, round_)
                if trial.should_prune():
                    raise optuna.TrialPruned

        fitted = boosters.fit(tried, fold.schema, fold.train, fold.measured, look, EVERY)
        losses.append(min(fitted.curve))
        rounds.append(fitted.rounds)
    trial.set_user_attr("rounds", float(np.mean(rounds)))
    trial.set_user_attr("deviation", float(np.std(losses)))
    return float(np.mean(losses))


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


@dataclass(frozen=True)
class _Fold:
    schema: FeatureSchema
    train: Part
    measured: Part


def _tables(recipe: Recipe, dataset: Dataset, schema: FeatureSchema | None) -> list[_Fold]:
    """Each fold encoded by what its own training rows hold, so that nothing of what it is measured on gets in."""
    parts = split(dataset, recipe)
    made = []
    for train, measured in folds(dataset, recipe, np.concatenate([parts["train"], parts["validation"]])):
        known = schema or recipe.schema or infer(dataset.features.iloc[train], exclude=[recipe.split.column])
        made.append(_Fold(known, part_of(dataset, known, train), part_of(dataset, known, measured)))
    return made


def _study(recipe: Recipe, title: str, storage: Path, seed: int) -> optuna.Study:
    """New, or as it was left. The sampler's numbers go on from the trials there are, or they would repeat themselves."""
    kept = optuna.storages.RDBStorage(f"sqlite:///{storage.resolve()}", engine_kwargs={"connect_args": {"timeout": 30}})
    pruners: dict[str, Any] = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=50),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=20, max_resource=recipe.rounds.most),
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


def _clear_up(study: optuna.Study) -> None:
    """What was running when the process was killed: failed, and asked again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _digest(recipe: Recipe, dataset: Dataset) -> str:
    told = msgspec.json.encode(recipe, order="sorted") + dataset.digest.encode()
    return hashlib.sha256(told).hexdigest()[:12]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _alone(storage: Path, title: str) -> Iterator[None]:
    """The lock falls with the process, however it ends."""
    handle = os.open(storage.with_name(f"{title}.lock"), os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise RecipeRefused(f"{title}: another process is searching this study") from None
    try:
        yield
    finally:
        os.close(handle)
