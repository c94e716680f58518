"""A search: killed and called again it goes on; its holdout is never looked at; its runs are told in MLflow."""

from __future__ import annotations

import dataclasses
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from coppice import app
from training import recipe as recipes
from training import registry
from training.data import Dataset, from_frame
from training.errors import RecipeRefused
from training.inference import tidy
from training.nested import nested
from training.simulator import TARGET, simulate
from training.splitting import split
from training.training import train
from training.tuning import tune

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("shelf")]  # MLflow's, Optuna's, Ray's own
ROOT = Path(__file__).parents[2]
RECIPE = """algorithm = "xgboost"
[data]
simulated_rows = 800
[rounds]
most = 30
[evaluation]
resamples = 100
[search]
folds = 3
[search.space]
max_depth = { low = 3, high = 10 }
learning_rate = { low = 0.01, high = 0.3, log = true }
n_estimators = { low = 20, high = 30 }
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for the whole module: to set a store up takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('shelf') / 'mlflow.db'}")
        registry.connect()
        patch.setenv("OMP_NUM_THREADS", "1")  # of the processes below this one
        with threadpool_limits(1):  # threads that wait for one another are slow where cores are shared
            yield


def table(rows: int) -> Dataset:
    return from_frame(tidy(simulate(rows, seed=1).frame), TARGET)


def below(parent: str) -> list[dict[str, str]]:
    """Tags of the runs below a run."""
    client = registry.connect()
    found = client.search_runs(
        [client.get_experiment_by_name("coppice").experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"
    )
    return [run.data.tags for run in found]


def test_a_search_killed_half_way_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "churn.toml").write_text(RECIPE, encoding="utf-8")
    storage = tmp_path / "studies.db"
    arguments = ["tune", str(tmp_path / "churn.toml"), "--trials", "5", "--name", "churn", "--storage", str(storage)]
    call = [sys.executable, "-W", "ignore", "-m", "coppice", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(call, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if "trial 2/5" in line:
            break
    first.send_signal(signal.SIGKILL)
    assert first.wait(30) == -signal.SIGKILL
    first.stdout.close()
    monkeypatch.setattr("sys.argv", ["coppice", "tune"])  # by which the command line knows that a verb is called
    second = CliRunner().invoke(app, arguments)
    assert second.exit_code == 0, second.output
    assert "goes on after" in second.output
    assert "trial 1/5" not in second.output
    assert "trial 5/5" in second.output
    url = f"sqlite:///{storage}"
    study = optuna.load_study(study_name=optuna.get_all_study_names(url)[0], storage=url)
    finished = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == 5
    assert len({tuple(sorted(t.params.items())) for t in finished}) == 5, "a resumed search asks nothing twice"
    version = registry.resolve("churn")
    client = registry.connect()
    run = client.get_run(version.run_id).data
    assert int(run.params["rounds.kept"]) == study.best_trial.user_attrs["rounds"], "the folds say how long to fit"
    parent = run.tags["study_run"]
    told = [tags for tags in below(parent) if tags["state"] != "FAIL"]
    assert 4 <= len(told) <= 5  # the kill may fall between a trial and its run
    assert {"figures/history.png", "figures/settings.png"} <= {
        file.path for file in client.list_artifacts(parent, "figures")
    }


def test_the_holdout_has_no_say_in_the_search(tmp_path: Path) -> None:
    recipe, dataset = recipes.parse(RECIPE), table(800)
    clean = tune(recipe, dataset, name="a", trials=2, storage=tmp_path / "a.db")
    spoiled = dataset.features.copy()
    held_out = split(dataset, recipe)["holdout"]
    for column in spoiled.select_dtypes("number").columns:
        spoiled[column] = spoiled[column].astype(float)
        spoiled.iloc[held_out, spoiled.columns.get_loc(column)] = np.random.default_rng(0).normal(size=len(held_out))
    other = dataclasses.replace(dataset, features=spoiled)
    assert tune(recipe, other, name="b", trials=2, storage=tmp_path / "b.db").loss == clean.loss


def test_what_falls_behind_is_pruned_and_two_may_not_search_one_study(tmp_path: Path) -> None:
    text = RECIPE.replace("most = 30", "most = 150").replace("{ low = 20, high = 30 }", "{ low = 150, high = 150 }")
    recipe, dataset = recipes.parse(text), table(800)
    seen: list[str] = []

    def progress(line: str) -> None:
        seen.append(line)
        if len(seen) == 1:
            with pytest.raises(RecipeRefused, match="another process is searching"):
                tune(recipe, dataset, name="pruned", trials=1, storage=tmp_path / "a.db")

    found = tune(recipe, dataset, name="pruned", trials=14, storage=tmp_path / "a.db", progress=progress)
    states = [tags["state"] for tags in below(found.run_id)]
    assert states.count("PRUNED") == sum(": pruned (best" in line for line in seen) > 0
    assert len(states) == found.trials == 14
    assert found.recipe.rounds.patience == 0
    assert found.recipe.rounds.most < 150


def test_nested_folds_are_measured_by_models_that_never_saw_them(tmp_path: Path) -> None:
    recipe, dataset = recipes.parse(RECIPE), table(900)
    expected = nested(recipe, dataset, name="outer", outer=3, trials=2, storage=tmp_path / "a.db")
    aucs = expected.figures["roc_auc"]
    assert len(aucs) == 3
    assert 0.6 < min(aucs) < max(aucs) < 0.95
    run = registry.connect().get_run(expected.run_id).data.metrics
    assert run["roc_auc"] == pytest.approx(statistics.fmean(aucs))
    assert run["roc_auc_deviation"] == pytest.approx(statistics.stdev(aucs))
    noise = dataclasses.replace(dataset, labels=np.random.default_rng(0).permutation(dataset.labels))
    guessed = nested(recipe, noise, name="noise", outer=3, trials=2, storage=tmp_path / "b.db").figures["roc_auc"]
    assert abs(statistics.fmean(guessed) - 0.5) < 0.1, "labels that nothing explains are not explained"


def test_ray_searches_the_same_study_to_a_score_within_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    recipe, dataset = recipes.parse(RECIPE), table(900)
    here = tune(recipe, dataset, name="here", trials=3, storage=tmp_path / "here.db")
    seen: list[str] = []
    there = tune(
        recipe, dataset, name="there", trials=3, storage=tmp_path / "there.db", engine="ray", progress=seen.append
    )
    assert there.trials == here.trials == 3
    assert len(below(there.run_id)) == 3
    assert sum(line.startswith("trial ") for line in seen) == 3
    url = f"sqlite:///{tmp_path / 'there.db'}"
    deviation = optuna.load_study(study_name=there.study, storage=url).best_trial.user_attrs["deviation"]
    assert abs(there.loss - here.loss) < 2 * deviation / np.sqrt(recipe.search.folds)
    more = tune(recipe, dataset, name="there", trials=4, storage=tmp_path / "there.db", progress=seen.append)
    assert any("goes on after 3 trials" in line for line in seen), "where the trials ran is no part of the study"
    assert more.loss <= there.loss
    assert train(there.recipe, dataset, name="there").metrics["roc_auc"] > 0.6


def test_a_store_that_is_none_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, and long enough to be looked at as one\n" * 20, encoding="utf-8")
    (tmp_path / "file").touch()
    for storage in (tmp_path / "text.db", tmp_path / "file" / "a.db"):
        with pytest.raises(RecipeRefused, match=str(storage)):
            tune(recipes.parse(RECIPE), table(500), name="a", trials=1, storage=storage)


def test_a_recipe_without_a_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeRefused, match=r"search\.space"):
        tune(recipes.load("tabular-xgboost"), table(500), name="a", trials=1, storage=tmp_path / "a.db")
