"""Build a bundle: normalise, export, prove, measure, write. No proof, no bundle."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from compile import bundle, probe
from compile.awkward import MAGNITUDES, Limits, awkward_rows
from compile.bundle import Backend, BackendName, Manifest, Measured, Native
from compile.candidates import BACKENDS, candidates, inner_thresholds
from compile.cross import cross_checks
from compile.errors import ModelRefused, ParityFailed
from compile.gate import Oracle, Progress, prove
from compile.measuring import measure
from compile.normalise import Normal, normalise
from compile.report import with_parity
from compile.runtime import Scorer
from training.features import FeatureSchema
from training.view import Lookup

Matrix = npt.NDArray[np.float64]

PROBE_ROWS = 256
TOOLS = ("numpy", "onnx", "onnxruntime", "treelite", "skl2onnx", "tl2cgen")


@dataclass(frozen=True, slots=True)
class Proven:
    """A model that passed the gate: what a bundle is written from. `scorers` are by backend, as are `manifest.backends`."""

    manifest: Manifest
    files: dict[str, bytes]
    scorers: dict[str, Scorer]


def build_bundle(
    model: Any,
    schema: FeatureSchema,
    rows: Matrix,
    out: str | Path,
    *,
    name: str,
    version: str,
    classes: Sequence[str] | None = None,
    threshold: float = 0.5,
    reference: Path | None = None,
    card: str | None = None,
    pictures: Mapping[str, bytes] | None = None,
    lineage: Mapping[str, str] | None = None,
    lookup: Lookup | None = None,
    backends: Collection[BackendName] = BACKENDS,
    cross_check: bool = True,
    progress: Progress = lambda _: None,
) -> Path:
    """Compile a trained model into a proven bundle under `out`; the bundle's folder, named by its digest.

    `model` is an XGBoost or LightGBM booster, a scikit-learn wrapper, tree ensemble, pipeline or calibrated classifier;
    `rows` are rows encoded by `schema`, float64 (n >= 1, width), preferably a holdout. `classes`: the labels, negative
    first; without them, the model's own. `backends`: which forms to make; "native", the trees as machine code, takes a
    minute. `cross_check`: also see what the usual converters make of the model.
    `lookup`: where a server may find the features of an entity. Raises ModelRefused or ParityFailed; then nothing is written.
    """
    proven = prove_model(
        model, schema, rows, name=name, version=version, classes=classes, threshold=threshold, lineage=lineage,
        backends=backends, cross_check=cross_check, progress=progress,
    )  # fmt: skip
    measured = measure(proven.scorers, rows)
    progress(f"measured: {told(measured)}; {measured.chosen} serves")
    files = dict(proven.files)
    if reference is not None:
        files[bundle.REFERENCE] = reference.read_bytes()
    if card is not None:
        files[bundle.CARD] = with_parity(card, proven.manifest).encode()
        files |= pictures or {}
    manifest = msgspec.structs.replace(proven.manifest, lookup=lookup)
    return bundle.write(Path(out), manifest, files, measured)


def prove_model(
    model: Any,
    schema: FeatureSchema,
    rows: Matrix,
    *,
    name: str,
    version: str,
    classes: Sequence[str] | None = None,
    threshold: float = 0.5,
    lineage: Mapping[str, str] | None = None,
    backends: Collection[BackendName] = BACKENDS,
    cross_check: bool = True,
    progress: Progress = lambda _: None,
) -> Proven:
    """`build_bundle` up to the point where something would be measured or written."""
    if rows.ndim != 2 or rows.shape[1] != schema.width or not len(rows):
        raise ModelRefused(f"rows: at least one row of {schema.width} encoded features is needed, got {rows.shape}")
    rows = np.ascontiguousarray(rows, dtype=np.float64)
    normal = normalise(model, schema)
    trees = 0 if normal.forest is None else len(normal.forest.trees)
    progress(f"normalised: {normal.kind}, {trees} trees" + (f"; {normal.unmodelled}" if normal.unmodelled else ""))
    limits = _limits(normal, schema, rows)
    oracle = Oracle(normal.native, _asked(normal, schema, rows, limits))
    progress(f"asked {normal.native.library} {normal.native.version} for {oracle.count:,} awkward rows")

    files: dict[str, bytes] = {}
    proved, scorers, refused = {}, {}, {}
    made = candidates(normal, rows, backends=backends, progress=progress)
    for candidate in made.sound:
        try:
            scorer = Scorer(candidate.engine, normal.program, normal.link)
            parity = prove(candidate.name, scorer, oracle, candidate.promise)
        except ParityFailed as failed:
            refused[candidate.name] = str(failed)
            progress(f"refused {failed}"[:400])
            continue
        files[candidate.file] = candidate.data
        proved[candidate.name] = Backend(candidate.file, parity)
        scorers[candidate.name] = scorer
        progress(f"proved {candidate.name}: {oracle.count:,} rows, 0 differ from {normal.native.library}")
    refused |= made.refused
    if not proved:
        raise _nothing_left(normal, refused)
    if made.checkpoint is not None:
        files["model.treelite"] = made.checkpoint
    cross = cross_checks(normal, made.checkpoint, oracle) if cross_check else {}
    for tool, finding in cross.items():
        progress(f"cross-check, {tool}: {finding}")
    files[bundle.PROBE] = _probe(oracle)
    manifest = _manifest(normal, schema, scorers, proved, refused, cross, classes)
    manifest = _stamped(manifest, name=name, version=version, threshold=threshold, lineage=lineage)
    return Proven(manifest, files, scorers)


def told(measured: Measured) -> str:
    return ", ".join(f"{name} {us['1']:g} µs a row ({us['32'] / 32:.1f} of 32)" for name, us in measured.us.items())


def _limits(normal: Normal, schema: FeatureSchema, rows: Matrix) -> Limits:
    """What the trained model answers at all. Raises ModelRefused where the schema lets through a missing value that it does
    not: the server would answer where the model would not."""
    native, ordinary = normal.native, rows[:1]
    wide = schema.width
    refusal = native.refusal(ordinary)
    if refusal:
        raise ModelRefused(f"rows: {normal.kind} does not answer a row of this schema: {refusal}")
    if native.accepts(np.full_like(ordinary, np.nan)):
        missing = frozenset(range(wide))
    else:
        missing = frozenset(j for j in range(wide) if native.accepts(_with(ordinary, j, np.nan)))
    for j, feature in enumerate(schema.features):
        if j not in missing and feature.missing == "nan":
            raise ModelRefused(
                f"{feature.name}: {normal.kind} refuses a missing value here; the schema must have missing "
                '= "refuse" or a number'
            )
    numbers = [j for j, feature in enumerate(schema.features) if feature.kind == "number"]
    return Limits(
        missing=missing,
        largest=next((most for most in MAGNITUDES if native.accepts(_with_both(ordinary, numbers, most))), 1e6),
        codes_only=normal.by_name,
        booleans=frozenset(
            j
            for j, f in enumerate(schema.features)
            if f.kind == "boolean" and normal.by_name and normal.program is not None
        ),
    )


def _with(row: Matrix, columns: int | list[int], value: float) -> Matrix:
    changed = row.copy()
    changed[:, columns] = value
    return changed


def _with_both(row: Matrix, columns: list[int], value: float) -> Matrix:
    return np.concatenate([_with(row, columns, value), _with(row, columns, -value)])


def _asked(normal: Normal, schema: FeatureSchema, rows: Matrix, limits: Limits) -> dict[str, Matrix]:
    forest = normal.forest
    thresholds = forest.thresholds() if forest is not None else inner_thresholds(normal.final)
    return awkward_rows(schema, forest, thresholds, normal.program, rows, limits)


def _nothing_left(normal: Normal, refused: Mapping[str, str]) -> ModelRefused | ParityFailed:
    reasons = "; ".join(f"{backend}: {reason}" for backend, reason in refused.items())
    if normal.unmodelled:
        return ModelRefused(f"{normal.unmodelled}; {reasons}")
    return ParityFailed(f"no backend answers as the trained model does: {reasons}")


def _probe(oracle: Oracle) -> bytes:
    """Some rows of every kind, evenly spaced, with the native answers."""
    share = -(-PROBE_ROWS // len(oracle.rows))
    picked = {
        kind: np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(int) for kind, rows in oracle.rows.items()
    }

    def taken(answers: Mapping[str, Matrix]) -> Matrix:
        return np.concatenate([answers[kind][places] for kind, places in picked.items()])

    scores = taken(oracle.scores)
    known = {kind: margins for kind, margins in oracle.margins.items() if margins is not None}
    margins = taken(known) if known else np.empty((len(scores), 0))
    return probe.encode(probe.Probe(taken(oracle.rows), margins, scores))


def _manifest(
    normal: Normal,
    schema: FeatureSchema,
    scorers: Mapping[str, Scorer],
    backends: dict[str, Backend],
    refused: dict[str, str],
    cross: dict[str, str],
    classes: Sequence[str] | None,
) -> Manifest:
    scorer = next(iter(scorers.values()))
    labels = _labels(normal, scorer.outputs, classes)
    trees = 0 if normal.forest is None else len(normal.forest.trees)
    native = normal.native
    return Manifest(
        format=bundle.FORMAT,
        model="",
        version="",
        task=normal.task,
        outputs=_outputs(normal, scorer.outputs, labels),
        classes=labels,
        threshold=0.5,
        schema=schema,
        program=normal.program,
        margins=scorer.engine.outputs,
        link=normal.link,
        native=Native(native.library, native.version, normal.kind, trees, native.answers_labels),
        backends=backends,
        refused_backends=refused,
        cross_checks=cross,
        toolchain={tool: version_of(tool) for tool in TOOLS},
        lineage={},
        files={},
    )


def _stamped(
    manifest: Manifest, *, name: str, version: str, threshold: float, lineage: Mapping[str, str] | None
) -> Manifest:
    return msgspec.structs.replace(
        manifest, model=name, version=version, threshold=threshold, lineage=dict(lineage or {})
    )


def _labels(normal: Normal, outputs: int, given: Sequence[str] | None) -> tuple[str, ...]:
    if normal.task not in ("binary", "multiclass"):
        return ()
    needed = max(2, outputs)
    labels = tuple(given) if given is not None else normal.classes or tuple(map(str, range(needed)))
    if len(labels) != needed or len(set(labels)) != needed:
        raise ModelRefused(f"classes: {needed} different labels are needed, got {', '.join(labels) or 'none'}")
    return labels


def _outputs(normal: Normal, outputs: int, labels: tuple[str, ...]) -> tuple[str, ...]:
    if normal.task == "binary":
        return ("probability",)
    if normal.task == "multiclass":
        return labels
    return ("value",) if outputs == 1 else tuple(f"value_{k}" for k in range(outputs))
