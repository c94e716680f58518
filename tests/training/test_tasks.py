"""Regressions and several classes, the whole way; splits by time and group; weights and constraints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import msgspec
import numpy as np
import pandas as pd
import pytest
from inprocess import route
from running import Running
from threadpoolctl import threadpool_limits

from compile import build_bundle
from compile.bundle import publish
from training import recipe as recipes
from training import registry
from training.data import from_frame, joined, read_frame
from training.errors import DataRefused, RecipeRefused
from training.features import decode_matrix
from training.splitting import folds, split
from training.training import train
from training.tuning import tune

DAY = 48  # half-hours
QUICK = "[rounds]\nmost = 30\nrefit = true\n"
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("shelf")]  # MLflow's own warnings


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for the whole module: to set a store up takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('shelf') / 'mlflow.db'}")
        with threadpool_limits(1):  # threads that wait for one another are slow where cores are shared
            yield


def table(rows: int = 900) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": rng.normal(size=rows), "plan": rng.choice(["x", "y", "z"], rows), "day": np.arange(rows), "who": "p"}
    )
    frame["who"] = rng.integers(0, 60, rows).astype(str)
    frame["value"] = 3 * frame.a + 2 * (frame.plan == "x") + rng.normal(0, 0.3, rows)
    frame["grade"] = np.select([frame.value < -1, frame.value < 2], ["low", "mid"], "high")
    return frame


def made(task: str, **more: str) -> recipes.Recipe:
    lines = "".join(f'{key} = "{value}"\n' for key, value in more.items())
    return recipes.parse(f'algorithm = "xgboost"\ntask = "{task}"\n{lines}{QUICK}')


def served(name: str, store: Path, serve: Callable[..., Running]) -> tuple[registry.Shelf, list[dict[str, object]]]:
    """What the native library says of the holdout's first rows comes back from /predict."""
    back = registry.download(name)
    built = build_bundle(
        back.native, back.schema, back.rows, store.parent / "built", name=name, version="1", classes=back.classes,
        reference=back.reference, card=back.card, lineage=back.lineage, cross_check=False,
    )  # fmt: skip
    route(store, name, {"champion": publish(built, store)})
    running = serve(store)
    columns = decode_matrix(back.schema, back.rows[:20])
    answers = []
    for i in range(20):
        body = json.dumps({key: values[i] for key, values in columns.items()}).encode()
        status, _, answer = running.ask("/predict", body)
        assert status == 200, answer
        answers.append(json.loads(answer))
    return back, answers


@pytest.mark.parametrize("algorithm", ["xgboost", "lightgbm"])
def test_a_regression_is_served_as_its_library_answers(
    algorithm: str, tmp_path: Path, serve: Callable[..., Running]
) -> None:
    recipe = recipes.parse(f'algorithm = "{algorithm}"\ntask = "regression"\n{QUICK}')
    frame = table().drop(columns=["grade", "who", "day"])
    trained = train(recipe, from_frame(frame, "value", task="regression"), name="value")
    assert trained.metrics["r2"] > 0.9
    back, answers = served("value", tmp_path / "store", serve)
    assert [answer["prediction"] for answer in answers] == back.probability(back.rows[:20]).tolist()


@pytest.mark.parametrize("algorithm", ["xgboost", "lightgbm"])
def test_several_classes_are_served_as_their_library_answers(
    algorithm: str, tmp_path: Path, serve: Callable[..., Running]
) -> None:
    recipe = recipes.parse(f'algorithm = "{algorithm}"\ntask = "multiclass"\nweights = "balanced"\n{QUICK}')
    frame = table().drop(columns=["value", "who", "day"])
    trained = train(recipe, from_frame(frame, "grade", task="multiclass"), name="grade")
    assert trained.metrics["accuracy"] > 0.8
    back, answers = served("grade", tmp_path / "store", serve)
    said = back.probability(back.rows[:20])
    assert [answer["prediction"] for answer in answers] == [back.classes[code] for code in said.argmax(axis=1)]
    probabilities = [[answer["probabilities"][label] for label in back.classes] for answer in answers]  # type: ignore[index]
    np.testing.assert_allclose(probabilities, said, atol=4 * np.finfo(np.float32).eps)
    assert {f"prediction[{label}]" for label in back.classes} <= set(pd.read_parquet(back.reference).columns)


