"""scikit-learn's forests by recipe, the whole way; and what they do not take."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from inprocess import route
from running import Running
from typer.testing import CliRunner

from compile import build_bundle
from compile.bundle import publish
from coppice import app
from training import recipe as recipes
from training import registry
from training.data import Dataset, from_frame
from training.errors import DataRefused, RecipeRefused
from training.features import decode_matrix
from training.training import train
from training.tuning import tune

ROUNDS = "[rounds]\nmost = 20\npatience = 0\n"
ASKED = 20
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("shelf")]  # MLflow's own warnings


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('shelf') / 'mlflow.db'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def table(rows: int = 800) -> pd.DataFrame:
    """A number of which some are missing, a category, a boolean; targets of every kind."""
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"a": rng.normal(size=rows), "plan": rng.choice(["x", "y", "z"], rows)})
    frame["paid"] = rng.random(rows) < 0.5
    frame["value"] = 3 * frame.a + 2 * (frame.plan == "x") + frame.paid + rng.normal(0, 0.3, rows)
    frame["grade"] = np.select([frame.value < -1, frame.value < 2], ["low", "mid"], "high")
    frame["left"] = np.where(frame.value > 1, "yes", "no")
    frame.loc[rng.random(rows) < 0.1, "a"] = np.nan
    return frame


def dataset(target: str, task: recipes.Task, frame: pd.DataFrame | None = None) -> Dataset:
    frame = table() if frame is None else frame
    return from_frame(frame[["a", "plan", "paid", target]], target, task=task)


def recipe(algorithm: str, task: str, more: str = "", head: str = "") -> recipes.Recipe:
    return recipes.parse(f'algorithm = "{algorithm}"\ntask = "{task}"\n{head}{ROUNDS}{more}')


def served(name: str, store: Path, serve: Callable[..., Running]) -> tuple[registry.Shelf, list[dict[str, object]]]:
    back = registry.download(name)
    built = build_bundle(
        back.native, back.schema, back.rows, store.parent / "built", name=name, version="1", classes=back.classes,
        reference=back.reference, card=back.card, lineage=back.lineage, cross_check=False,
    )  # fmt: skip
    route(store, name, {"champion": publish(built, store)})
    running = serve(store)
    columns = decode_matrix(back.schema, back.rows[:ASKED])
    answers = []
    for i in range(ASKED):
        body = json.dumps({key: values[i] for key, values in columns.items()}).encode()
        status, _, answer = running.ask("/predict", body)
        assert status == 200, answer
        answers.append(json.loads(answer))
    return back, answers


def test_a_classifier_is_served_as_scikit_learn_answers(tmp_path: Path, serve: Callable[..., Running]) -> None:
    chosen = recipe("random_forest", "binary", "[params]\nmin_samples_leaf = 3\n", 'weights = "balanced"\n')
    trained = train(chosen, dataset("left", "binary"), name="left", aliases=("champion",))
    assert trained.rounds == 20
    assert trained.metrics["roc_auc"] > 0.9
    back, answers = served("left", tmp_path / "store", serve)
    assert type(back.native).__name__ == "RandomForestClassifier"
    assert np.isnan(back.rows[:ASKED]).any(), "a missing value is among what was asked"
    said = back.native.predict_proba(back.rows[:ASKED])[:, 1]
    assert [answer["probability"] for answer in answers] == pytest.approx(said.tolist(), abs=1e-6)
    assert [answer["prediction"] for answer in answers] == np.where(said > 0.5, "yes", "no").tolist()


def test_several_classes_are_served_as_scikit_learn_answers(tmp_path: Path, serve: Callable[..., Running]) -> None:
    train(recipe("extra_trees", "multiclass"), dataset("grade", "multiclass"), name="grade")
    back, answers = served("grade", tmp_path / "store", serve)
    said = back.native.predict_proba(back.rows[:ASKED])
    probabilities = [[answer["probabilities"][label] for label in back.classes] for answer in answers]  # type: ignore[index]
    np.testing.assert_allclose(probabilities, said, rtol=0, atol=1e-6)
    assert [answer["prediction"] for answer in answers] == [back.classes[code] for code in said.argmax(axis=1)]


def test_a_regression_is_served_as_scikit_learn_answers(tmp_path: Path, serve: Callable[..., Running]) -> None:
    chosen = recipe("random_forest", "regression", "refit = true\n[gates]\nmin_r2 = 0.7\n")
    train(chosen, dataset("value", "regression"), name="value")
    back, answers = served("value", tmp_path / "store", serve)
    said = back.native.predict(back.rows[:ASKED])
    assert [answer["prediction"] for answer in answers] == pytest.approx(said.tolist(), abs=1e-6)


def test_the_curve_is_the_loss_of_the_first_trees_together() -> None:
    """The last of it is what scikit-learn says of the whole forest."""
    from sklearn.metrics import log_loss, root_mean_squared_error

    from training import boosters
    from training.features import infer
    from training.parts import part_of
    from training.splitting import split

    tasks: tuple[tuple[str, recipes.Task], ...] = (("grade", "multiclass"), ("value", "regression"))
    for target, task in tasks:
        chosen, data = recipe("extra_trees", task), dataset(target, task)
        seen: dict[int, float] = {}
        rows = split(data, chosen)
        schema = infer(data.features)
        parts = {name: part_of(data, schema, of_it) for name, of_it in rows.items()}
        fitted = boosters.fit(chosen, schema, parts["train"], parts["validation"], seen.__setitem__, every=10)
        said = boosters.probability(fitted.booster, schema, parts["validation"].matrix)
        whole = (root_mean_squared_error if task == "regression" else log_loss)(parts["validation"].labels, said)
        assert len(fitted.curve) == fitted.rounds == 20
        assert fitted.curve[-1] == pytest.approx(whole)
        assert seen == {10: fitted.curve[9], 20: fitted.curve[19]}
        assert sum(fitted.importance.values()) == pytest.approx(1)
        again = boosters.fit(chosen, schema, parts["train"], parts["validation"], lambda *_: None)
        assert again.curve == fitted.curve


def test_a_calibrated_forest_compiles_to_what_scikit_learn_answers(tmp_path: Path) -> None:
    train(recipe("random_forest", "binary", head='calibration = "platt"\n'), dataset("left", "binary"), name="curved")
    back = registry.download("curved")
    assert type(back.native).__name__ == "CalibratedClassifierCV"
    built = build_bundle(
        back.native, back.schema, back.rows, tmp_path, name="curved", version="1", classes=back.classes,
        reference=back.reference, card=back.card, lineage=back.lineage, cross_check=False,
    )  # fmt: skip
    from compile import open_predictor

    said = open_predictor(built).score(back.rows).ravel()
    np.testing.assert_allclose(said, back.probability(back.rows), rtol=0, atol=1e-12)


def test_a_constrained_forest_never_falls() -> None:
    frame = table()
    frame["value"] += 4 * np.sin(4 * frame.a.fillna(0))
    for name, constraint, falls in (("free", "", True), ("held", "[monotone]\na = 1\n", False)):
        train(recipe("extra_trees", "regression", constraint), dataset("value", "regression", frame), name=name)
        back = registry.download(name)
        grid = np.repeat(back.rows[:1], 200, axis=0)
        grid[:, back.schema.names.index("a")] = np.linspace(-2, 2, 200)
        assert bool((np.diff(back.probability(grid)) < 0).any()) is falls


def test_a_search_finds_the_settings_of_a_forest(tmp_path: Path) -> None:
    space = (
        "[search]\nfolds = 2\n[search.space]\nmax_depth = { low = 1, high = 6 }\nn_estimators = { low = 5, high = 9 }\n"
    )
    chosen = recipe("random_forest", "regression", space)
    found = tune(chosen, dataset("value", "regression"), name="found", trials=4, storage=tmp_path / "a.db")
    assert 5 <= found.recipe.rounds.most <= 9
    assert found.recipe.rounds.patience == 0
    assert int(found.recipe.params["max_depth"]) > 1, "one split is too few"


def test_settings_that_a_forest_can_not_have_are_refused() -> None:
    for text, words in {
        "": "rounds.patience: a random_forest does not stop early; set patience = 0",
        f"{ROUNDS}[params]\nn_estimators = 5": "rounds.most",
        f"{ROUNDS}[params]\nclass_weight = 'balanced'": "class_weight: is set by the training",
        f"{ROUNDS}[params]\nn_jobs = 2": "n_jobs",
        f"task = 'ranking'\n{ROUNDS}[split]\nby = 'group'\ncolumn = 'q'": "ranking",
        f"task = 'multiclass'\n{ROUNDS}[monotone]\na = 1": "monotone",
    }.items():
        with pytest.raises(RecipeRefused, match=words):
            recipes.parse(f'algorithm = "random_forest"\n{text}')
    for more, words in {
        "[params]\nmax_depth = -3": "'max_depth' parameter of RandomForestClassifier",
        "[params]\nnum_leaves = 3": "num_leaves",
        "[params]\nmin_samples_leaf = 0": "min_samples_leaf",
        "[monotone]\nplan = 1": "monotone.plan: is a category",
    }.items():
        with pytest.raises(RecipeRefused, match=words):
            train(recipe("random_forest", "binary", more), dataset("left", "binary"), name="no")


def test_a_number_beyond_float32_is_refused_and_said_so() -> None:
    chosen, frame = recipe("random_forest", "regression"), table()
    train(chosen, dataset("value", "regression", frame), name="vast")
    back = registry.download("vast")
    with pytest.raises(DataRefused, match="rows: Input X contains infinity or a value too large"):
        back.probability(np.full_like(back.rows[:1], 1e300))
    frame.loc[frame.a > 0, "a"] = 1e300
    with pytest.raises(RecipeRefused, match="random_forest: Input X contains infinity or a value too large"):
        train(chosen, dataset("value", "regression", frame), name="vast")


def test_the_command_trains_a_forest_that_fits_in_memory_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["coppice", "train"])  # by which the command line knows that a verb is called
    table().drop(columns=["value", "grade"]).to_parquet("rows.parquet")
    asked = ["train", "--data", "rows.parquet", "--target", "left", "--algorithm", "random_forest"]
    for call, words in {
        (*asked, "--out-of-core"): "algorithm random_forest: can't be had with rows that stay on disk",
        ("train", "--algorithm", "extra_trees"): "--algorithm extra_trees: needs --data, or a recipe",
        ("train", "--algorithm", "trees"): "'trees' is none of xgboost, lightgbm, random_forest, extra_trees",
    }.items():
        refused = CliRunner().invoke(app, list(call))
        assert isinstance(refused.exception, RecipeRefused)
        assert words in str(refused.exception)
    ran = CliRunner().invoke(app, asked)
    assert ran.exit_code == 0, ran.output
    assert "fitted random_forest: 300 rounds" in ran.output
    assert registry.resolve("rows").tags["algorithm"] == "random_forest"
