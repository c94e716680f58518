"""Open a bundle and score with it: the object that parity is proved with is the object that serves.

Opening verifies every hash and then scores the probe: warm-up and proof are the same act. A predictor is not
thread-safe; its lane is the only caller.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from compile import kernel
from compile.bundle import PROBE, BackendName, Manifest, measured, read
from compile.errors import BundleRefused
from compile.forest import ZERO_SNAP

Matrix = npt.NDArray[np.float64]

SCORE_TOLERANCE = 1e-6  # the native libraries apply the link in float32 (XGBoost); margins have none
FILES: dict[BackendName, str] = {"treelite": "model.flat", "onnx": "model.onnx"}


class Predictor(Protocol):
    """A loaded model. Not thread-safe: its lane is the only caller."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def backend(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def probe_rows(self) -> Matrix:
        """Distinct awkward rows, (n, width) float64, n >= 1."""

    def margin(self, rows: Matrix) -> Matrix:
        """`rows` is float64 (n, width); raw scores, float64 (n, 1). Raises ValueError for another shape or dtype."""

    def score(self, rows: Matrix) -> Matrix:
        """Positive-class probabilities, float64 (n, 1), which the caller owns."""

    def bound(self, rows: Matrix, scores: Matrix) -> Callable[[int], None]:
        """run(n): score rows[:n] into scores[:n], as `score` would, bit for bit and for any n.

        `rows` (max, width) and `scores` (max, 1) are the caller's, C-contiguous float64; their addresses are taken once.
        """


class Engine(Protocol):
    """What a backend brings: margins, and the bound call."""

    def margin(self, rows: Matrix) -> Matrix: ...

    def bound(self, rows: Matrix, scores: Matrix, row_us: float) -> Callable[[int], None]: ...


def open_predictor(path: str | Path, backend: str | None = None) -> Predictor:
    """The bundle at `path`, verified and proved on its probe; by the backend named, or the fastest that runs here.

    Raises BundleRefused, naming the file that is wrong.
    """
    path = Path(path)
    manifest = read(path)
    names = [backend] if backend is not None else _preferred(path, manifest)
    for name in names:
        if name not in manifest.backends:
            raise BundleRefused(f"{path}: has no backend {name!r}; it has {', '.join(sorted(manifest.backends))}")
    unavailable = []
    for name in names:
        try:
            return _Opened(path, manifest, name, _engine(path, manifest, name))
        except (kernel.KernelUnavailable, ImportError) as reason:
            unavailable.append(f"{name}: {reason}")
    raise BundleRefused(f"{path}: no backend runs here ({'; '.join(unavailable)})")


class _Opened:
    def __init__(self, path: Path, manifest: Manifest, backend: str, engine: Engine) -> None:
        self.manifest = manifest
        self.backend = backend
        self.width = manifest.schema.width
        self._engine = engine
        self._sigmoid = manifest.link.sigmoid
        self.probe_rows, margins, scores = _probe(path / PROBE, self.width)
        began = perf_counter()
        self._prove(path, margins, scores)
        self._row_us = 1e6 * (perf_counter() - began) / max(1, 2 * len(margins))

    def margin(self, rows: Matrix) -> Matrix:
        return self._engine.margin(self._checked(rows))

    def score(self, rows: Matrix) -> Matrix:
        return kernel.logistic(self.margin(rows), self._sigmoid)

    def bound(self, rows: Matrix, scores: Matrix) -> Callable[[int], None]:
        if not (self._checked(rows) is rows and scores.flags.c_contiguous and scores.shape == (len(rows), 1)):
            raise ValueError("rows and scores must be C-contiguous float64 of shapes (max, width) and (max, 1)")
        return self._engine.bound(rows, scores, self._row_us)

    def _prove(self, path: Path, margins: Matrix, scores: Matrix) -> None:
        got = self.margin(self.probe_rows)
        differing = np.flatnonzero(got != margins)
        if len(differing):
            raise BundleRefused(
                f"{path / PROBE}: {self.backend} answers row {differing[0]} with margin {got[differing[0], 0]!r}, the "
                f"trained model answered {margins[differing[0], 0]!r}"
            )
        if not (np.abs(self.score(self.probe_rows) - scores) <= SCORE_TOLERANCE).all():
            raise BundleRefused(f"{path / PROBE}: {self.backend} answers other probabilities than the trained model")

    def _checked(self, rows: Matrix) -> Matrix:
        if rows.ndim != 2 or rows.shape[1] != self.width or rows.dtype != np.float64:
            raise ValueError(f"rows: float64 (n, {self.width}) is needed, got {rows.dtype} {rows.shape}")
        return rows if rows.flags.c_contiguous else np.ascontiguousarray(rows)


class OnnxEngine:
    """ONNX Runtime on one thread; rows are cast once to what the model compares."""

    def __init__(self, model: bytes, *, library: str, sigmoid: float) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # must be set before the import, which would report it
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._run: Callable[[Sequence[str] | None, dict[str, Any]], list[Any]] = session.run
        self._dtype = np.float32 if library == "xgboost" else np.float64
        self._snap = library == "lightgbm"
        self._sigmoid = sigmoid

    def margin(self, rows: Matrix) -> Matrix:
        if not len(rows):
            return np.empty((0, 1))
        with np.errstate(over="ignore"):  # beyond float32 a number is infinite, to the native library as well
            cast = rows.astype(self._dtype)
        if self._snap:
            cast[np.abs(cast) <= ZERO_SNAP] = 0.0
        return np.asarray(self._run(None, {"rows": cast})[0], dtype=np.float64)

    def bound(self, rows: Matrix, scores: Matrix, row_us: float) -> Callable[[int], None]:  # noqa: ARG002
        def run(count: int) -> None:
            scores[:count] = kernel.logistic(self.margin(rows[:count]), self._sigmoid)

        return run


def engine_of(name: str, data: bytes, *, library: str, sigmoid: float) -> Engine:
    """The backend's engine over its file's content: what the gate proves is what `open_predictor` opens."""
    if name == "treelite":
        return kernel.FlatForest(data)
    return OnnxEngine(data, library=library, sigmoid=sigmoid)


def _engine(path: Path, manifest: Manifest, name: str) -> Engine:
    file = path / manifest.backends[name].file
    try:
        return engine_of(name, file.read_bytes(), library=manifest.native.library, sigmoid=manifest.link.sigmoid)
    except ValueError as unsound:
        raise BundleRefused(f"{file}: {unsound}") from None


def _preferred(path: Path, manifest: Manifest) -> list[str]:
    chosen = measured(path)
    names = sorted(manifest.backends, key=lambda name: (name != "treelite", name))
    if chosen is not None and chosen.chosen in names:
        names.sort(key=lambda name: name != chosen.chosen)
    return names


def _probe(path: Path, width: int) -> tuple[Matrix, Matrix, Matrix]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as probe:
            rows, margins, scores = probe["rows"], probe["margins"], probe["scores"]
    except (OSError, ValueError, KeyError) as broken:
        raise BundleRefused(f"{path}: {broken}") from None
    if rows.shape != (len(rows), width) or not len(rows) or margins.shape != scores.shape or len(margins) != len(rows):
        raise BundleRefused(f"{path}: the probe does not fit the schema's {width} features")
    return np.ascontiguousarray(rows), margins, scores