@pytest.mark.parametrize("algorithm", ["xgboost", "lightgbm"])
def test_a_ranking_orders_each_query_and_is_served_as_its_library_answers(
    algorithm: str, tmp_path: Path, serve: Callable[..., Running]
) -> None:
    """Relevance is relative: the best of a query may look worse than the worst of another."""
    rng = np.random.default_rng(3)
    search = np.repeat(rng.permutation(150), 8)
    frame = pd.DataFrame({"search": search, "price": rng.normal(size=len(search)), "stars": rng.integers(1, 6, 1200)})
    worth = frame.stars - 2 * frame.price + rng.normal(0, 0.5, 1200)
    frame["clicks"] = worth.groupby(frame.search).rank().sub(5).clip(lower=0)
    frame = frame.sample(frac=1.0, random_state=0)
    recipe = recipes.parse(
        f'algorithm = "{algorithm}"\ntask = "ranking"\n[split]\nby = "group"\ncolumn = "search"\n{QUICK}'
    )
    dataset = from_frame(frame, "clicks", task="ranking")
    trained = train(recipe, dataset, name="searched")
    assert trained.schema.names == ("price", "stars")
    assert trained.metrics["ndcg_10"] > 0.85 > trained.metrics["ndcg_10_of_chance"] + 0.1
    back, answers = served("searched", tmp_path / "store", serve)
    assert [answer["prediction"] for answer in answers] == back.probability(back.rows[:20]).tolist()
    again = tune(with_space(recipe), dataset, name="searched", trials=2, storage=tmp_path / "a.db")
    assert 0 < again.loss < 0.15  # 1 - NDCG


def with_space(recipe: recipes.Recipe) -> recipes.Recipe:
    search = recipes.Search(folds=2, pruner="none", space={"max_depth": recipes.Range(low=2, high=4)})
    return msgspec.structs.replace(recipe, search=search)


@pytest.mark.parametrize(("algorithm", "method"), [("xgboost", "platt"), ("lightgbm", "isotonic")])
def test_a_calibrated_model_is_nearer_to_the_shares_and_served_as_scikit_learn_answers(
    algorithm: str, method: str, tmp_path: Path, serve: Callable[..., Running]
) -> None:
    """Balanced weights make every answer too high; the validation rows say by how much."""
    frame = table(3000)[["a", "plan"]]
    chance = 1 / (1 + np.exp(3 - 2 * frame.a))
    frame["left"] = np.where(np.random.default_rng(2).random(3000) < chance, "yes", "no")
    dataset = from_frame(frame, "left")
    text = f'algorithm = "{algorithm}"\nweights = "balanced"\n[rounds]\nmost = 40\n[gates]\nmin_roc_auc = 0.7\n'
    plain = train(recipes.parse(text), dataset, name="plain")
    curved = train(recipes.parse(f'calibration = "{method}"\n{text}'), dataset, name="curved")
    assert curved.metrics["brier"] < 0.9 * plain.metrics["brier"]
    back, answers = served("curved", tmp_path / "store", serve)
    assert back.facts.calibration == method
    said = back.probability(back.rows[:20])
    assert [answer["probability"] for answer in answers] == pytest.approx(said.tolist(), abs=1e-12)
    bundle = next((tmp_path / "store" / "bundles").iterdir())
    registry.add_compiled(registry.resolve("curved"), bundle, loader="compile.pyfunc", schema=back.schema, outputs=1)
    held_out = pd.read_parquet(back.holdout)[list(back.schema.names)]
    by_mlflow = mlflow.pyfunc.load_model("models:/curved/" + back.version).predict(held_out)
    np.testing.assert_allclose(by_mlflow, back.probability(back.rows), atol=1e-12)
    best = train(recipes.parse(f'calibration = "best"\n{text}'), dataset, name="best")
    assert registry.resolve("best").tags["roc_auc"]
    assert best.metrics["brier"] < 0.9 * plain.metrics["brier"]


def test_what_needs_no_calibration_is_left_alone() -> None:
    frame = table(3000)[["a", "plan"]]
    frame["left"] = np.where(np.random.default_rng(2).random(3000) < 1 / (1 + np.exp(-frame.a)), "yes", "no")
    train(recipes.parse(f'algorithm = "lightgbm"\ncalibration = "best"\n{QUICK.replace("refit", "#")}'),
          from_frame(frame, "left"), name="straight")  # fmt: skip
    assert registry.download("straight").facts.calibration == "none"


