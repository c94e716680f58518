"""A search: killed and called again it goes on; its holdout is never looked at; its runs are told in MLflow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from training import recipe as recipes
from training import registry
from training.data import from_frame
from training.errors import RecipeRefused
from training.inference import tidy
from training.simulator import TARGET, simulate
from training.tuning import tune

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and Optuna's own warnings
ROOT = Path(__file__).parents[2]
RECIPE = """algorithm = "xgboost"
[data]
simulated_rows = 800
[rounds]
most = 30
[search]
folds = 3
[search.space]
max_depth = { low = 3, high = 10 }
learning_rate = { low = 0.01, high = 0.3, log = true }
n_estimators = { low = 20, high = 30 }
"""


def test_a_search_killed_half_way_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "churn.toml").write_text(RECIPE, encoding="utf-8")
    storage = tmp_path / "studies.db"
    call = [sys.executable, "-W", "ignore", "-m", "coppice", "tune", str(tmp_path / "churn.toml"), "--trials", "5"]
    call += ["--name", "churn", "--storage", str(storage)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(call, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if "trial 2/5" in line:
            break
    first.send_signal(signal.SIGKILL)
    assert first.wait(30) == -signal.SIGKILL
    first.stdout.close()
    second = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "goes on after" in second.stdout
    assert "trial 1/5" not in second.stdout
    assert "trial 5/5" in second.stdout
    url = f"sqlite:///{storage}"
    study = optuna.load_study(study_name=optuna.get_all_study_names(url)[0], storage=url)
    finished = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == 5
    assert len({tuple(sorted(t.params.items())) for t in finished}) == 5, "a resumed search asks nothing twice"
    client = registry.connect()
    version = registry.resolve("churn")
    parent = client.get_run(version.run_id).data.tags["study_run"]
    below = client.search_runs(
        [client.get_experiment_by_name("coppice").experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"
    )
    told = [run for run in below if run.data.tags["state"] != "FAIL"]
    assert 4 <= len(told) <= 5  # the kill may fall between a trial and its run
    assert {"figures/history.png", "figures/settings.png"} <= {
        file.path for file in client.list_artifacts(parent, "figures")
    }


def test_the_holdout_has_no_say_in_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    from training.splitting import split

    recipe = recipes.parse(RECIPE)
    dataset = from_frame(tidy(simulate(1500, seed=1).frame), TARGET)
    clean = tune(recipe, dataset, name="a", trials=2, storage=tmp_path / "a.db")
    spoiled = dataset.features.copy()
    held_out = split(dataset, recipe)["holdout"]
    for column in spoiled.select_dtypes("number").columns:
        spoiled[column] = spoiled[column].astype(float)
        spoiled.iloc[held_out, spoiled.columns.get_loc(column)] = np.random.default_rng(0).normal(size=len(held_out))
    import dataclasses

    other = dataclasses.replace(dataset, features=spoiled)
    assert tune(recipe, other, name="b", trials=2, storage=tmp_path / "b.db").loss == clean.loss


def test_a_recipe_without_a_space_is_refused(tmp_path: Path) -> None:
    dataset = from_frame(tidy(simulate(500, seed=1).frame), TARGET)
    with pytest.raises(RecipeRefused, match=r"search\.space"):
        tune(recipes.load("tabular-xgboost"), dataset, name="a", trials=1, storage=tmp_path / "a.db")
