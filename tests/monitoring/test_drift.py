"""Drift is found where there is some, not where there is none, small windows and missing values included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from cases import MIXED, mixed_rows

from monitoring.drift import Drift, find_drift
from monitoring.errors import MonitoringError, TooLittleData
from training.features import decode_matrix

pytestmark = pytest.mark.filterwarnings("ignore")  # Evidently's own deprecations


def predict(rows: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(np.nan_to_num(rows[:, 0]) - 50) / 10))


def reference(count: int = 5000, seed: int = 1) -> pd.DataFrame:
    rows = mixed_rows(count, seed)
    return pd.DataFrame(decode_matrix(MIXED, rows)).assign(prediction=predict(rows))


def traffic(rows: np.ndarray, schema: str = MIXED.fingerprint) -> pa.Table:
    return pa.table(
        {
            "features": pa.array(rows.tolist(), pa.list_(pa.float64())),
            "score": predict(rows),
            "schema": [schema] * len(rows),
            "status": pa.array([200] * len(rows), pa.int32()),
        }
    )


def compare(rows: np.ndarray, out: Path) -> Drift:
    return find_drift(MIXED, reference(), traffic(rows), model="m", version="1", out=out)


@pytest.mark.parametrize("count", [120, 900, 3000])
def test_the_same_population_is_no_drift_at_any_window_size(
    tmp_path: Path, count: int, size: Callable[[int, int], int]
) -> None:
    alarms = sum(compare(mixed_rows(count, 100 + seed), tmp_path).found for seed in range(size(4, 40)))
    assert alarms <= size(0, 3)  # each is at most 0.05 by the tests' own level


@pytest.mark.parametrize("count", [400, 3000])
def test_moved_inputs_are_drift(tmp_path: Path, count: int) -> None:
    rows = mixed_rows(count, 2)
    rows[:, 0] += 15
    found = compare(rows, tmp_path)
    assert found.found
    assert {column.name for column in found.columns if column.drifted} == {"prediction", "age"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verdict"] == "drift"
    assert "<html" in (tmp_path / "report.html").read_text()[:2000].lower()


def test_of_several_outputs_each_is_a_prediction_of_its_own(tmp_path: Path) -> None:
    outputs = ("low", "high", "none")

    def scores(rows: np.ndarray) -> np.ndarray:
        high = predict(rows) * 0.8
        return np.column_stack([0.8 - high, high, np.full(len(rows), 0.2) + 0.001 * np.sin(rows[:, 5])])

    rows = mixed_rows(5000, 1)
    known = pd.DataFrame(decode_matrix(MIXED, rows))
    known[[f"prediction[{name}]" for name in outputs]] = scores(rows)

    def compared(rows: np.ndarray) -> Drift:
        served = traffic(rows).append_column("scores", pa.array(scores(rows).tolist(), pa.list_(pa.float64())))
        return find_drift(MIXED, known, served, model="m", version="1", out=tmp_path, outputs=outputs)

    assert not compared(mixed_rows(3000, 2)).found
    moved = mixed_rows(3000, 2)
    moved[:, 0] += 15
    found = compared(moved)
    assert "the prediction drifted: prediction[low], prediction[high]" in found.reason
    assert [column.name for column in found.columns[:3]] == [f"prediction[{name}]" for name in outputs]
    with pytest.raises(MonitoringError, match=r"prediction\[low\]"):
        find_drift(MIXED, reference(), traffic(rows), model="m", version="1", out=tmp_path, outputs=outputs)


def test_values_that_go_missing_are_drift_of_their_column(tmp_path: Path) -> None:
    rows = mixed_rows(3000, 3)
    rows[np.random.default_rng(0).random(3000) < 0.4, 1] = np.nan
    column = next(column for column in compare(rows, tmp_path).columns if column.name == "balance")
    assert column.missing_drifted
    assert column.drifted


def test_a_column_that_can_not_be_tested_stops_no_other(tmp_path: Path) -> None:
    rows = mixed_rows(3000, 4)
    rows[:, 1] = np.nan
    rows[:, 3] = 2
    found = {column.name: column for column in compare(rows, tmp_path).columns}
    assert found["balance"].note == "no values on one side"
    assert found["balance"].missing_drifted
    assert found["region"].drifted
    assert found["age"].score is not None


def test_too_little_data_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(TooLittleData, match="50 rows in the window"):
        compare(mixed_rows(50), tmp_path)
    with pytest.raises(TooLittleData, match="0 rows in the window"):
        find_drift(MIXED, reference(), traffic(mixed_rows(500), "another"), model="m", version="1", out=tmp_path)
