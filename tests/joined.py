"""Rows of the lake joined with their outcomes, as `monitoring.queries` gives them, and a model that they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cases import MIXED

from compile.bundle import Manifest, read
from monitoring.cohorts import Rows, Who, read_rows

DAY_US = 86_400_000_000
START_US = 20_000 * DAY_US  # midnight
FLOATS = pa.list_(pa.float64())


def manifest_of(tiny: Path, **changes: Any) -> Manifest:
    """Of a binary model of the classes no and yes, unless changed."""
    given = {"classes": ("no", "yes"), "threshold": 0.5, "version": "1"} | changes
    return msgspec.structs.replace(read(tiny), **given)


def arms_of(table: pa.Table, manifests: Mapping[str, Manifest]) -> dict[Who, Rows]:
    """Whose rows they are, as they come from the lake."""
    found = {}
    for who in sorted({Who(*names) for names in zip(*(table[name].to_pylist() for name in Who._fields), strict=True)}):
        mine = pc.field("version") == who.version
        mine &= (pc.field("arm") == who.arm) & (pc.field("role") == who.role)
        found[who] = read_rows(table.filter(mine), manifests[who.version])
    return found


def joined(
    scores: np.ndarray,
    outcomes: Sequence[Any],
    *,
    ts_us: np.ndarray | None = None,
    features: np.ndarray | None = None,
    status: np.ndarray | None = None,
    version: str = "1",
    arm: str = "champion",
    role: str = "served",
    schema: str = MIXED.fingerprint,
) -> pa.Table:
    """`outcomes`: None where none came; a row a minute from START_US on, unless `ts_us` says when. `scores`: (n,) or (n, k)."""
    rows = len(scores)
    wide = scores if scores.ndim == 2 else None
    numbers = [None if told is None or isinstance(told, str) else float(told) for told in outcomes]
    return pa.table(
        {
            "ts_us": pa.array(START_US + 60_000_000 * np.arange(rows) if ts_us is None else ts_us, pa.int64()),
            "request_id": [f"r{n:08}" for n in range(rows)],
            "row": pa.array([0] * rows, pa.int32()),
            "unit": [""] * rows,
            "version": [version] * rows,
            "arm": [arm] * rows,
            "role": [role] * rows,
            "generation": pa.array([1] * rows, pa.int64()),
            "schema": [schema] * rows,
            "status": pa.array([200] * rows if status is None else status, pa.int32()),
            "score": pa.array(scores[:, 0] if wide is not None else scores, pa.float64()),
            "scores": pa.array([None] * rows if wide is None else wide.tolist(), FLOATS),
            "features": pa.array(
                np.zeros((rows, MIXED.width)).tolist() if features is None else features.tolist(), FLOATS
            ),
            "value_number": pa.array(numbers, pa.float64()),
            "value_text": pa.array([told if isinstance(told, str) else None for told in outcomes], pa.string()),
            "happened_us": pa.array([None if told is None else START_US for told in outcomes], pa.int64()),
            "received_us": pa.array([None if told is None else START_US for told in outcomes], pa.int64()),
        }
    )
