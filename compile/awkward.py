"""Rows chosen to tell a wrong model from a right one.

Agreement on random rows proves little: converters that are wrong on every split threshold agree to 1e-7 on those. So the
gate asks at each threshold and one ulp to either side (in float32 and in float64), in rows bent to reach the very split
(`compile.paths`), at missing values everywhere and one at a time, at every category, the unseen code and beyond, at zeros,
infinities and the smallest and largest magnitudes; then on the holdout's own rows and on random ones.

Rows are encoded by the schema. What the trained model refuses to answer is not asked (`Limits`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compile.forest import Forest
from compile.paths import Changes, bent_rows
from compile.program import Add, Column, Divide, Multiply, Program, Sentinel, Subtract, Table
from training.features import Feature, FeatureSchema

Matrix = npt.NDArray[np.float64]

MAX_HOLDOUT = 20_000
MAX_PATHS = 10_000  # splits that rows are bent to reach; of a larger forest a seeded sample
SHARED = 4  # a row lies on the thresholds of about one feature in so many
RANDOM_ROWS = 4_000
TINY = (0.0, -0.0, 1e-35, -1e-35, float(np.float32(1e-35)), 1.0000001e-35, 1e-36, -1e-40, 5e-324)
LARGE = (1e30, -1e30, 3.0e38, -3.0e38, 1e300, -1e300, np.inf, -np.inf)  # the last four are infinite as a float32
MAGNITUDES = (np.inf, 1.7e308, 3.4028234e38, 1e37, 1e30, 1e15)  # of which the largest that is answered is looked for
# doubles that a reader of their low half alone takes for a missing value's mark
LOW_BITS = tuple(
    np.array([0x3FF00000FFFFFFFF, 0xC0240000FFFFFFFF, 0x00000000FFFFFFFF], dtype=np.uint64).view(np.float64).tolist()
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the trained model answers at all, and what its rows can hold.

    missing: features that may be NaN. largest: of a number's magnitudes, infinity where that is answered. codes_only: a
    category is one of the schema's codes or missing, because the model was trained on their names; otherwise any number
    is asked. booleans: features that are 0 or 1 alone.
    """

    missing: frozenset[int]
    largest: float
    codes_only: bool
    booleans: frozenset[int]


def awkward_rows(
    schema: FeatureSchema,
    forest: Forest | None,
    thresholds: Sequence[tuple[int, float]],
    program: Program | None,
    holdout: Matrix,
    limits: Limits,
    seed: int = 0,
) -> dict[str, Matrix]:
    """The rows to ask, by kind. `thresholds`: (column of the trees, value), all of them. `holdout`: float64 (n >= 1, width),
    encoded. Paths are bent where the trees read the schema's own columns.

    The same inputs give the same rows.
    """
    rng = np.random.default_rng(seed)
    sets = [m.categories for tree in forest.trees for m in tree.members.values()] if forest is not None else []
    largest = max((max(categories, default=0) for categories in sets), default=0)
    base = holdout[rng.permutation(len(holdout))[:MAX_HOLDOUT]]
    makers = _Makers(schema, limits, base, rng)
    kinds = {
        "holdout": base,
        "thresholds": makers.together(_around(thresholds, program)),
        "paths": makers.bent(bent_rows(forest, base, MAX_PATHS, rng))
        if forest is not None and program is None
        else base[:0],
        "missing": makers.missing(),
        "categories": makers.at(_categories(schema, limits, largest, rng)),
        "magnitudes": makers.at(_magnitudes(schema, limits, program)),
        "random": makers.random(),
    }
    return {kind: np.ascontiguousarray(rows) for kind, rows in kinds.items() if len(rows)}


def _around(thresholds: Sequence[tuple[int, float]], program: Program | None) -> list[tuple[int, float]]:
    """(feature, value): each threshold, and one ulp of float32 and of float64 to either side."""
    features: list[int] = []
    exact: list[float] = []
    for column, threshold in thresholds:
        feature, values = (column, [threshold]) if program is None else _before(program.columns[column], threshold)
        features += [feature] * len(values)
        exact += values
    at = np.array(exact, dtype=np.float64)
    with np.errstate(over="ignore"):
        single = at.astype(np.float32)
        around = [at, *(np.nextafter(at, side) for side in (-np.inf, np.inf))]
        around += [single.astype(np.float64)]
        around += [np.nextafter(single, np.float32(side)).astype(np.float64) for side in (-np.inf, np.inf)]
    by_place = [values.tolist() for values in around]
    return sorted({pair for values in by_place for pair in zip(features, values, strict=True)})


def _before(column: Column, threshold: float) -> tuple[int, list[float]]:
    """Inputs that the column's steps turn into the threshold or a near neighbour: its arithmetic undone, and some ulps."""
    value = threshold
    for step in reversed(column.steps):
        if isinstance(step, Table):
            return column.input, []  # every entry is asked anyway
        with np.errstate(all="ignore"):
            if isinstance(step, Subtract):
                value = value + float(step.value)
            elif isinstance(step, Add):
                value = value - float(step.value)
            elif isinstance(step, Divide):
                value = value * float(step.value)
            elif isinstance(step, Multiply):
                value = float(np.float64(value) / np.float64(float(step.value)))
    near = [value]
    for side in (-np.inf, np.inf):
        at = value
        for _ in range(3):
            at = float(np.nextafter(at, side))
            near.append(at)
    return column.input, [at for at in near if np.isfinite(at)]


