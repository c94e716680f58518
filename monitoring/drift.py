"""Has the traffic moved away from what the model was trained on? One window against the reference, column by column.

The window is what the lake says was served; the reference is the sample that travels in the bundle, with the
model's own predictions. Both are encoded by the model's schema (`monitoring.sides`), so that the same value looks the same.

Everything that a window is asked is one family (`monitoring.family`): of windows from the reference's own population at
most 5 % alarm. The prediction's tests have a fifth of that level (`PREDICTION_LEVEL`), the features' the rest, half of it
in equal parts and half by how much the prediction depends on each (`monitoring.importance`). Within a column the values'
test has four fifths; the others (missing, infinite, new category) share the rest where they have anything to look at.
A test is passed over only by what both sides hold together, which leaves the level as it is.

A column drifted where a test's adjusted p-value is at most ALPHA and its effect is large enough to matter (`FLOORS`).

Verdict: drift where the prediction drifted, or where the features that did carry at least `share` of the importance: if
not said otherwise, as much as a feature has on average. So one feature that matters is enough, and one that the model
hardly looks at is told and alarms nobody.

The prediction is the score: a probability, a value, an outlier's score. Of a model of several outputs (class probabilities,
targets) each has a column `prediction[name]`, on both sides, and the prediction drifted where one of them did.

`Drift` as JSON is `summary.json`, whose fields are told at the classes below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from monitoring.errors import TooLittleData
from monitoring.family import (
    ALPHA,
    Floats,
    Kind,
    Member,
    adjusted,
    categories_differ,
    new_category,
    numbers_differ,
    shares_differ,
)
from monitoring.sides import Side, prediction_columns
from training.features import Feature, FeatureSchema

MIN_ROWS = 100
PREDICTION_LEVEL = 0.2
EQUALLY = 0.4  # of the features' level
VALUES_LEVEL = 0.8  # of a column's level, where it has other tests
NAMED = 8  # features in a reason


@dataclass(frozen=True)
class Column:
    """One column's findings.

    weight: the share of the importance, 0 to 1; of a prediction None. found: the tests that found drift.
    p: the smallest adjusted p-value of the column's tests, to be held against 0.05. effect: the largest share of rows that
    any of its tests would have to change. None where nothing could be tested; then `note` says why.
    missing_reference, missing_window: shares of missing values.
    """

    name: str
    weight: float | None
    drifted: bool
    found: tuple[Kind, ...]
    p: float | None
    effect: float | None
    missing_reference: float
    missing_window: float
    note: str = ""


@dataclass(frozen=True)
class Drift:
    """One window's finding; the predictions' columns first.

    window_rows: all rows of the window; used_rows: those compared, fewer where it was sampled.
    importance_drifted: the share of the importance that drifted features carry; share: from which on that is drift.
    """

    verdict: Literal["drift", "no drift"]
    reason: str
    model: str
    version: str
    reference_rows: int
    window_rows: int
    used_rows: int
    prediction_drifted: bool
    importance_drifted: float
    share: float
    columns: tuple[Column, ...]

    @property
    def found(self) -> bool:
        return self.verdict == "drift"


def find_drift(
    schema: FeatureSchema,
    known: Side,
    now: Side,
    *,
    model: str,
    version: str,
    outputs: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    share: float | None = None,
) -> Drift:
    """Judge one window, `now`. `weights`: each feature's share of the importance, in sum 1; without them, all alike.

    Raises TooLittleData below MIN_ROWS on either side.
    """
    if min(known.rows, now.rows) < MIN_ROWS:
        raise TooLittleData(
            f"{model} version {version}: {now.rows:,} rows in the window and {known.rows:,} in the reference; "
            f"at least {MIN_ROWS} of each are needed. Widen --since/--until, or run coppice compact first"
        )
    carried = dict(weights) if weights is not None else dict.fromkeys(schema.names, 1 / schema.width)
    predictions = prediction_columns(outputs)
    tests = [
        test for name in predictions for test in _tests(name, None, known, now, PREDICTION_LEVEL / len(predictions))
    ]
    for feature in schema.features:
        level = EQUALLY / schema.width + (1 - EQUALLY) * carried[feature.name]
        tests += _tests(feature.name, feature, known, now, (1 - PREDICTION_LEVEL) * level)
    values = adjusted(tests)
    columns = [
        _column(
            name,
            carried.get(name),
            known,
            now,
            [(t, p) for t, p in zip(tests, values, strict=True) if t.column == name],
        )
        for name in (*predictions, *schema.names)
    ]
    limit = 1 / schema.width if share is None else share
    return _judged(columns, len(predictions), limit, known, now, model, version)


def _judged(
    columns: Sequence[Column], predictions: int, share: float, known: Side, now: Side, model: str, version: str
) -> Drift:
    moved = [column.name for column in columns[:predictions] if column.drifted]
    features = sorted((c for c in columns[predictions:] if c.drifted), key=lambda c: -(c.weight or 0.0))
    carried = sum(column.weight or 0.0 for column in features)
    reasons = []
    if moved:
        reasons.append("the prediction drifted" + (f": {', '.join(moved)}" if predictions > 1 else ""))
    told = _told([column.name for column in features], len(columns) - predictions, carried)
    if features and carried >= share * (1 - 1e-9):
        reasons.append(told)
    calm = f"{told}, less than {share:.1%}; the prediction did not drift" if features else "nothing drifted"
    return Drift(
        verdict="drift" if reasons else "no drift",
        reason="; ".join(reasons) or calm,
        model=model,
        version=version,
        reference_rows=known.rows,
        window_rows=now.of_rows,
        used_rows=now.rows,
        prediction_drifted=bool(moved),
        importance_drifted=carried,
        share=share,
        columns=tuple(columns),
    )


def _told(names: Sequence[str], width: int, carried: float) -> str:
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return f"{len(names)} of {width} features drifted ({listed}), which carry {carried:.0%} of the importance"


def _column(name: str, weight: float | None, known: Side, now: Side, tests: Sequence[tuple[Member, float]]) -> Column:
    found = tuple(test.kind for test, p in tests if p <= ALPHA and test.matters)
    return Column(
        name=name,
        weight=weight,
        drifted=bool(found),
        found=found,
        p=min((p for _, p in tests), default=None),
        effect=max((test.effect for test, _ in tests), default=None),
        missing_reference=_missing(known, name),
        missing_window=_missing(now, name),
        note=_note(name, known, now),
    )


def _tests(name: str, feature: Feature | None, known: Side, now: Side, level: float) -> list[Member]:
    """The tests that a column gives rise to; none of one that the reference lacks. `feature`: None is a prediction."""
    if name in known.absent:
        return []
    before, after = known.columns[name], now.columns[name]
    shares: list[tuple[Kind, float, float]] = []
    gaps: list[tuple[Kind, int, int]] = [
        ("missing", int(np.isnan(before).sum()), int(np.isnan(after).sum())),
        ("infinite", int(np.isinf(before).sum()), int(np.isinf(after).sum())),
    ]
    for kind, *hits in gaps:
        if any(hits):
            shares.append((kind, *shares_differ(hits[0], len(before), hits[1], len(after))))
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    values: list[tuple[Kind, float, float]] = []
    if len(before) and len(after):
        if feature is None or feature.kind == "number":
            values.append(("values", *numbers_differ(before, after)))
        else:
            counts = _counts(feature, before), _counts(feature, after)
            values.append(("values", *categories_differ(*counts)))
            if feature.kind == "category":
                shares.append(("new category", *new_category(*counts)[:2]))
    main = VALUES_LEVEL if shares else 1.0
    rest = (1 - main if values else 1.0) / max(1, len(shares))
    return [Member(name, kind, p, effect, level * main) for kind, p, effect in values] + [
        Member(name, kind, p, effect, level * rest) for kind, p, effect in shares
    ]


def _counts(feature: Feature, codes: Floats) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """By code; the last is what the schema calls `other`."""
    width = max(2, len(feature.categories) + 1)
    return np.bincount(np.clip(codes, 0, width - 1).astype(np.int64), minlength=width)


def _missing(side: Side, name: str) -> float:
    return float(np.isnan(side.columns[name]).mean())


def _note(name: str, known: Side, now: Side) -> str:
    if name in known.absent:
        return f"not compared: {known.absent[name]}"
    notes = [f"in the window: {now.absent[name]}"] if name in now.absent else []
    for side, title in ((known, "reference"), (now, "window")):
        present = side.columns[name][~np.isnan(side.columns[name])]
        if not len(present):
            notes.append(f"no values in the {title}")
        elif present.min() == present.max():
            notes.append(f"one value in the {title}")
        if np.isinf(present).any():
            notes.append(f"{np.isinf(present).mean():.1%} infinite in the {title}")
    return "; ".join(notes)