def test_demand_for_electricity_is_predicted_a_day_ahead_and_served(
    real_data: Callable[[str], Path], tmp_path: Path, serve: Callable[..., Running]
) -> None:
    """From what was known a day before: half-hourly demand in time order, the later fifth held out."""
    demand = read_frame(real_data("elec.csv"))["nswdemand"]
    frame = pd.DataFrame({"demand": demand, "half_hour": np.arange(len(demand)) % DAY})
    frame["weekday"] = (np.arange(len(demand)) // DAY % 7).astype(str)
    for days in (1, 2, 7):
        frame[f"{days}_days_before"] = demand.shift(days * DAY)
    frame["a_day_before_less_a_week_before_that"] = demand.shift(DAY) - demand.shift(8 * DAY)
    frame = frame.iloc[8 * DAY : 12_000]
    recipe = recipes.parse(
        'algorithm = "lightgbm"\ntask = "regression"\n[split]\nby = "time"\n[rounds]\nmost = 80\n[gates]\nmin_r2 = 0.8\n'
    )
    trained = train(recipe, from_frame(frame, "demand", task="regression"), name="demand")
    held_out = frame.iloc[-round(0.2 * len(frame)) :]
    repeated = (held_out["demand"] - held_out["1_days_before"]).abs().mean()
    assert trained.metrics["mae"] < 0.9 * repeated, "better than saying that today is like yesterday"
    back, answers = served("demand", tmp_path / "store", serve)
    assert [answer["prediction"] for answer in answers] == back.probability(back.rows[:20]).tolist()


def test_by_time_nothing_learns_from_later_rows() -> None:
    frame = table().sample(frac=1.0, random_state=1).drop(columns=["grade"])
    dataset = from_frame(frame, "value", task="regression")
    text = 'algorithm = "xgboost"\ntask = "regression"\n[split]\nby = "time"\ncolumn = "day"\n'
    recipe = recipes.parse(text)
    days, parts = dataset.features["day"].to_numpy(), split(dataset, recipe)
    assert days[parts["train"]].max() < days[parts["validation"]].min()
    assert days[parts["validation"]].max() < days[parts["holdout"]].min()
    for early, late in folds(dataset, recipe, parts["train"], 5):
        assert days[early].max() < days[late].min()
    assert "day" not in train(recipes.parse(text + QUICK), dataset, name="later").schema.names


def test_by_group_no_group_is_on_two_sides() -> None:
    dataset = from_frame(table().drop(columns=["value"]), "grade", task="multiclass")
    recipe = recipes.parse('algorithm = "xgboost"\ntask = "multiclass"\n[split]\nby = "group"\ncolumn = "who"\n')
    parts = split(dataset, recipe)
    who = dataset.features["who"].to_numpy()
    sides = [set(who[rows]) for rows in parts.values()]
    assert sum(map(len, sides)) == len(set().union(*sides))
    assert all(not set(who[a]) & set(who[b]) for a, b in folds(dataset, recipe, parts["train"], 5))


@pytest.mark.parametrize("algorithm", ["xgboost", "lightgbm"])
def test_a_constrained_answer_never_falls(algorithm: str) -> None:
    frame = table().drop(columns=["grade", "who", "day"])
    frame["value"] += 4 * np.sin(4 * frame.a)  # so that it would fall, unconstrained
    text = f'algorithm = "{algorithm}"\ntask = "regression"\n{QUICK}'
    for name, constraint, falls in (("free", "", True), ("held", "[monotone]\na = 1\n", False)):
        train(recipes.parse(text + constraint), from_frame(frame, "value", task="regression"), name=name)
        back = registry.download(name)
        grid = np.repeat(back.rows[:1], 200, axis=0)
        grid[:, back.schema.names.index("a")] = np.linspace(-2, 2, 200)
        assert bool((np.diff(back.probability(grid)) < 0).any()) is falls
    with pytest.raises(RecipeRefused, match=r"monotone\.plan: is a category"):
        train(recipes.parse(text + "[monotone]\nplan = 1\n"), from_frame(frame, "value", task="regression"), name="no")


def test_a_holdout_of_its_own_is_what_is_measured_on() -> None:
    frame = table()[["a", "plan", "grade"]]
    first, last = (from_frame(part, "grade", task="multiclass") for part in (frame[:700], frame[700:]))
    both = joined(first, last)
    assert split(both, made("multiclass"))["holdout"].tolist() == list(range(700, 900))
    with pytest.raises(DataRefused, match="has no column 'plan'"):
        joined(first, from_frame(frame.drop(columns="plan"), "grade", task="multiclass"))


def test_targets_that_do_not_fit_the_task_are_refused() -> None:
    frame = table()
    with pytest.raises(DataRefused, match="grade: numbers are needed"):
        from_frame(frame, "grade", task="regression")
    with pytest.raises(DataRefused, match="value: 3 to 100 labels"):
        from_frame(frame, "value", task="multiclass")
    with pytest.raises(DataRefused, match="whole relevances from 0"):
        from_frame(frame, "value", task="ranking")
    with pytest.raises(DataRefused, match="infinite"):
        from_frame(frame.assign(value=np.inf), "value", task="regression")
    for text, words in {
        'task = "regression"\nweights = "balanced"': "weights",
        'task = "regression"\n[gates]\nmin_accuracy = 0.5': "min_accuracy",
        '[split]\nby = "group"': "split.column",
        'task = "ranking"': "split.by",
        'calibration = "platt"\n[rounds]\nrefit = true': "no refit",
        'calibration = "platt"\ntask = "regression"': "two classes",
        "[search.space]\na = { low = 3 }": "low and high",
        "[search.space]\na = { low = 0, high = 1, log = true }": "above 0",
        '[search.space]\nobjective = { choices = ["x"] }': "objective",
    }.items():
        with pytest.raises(RecipeRefused, match=words):
            recipes.parse(f'algorithm = "xgboost"\n{text}')
