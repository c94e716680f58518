"""The parity gate: a backend answers as the native library does, on rows chosen to tell them apart, or there is no bundle.

Agreement on random rows proves little: converters that are wrong on every split threshold agree to 1e-7 on those. So the
gate asks at each threshold and one ulp to either side (in float32 and in float64), at missing values everywhere and one at
a time, at every category, the unseen code and beyond, at zeros and the smallest and largest magnitudes; then on the
holdout's own rows and on random ones. Margins must be equal bit for bit, probabilities within 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.bundle import Parity
from compile.errors import ParityFailed
from compile.forest import Forest
from compile.kernel import logistic
from compile.native import NativeModel
from compile.runtime import SCORE_TOLERANCE, Engine
from training.features import FeatureSchema

Matrix = npt.NDArray[np.float64]
Progress = Callable[[str], None]

MAX_HOLDOUT = 20_000
RANDOM_ROWS = 4_000
FLOAT32_MAX = float(np.finfo(np.float32).max)  # beyond it XGBoost's own DMatrix refuses
TINY = (0.0, -0.0, 1e-35, -1e-35, float(np.float32(1e-35)), 1.0000001e-35, 1e-36, -1e-40, 5e-324)
HUGE = (1e30, -1e30, 3.0e38, -3.0e38)


def awkward_rows(forest: Forest, schema: FeatureSchema, holdout: Matrix, seed: int = 0) -> dict[str, Matrix]:
    """The rows to ask, by kind. `holdout` is float64 (n >= 1, width) of encoded rows; the same inputs give the same rows."""
    rng = np.random.default_rng(seed)
    base = holdout[rng.permutation(len(holdout))[:MAX_HOLDOUT]]
    kinds = {
        "holdout": base,
        "thresholds": _at_thresholds(forest, base, rng),
        "missing": _with_missing(base, rng),
        "categories": _at_categories(forest, schema, base, rng),
        "magnitudes": _at_magnitudes(schema, base, rng),
        "random": _random(schema, base, rng),
    }
    return {kind: np.ascontiguousarray(rows) for kind, rows in kinds.items() if len(rows)}


def prove(name: str, engine: Engine, forest: Forest, native: NativeModel, rows: dict[str, Matrix]) -> Parity:
    """The backend's report. Raises ParityFailed, with the first row that differs, if any does."""
    counts, worst_margin, worst_score = {}, 0.0, 0.0
    for kind, block in rows.items():
        margins, scores = native.margin(block), native.score(block)
        got = engine.margin(block)
        differing = np.flatnonzero((got != margins)[:, 0])
        if len(differing):
            raise ParityFailed(_told(name, kind, block, int(differing[0]), len(differing), got, margins))
        apart = np.abs(logistic(got, forest.sigmoid) - scores)
        if not (apart <= SCORE_TOLERANCE).all():
            raise ParityFailed(
                f"{name}: probabilities on {kind} rows are up to {np.nanmax(apart):.3g} off the native ones"
            )
        counts[kind] = len(block)
        worst_margin = max(worst_margin, float(np.abs(got - margins).max()))
        worst_score = max(worst_score, float(apart.max()))
    return Parity(counts, 0, worst_margin, worst_score)


def cross_check(native: NativeModel, rows: dict[str, Matrix]) -> str:
    """One line on what onnxmltools' conversion of the same model does with the same rows. Never fatal: it is no backend."""
    try:
        answers = _off_the_shelf(native, rows)
    except Exception as failure:  # whatever it raises is the finding
        return f"does not convert: {type(failure).__name__}: {str(failure).splitlines()[0][:160]}"
    wrong = {}
    for kind, scores in answers.items():
        bad = int((np.abs(scores - native.score(rows[kind])[:, 0]) > SCORE_TOLERANCE).sum())
        if bad:
            wrong[kind] = bad
    asked = sum(len(block) for block in rows.values())
    return f"wrong on {sum(wrong.values())} of {asked} rows" + (f" ({wrong})" if wrong else "")


