"""The threshold that costs least is found, saved with the version, compiled, and served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cases import publish_routes
from hypothesis import given
from hypothesis import strategies as st
from inprocess import InProcess

from compile import build_bundle
from compile.bundle import publish, read
from training import recipe as recipes
from training import registry
from training.costs import Costs, amounts, best_threshold, decided, worth
from training.data import from_frame
from training.errors import DataRefused, RecipeRefused
from training.features import encode_frame
from training.inference import tidy
from training.simulator import TARGET, simulate
from training.splitting import split
from training.training import train

RECIPE = """
algorithm = "xgboost"
[rounds]
most = 25
patience = 25
[evaluation]
segments = ["contract"]
resamples = 100
[costs]
tp = -40.0
fp = 10.0
fn = 100.0
currency = "EUR"
volume_per_month = 5000
"""
money = st.floats(0.1, 100)


@given(
    seed=st.integers(0, 9999),
    count=st.integers(2, 60),
    digits=st.integers(0, 4),
    wrong=st.tuples(money, money),
    right=st.tuples(st.floats(-50, 0), st.floats(-50, 0)),
)
def test_no_threshold_costs_less(
    seed: int, count: int, digits: int, wrong: tuple[float, float], right: tuple[float, float]
) -> None:
    rng = np.random.default_rng(seed)
    costs = Costs(tp=right[0], fp=wrong[0], fn=wrong[1], tn=right[1])
    positive, probability = rng.random(count) < 0.4, np.round(rng.random(count), digits)
    amount = rng.random(count) * 10

    def cost(threshold: float) -> float:
        return float(decided(costs, positive, probability > threshold, amount).sum())

    chosen = best_threshold(costs, positive, probability, amount)
    everywhere = [0.0, 1.0, *probability, *np.linspace(0, 1, 101), *(np.nextafter(p, 0) for p in probability if p > 0)]
    least = min(map(cost, everywhere))
    assert 0 <= chosen <= 1
    assert cost(chosen) == pytest.approx(least, abs=1e-6)


def test_neighbouring_floats_are_told_apart() -> None:
    low = 0.3
    high = float(np.nextafter(low, 1))
    chosen = best_threshold(Costs(tp=0, fp=1, fn=1), np.array([False, True]), np.array([low, high]), np.ones(2))
    assert low <= chosen < high


def test_what_a_model_saves_is_what_its_decisions_cost_less() -> None:
    costs = Costs(tp=-40, fp=10, fn=100, tn=0, volume_per_month=5000)
    positive, probability = np.array([1, 1, 0, 0, 0], dtype=bool), np.array([0.9, 0.1, 0.8, 0.2, 0.3])
    found = worth(costs, positive, probability, np.ones(5), 0.5, count=100, level=0.9, seed=1)
    assert found.cost_per_1000.value == pytest.approx(1000 * (-40 + 100 + 10) / 5)
    assert found.saved_per_1000.value == pytest.approx(1000 * (200 - 70) / 5)
    assert found.saved_per_1000_against_all.value == pytest.approx(1000 * (-80 + 30 - 70) / 5)
    assert found.month is not None
    assert found.month.value == pytest.approx(5 * 26_000)
    assert found.month.low == pytest.approx(5 * found.saved_per_1000.low)  # type: ignore[operator]


def test_amounts_multiply_and_are_refused_where_they_can_not() -> None:
    costs = Costs(tp=0, fp=1, fn=2, amount="bill")
    frame = pd.DataFrame({"bill": [1.0, 20.0], "name": ["a", "b"]})
    assert decided(costs, np.array([True, True]), np.array([False, False]), amounts(costs, frame, "x")).sum() == 42
    for column, words in {"bill": "2 rows", "none": "no column 'none'", "name": "numbers"}.items():
        bad = pd.DataFrame({"bill": [np.nan, -1.0], "name": ["a", "b"]})
        with pytest.raises(DataRefused, match=words):
            amounts(Costs(tp=0, fp=1, fn=2, amount=column), bad, "rows.csv")


def test_recipes_refuse_costs_that_reward_mistakes() -> None:
    for text, named in {
        "[costs]\ntp = 5.0\nfp = 1.0\nfn = 1.0": "fn > tp",
        "[costs]\ntp = nan\nfp = 1.0\nfn = 1.0": "costs.tp",
        "[costs]\ntp = 0.0\nfp = 1.0\nfn = 1.0\nvolume_per_month = -1.0": "volume_per_month",
        "[costs]\ntp = 0.0\nfp = 1.0": "fn",
        "[evaluation]\nresamples = 5": "resamples",
        "[evaluation]\nlevel = 1.5": "level",
        '[evaluation]\nsegments = ["a", "a"]': "twice",
    }.items():
        with pytest.raises(RecipeRefused, match=named):
            recipes.parse(f'algorithm = "xgboost"\n{text}')


@pytest.mark.filterwarnings("ignore")  # deprecations of MLflow and what it uses are not ours to mend
def test_the_threshold_of_the_recipes_costs_is_the_one_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    dataset, recipe = from_frame(tidy(simulate(2500, seed=4).frame), TARGET), recipes.parse(RECIPE)
    trained = train(recipe, dataset, name="churn", aliases=("champion",))
    shelf = registry.download("churn@champion")
    threshold = shelf.threshold
    assert trained.assessed
    assert threshold == trained.assessed.threshold < 0.4

    part = split(dataset, recipe)["validation"]
    said = shelf.probability(encode_frame(shelf.schema, dataset.features.iloc[part]))
    assert recipe.costs

    def cost(cut: float) -> float:
        assert recipe.costs
        pairs = zip(dataset.positive[part], said > cut, strict=True)
        price = {(True, True): -40.0, (False, True): 10.0, (True, False): 100.0, (False, False): 0.0}
        return sum(price[bool(truth), bool(predicted)] for truth, predicted in pairs)

    assert cost(threshold) == pytest.approx(min(map(cost, [0.0, *said])))
    run = registry.connect().get_run(shelf.run_id)
    found = run.data.metrics
    assert found["threshold"] == threshold
    assert found["worth.saved_per_1000_low"] < found["worth.saved_per_1000"] < found["worth.saved_per_1000_high"]
    assert found["worth.month"] == pytest.approx(5 * found["worth.saved_per_1000"])

    built = build_bundle(
        shelf.native, shelf.schema, shelf.rows, tmp_path / "built", name="mixed", version="1", classes=shelf.classes,
        threshold=threshold, card=shelf.card, pictures=shelf.pictures, cross_check=False,
    )  # fmt: skip
    assert read(built).threshold == threshold
    digest = publish(built, tmp_path / "store")
    publish_routes(tmp_path / "store", {"champion": digest}, {"champion": 100})
    held_out = pd.read_parquet(shelf.holdout)[list(shelf.schema.names)]
    answers = shelf.probability(shelf.rows)
    below, above = np.flatnonzero(answers <= threshold), np.flatnonzero(answers > threshold)
    nearest = below[answers[below].argmax()], above[answers[above].argmin()]
    server = InProcess(tmp_path / "store", "mixed", tmp_path / "traffic")
    try:
        for row, label in zip(nearest, shelf.classes, strict=True):
            record = json.loads(held_out.iloc[[row]].to_json(orient="records", double_precision=15))[0]
            status, _, body = server.direct("/predict", json.dumps(record).encode(), {})
            assert status == 200, body
            assert json.loads(body)["prediction"] == label
        page = server.asgi("/v1/models/mixed/card", None, {"accept": "text/html"})[2].decode()
        assert page.count("data:image/png;base64,") == 4
        assert f"{threshold:.4f}" in page
    finally:
        server.close()
