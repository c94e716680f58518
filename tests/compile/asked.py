"""The rows to ask: at every threshold and beside it, missing, tiny, huge, infinite, of every category and of none.

Written apart from the product's own gate, so that one checks the other.
"""

from __future__ import annotations

import numpy as np
from kind import Case, Matrix

from training.features import Feature

TINY32 = np.float32(1e-35)  # what LightGBM reads as zero, inclusive
TINY = [0.0, -0.0, 1e-35, -1e-35, float(TINY32), -float(TINY32), 1e-36, 1e-40, 1e-45, -1e-45, 5e-324, -5e-324]
TINY += [float(np.nextafter(TINY32, np.float32(side))) for side in (0, 1)]
TINY += [float(np.nextafter(1e-35, side)) for side in (0, 1)]
TINY += [float(np.nextafter(float(TINY32), side)) for side in (0, 1)]
TINY += [-float(np.nextafter(float(TINY32), side)) for side in (0, 1)]
LARGE = [1e30, -1e30, 3.4e38, -3.4e38, 2.0**24 + 1, -(2.0**24) - 1, 2.0**53 - 1, 1e18]
BEYOND = [np.inf, -np.inf, 1e300, -1e300, 3.5e38, -3.5e38, float(np.finfo(np.float64).max)]
ODD_CODES = [-1.0, -0.5, -7.0, 0.5, 1.5, 2.999999, 31.0, 32.0, 63.5, 64.0, 255.0, 256.0, 4095.0, 65536.0, 16777215.0]
HUGE_CODES = [16777216.0, 2147483520.0, 2147483648.0, -2147483904.0, 4294967296.0, 1e20, -1e20]


def asked(case: Case, seed: int, count: int = 500) -> dict[str, Matrix]:
    """Encoded rows by kind. Only rows that the native model answers; the same seed gives the same rows."""
    rng = np.random.default_rng(seed)
    numbers = [(j, feature) for j, feature in enumerate(case.schema.features) if feature.kind != "category"]
    categories = [(j, feature) for j, feature in enumerate(case.schema.features) if feature.kind == "category"]
    cells = {
        "thresholds": [
            cell for feature, value in sorted(set(case.thresholds)) for cell in _around(feature, value, case.largest)
        ],
        "missing": [(j, becomes) for j, f in enumerate(case.schema.features) for becomes in _missing(f)] * 8,
        "magnitudes": [(j, value) for j, _ in numbers for value in TINY + LARGE if abs(value) <= case.largest],
        "infinite": [(j, value) for j, _ in numbers for value in BEYOND if case.infinite],
        "categories": [(j, float(code)) for j, f in categories for code in range(len(f.categories))] * 2,
        "odd categories": [(j, code) for j, f in categories for code in _odd_codes(f) if case.any_code] * 2,
    }
    rows = {"holdout": case.holdout, "random": _random(case, rng, count), "all ones": _all_ones(case, rng)}
    rows |= {kind: _set(case.holdout, pairs, rng) for kind, pairs in cells.items()}
    rows["scattered"] = _scattered(case, rng)
    if case.infinite:
        rows["scattered beyond"] = _scattered_beyond(case, [j for j, _ in numbers], rng)
    return {kind: np.ascontiguousarray(block) for kind, block in rows.items() if len(block)}


def _set(base: Matrix, cells: list[tuple[int, float]], rng: np.random.Generator) -> Matrix:
    """One row a cell: a row of the base with that one value."""
    rows = base[rng.integers(0, len(base), len(cells))].copy()
    for i, (feature, value) in enumerate(cells):
        rows[i, feature] = value
    return rows


def _around(feature: int, threshold: float, largest: float) -> list[tuple[int, float]]:
    """The threshold, its float32, the float32s beside it and the points halfway, where a cast turns; and one float64 ulp
    to either side of each."""
    with np.errstate(over="ignore"):
        single = np.float32(threshold)
        beside = [float(np.nextafter(single, np.float32(side))) for side in (-np.inf, np.inf)]
    values = {threshold, float(single), *beside, *((float(single) + other) / 2 for other in beside)}
    values |= {float(np.nextafter(value, side)) for value in values for side in (-np.inf, np.inf)}
    return [(feature, value) for value in sorted(values) if abs(value) <= largest]


def _missing(feature: Feature) -> list[float]:
    if feature.missing == "refuse":
        return []
    return [np.nan if isinstance(feature.missing, str) else float(feature.missing)]


def _odd_codes(feature: Feature) -> list[float]:
    unknown = float(len(feature.categories))
    return [unknown, unknown + 1, *ODD_CODES, *HUGE_CODES]


def _random(case: Case, rng: np.random.Generator, count: int) -> Matrix:
    """Uniform over a little more than the range seen."""
    rows = np.empty((count, case.schema.width))
    for j, feature in enumerate(case.schema.features):
        if feature.kind == "category":
            rows[:, j] = rng.integers(0, len(feature.categories), count)
            continue
        known = case.rows[np.isfinite(case.rows[:, j]), j]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        rows[:, j] = rng.uniform(low - 0.1 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3, count)
    return rows


def _scattered(case: Case, rng: np.random.Generator) -> Matrix:
    """Two fifths of the values missing, and one row of nothing else."""
    rows = case.holdout[rng.integers(0, len(case.holdout), 201)].copy()
    gone = rng.random(rows.shape) < 0.4
    gone[0] = True
    for j, feature in enumerate(case.schema.features):
        for becomes in _missing(feature):
            rows[gone[:, j], j] = becomes
    return rows


def _scattered_beyond(case: Case, numbers: list[int], rng: np.random.Generator) -> Matrix:
    rows = case.holdout[rng.integers(0, len(case.holdout), 100)].copy()
    for j in numbers:
        struck = rng.random(len(rows)) < 0.3
        rows[struck, j] = rng.choice(BEYOND, struck.sum())
    return rows


def _all_ones(case: Case, rng: np.random.Generator) -> Matrix:
    """Doubles whose low 32 bits are all ones: a runtime that overlays an int and a double reads them as missing."""
    rows = case.holdout[rng.integers(0, len(case.holdout), 100)].copy()
    for j, feature in enumerate(case.schema.features):
        if feature.kind != "category":
            column = np.ascontiguousarray(rows[:, j])
            ones = (column.view(np.uint64) | np.uint64(0xFFFFFFFF)).view(np.float64)
            fits = np.isfinite(column) & (np.abs(ones) <= case.largest)
            rows[:, j] = np.where(fits, ones, column)
    return rows
