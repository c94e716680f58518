"""Open a bundle and score with it: the object that parity is proved with is the object that serves.

Opening verifies every hash and then scores the probe: warm-up and proof are the same act. A predictor is not
thread-safe; its lane is the only caller.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from compile import kernel, links, probe
from compile.bundle import MANIFEST, PROBE, Manifest, Promise, load, measured, read
from compile.engines import Engine, EngineUnavailable, engine_of
from compile.errors import BundleRefused
from compile.kernel import NativeCall as NativeCall
from compile.kernel import native_call as native_call
from compile.library_engine import NativeLibrary
from compile.links import Link, OpenLink
from compile.parity import TOLERANCE, apart
from compile.program import OpenProgram, Program, pack, run

Matrix = npt.NDArray[np.float64]


class Predictor(Protocol):
    """A loaded model. Not thread-safe: its lane is the only caller."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def backend(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def outputs(self) -> int:
        """Scores of a row."""

    @property
    def probe_rows(self) -> Matrix:
        """Distinct awkward rows, (n, width) float64, n >= 1."""

    def margin(self, rows: Matrix) -> Matrix:
        """`rows` is float64 (n, width); raw scores, float64 (n, margins). Raises ValueError for another shape or dtype."""

    def score(self, rows: Matrix) -> Matrix:
        """float64 (n, outputs), which the caller owns: positive-class probability, class probabilities, or values."""

    def bound(self, rows: Matrix, scores: Matrix) -> Callable[[int], None]:
        """run(n): score rows[:n] into scores[:n], as `score` would, bit for bit and for any n.

        `rows` (max, width) and `scores` (max, outputs) are the caller's, C-contiguous float64; their addresses are
        taken once.
        """


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
            return _Opened(path, manifest, name)
        except EngineUnavailable as reason:
            unavailable.append(f"{name}: {reason}")
    raise BundleRefused(f"{path}: no backend runs here ({'; '.join(unavailable)})")


class Scorer:
    """Program, engine and link as one: encoded rows in, scores out. What the gate proves and what `_Opened` serves."""

    def __init__(self, engine: Engine, program: Program | None, link: Link) -> None:
        """Raises ValueError where the parts do not fit each other."""
        self.width = engine.width if program is None else program.inputs
        if program is not None and program.width != engine.width:
            raise ValueError(f"takes {engine.width} columns, the program makes {program.width}")
        self.engine = engine
        self.outputs = links.width(link, engine.outputs)
        self._program, self._link = program, link
        fast = kernel.available()
        self._open_program = OpenProgram(pack(program)) if fast and program is not None else None
        self._open_link = OpenLink(links.pack(link, engine.outputs)) if fast else None

    def margin(self, rows: Matrix) -> Matrix:
        return self.engine.margin(self._columns(rows))

    def linked(self, margins: Matrix) -> Matrix:
        return links.apply(self._link, margins) if self._open_link is None else self._open_link.apply(margins)

    def bound(self, rows: Matrix, scores: Matrix, row_us: float) -> Callable[[int], None]:
        if isinstance(self.engine, kernel.FlatForest) and self._open_link is not None:
            return self._planned(self.engine, self._open_link, rows, scores, row_us)

        if isinstance(self.engine, NativeLibrary):
            return self._parted(self.engine, rows, scores, row_us)

        def run_parts(count: int) -> None:
            scores[:count] = self.linked(self.margin(rows[:count]))

        return run_parts

    def _parted(self, library: NativeLibrary, rows: Matrix, scores: Matrix, row_us: float) -> Callable[[int], None]:
        columns = rows if self._program is None else np.empty((len(rows), library.width))
        margins = np.empty((len(rows), library.outputs))
        run_library = library.bound(columns, margins, row_us)

        def run_parts(count: int) -> None:
            if columns is not rows:
                columns[:count] = self._columns(rows[:count])
            run_library(count)
            scores[:count] = self.linked(margins[:count])

        return run_parts

    def _planned(
        self, forest: kernel.FlatForest, link: OpenLink, rows: Matrix, scores: Matrix, row_us: float
    ) -> Callable[[int], None]:
        columns = None if self._open_program is None else np.empty((len(rows), forest.width))
        program = None if self._open_program is None else self._open_program.handle
        plan = kernel.Plan(forest, program, link.handle, columns, rows, scores, keep=(self._open_program, link))
        return plan.caller(row_us)

    def _columns(self, rows: Matrix) -> Matrix:
        if self._program is None:
            return rows
        return run(self._program, rows) if self._open_program is None else self._open_program.run(rows)


