"""A search in MLflow: the study is a run, each trial a run below it, and pictures of history and importance go with it.

A nested cross-validation is a run of its own, beside the study's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from training import figures, registry
from training.data import Dataset
from training.recipe import Recipe, flat

RUN = "mlflow_run"


def study_run(study: optuna.Study, name: str, recipe: Recipe, dataset: Dataset) -> str:
    """The study's run, made when the study was; a store that has lost it gets a new one."""
    from mlflow.exceptions import MlflowException

    client = registry.connect()
    known = study.user_attrs.get(RUN)
    if known:
        try:
            client.update_run(known, status="RUNNING")
            return str(known)
        except MlflowException:
            pass
    run = client.create_run(_experiment(client), run_name=f"tune {name}")
    run_id = str(run.info.run_id)
    for key, value in flat(recipe).items():
        client.log_param(run_id, key, value)
    client.set_tag(run_id, "data_sha256", dataset.digest)
    client.set_tag(run_id, "study", study.study_name)
    study.set_user_attr(RUN, run_id)
    return run_id


def trial_run(parent: str, trial: FrozenTrial) -> None:
    client = registry.connect()
    began = int(trial.datetime_start.timestamp() * 1000) if trial.datetime_start else None
    tags = {"mlflow.parentRunId": parent, "state": trial.state.name}
    run = client.create_run(_experiment(client), began, tags, f"trial {trial.number}")
    run_id = run.info.run_id
    for key, value in trial.params.items():
        client.log_param(run_id, key, value)
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        client.log_metric(run_id, "loss", trial.value)
        for key in ("rounds", "deviation"):
            client.log_metric(run_id, key, trial.user_attrs[key])
    client.set_terminated(run_id, "FAILED" if trial.state == TrialState.FAIL else "FINISHED", int(time.time() * 1000))


def nested_run(name: str, recipe: Recipe, dataset: Dataset, figures: Mapping[str, Sequence[float]]) -> str:
    """The run of a nested cross-validation: each metric's mean and deviation, and as its steps the outer folds."""
    client = registry.connect()
    run_id = str(client.create_run(_experiment(client), run_name=f"nested {name}").info.run_id)
    for key, setting in flat(recipe).items():
        client.log_param(run_id, key, setting)
    client.set_tag(run_id, "data_sha256", dataset.digest)
    for metric, found in figures.items():
        for step, value in enumerate(found, 1):
            client.log_metric(run_id, f"fold.{metric}", value, step=step)
        client.log_metric(run_id, metric, statistics.fmean(found))
        client.log_metric(run_id, f"{metric}_deviation", statistics.stdev(found))
    client.set_terminated(run_id)
    return run_id


def close(study: optuna.Study, run_id: str) -> None:
    """The best figures and settings, the pictures, and the end of the study's run."""
    client = registry.connect()
    client.log_metric(run_id, "loss", study.best_value)
    for key, value in study.best_params.items():
        client.set_tag(run_id, f"best.{key}", str(value))
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = [trial.value for trial in complete if trial.value is not None]
    client.log_figure(run_id, figures.history([trial.number for trial in complete], values), "figures/history.png")
    shares = _importance(study)
    if shares:
        title = "Importance of the settings: share of the loss's variance"
        client.log_figure(run_id, figures.importance(shares, title=title), "figures/settings.png")
    client.set_terminated(run_id)


def _importance(study: optuna.Study) -> dict[str, float]:
    """By fANOVA; nothing where there are too few trials, or all were alike."""
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < 4:
        return {}
    try:
        found = optuna.importance.get_param_importances(study)
    except (RuntimeError, ValueError):
        return {}
    return {key: float(value) for key, value in found.items()}


def _experiment(client: Any) -> str:
    return str(client.get_experiment_by_name(registry.EXPERIMENT).experiment_id)