def _off_the_shelf(native: NativeModel, rows: dict[str, Matrix]) -> dict[str, npt.NDArray[Any]]:
    import onnxruntime
    from onnxmltools import convert_lightgbm, convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    width = next(iter(rows.values())).shape[1]
    inputs = [("rows", FloatTensorType([None, width]))]
    if native.library == "lightgbm":
        model = convert_lightgbm(native.booster, initial_types=inputs, target_opset=15, zipmap=False)
    else:
        unnamed = native.booster.copy()
        unnamed.feature_names = None
        model = convert_xgboost(unnamed, initial_types=inputs, target_opset=15)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    last = session.get_outputs()[-1].name
    with np.errstate(over="ignore"):
        return {kind: session.run([last], {"rows": block.astype(np.float32)})[0][:, 1] for kind, block in rows.items()}


def _told(name: str, kind: str, block: Matrix, row: int, count: int, got: Matrix, margins: Matrix) -> str:
    return (
        f"{name}: {count} of {len(block)} {kind} rows differ from the native library; the first, {block[row].tolist()}, "
        f"answers {got[row, 0]!r}, the native margin is {margins[row, 0]!r}"
    )


def _at_thresholds(forest: Forest, base: Matrix, rng: np.random.Generator) -> Matrix:
    """Every distinct (feature, threshold), and one ulp of float32 and of float64 to either side, set into a base row."""
    splits = {
        (int(feature), float(threshold))
        for tree in forest.trees
        for node, (feature, threshold) in enumerate(zip(tree.feature, tree.threshold, strict=True))
        if tree.left[node] >= 0 and node not in tree.members
    }
    wanted = []
    for feature, threshold in sorted(splits):
        with np.errstate(over="ignore"):
            single = np.float32(threshold)
        around = {threshold, float(single)}
        around |= {float(np.nextafter(single, np.float32(side))) for side in (-np.inf, np.inf)}
        around |= {float(np.nextafter(threshold, side)) for side in (-np.inf, np.inf)}
        wanted += [(feature, value) for value in sorted(around) if abs(value) <= FLOAT32_MAX]
    rows = base[rng.integers(0, len(base), len(wanted))].copy()
    for i, (feature, value) in enumerate(wanted):
        rows[i, feature] = value
    return rows


def _with_missing(base: Matrix, rng: np.random.Generator) -> Matrix:
    width = base.shape[1]
    alone = base[rng.integers(0, len(base), 8 * width)].copy()
    for i in range(len(alone)):
        alone[i, i % width] = np.nan
    scattered = base[rng.integers(0, len(base), 500)].copy()
    scattered[rng.random(scattered.shape) < 0.4] = np.nan
    return np.concatenate([np.full((1, width), np.nan), alone, scattered])


def _at_categories(forest: Forest, schema: FeatureSchema, base: Matrix, rng: np.random.Generator) -> Matrix:
    """Each code that the encoder gives, and the codes at the edges of the splits' bitsets."""
    rows = []
    largest = max((max(m, default=0) for tree in forest.trees for m in tree.members.values()), default=0)
    for j, feature in enumerate(schema.features):
        if feature.kind != "category":
            continue
        codes = {*range(len(feature.categories) + 1), largest, largest + 1, 32 * (largest // 32 + 1), 4095}
        for code in sorted(codes):
            block = base[rng.integers(0, len(base), 4)].copy()
            block[:, j] = code
            rows.append(block)
    return np.concatenate(rows) if rows else base[:0]


def _at_magnitudes(schema: FeatureSchema, base: Matrix, rng: np.random.Generator) -> Matrix:
    numbers = [j for j, feature in enumerate(schema.features) if feature.kind != "category"]
    rows = base[rng.integers(0, len(base), len(numbers) * len(TINY + HUGE))].copy()
    for i, value in enumerate(TINY + HUGE):
        for k, j in enumerate(numbers):
            rows[i * len(numbers) + k, j] = value
    return rows


def _random(schema: FeatureSchema, base: Matrix, rng: np.random.Generator) -> Matrix:
    """Uniform over a little more than the holdout's range, a tenth of it missing; codes for categories."""
    rows = np.empty((RANDOM_ROWS, schema.width))
    for j, feature in enumerate(schema.features):
        if feature.kind == "category":
            rows[:, j] = rng.integers(0, len(feature.categories) + 1, RANDOM_ROWS)
            continue
        known = base[np.isfinite(base[:, j]), j]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        spread = max(high - low, 1e-6)
        rows[:, j] = rng.uniform(low - 0.1 * spread, high + 0.1 * spread, RANDOM_ROWS)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows
