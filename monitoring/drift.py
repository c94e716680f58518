"""Has the traffic moved away from what the model was trained on? Evidently's tests, guarded against their known failures.

The window is what the lake says was served; the reference is the training sample that travels in the bundle, with the
model's own predictions. Both pass through the model's schema first, so that the same value looks the same on both sides.

The method is chosen by the smaller side: below 1,000 rows a distance such as Wasserstein's alarms on noise, so
Kolmogorov-Smirnov and chi-square decide there, at 0.05 shared among the columns (Bonferroni); from 1,000 rows on the
distances (Wasserstein over the standard deviation, Jensen-Shannon) decide at 0.1, since a p-value would then alarm on
differences that nobody cares about. Those tests leave missing values out, so each column's missing share has a test of
its own: two proportions, pooled z, at 0.05 shared among the columns, and at least MISSING_SHARE apart. A column that
can't be tested (empty, or not in the window) is reported as such and stops no other.

The prediction is the score: a probability, a value, an outlier's score. Of a model of several outputs (class probabilities,
targets) each has a column `prediction[name]`, on both sides, and the prediction drifted where one of them did.

Verdict: drift, where the prediction drifted, or at least `share` of the columns did.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from monitoring.errors import MonitoringError, TooLittleData
from training.features import FeatureSchema, Matrix, decode_matrix, encode_frame

PREDICTION = "prediction"
MISSING = "(missing)"
DISTANCE_ROWS = 1_000
MAX_ROWS = 50_000
MIN_ROWS = 100
ALPHA = 0.05
DISTANCE = 0.1
MISSING_SHARE = 0.02
SHARE = 0.2


@dataclass(frozen=True)
class Column:
    """One column's findings. `score` is a p-value or a distance, as `method` says; None where it can't be tested."""

    name: str
    drifted: bool
    method: str
    score: float | None
    threshold: float | None
    missing_reference: float
    missing_window: float
    missing_drifted: bool
    note: str = ""


@dataclass(frozen=True)
class Drift:
    verdict: Literal["drift", "no drift"]
    reason: str
    model: str
    version: str
    reference_rows: int
    window_rows: int
    sampled: bool
    columns: tuple[Column, ...]

    @property
    def found(self) -> bool:
        return self.verdict == "drift"


def find_drift(
    schema: FeatureSchema,
    reference: pd.DataFrame,
    traffic: pa.Table,
    *,
    model: str,
    version: str,
    out: Path,
    outputs: Sequence[str] = (),
    share: float = SHARE,
    seed: int = 0,
) -> Drift:
    """Compare, and write `report.html` and `summary.json` into `out`.

    `reference`: raw columns and the predictions' (`prediction_columns`); `traffic`: rows of the lake with `features`,
    `score`, `schema`, and `scores` where there are several `outputs`. Raises TooLittleData below MIN_ROWS on either side,
    MonitoringError for a reference that lacks a prediction.
    """
    predictions = prediction_columns(outputs)
    lacking = [name for name in predictions if name not in reference.columns]
    if lacking:
        raise MonitoringError(f"{model} version {version}: its reference has no column {lacking[0]!r}")
    traffic = traffic.filter((pc.field("schema") == schema.fingerprint) & (pc.field("status") == 200))
    if min(len(traffic), len(reference)) < MIN_ROWS:
        raise TooLittleData(
            f"{model} version {version}: {len(traffic):,} rows in the window and {len(reference):,} in the reference; "
            f"at least {MIN_ROWS} of each are needed. Widen --since/--until, or run coppice compact first"
        )
    rng = np.random.default_rng(seed)
    sampled = max(len(traffic), len(reference)) > MAX_ROWS
    if len(traffic) > MAX_ROWS:
        traffic = traffic.take(np.sort(rng.choice(len(traffic), MAX_ROWS, replace=False)))
    if len(reference) > MAX_ROWS:
        reference = reference.sample(MAX_ROWS, random_state=seed)
    width = schema.width
    scores = _lists(traffic, "scores", len(predictions)) if len(predictions) > 1 else traffic.column("score").to_numpy()
    current = _frame(schema, _lists(traffic, "features", width), predictions, scores)
    known = _frame(schema, encode_frame(schema, reference), predictions, reference[predictions].to_numpy(np.float64))
    columns, html = _compare(schema, predictions, known, current)
    drifted = [column.name for column in columns[len(predictions) :] if column.drifted]
    moved = [column.name for column in columns[: len(predictions)] if column.drifted]
    told = f": {', '.join(moved)}" if len(predictions) > 1 else ""
    reasons = [f"the prediction drifted{told}"] if moved else []
    if len(drifted) >= share * width:
        reasons.append(f"{len(drifted)} of {width} features drifted: {', '.join(drifted)}")
    few = f"{len(drifted)} of {width} features drifted, fewer than {share:.0%}; the prediction did not"
    finding = Drift(
        verdict="drift" if reasons else "no drift",
        reason="; ".join(reasons) or few,
        model=model,
        version=version,
        reference_rows=len(known),
        window_rows=len(current),
        sampled=sampled,
        columns=tuple(columns),
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(html, encoding="utf-8")
    (out / "summary.json").write_text(json.dumps(asdict(finding), indent=1), encoding="utf-8")
    return finding


def prediction_columns(outputs: Sequence[str]) -> list[str]:
    """The reference's columns of a model's predictions.

    >>> prediction_columns(["value"]), prediction_columns(["cat", "dog"])
    (['prediction'], ['prediction[cat]', 'prediction[dog]'])
    """
    return [f"{PREDICTION}[{name}]" for name in outputs] if len(outputs) > 1 else [PREDICTION]


def _lists(traffic: pa.Table, name: str, width: int) -> Matrix:
    flat = traffic.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float64).reshape(-1, width)


def _frame(schema: FeatureSchema, matrix: Matrix, predictions: list[str], scores: Any) -> pd.DataFrame:
    """One side, the predictions first. Categories and booleans are text; their missing values are a category."""
    frame = pd.DataFrame(np.reshape(scores, (len(matrix), -1)), columns=predictions, dtype=np.float64)
    for feature, values in zip(schema.features, decode_matrix(schema, matrix).values(), strict=True):
        if feature.kind == "number":
            frame[feature.name] = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        else:
            frame[feature.name] = [MISSING if value is None else str(value) for value in values]
    return frame


def _compare(
    schema: FeatureSchema, predictions: list[str], known: pd.DataFrame, current: pd.DataFrame
) -> tuple[list[Column], str]:
    numbers = [*predictions, *(feature.name for feature in schema.features if feature.kind == "number")]
    small = min(len(known), len(current)) < DISTANCE_ROWS
    each = ALPHA / known.shape[1]
    untestable: dict[str, str] = {}
    for name in numbers:
        if known[name].notna().sum() < 2 or current[name].notna().sum() < 2:
            untestable[name] = "no values on one side"
    testable = [name for name in known.columns if name not in untestable]
    scores, html = _evidently(known, current, testable, numbers, small=small, each=each)
    columns = []
    for name in known.columns:
        before, now = _missing(known[name]), _missing(current[name])
        missing = _shares_differ(before, len(known), now, len(current), each)
        method, score, threshold, drifted = scores.get(name, ("none", None, None, False))
        note = untestable.get(name, "" if name in scores else "could not be tested")
        columns.append(Column(name, drifted or missing, method, score, threshold, before, now, missing, note))
    return columns, html


def _evidently(
    known: pd.DataFrame,
    current: pd.DataFrame,
    names: Sequence[str],
    numbers: Sequence[str],
    *,
    small: bool,
    each: float,
) -> tuple[dict[str, tuple[str, float | None, float | None, bool]], str]:
    """(method, score, threshold, drifted) by column, and the report. A column that fails is left out and tried without."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # deprecations inside Evidently and its dependencies, which are not ours to mend
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

        def run(columns: Sequence[str]) -> Any:
            definition = DataDefinition(
                numerical_columns=[name for name in columns if name in numbers],
                categorical_columns=[name for name in columns if name not in numbers],
            )
            tests = []
            for name in columns:
                method = (
                    ("ks" if small else "wasserstein")
                    if name in numbers
                    else ("chisquare" if small else "jensenshannon")
                )
                tests.append(ValueDrift(column=name, method=method, threshold=each if small else DISTANCE))
            sides = [Dataset.from_pandas(side[list(columns)], data_definition=definition) for side in (current, known)]
            return Report(tests, include_tests=True).run(sides[0], sides[1])

        try:
            snapshot = run(names)
        except Exception:  # one column's failure ends the whole report: find which, and go on without them
            names = [name for name in names if _runs(run, name)]
            if not names:
                raise
            snapshot = run(names)
        found = snapshot.dict()
        html = snapshot.get_html_str(as_iframe=False)
    values = {metric["id"]: metric["value"] for metric in found["metrics"]}
    scores: dict[str, tuple[str, float | None, float | None, bool]] = {}
    for test in found["tests"]:
        told = test["metric_config"]["params"]
        score = float(values[test["metric_config"]["metric_id"]])
        scores[told["column"]] = (
            str(told["method"]),
            score,
            float(told["threshold"]),
            str(test["status"]).endswith("FAIL"),
        )
    return scores, str(html)


def _runs(run: Any, name: str) -> bool:
    try:
        run([name])
    except Exception:
        return False
    return True


def _missing(column: pd.Series[Any]) -> float:
    return float((column.isna() | (column == MISSING)).mean())


def _shares_differ(before: float, rows_before: int, now: float, rows_now: int, alpha: float) -> bool:
    """Two-sided pooled z test of two proportions."""
    if abs(before - now) < MISSING_SHARE:
        return False
    pooled = (before * rows_before + now * rows_now) / (rows_before + rows_now)
    error = math.sqrt(pooled * (1 - pooled) * (1 / rows_before + 1 / rows_now))
    return error > 0 and 2 * (1 - NormalDist().cdf(abs(before - now) / error)) < alpha
