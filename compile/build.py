"""Build a bundle: normalise, export, prove, measure, write. No proof, no bundle."""

from __future__ import annotations

import io
import platform
from collections.abc import Mapping
from importlib.metadata import version as version_of
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from compile import bundle, kernel
from compile.bundle import Backend, Link, Manifest, Measured, Native
from compile.errors import ModelRefused
from compile.flat import flatten
from compile.forest import Forest, native_booster, normalise
from compile.gate import Progress, awkward_rows, cross_check, prove
from compile.native import NativeModel
from compile.onnx_export import export_onnx
from compile.runtime import FILES, Engine, engine_of
from training.features import FeatureSchema

Matrix = npt.NDArray[np.float64]

PROBE_ROWS = 256
TOOLS = ("numpy", "onnx", "onnxruntime", "treelite")


def build_bundle(
    model: Any,
    schema: FeatureSchema,
    rows: Matrix,
    out: str | Path,
    *,
    name: str,
    version: str,
    classes: tuple[str, str] = ("0", "1"),
    threshold: float = 0.5,
    reference: Path | None = None,
    card: str | None = None,
    lineage: Mapping[str, str] | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """Compile a native model into a proven bundle under `out`; the bundle's folder, named by its digest.

    `model` is an XGBoost or LightGBM booster or scikit-learn wrapper trained on rows encoded by `schema`; `rows` are such
    rows, float64 (n >= 1, width), preferably a holdout. Raises ModelRefused or ParityFailed; then nothing is written.
    """
    forest = normalise(model)
    native = NativeModel.of(model, schema)
    _refuse_unfit(forest, schema, rows)
    progress(f"normalised: {len(forest.trees)} trees of {forest.library} {native.version}")

    files = {FILES["treelite"]: flatten(forest), FILES["onnx"]: export_onnx(forest)}
    checkpoint = _treelite_checkpoint(model)
    files["model.treelite"] = checkpoint
    progress(", ".join(f"{file} {len(data) / 1024:.0f} KiB" for file, data in files.items()))

    asked = awkward_rows(forest, schema, rows)
    engines = _engines(forest, files)
    backends = {}
    for backend, engine in engines.items():
        parity = prove(backend, engine, forest, native, asked)
        backends[backend] = Backend(FILES[backend], parity)  # type: ignore[index]  # the keys are FILES' own
        progress(f"proved {backend}: {sum(parity.rows.values())} rows, 0 differ from {forest.library}")
    cross = {"onnxmltools": cross_check(native, asked), "treelite gtil": _gtil(checkpoint, native, asked)}
    for tool, finding in cross.items():
        progress(f"cross-check, {tool}: {finding}")

    measured = _measure(engines, rows)
    progress(f"measured: {_told(measured)}; {measured.chosen} serves")
    files[bundle.PROBE] = _probe(native, asked)
    if reference is not None:
        files[bundle.REFERENCE] = reference.read_bytes()
    if card is not None:
        files[bundle.CARD] = card.encode()
    manifest = Manifest(
        format=bundle.FORMAT,
        model=name,
        version=version,
        task="binary",
        outputs=("probability",),
        classes=classes,
        threshold=threshold,
        schema=schema,
        link=Link("logistic", forest.sigmoid),
        native=Native(forest.library, native.version, forest.objective, len(forest.trees), forest.base.hex()),
        backends=backends,
        cross_checks=cross,
        toolchain={tool: version_of(tool) for tool in TOOLS},
        lineage=dict(lineage or {}),
        files={},
    )
    return bundle.write(Path(out), manifest, files, measured)


def _refuse_unfit(forest: Forest, schema: FeatureSchema, rows: Matrix) -> None:
    if forest.width > schema.width:
        raise ModelRefused(f"schema: the model splits on {forest.width} features, the schema has {schema.width}")
    if forest.width < schema.width:
        raise ModelRefused(f"schema: the model was trained on {forest.width} features, the schema has {schema.width}")
    if rows.ndim != 2 or rows.shape[1] != schema.width or not len(rows):
        raise ModelRefused(f"rows: at least one row of {schema.width} encoded features is needed, got {rows.shape}")


def _engines(forest: Forest, files: dict[str, bytes]) -> dict[str, Engine]:
    """Every backend that can be proved here. Where the kernel is absent its file is left out: what isn't proved isn't sold."""
    engines = {}
    for name, file in FILES.items():
        if name == "treelite" and not kernel.available():
            del files[file]
            continue
        engines[str(name)] = engine_of(name, files[file], library=forest.library, sigmoid=forest.sigmoid)
    return engines


def _treelite_checkpoint(model: Any) -> bytes:
    import treelite

    booster = native_booster(model)
    if type(booster).__module__.startswith("lightgbm"):
        loaded = treelite.frontend.from_lightgbm(booster)
    else:
        loaded = treelite.frontend.from_xgboost(booster)
    return bytes(loaded.serialize_bytes())


def _gtil(checkpoint: bytes, native: NativeModel, rows: dict[str, Matrix]) -> str:
    """What Treelite's reference interpreter answers from the checkpoint, beside the native library."""
    import treelite

    model = treelite.Model.deserialize_bytes(checkpoint)
    dtype = np.float32 if native.library == "xgboost" else np.float64
    worst, far, asked = 0.0, 0, 0
    for block in rows.values():
        with np.errstate(over="ignore"):
            answers = treelite.gtil.predict(model, block.astype(dtype), nthread=1)
        apart = np.abs(np.asarray(answers, dtype=np.float64).reshape(len(block), -1)[:, -1] - native.score(block)[:, 0])
        worst, far, asked = max(worst, float(apart.max())), far + int((apart > 1e-6).sum()), asked + len(block)
    return f"{far} of {asked} rows more than 1e-6 off, at most {worst:.2g}"


def _probe(native: NativeModel, asked: dict[str, Matrix]) -> bytes:
    """Some rows of every kind, evenly spaced, with the native answers. NumPy writes archives with fixed dates."""
    share = -(-PROBE_ROWS // len(asked))
    picked = [block[np.linspace(0, len(block) - 1, min(share, len(block))).astype(int)] for block in asked.values()]
    rows = np.concatenate(picked)
    out = io.BytesIO()
    np.savez(out, rows=rows, margins=native.margin(rows), scores=native.score(rows))
    return out.getvalue()


def _measure(engines: dict[str, Engine], rows: Matrix) -> Measured:
    """Interleaved, over distinct rows: a repeated row would flatter trees. µs of one call with 1 and with 64 rows."""
    best: dict[str, dict[str, float]] = {name: {} for name in engines}
    for count in (1, 64):
        buffer, scores = np.zeros((count, rows.shape[1])), np.zeros((count, 1))
        runs = {name: engine.bound(buffer, scores, 5.0) for name, engine in engines.items()}
        samples: dict[str, list[float]] = {name: [] for name in engines}
        for trial in range(200 if count == 1 else 20):
            buffer[:] = np.take(rows, range(trial * count, (trial + 1) * count), axis=0, mode="wrap")
            for name, run in runs.items():
                began = perf_counter_ns()
                run(count)
                samples[name].append((perf_counter_ns() - began) / 1000)
        for name, taken in samples.items():
            best[name][str(count)] = round(float(np.median(taken)), 2)
    chosen = min(best, key=lambda name: best[name]["1"])
    return Measured(chosen, best, f"{platform.machine()} {platform.system()}")


def _told(measured: Measured) -> str:
    return ", ".join(f"{name} {us['1']:g} µs a row ({us['64'] / 64:.1f} of 64)" for name, us in measured.us.items())