def _categories(
    schema: FeatureSchema, limits: Limits, largest: int, rng: np.random.Generator
) -> list[tuple[int, float]]:
    """Each code that the encoder gives; where any number may come, also what lies at the edges of bitsets and beyond."""
    wanted = []
    for j, feature in enumerate(schema.features):
        if feature.kind != "category":
            continue
        codes = {float(code) for code in range(_codes(feature))}
        if len(codes) > 4096:
            codes = set(rng.permutation(sorted(codes))[:4096].tolist())
        if not limits.codes_only:
            codes |= {float(largest + 1), 32.0 * (largest // 32 + 1), float(len(feature.categories)), 4095.0}
            codes |= {
                -1.0,
                -0.5,
                -3.5,
                0.5,
                1.5,
                0.9999999999,
                largest + 0.5,
                2.0**24,
                2.0**31,
                2.0**32 + 1,
                -(2.0**31),
                1e10,
            }
        wanted += [(j, code) for code in sorted(codes) for _ in range(4)]
    return wanted


def _magnitudes(schema: FeatureSchema, limits: Limits, program: Program | None) -> list[tuple[int, float]]:
    values = TINY + LARGE + LOW_BITS
    numbers = [
        j for j, feature in enumerate(schema.features) if feature.kind != "category" and j not in limits.booleans
    ]
    wanted = [(j, value) for value in values for j in numbers]
    for column in () if program is None else program.columns:
        for step in column.steps:
            if isinstance(step, Sentinel) and column.input in numbers:
                marked = float(step.value)
                wanted += [
                    (column.input, x) for x in (marked, np.nextafter(marked, np.inf), np.nextafter(marked, -np.inf))
                ]
    return wanted


class _Makers:
    def __init__(self, schema: FeatureSchema, limits: Limits, base: Matrix, rng: np.random.Generator) -> None:
        self._schema, self._limits, self._base, self._rng = schema, limits, base, rng
        coded = [(j, feature) for j, feature in enumerate(schema.features) if feature.kind == "category"]
        self._codes = {j: _codes(feature) for j, feature in coded} if limits.codes_only else {}

    def at(self, wanted: Sequence[tuple[int, float]]) -> Matrix:
        """A row for each (feature, value), set into one of the base rows, where that value may be asked."""
        wanted = [(feature, value) for feature, value in wanted if self._may_be(feature, value)]
        rows = self._base[self._rng.integers(0, len(self._base), len(wanted))].copy()
        for i, (feature, value) in enumerate(wanted):
            rows[i, feature] = value
        return rows

    def together(self, wanted: Sequence[tuple[int, float]]) -> Matrix:
        """As `at`, but a row takes a value for each of several features: every value once, in a fraction of the rows."""
        by_feature: dict[int, list[float]] = {}
        for feature, value in wanted:
            if self._may_be(feature, value):
                by_feature.setdefault(feature, []).append(value)
        most = max(map(len, by_feature.values()), default=0)
        count = max(most, -(-sum(map(len, by_feature.values())) // max(1, len(by_feature) // SHARED)))
        rows = self._base[self._rng.integers(0, len(self._base), count)].copy()
        for feature, values in by_feature.items():
            rows[self._rng.permutation(count)[: len(values)], feature] = values
        return rows

    def bent(self, wanted: Iterable[tuple[int, Changes]]) -> Matrix:
        """Base rows with what is to be changed in them, where all of it may be asked."""
        asked = [(number, changes) for number, changes in wanted if all(self._may_be(*change) for change in changes)]
        rows = self._base[[number for number, _ in asked]] if asked else self._base[:0]
        at = [(i, column, value) for i, (_, changes) in enumerate(asked) for column, value in changes]
        if at:
            places, columns, values = zip(*at, strict=True)
            rows[np.array(places), np.array(columns)] = values
        return rows

    def missing(self) -> Matrix:
        may = sorted(self._limits.missing)
        if not may:
            return self._base[:0]
        everywhere = self._base[:1].copy()
        everywhere[:, may] = np.nan
        alone = self._base[self._rng.integers(0, len(self._base), 8 * len(may))].copy()
        for i in range(len(alone)):
            alone[i, may[i % len(may)]] = np.nan
        scattered = self._base[self._rng.integers(0, len(self._base), 500)].copy()
        self._scatter(scattered, 0.4)
        return np.concatenate([everywhere, alone, scattered])

    def random(self) -> Matrix:
        """Uniform over a little more than the holdout's range, a tenth of it missing; codes for categories."""
        rows = np.empty((RANDOM_ROWS, self._schema.width))
        for j, feature in enumerate(self._schema.features):
            if feature.kind == "category":
                rows[:, j] = self._rng.integers(0, _codes(feature), RANDOM_ROWS)
            elif j in self._limits.booleans:
                rows[:, j] = self._rng.integers(0, 2, RANDOM_ROWS)
            else:
                known = self._base[np.isfinite(self._base[:, j]), j]
                low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
                spread = max(high - low, 1e-6)
                rows[:, j] = self._rng.uniform(low - 0.1 * spread, high + 0.1 * spread, RANDOM_ROWS)
        self._scatter(rows, 0.1)
        return rows

    def _scatter(self, rows: Matrix, share: float) -> None:
        may = np.array(sorted(self._limits.missing), dtype=int)
        holes = self._rng.random((len(rows), len(may))) < share
        rows[:, may] = np.where(holes, np.nan, rows[:, may])

    def _may_be(self, feature: int, value: float) -> bool:
        if value != value:
            return feature in self._limits.missing
        if feature in self._limits.booleans:
            return value in (0.0, 1.0)
        if feature in self._codes:
            return value in range(self._codes[feature])
        return abs(value) <= self._limits.largest


def _codes(feature: Feature) -> int:
    """How many codes the encoder gives: one more than there are categories where the unseen ones have their own."""
    return len(feature.categories) + (feature.unseen == "other")
