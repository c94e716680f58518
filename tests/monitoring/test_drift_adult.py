"""The census, split by a column: drift is found where it was put, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from compile import build_bundle
from compile.runtime import Predictor, open_predictor
from monitoring.drift import Drift, find_drift
from monitoring.importance import importance
from monitoring.sides import Side, of_reference
from training.data import read_frame
from training.features import FeatureSchema, encode_frame, infer


@dataclass(frozen=True)
class Census:
    """Both files' rows, and a bundle of a model of the first one's. `known`: 10,000 of the rows that it learned from."""

    predictor: Predictor
    frame: pd.DataFrame
    known: pd.DataFrame
    weights: dict[str, float]

    @property
    def schema(self) -> FeatureSchema:
        return self.predictor.manifest.schema

    def judge(self, window: pd.DataFrame, known: pd.DataFrame | None = None) -> Drift:
        sides = (side(self.predictor, self.known if known is None else known), side(self.predictor, window))
        return find_drift(self.schema, *sides, model="adult", version="1", weights=self.weights)


def side(predictor: Predictor, frame: pd.DataFrame) -> Side:
    schema = predictor.manifest.schema
    return of_reference(schema, frame.assign(prediction=predictor.score(encode_frame(schema, frame))[:, 0]))


@pytest.fixture(scope="module")
def census(real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Census:
    import xgboost

    learned, later = (read_frame(real_data(f"adult_{part}.csv")) for part in ("train", "test"))
    schema = infer(learned, exclude=["income"])
    rows, labels = encode_frame(schema, learned), (learned["income"] == ">50K").to_numpy()
    kinds = ["c" if feature.kind == "category" else "q" for feature in schema.features]
    data = xgboost.DMatrix(rows, labels, feature_types=kinds, enable_categorical=True)
    model = xgboost.train({"objective": "binary:logistic", "max_depth": 5, "nthread": 1, "seed": 1}, data, 60)
    folder = tmp_path_factory.mktemp("adult")
    predictor = open_predictor(
        build_bundle(model, schema, rows[:200], folder, name="adult", version="1", cross_check=False)
    )
    known = learned.sample(10_000, random_state=1)
    weights = importance(predictor, side(predictor, known))
    return Census(predictor, pd.concat([learned, later], ignore_index=True), known, weights)


def drifted(drift: Drift) -> set[str]:
    return {column.name for column in drift.columns if column.drifted}


@pytest.mark.parametrize("rows", [300, 3_000, 16_281])
def test_later_rows_of_the_same_census_are_no_drift(census: Census, rows: int) -> None:
    """Though the model learned from the reference's rows and never saw these."""
    drift = census.judge(census.frame.iloc[32_561:].sample(rows, random_state=3))
    assert not drifted(drift), drift.reason


@pytest.mark.parametrize("column", ["hours_per_week", "fnlwgt", "occupation", "race"])
def test_rows_chosen_by_a_column_that_nothing_depends_on_drift_in_that_column_alone(
    census: Census, column: str
) -> None:
    """The column is dealt out anew, so that no other can know of it; then the window has more of its upper half."""
    rng = np.random.default_rng(5)
    dealt = census.frame.sample(frac=1, random_state=5)
    dealt[column] = rng.permutation(dealt[column].to_numpy())
    known, rest = dealt.iloc[:24_000].sample(10_000, random_state=1), dealt.iloc[24_000:]
    ranks = rest[column].rank(pct=True).fillna(0.5).to_numpy()
    window = rest[rng.random(len(rest)) < np.where(ranks > 0.5, 0.3, 0.15)]
    drift = census.judge(window, known)
    assert drifted(drift) - {"prediction"} == {column}
    assert not drifted(census.judge(rest.sample(len(window), random_state=1), known))


def test_a_window_of_women_drifts_where_women_and_the_rest_differ(census: Census) -> None:
    """What differs is reckoned from the tables themselves, by other functions: sure differences are found, no others told."""
    later = census.frame.iloc[32_561:]
    window = later[later["sex"] == "Female"]
    drift = census.judge(window)
    assert drift.found
    assert "sex" in drifted(drift)
    told = {column.name: column for column in drift.columns}
    for feature in census.schema.features:
        before, after = census.known[feature.name].dropna(), window[feature.name].dropna()
        if feature.kind == "number":
            moved, p = stats.ks_2samp(before, after, method="asymp")
        else:
            shares = [side.value_counts(normalize=True) for side in (before, after)]
            moved = shares[0].sub(shares[1], fill_value=0).abs().sum() / 2
            counts = pd.crosstab(np.concatenate([before, after]), np.repeat([0, 1], [len(before), len(after)]))
            p = stats.chi2_contingency(counts).pvalue
        gaps = abs(census.known[feature.name].isna().mean() - window[feature.name].isna().mean())
        if moved > 0.04 and p < 1e-9:
            assert told[feature.name].drifted, (feature.name, moved, p)
        if moved < 0.02 and gaps < 0.008:
            assert not told[feature.name].drifted, (feature.name, moved, gaps)
