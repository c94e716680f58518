"""A run from data to shelf: what comes back is what went in, and what is not good enough is not registered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training import recipe as recipes
from training import registry
from training.data import from_frame, read_dataset
from training.errors import DataRefused, GateFailed, NotRegistered, RecipeRefused
from training.evaluation import evaluate, judge
from training.features import encode_frame
from training.inference import tidy
from training.simulator import TARGET, simulate
from training.training import train

QUICK = "[rounds]\nmost = 40\npatience = 40\n"
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # deprecations of MLflow and what it uses are not ours to mend
    pytest.mark.usefixtures("shelf"),
]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


@pytest.mark.parametrize("algorithm", ["xgboost", "lightgbm"])
def test_what_is_registered_comes_back_and_answers_as_it_did(algorithm: str) -> None:
    dataset = from_frame(tidy(simulate(3000, seed=1).frame), TARGET)
    recipe = recipes.parse(f'algorithm = "{algorithm}"\n{QUICK}')
    trained = train(recipe, dataset, name="churn", aliases=("champion",))
    back = registry.download("churn@champion")
    assert back.schema == trained.schema
    assert back.classes == ("False", "True")
    assert back.version == "1" == registry.resolve("churn").version
    held_out = pd.read_parquet(back.holdout)
    metrics = evaluate(held_out[TARGET].to_numpy(), back.probability(encode_frame(back.schema, held_out)))
    assert metrics == pytest.approx(trained.metrics, abs=1e-12)
    reference = pd.read_parquet(back.reference)
    again = back.probability(encode_frame(back.schema, reference))
    assert np.array_equal(again, reference["prediction"].to_numpy())
    sections = [line for line in back.card.splitlines() if line.startswith("## ")]
    assert len(sections) == 6
    assert f"{metrics['roc_auc']:.4f}" in back.card
    run = registry.connect().get_run(back.lineage["run_id"])
    assert run.data.metrics["roc_auc"] == metrics["roc_auc"]
    assert run.data.tags["data_sha256"] == dataset.digest
    figures = {file.path for file in registry.connect().list_artifacts(run.info.run_id, "figures")}
    assert {"figures/roc.png", "figures/calibration.png", "figures/importance.png"} <= figures
    with pytest.raises(NotRegistered, match="champion, 1"):
        registry.resolve("churn@challenger")
    with pytest.raises(NotRegistered, match="there are: churn"):
        registry.resolve("chrun")


def test_a_model_that_fails_its_gate_is_recorded_and_not_registered() -> None:
    dataset = from_frame(tidy(simulate(1000, seed=2).frame), TARGET)
    recipe = recipes.parse(f'algorithm = "xgboost"\n{QUICK}\n[gates]\nmin_accuracy = 0.999\n')
    with pytest.raises(GateFailed, match=r"min_accuracy: 0\.\d+, wanted 0\.9990: FAILED"):
        train(recipe, dataset, name="churn")
    assert registry.models() == []
    assert (
        len(registry.connect().search_runs([registry.connect().get_experiment_by_name("coppice").experiment_id])) == 1
    )


def test_noise_does_not_beat_the_majority() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=800), "b": rng.normal(size=800), "y": rng.random(800) < 0.2})
    with pytest.raises(GateFailed, match="majority"):
        train(recipes.load("tabular-xgboost"), from_frame(frame, "y"), name="noise")


def test_a_bound_itself_passes() -> None:
    metrics = {"accuracy": 0.85, "log_loss": 0.3, "majority": 0.5}
    assert all(gate.passed for gate in judge(metrics, {"min_accuracy": 0.85, "max_log_loss": 0.3}))
    assert not judge(metrics | {"accuracy": 0.5}, {})[0].passed


def test_recipes_refuse_what_they_do_not_know() -> None:
    for text, named in {
        'algorithm = "xgboost"\nspeed = 9': "speed",
        'algorithm = "xgboost"\n[rounds]\nmots = 9': "mots",
        'algorithm = "catboost"': "catboost",
        'algorithm = "xgboost"\n[gates]\nmin_beauty = 1.0': "min_beauty",
        'algorithm = "xgboost"\n[params]\nobjective = "x"': "objective",
        'algorithm = "xgboost"\n[split]\nholdout = 1.5': "holdout",
        "algorithm = ": "recipe",
    }.items():
        with pytest.raises(RecipeRefused, match=named):
            recipes.parse(text)
    with pytest.raises(RecipeRefused, match="churn-lightgbm, churn-xgboost"):
        recipes.load("no-such")
    assert all(recipes.load(name) for name in recipes.built_in())


def test_parameters_that_a_library_refuses_are_refused_in_its_words() -> None:
    dataset = from_frame(tidy(simulate(500, seed=2).frame), TARGET)
    with pytest.raises(RecipeRefused, match="params"):
        train(recipes.parse('algorithm = "xgboost"\n[params]\nbooster = "gbtreee"'), dataset, name="churn")


def test_files_that_can_not_be_trained_on_are_refused_by_name(tmp_path: Path) -> None:
    good = pd.DataFrame({"a": range(40), "y": ["yes", "no"] * 20})
    cases = {
        "missing.csv": (None, "y", "no such file"),
        "bad.xlsx": (b"x", "y", "neither"),
        "empty.csv": (b"", "y", "empty"),
        "header.csv": (b"a,y\n", "y", "no rows"),
        "torn.parquet": (b"PAR1 nonsense", "y", "torn.parquet"),
        "other.csv": (good.to_csv(index=False).encode(), "z", "no column 'z'; it has a, y"),
        "three.csv": (b"a,y\n" + b"1,a\n2,b\n3,c\n" * 20, "y", "found 3: a, b, c"),
        "few.csv": (b"a,y\n" + b"1,a\n" * 20 + b"2,b\n", "y", "'b' has 1 rows"),
        "blank.csv": (b"a,y\n" + b"1,a\n2,b\n" * 20 + b"3,\n", "y", "1 rows have no label"),
        "twice.csv": (b"a, a,y\n1,2,a\n", "y", "a"),
    }
    for name, (content, target, words) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataRefused) as refused:
            read_dataset(path, target)
        assert name in str(refused.value), name
        assert words in str(refused.value), (name, str(refused.value))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["no", "no", "Yes"], ("no", "Yes")),
        (["1", "0", "1"], ("0", "1")),
        ([3, 7, 7], ("3", "7")),
        ([">50K", "<=50K", "<=50K"], ("<=50K", ">50K")),
        ([True, True, False], ("False", "True")),
        ([1.0, 0.0, 1.0], ("0", "1")),
    ],
)
def test_the_positive_class_is_yes_or_larger_or_rarer(labels: list[object], classes: tuple[str, str]) -> None:
    frame = pd.DataFrame({"a": range(60), "y": labels * 20})
    dataset = from_frame(frame, "y")
    assert dataset.classes == classes
    assert from_frame(frame, "y", positive=classes[0]).classes == classes[::-1]


def test_the_world_is_reproducible_and_its_best_auc_is_the_truths() -> None:
    from sklearn.metrics import roc_auc_score

    world, again = simulate(20_000, seed=3), simulate(20_000, seed=3)
    pd.testing.assert_frame_equal(world.frame, again.frame)
    drawn = [
        roc_auc_score(np.random.default_rng(n).random(20_000) < world.true_probability, world.true_probability)
        for n in range(5)
    ]
    assert np.mean(drawn) == pytest.approx(world.best_auc, abs=0.002)
    drifted = simulate(20_000, seed=3, covariate_drift=1.0)
    assert drifted.churned.mean() > world.churned.mean() + 0.1
    assert simulate(2000, seed=3, label_delay_days=5).label_known_after_days.mean() == pytest.approx(5, abs=0.5)
