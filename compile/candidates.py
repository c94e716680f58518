"""The compiled forms of a model: each a file's bytes and the engine that serves them, not yet proved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compile import trust
from compile.bundle import BackendName, Promise
from compile.checkpoint import checkpoint
from compile.engines import FILES, Engine, EngineUnavailable, engine_of
from compile.errors import CompileError, ModelRefused
from compile.flat import flatten
from compile.forest import Forest
from compile.normalise import Normal
from compile.onnx_export import export_onnx

Matrix = npt.NDArray[np.float64]
Progress = Callable[[str], None]

NAMES: tuple[BackendName, ...] = ("treelite", "onnx", "native")
BACKENDS: tuple[BackendName, ...] = ("treelite", "onnx")  # what is made unless something else is asked for


@dataclass(frozen=True, slots=True)
class Candidate:
    name: str
    file: str
    data: bytes
    engine: Engine
    promise: Promise


@dataclass(slots=True)
class Candidates:
    """`refused`: why a form could not be made, by backend. `checkpoint`: Treelite's, where it can say the model."""

    sound: list[Candidate] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    checkpoint: bytes | None = None


def candidates(
    normal: Normal, rows: Matrix, *, backends: Collection[BackendName] = BACKENDS, progress: Progress
) -> Candidates:
    """The forms asked for that this machine can make and open. What isn't opened here isn't proved, nor sold.

    `backends` are of a forest; what only skl2onnx converts has that one form. Treelite's checkpoint is made whichever are.
    """
    made = Candidates()
    if normal.forest is None:
        from compile.converted import convert

        _add(made, "skl2onnx", "1e-6", lambda: convert(normal.final, rows, normal.program))
        return made
    forest = normal.forest
    if "treelite" in backends:
        _add(made, "treelite", "bits", lambda: flatten(forest))
    if "onnx" in backends:
        _add(made, "onnx", "bits", lambda: export_onnx(forest))
    try:
        made.checkpoint = checkpoint(forest)
    except ModelRefused as reason:
        progress(f"no Treelite checkpoint: {reason}")
    if "native" in backends:
        _add_native(made, forest, progress)
    progress(", ".join(f"{made_.file} {len(made_.data) / 1024:,.0f} KiB" for made_ in made.sound))
    return made


def inner_thresholds(estimator: Any) -> list[tuple[int, float]]:
    """Splits of the tree models inside an estimator that we do not model, where those read the same columns."""
    from compile import from_lightgbm, from_sklearn, from_xgboost

    found: set[tuple[int, float]] = set()
    for inner in _inner(estimator, 0):
        module = {"xgboost": from_xgboost, "lightgbm": from_lightgbm}.get(
            type(inner).__module__.split(".")[0], from_sklearn
        )
        native = inner.get_booster() if hasattr(inner, "get_booster") else getattr(inner, "booster_", inner)
        try:
            forest, _ = module.forest_of(native)
        except ModelRefused:
            continue
        if forest.width == getattr(estimator, "n_features_in_", -1):
            found |= set(forest.thresholds())
    return sorted(found)


def _inner(estimator: Any, depth: int) -> Iterator[Any]:
    if depth and hasattr(estimator, "n_features_in_"):
        yield estimator
    if depth > 4:
        return
    for attribute in ("estimators_", "estimator_", "final_estimator_", "estimator", "calibrated_classifiers_"):
        held = getattr(estimator, attribute, None)
        for inner in np.ravel(np.array([held], dtype=object)) if held is not None else ():
            if hasattr(inner, "n_features_in_") or hasattr(inner, "estimator"):  # fitted, or holding one that is
                yield from _inner(inner, depth + 1)


def _add(made: Candidates, name: str, promise: Promise, data_of: Callable[[], bytes]) -> None:
    file = FILES[name]
    try:
        data = data_of()
        made.sound.append(Candidate(name, file, data, engine_of(name, data, Path(file)), promise))
    except (CompileError, EngineUnavailable, ValueError) as reason:
        made.refused[name] = str(reason)


def _add_native(made: Candidates, forest: Forest, progress: Progress) -> None:
    from compile.library import build_library

    if made.checkpoint is None or forest.rounds_inputs or forest.category_rule == "exact":
        made.refused["native"] = "the generated code can't say how this model reads its inputs"
        return
    try:
        library = build_library(made.checkpoint, zero_snap=forest.zero_snap, base=forest.base, progress=progress)
    except CompileError as reason:
        made.refused["native"] = str(reason)
        return
    file = f"model-{library.sha256}.so"
    trust.record_built(library.sha256)
    engine = engine_of("native", library.data, Path(file))
    made.sound.append(Candidate("native", file, library.data, engine, "bits"))