class _Opened:
    def __init__(self, path: Path, manifest: Manifest, backend: str) -> None:
        """Raises EngineUnavailable where the backend can't run on this machine, else BundleRefused."""
        self.manifest = manifest
        self.backend = backend
        self.width = manifest.schema.width
        self.outputs = len(manifest.outputs)
        self._file = path / manifest.backends[backend].file
        self._scorer = _scorer(path, manifest, backend)
        known = probe.decode(load(path, manifest, PROBE), path / PROBE, self.width)
        self.probe_rows = known.rows
        began = perf_counter()
        self._prove(path, known)
        self._row_us = 1e6 * (perf_counter() - began) / max(1, 2 * len(known.rows))

    def margin(self, rows: Matrix) -> Matrix:
        return self._scorer.margin(self._checked(rows))

    def score(self, rows: Matrix) -> Matrix:
        return self._scorer.linked(self.margin(rows))

    def bound(self, rows: Matrix, scores: Matrix) -> Callable[[int], None]:
        if not (
            self._checked(rows) is rows and scores.flags.c_contiguous and scores.shape == (len(rows), self.outputs)
        ):
            raise ValueError("rows and scores must be C-contiguous float64 of shapes (max, width) and (max, outputs)")
        return self._scorer.bound(rows, scores, self._row_us)

    def _prove(self, path: Path, known: probe.Probe) -> None:
        """Warms the bound call as well, and holds it to the same scores."""
        bound = np.empty((len(known.rows), self.outputs))
        try:
            margins = self.margin(known.rows)
            scores = self._scorer.linked(margins)
            self._scorer.bound(known.rows, bound, 1.0)(len(bound))
        except Exception as failure:  # ONNX Runtime's have no base of their own; a hostile graph can raise any of them
            raise BundleRefused(f"{self._file}: can't score the probe: {first_line(failure)}") from None
        if margins.shape[1] != self.manifest.margins or known.margins.shape[1] not in (0, margins.shape[1]):
            raise BundleRefused(
                f"{self._file}: answers {margins.shape[1]} margins, the probe has {known.margins.shape[1]}"
            )
        if known.margins.shape[1]:
            self._refuse_other(
                path, "margins", margins, known.margins, self.manifest.backends[self.backend].parity.promise
            )
        if self.manifest.native.answers_labels:
            scores = links.predicted_class(scores)[:, None].astype(np.float64)
        if scores.shape != known.scores.shape:
            raise BundleRefused(
                f"{self._file}: answers {scores.shape[1]} scores, the probe has {known.scores.shape[1]}"
            )
        self._refuse_other(path, "scores", scores, known.scores, "1e-6")
        if not np.array_equal(bound, self._scorer.linked(margins), equal_nan=True):
            raise BundleRefused(f"{self._file}: a bound call answers other scores")

    def _refuse_other(self, path: Path, what: str, ours: Matrix, theirs: Matrix, promise: Promise) -> None:
        bad = np.flatnonzero((apart(ours, theirs) > TOLERANCE[promise]).any(axis=1))
        if len(bad):
            raise BundleRefused(
                f"{path / PROBE}: {self.backend} answers row {bad[0]} with {what} {ours[bad[0]].tolist()}, the trained "
                f"model answered {theirs[bad[0]].tolist()}"
            )

    def _checked(self, rows: Matrix) -> Matrix:
        if rows.ndim != 2 or rows.shape[1] != self.width or rows.dtype != np.float64:
            raise ValueError(f"rows: float64 (n, {self.width}) is needed, got {rows.dtype} {rows.shape}")
        return rows if rows.flags.c_contiguous else np.ascontiguousarray(rows)


def first_line(failure: Exception) -> str:
    return f"{type(failure).__name__}: {(str(failure).strip() or 'no reason given').splitlines()[0][:200]}"


def _scorer(path: Path, manifest: Manifest, name: str) -> Scorer:
    file = manifest.backends[name].file
    data = load(path, manifest, file)
    try:
        scorer = Scorer(engine_of(name, data, path / file), manifest.program, manifest.link)
    except (EngineUnavailable, BundleRefused):
        raise
    except Exception as unsound:  # as in _prove
        raise BundleRefused(f"{path / file}: {first_line(unsound)}") from None
    if scorer.width != manifest.schema.width:  # the kernel reads rows by its own width: more would be others' memory
        raise BundleRefused(f"{path / file}: takes {scorer.width} features, the schema has {manifest.schema.width}")
    if scorer.outputs != len(manifest.outputs):
        raise BundleRefused(f"{path / file}: {scorer.outputs} scores; {path / MANIFEST} names {len(manifest.outputs)}")
    return scorer


def _preferred(path: Path, manifest: Manifest) -> list[str]:
    chosen = measured(path)
    names = sorted(manifest.backends, key=lambda name: (name != "treelite", name))
    if chosen is not None and chosen.chosen in names:
        names.sort(key=lambda name: name != chosen.chosen)
    return names
