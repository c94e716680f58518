"""A look at one window: judged, remembered, and written down. What `coppice drift` does, for any program to do.

A `Subject` is a bundle whose reference was encoded, and whose features were weighed, once for any number of windows.

A look goes into two places. The checks' history (`monitoring.checks`, kind "drift") has a line for each, with `found`:

    {"prediction_drifted": false, "importance_drifted": 0.41, "share": 0.03, "reference_rows": ..., "window_rows": ...,
     "used_rows": ..., "columns": [{"name": "age", "weight": 0.3, "drifted": true, "found": ["values"], "p": ...,
     "effect": ..., "missing_reference": ..., "missing_window": ..., "note": ""}, ...]}

or, with the verdict "too little data", the window's rows alone. A folder has `summary.json`: the same fields beside verdict,
reason, model, version, label, since_us and until_us; and, where a report was wanted, `report.html` of Evidently's and in
the summary `evidently`: its figure and method for each column, and the columns that it could not compare.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from compile.bundle import REFERENCE, Manifest, load, locate, read
from compile.errors import CompileError
from compile.runtime import open_predictor
from monitoring import checks
from monitoring.drift import Drift, find_drift
from monitoring.drift_windows import Served, Window
from monitoring.errors import MonitoringError, TooLittleData
from monitoring.importance import importance
from monitoring.sides import Side, of_reference
from serving.routes import read as read_routes

if TYPE_CHECKING:
    from monitoring.evidently_report import Report


@dataclass(frozen=True)
class Subject:
    """Whose traffic is looked at. `weights`: each feature's importance; `equally` says why they are all alike, if so."""

    manifest: Manifest
    known: Side
    weights: Mapping[str, float] | None
    equally: str = ""


@dataclass(frozen=True)
class Look:
    """`side`: the rows that were compared. `drift`: None where they were too few, and `too_few` says so."""

    window: Window
    side: Side
    drift: Drift | None
    too_few: str = ""


def open_subject(store: Path, model: str, *, arm: str = "champion", digest: str | None = None) -> Subject:
    """The bundle of that digest, or of the arm in the present routes. Raises MonitoringError where it has no reference."""
    digest = digest or read_routes(store, model).arms.get(arm)
    if digest is None:
        raise MonitoringError(f"--arm: {model!r} has no arm {arm!r}")
    folder = locate(store, digest)
    manifest = read(folder)
    if REFERENCE not in manifest.files:
        raise MonitoringError(f"{folder}: holds no {REFERENCE}; compile the model from the registry to have one")
    frame = pd.read_parquet(io.BytesIO(load(folder, manifest, REFERENCE)))
    known = of_reference(manifest.schema, frame, manifest.outputs, where=str(folder / REFERENCE)).sampled()
    try:
        return Subject(manifest, known, importance(open_predictor(folder), known))
    except CompileError as refused:  # such as: no backend of it runs on this machine
        return Subject(manifest, known, None, f"every feature counts alike: {refused}")


def look(subject: Subject, served: Served, window: Window, *, share: float | None = None) -> Look:
    """Read the window and judge it."""
    side, manifest = served.read(window), subject.manifest
    try:
        drift = find_drift(
            manifest.schema,
            subject.known,
            side,
            model=manifest.model,
            version=manifest.version,
            outputs=manifest.outputs,
            weights=subject.weights,
            share=share,
        )
    except TooLittleData as little:
        return Look(window, side, None, str(little))
    return Look(window, side, drift)


def remember(folder: Path, subject: Subject, seen: Look) -> None:
    """Append the look to the checks' history."""
    drift, manifest = seen.drift, subject.manifest
    found: dict[str, Any] = {"window_rows": seen.window.rows}
    if drift is not None:
        found = {
            name: value
            for name, value in asdict(drift).items()
            if name not in ("verdict", "reason", "model", "version")
        }
    check = checks.Check(
        kind="drift",
        model=manifest.model,
        version=manifest.version,
        since_us=seen.window.since_us,
        until_us=seen.window.until_us,
        verdict=drift.verdict if drift else "too little data",
        reason=drift.reason if drift else seen.too_few,
        found=found,
    )
    checks.append(folder, check)


def write(out: Path, seen: Look, drift: Drift, report: Report | None) -> None:
    """`summary.json`, and `report.html` where there is a report, into the folder `out`: each whole or not at all."""
    window = seen.window
    told: dict[str, Any] = asdict(drift) | {
        "label": window.label,
        "since_us": window.since_us,
        "until_us": window.until_us,
    }
    out.mkdir(parents=True, exist_ok=True)
    if report is not None:
        told["evidently"] = {
            "columns": [asdict(shown) | {"figure": _finite(shown.figure)} for shown in report.columns],
            "without": list(report.without),
        }
        replace(out / "report.html", report.html)
    replace(out / "summary.json", json.dumps(told, indent=1, allow_nan=False))


def replace(path: Path, text: str) -> None:
    """Whoever reads the file meanwhile reads the old one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
