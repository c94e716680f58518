"""Evidently's report of one window, for people to look at: distances and pictures, column by column.

The verdict is not Evidently's (`monitoring.drift` says why). Where the smaller side has at least DISTANCE_ROWS rows the
report shows distances - Wasserstein's over the standard deviation for numbers, Jensen-Shannon's for categories - and calls
them drift from 0.1 on; below, where distances alarm on noise, the p-values of Kolmogorov-Smirnov and chi-square, at 0.05
shared among the columns. Columns are named one by one, never guessed. One that Evidently can't compare is left out, and told.

Importing Evidently takes seconds and 300 MB: it is done here, when a report is wanted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from monitoring.errors import MonitoringError
from monitoring.family import ALPHA
from monitoring.sides import Side, as_frame, prediction_columns
from training.features import FeatureSchema

DISTANCE_ROWS = 1_000
DISTANCE = 0.1


@dataclass(frozen=True)
class Shown:
    """What Evidently said of a column: the method's name and its figure, a distance or a p-value."""

    name: str
    method: str
    figure: float


@dataclass(frozen=True)
class Report:
    """`snapshot` is Evidently's own; `without`: columns that it could not compare."""

    columns: tuple[Shown, ...]
    without: tuple[str, ...]
    snapshot: Any

    @property
    def html(self) -> str:
        with _quietly():
            return str(self.snapshot.get_html_str(as_iframe=False))


def report(
    schema: FeatureSchema,
    known: Side,
    now: Side,
    *,
    outputs: Sequence[str] = (),
    model: str = "",
    version: str = "",
    at_us: int | None = None,
) -> Report:
    """Raises MonitoringError where no column at all can be compared. `at_us`: the window's begin."""
    before, after = as_frame(schema, known), as_frame(schema, now)
    features = [feature.name for feature in schema.features if feature.kind == "number"]
    numbers = {*prediction_columns(outputs), *features}
    small = min(len(before), len(after)) < DISTANCE_ROWS
    names = [name for name in before.columns if name not in known.absent and _comparable(before[name], after[name])]

    def run(columns: Sequence[str]) -> Any:
        return _run(before, after, columns, numbers, small=small, model=model, version=version, at_us=at_us)

    with _quietly():
        try:
            snapshot = run(names)
        except Exception:  # one column's failure ends the whole report: find which, and go on without them
            names = [name for name in names if _runs(run, name)]
            if not names:
                raise MonitoringError(f"{model} version {version}: Evidently could not compare any column") from None
            snapshot = run(names)
        shown = _shown(snapshot)
    return Report(shown, tuple(name for name in before.columns if name not in names), snapshot)


def export(found: Report, workspace: Path, model: str) -> None:
    """Add the report to the model's project in a folder that `evidently ui --workspace FOLDER` shows; made if need be."""
    with _quietly():
        from evidently.sdk.models import PanelMetric
        from evidently.sdk.panels import DashboardPanelPlot
        from evidently.ui.workspace import Workspace

        place = Workspace.create(str(workspace))
        projects = [project for project in place.search_project(model) if project.name == model]
        if projects:
            project = projects[0]
        else:
            project = place.create_project(model)
            for column in found.columns:
                panel = DashboardPanelPlot(
                    title=column.name,
                    subtitle="distance from the reference, or p-value in windows of few rows",
                    size="half",
                    values=[PanelMetric(legend="", metric="ValueDrift", metric_labels={"column": column.name})],
                    plot_params={"plot_type": "line"},
                )
                project.dashboard.add_panel(panel, tab="Drift")
            project.save()
        place.add_run(project.id, found.snapshot)


def _run(
    before: pd.DataFrame,
    after: pd.DataFrame,
    columns: Sequence[str],
    numbers: set[str],
    *,
    small: bool,
    model: str,
    version: str,
    at_us: int | None,
) -> Any:
    from evidently import DataDefinition, Dataset
    from evidently import Report as Metrics
    from evidently.metrics import ValueDrift

    definition = DataDefinition(
        numerical_columns=[name for name in columns if name in numbers],
        categorical_columns=[name for name in columns if name not in numbers],
    )
    by_kind = {True: "ks" if small else "wasserstein", False: "chisquare" if small else "jensenshannon"}
    threshold = ALPHA / before.shape[1] if small else DISTANCE
    drifts = [ValueDrift(column=name, method=by_kind[name in numbers], threshold=threshold) for name in columns]
    sides = [Dataset.from_pandas(side[list(columns)], data_definition=definition) for side in (after, before)]
    when = datetime.fromtimestamp(at_us / 1_000_000, UTC) if at_us is not None else datetime.now(UTC)
    metrics = Metrics(drifts, include_tests=True)
    return metrics.run(
        sides[0], sides[1], timestamp=when.replace(tzinfo=None), metadata={"model": model, "version": version}
    )


def _shown(snapshot: Any) -> tuple[Shown, ...]:
    """In the order in which the columns were named."""
    return tuple(
        Shown(str(metric["config"]["column"]), str(metric["config"]["method"]), float(metric["value"]))
        for metric in snapshot.dict()["metrics"]
    )


def _comparable(before: pd.Series[Any], after: pd.Series[Any]) -> bool:
    return bool(before.notna().sum() > 1 and after.notna().sum() > 1)


def _runs(run: Any, name: str) -> bool:
    try:
        run([name])
    except Exception:
        return False
    return True


@contextmanager
def _quietly() -> Iterator[None]:
    """Without telemetry, and without the deprecations inside Evidently and its dependencies, which are not ours to mend."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
