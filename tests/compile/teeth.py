"""Runtimes that are wrong in the ways that converters have been: each must be found out by the rows that are asked.

A runtime's fault is told as what it does to a row before it answers as the native model does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from kind import Matrix


@dataclass(frozen=True)
class Fault:
    says: str
    kind: str
    found_by: str
    alters: Callable[[Matrix], Matrix]


def _rounds(rows: Matrix) -> Matrix:
    with np.errstate(over="ignore"):
        return rows.astype(np.float32).astype(np.float64)


def _one_down(rows: Matrix) -> Matrix:
    with np.errstate(over="ignore"):
        return np.nextafter(rows.astype(np.float32), np.float32(-np.inf)).astype(np.float64)


def _low_ones_missing(rows: Matrix) -> Matrix:
    ones = (np.ascontiguousarray(rows).view(np.uint64) & np.uint64(0xFFFFFFFF)) == np.uint64(0xFFFFFFFF)
    return np.where(ones, np.nan, rows)


def _codes_exact(rows: Matrix) -> Matrix:
    """Of the last two columns, the categories."""
    rows = rows.copy()
    codes = rows[:, -2:]
    rows[:, -2:] = np.where(codes == np.floor(codes), codes, 1e6)
    return rows


def _no_snap(rows: Matrix) -> Matrix:
    tiny = (rows != 0) & (np.abs(rows) <= 1.01e-35)
    return np.where(tiny, np.sign(rows) * 1e-34, rows)


FAULTS = [
    Fault("casts LightGBM's numbers to float32", "lgb_binary", "thresholds", _rounds),
    Fault("casts what only float64 holds", "lgb_float64", "holdout", _rounds),
    Fault("goes left where a number equals XGBoost's threshold", "xgb_binary", "thresholds", _one_down),
    Fault("truncates to float32 before a forest", "skl_rf_binary", "thresholds", _one_down),
    Fault("reads missing as zero", "xgb_binary", "missing", lambda rows: np.nan_to_num(rows, nan=0.0, posinf=np.inf)),
    Fault("reads missing as zero", "lgb_binary", "scattered", lambda rows: np.nan_to_num(rows, nan=0.0, posinf=np.inf)),
    Fault("reads infinite as missing", "xgb_binary", "infinite", lambda rows: np.where(np.isinf(rows), np.nan, rows)),
    Fault("overlays an int on a double", "lgb_binary", "all ones", _low_ones_missing),
    Fault("overlays an int on a double", "skl_hgb_binary", "all ones", _low_ones_missing),
    Fault("knows whole category codes alone", "lgb_codes", "odd categories", _codes_exact),
    Fault("knows whole category codes alone", "xgb_codes", "odd categories", _codes_exact),
    Fault("permutes categories", "lgb_pandas_reordered", "categories", lambda rows: np.column_stack(
        [rows[:, :6], 4 - rows[:, 6], 11 - rows[:, 7]])),
    Fault("does not read 1e-35 as zero", "lgb_binary", "magnitudes", _no_snap),
]  # fmt: skip
