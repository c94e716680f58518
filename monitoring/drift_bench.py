"""How often drift is said where there is none, and how surely where there is: Coppice beside Evidently's defaults.

    python -m monitoring.drift_bench [--windows 1000] [--evidently 30]         (make bench-drift)

A model is trained and compiled on the population of `monitoring.drift_world`, 30 features, and says how much it depends on
each. Then, with a fresh reference of 5,000 rows for every window and the model's own predictions on both sides: windows
without drift; with one important feature's mean shifted; with faults in that feature. Evidently's DataDriftPreset, as it
comes, is asked some of the same windows: its dataset verdict (half of the columns drifted), and whether it flags any column.
Writes loadtests/results/drift.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from compile import build_bundle, open_predictor
from monitoring.drift import Drift, find_drift
from monitoring.drift_world import GAP, SCHEMA, WIDTH, World, draw, logit
from monitoring.importance import importance
from monitoring.sides import PREDICTION, Side, as_frame
from training.features import Matrix
from training.runs import git_commit

REFERENCE_ROWS = 5_000
SIZES = (200, 1_000, 5_000)
SHIFTS = (0.1, 0.15, 0.2, 0.3)
POWER_ROWS = 1_000
Change = Callable[[np.random.Generator, Matrix], Matrix]


@dataclass(frozen=True)
class Bench:
    world: World
    weights: dict[str, float]
    important: int  # a number's place
    category: int  # a category's

    def sides(self, seed: tuple[int, ...], rows: int, change: Change | None = None) -> tuple[Side, Side]:
        rng = np.random.default_rng(seed)
        reference, window = draw(rng, REFERENCE_ROWS), draw(rng, rows)
        return self.world.side(reference), self.world.side(change(rng, window) if change else window)

    def judge(self, known: Side, now: Side) -> Drift:
        return find_drift(SCHEMA, known, now, model="bench", version="1", weights=self.weights)


@dataclass
class Tally:
    """Of so many windows: dataset alarms, and those in which the column in question was found."""

    windows: int = 0
    alarms: int = 0
    found: int = 0
    refused: str = ""

    def add(self, alarm: bool, found: bool) -> None:
        self.windows += 1
        self.alarms += alarm
        self.found += found

    @property
    def cells(self) -> str:
        if self.refused:
            return f"{self.refused} | |"
        return f"{_share(self.alarms, self.windows)} | {_share(self.found, self.windows)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--windows",
        type=int,
        default=1_000,
        help="without drift, of each size; half as many of a shift, a fifth of a fault",
    )
    parser.add_argument(
        "--evidently", type=int, default=30, help="so many of them Evidently is asked, too; half, a sixth"
    )
    parser.add_argument("--out", type=Path, default=Path("loadtests/results/drift.md"), help="the page")
    options = parser.parse_args()
    began = perf_counter()
    bench = made()
    say(f"{SCHEMA.names[bench.important]} carries {bench.weights[SCHEMA.names[bench.important]]:.0%} of the importance")
    calm = [_calm(bench, rows, options.windows, options.evidently) for rows in SIZES]
    half, few = options.windows // 2, options.windows // 5
    shifts = [(f"shift {by:g}", _shift(bench, by), bench.important) for by in SHIFTS]
    shifted = [_changed(bench, *each, half, options.evidently // 2) for each in shifts]
    faults = [_changed(bench, *each, few, options.evidently // 6) for each in _faults(bench)]
    page = _page(bench, calm, shifted, faults, options, perf_counter() - began)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page, encoding="utf-8")
    print(page)


def made() -> Bench:
    """A model of the population, trained, compiled and proved; and what it looks at."""
    import xgboost

    rng = np.random.default_rng(1)
    rows = draw(rng, 20_000)
    labels = rng.random(len(rows)) < 1 / (1 + np.exp(-logit(rows)))
    kinds = ["c" if feature.kind == "category" else "q" for feature in SCHEMA.features]
    data = xgboost.DMatrix(rows, labels, feature_types=kinds, enable_categorical=True)
    settings = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.1, "nthread": 1, "seed": 1}
    trained = xgboost.train(settings, data, 100)
    with tempfile.TemporaryDirectory() as folder:
        bundle = build_bundle(trained, SCHEMA, rows[:200], folder, name="bench", version="1", cross_check=False)
        predictor = open_predictor(bundle)
    world = World(lambda rows: predictor.score(np.ascontiguousarray(rows))[:, 0])
    weights = importance(predictor, world.side(draw(rng, REFERENCE_ROWS)))
    by_kind = {kind: [j for j in range(WIDTH) if SCHEMA.features[j].kind == kind] for kind in ("number", "category")}
    heaviest = {kind: max(places, key=lambda j: weights[SCHEMA.names[j]]) for kind, places in by_kind.items()}
    return Bench(world, weights, heaviest["number"], heaviest["category"])


def _calm(bench: Bench, rows: int, windows: int, asked: int) -> tuple[int, Tally, Tally, float]:
    """(rows, ours, Evidently's, ms a window of ours); found: any column at all."""
    ours, theirs, spent = Tally(), Tally(), 0.0
    for number in range(windows):
        known, now = bench.sides((rows, number), rows)
        began = perf_counter()
        drift = bench.judge(known, now)
        spent += perf_counter() - began
        ours.add(drift.found, any(column.drifted for column in drift.columns))
        if number < asked:
            verdict, flagged = _evidently(known, now)
            theirs.add(verdict, bool(flagged))
    say(f"no drift, {rows:,} rows: {ours.alarms} alarms in {windows:,} windows; Evidently: {theirs.cells}")
    return rows, ours, theirs, 1000 * spent / windows


def _changed(
    bench: Bench, title: str, change: Change, place: int, windows: int, asked: int
) -> tuple[str, Tally, Tally]:
    """Found: the column that was changed."""
    ours, theirs, name = Tally(), Tally(), SCHEMA.names[place]
    for number in range(windows):
        known, now = bench.sides((7, number), POWER_ROWS, change)
        if title.startswith("absent"):
            now = Side(now.columns, now.of_rows, {name: "the column is missing"})
        drift = bench.judge(known, now)
        ours.add(drift.found, any(column.drifted for column in drift.columns if column.name == name))
        if number < asked and not theirs.refused:
            try:
                verdict, flagged = _evidently(known, now, infinite=True)
                theirs.add(verdict, name in flagged)
            except Exception as failed:  # what it does then is the finding
                theirs.refused = f"no report: {type(failed).__name__}"
    say(f"{title}: {ours.cells} Evidently: {theirs.cells}")
    return title, ours, theirs


def _shift(bench: Bench, by: float) -> Change:
    def change(_: np.random.Generator, rows: Matrix) -> Matrix:
        rows[:, bench.important] += by  # of a standard normal number
        return rows

    return change


def _faults(bench: Bench) -> list[tuple[str, Change, int]]:
    number, category = bench.important, bench.category
    gappy = next(j for j in (3, 8, 16))
    more = (0.2 - GAP) / (1 - GAP)

    def put(place: int, value: float, share: float = 1.0) -> Change:
        def change(rng: np.random.Generator, rows: Matrix) -> Matrix:
            rows[rng.random(len(rows)) < share, place] = value
            return rows

        return change

    other = float(len(SCHEMA.features[category].categories))
    return [
        (f"missing 5 % -> 20 % ({SCHEMA.names[gappy]})", put(gappy, np.nan, more), gappy),
        (f"a new category, 2 % of rows ({SCHEMA.names[category]})", put(category, other, 0.02), category),
        ("all null", put(number, np.nan), number),
        ("constant", put(number, 0.0), number),
        ("1 % infinite", put(number, np.inf, 0.01), number),
        ("1 % minus infinite", put(number, -np.inf, 0.01), number),
        ("absent from the window", put(number, np.nan), number),
    ]


def _evidently(known: Side, now: Side, *, infinite: bool = False) -> tuple[bool, list[str]]:
    """(dataset verdict, columns flagged) of DataDriftPreset with its defaults, columns named; raw infinities left in."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        numbers = [PREDICTION, *(feature.name for feature in SCHEMA.features if feature.kind == "number")]
        definition = DataDefinition(
            numerical_columns=numbers, categorical_columns=[n for n in SCHEMA.names if n not in numbers]
        )
        frames = []
        for side in (now, known):
            frame = as_frame(SCHEMA, side)
            for name in numbers if infinite else ():
                frame[name] = side.columns[name]
            frames.append(Dataset.from_pandas(frame.drop(columns=list(side.absent)), data_definition=definition))
        found: dict[str, Any] = Report([DataDriftPreset()], include_tests=True).run(*frames).dict()
    verdict, flagged = False, []
    for test in found["tests"]:
        told = test["metric_config"]["params"]
        failed = str(test["status"]).endswith("FAIL")
        if told["type"].endswith(":DriftedColumnsCount"):
            verdict = failed
        elif failed:
            flagged.append(str(told["column"]))
    return verdict, flagged


def _page(
    bench: Bench,
    calm: Sequence[tuple[int, Tally, Tally, float]],
    shifted: Sequence[tuple[str, Tally, Tally]],
    faults: Sequence[tuple[str, Tally, Tally]],
    options: argparse.Namespace,
    seconds: float,
) -> str:
    name = SCHEMA.names[bench.important]
    worst = 0.05 + 2 * (0.05 * 0.95 / options.windows) ** 0.5
    lines = [
        "# Drift: false alarms and power",
        "",
        f"`python -m monitoring.drift_bench --windows {options.windows} --evidently {options.evidently}`, commit "
        f"{_commit()}, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {sys.version.split()[0]}, "
        f"{seconds / 60:.0f} minutes. 30 features and the prediction of an XGBoost model, compiled; a fresh reference of "
        f"{REFERENCE_ROWS:,} rows for every window. {options.windows:,} windows without drift of each size, "
        f"{options.windows // 2:,} of each shift, {options.windows // 5:,} of each fault; Evidently (DataDriftPreset with its "
        f"defaults: drift where half of the columns drifted) was asked the first {options.evidently}, "
        f"{options.evidently // 2} and {options.evidently // 6} of them. Shares of windows; ± two standard errors.",
        "",
        f"## No drift (may alarm: 5 %; with two standard errors of {options.windows:,} windows {worst:.1%})",
        "",
        "| rows of the window | Coppice alarms | a column was flagged | Evidently alarms | a column was flagged | ms, ours |",
        "|---|---|---|---|---|---|",
        *[f"| {rows:,} | {ours.cells} {theirs.cells} {ms:.0f} |" for rows, ours, theirs, ms in calm],
        "",
        f"## One important feature's mean moved, windows of {POWER_ROWS:,} rows",
        "",
        f"`{name}` carries {bench.weights[name]:.0%} of the importance; shifts in standard deviations.",
        "",
        *_table(shifted),
        "",
        f"## Faults, windows of {POWER_ROWS:,} rows",
        "",
        f"In `{name}` where no other column is named. No window ended in an error of ours.",
        "",
        *_table(faults),
        "",
    ]
    return "\n".join(lines)


def _table(rows: Sequence[tuple[str, Tally, Tally]]) -> list[str]:
    return [
        "| change | Coppice alarms | the column was found | Evidently alarms | the column was found |",
        "|---|---|---|---|---|",
        *[f"| {title} | {ours.cells} {theirs.cells}" for title, ours, theirs in rows],
    ]


def _commit() -> str:
    head, plus, _ = git_commit().partition("+")
    return head[:12] + (" with changes" if plus else "")


def _share(hits: int, of: int) -> str:
    if not of:
        return "not asked"
    share = hits / of
    return f"{share:.3f} ± {2 * (share * (1 - share) / of) ** 0.5:.3f}"


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
