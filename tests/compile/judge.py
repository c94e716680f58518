"""The judge: builds a kind's bundle, asks each of its backends the same rows as the native model, and tells what differs."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from asked import asked
from kind import Answers, Case, Kind, Matrix

from compile import build_bundle, open_predictor
from compile.candidates import BACKENDS, NAMES
from compile.errors import ModelRefused, ParityFailed

EXACT = ("treelite", "onnx", "native")
TOLERANCE = 1e-6


@dataclass
class Verdict:
    """What became of one kind with one seed. `wrong` is empty, or no kind may be served."""

    kind: Kind
    seed: int
    rows: int = 0
    thresholds: int = 0
    task: str = ""
    backends: tuple[str, ...] = ()
    refused: str | None = None
    margins_off: dict[str, float] = field(default_factory=dict)  # by backend
    score_off: float = 0.0
    wrong: list[str] = field(default_factory=list)


def judge(kind: Kind, seed: int, folder: Path, *, native: bool = False) -> Verdict:
    """Trains, asks the native model, builds, and asks each backend of the opened bundle."""
    case = kind.make(seed)
    rows = asked(case, seed)
    natives = {name: _checked(case.native(block), block) for name, block in rows.items()}
    verdict = Verdict(kind, seed, sum(map(len, rows.values())), len(case.thresholds))
    named: dict[str, Any] = {"classes": case.classes} if case.classes else {}
    try:
        named["backends"] = NAMES if native else BACKENDS
        path = build_bundle(case.model, case.schema, case.rows, folder, name=kind.id, version="1", **named)
        verdict.task, backends = open_predictor(path).manifest.task, sorted(open_predictor(path).manifest.backends)
        for backend in backends:
            predictor = open_predictor(path, backend)
            for name, block in rows.items():
                where = f"{kind.id}, seed {seed}, {backend}, {name} rows"
                compare(where, case, block, natives[name], predictor, verdict, backend)
        verdict.backends = tuple(str(backend) for backend in backends)
    except (ModelRefused, ParityFailed) as refusal:
        verdict.refused = str(refusal)
    except Exception as failure:  # a crash is no refusal
        last = traceback.extract_tb(failure.__traceback__)[-1]
        told = f"{type(failure).__name__}: {failure} ({Path(last.filename).name}:{last.lineno})"
        verdict.wrong.append(f"{kind.id}, seed {seed}: neither served nor refused: {told}")
    return verdict


def compare(
    where: str, case: Case, rows: Matrix, native: Answers, predictor: Any, verdict: Verdict, backend: str
) -> None:
    """Adds to the verdict what differs of one block of rows."""
    exact = backend in EXACT
    scores = np.asarray(predictor.score(rows))
    served = np.full(scores.shape, -1.0)
    predictor.bound(rows.copy(), served)(len(rows))
    _compare(f"{where}: bound call, beside score", rows, served, scores, 0.0, verdict)
    off = _compare(f"{where}: score", rows, scores, native.scores, TOLERANCE, verdict)
    verdict.score_off = max(verdict.score_off, off)
    margins = None
    if native.margins is not None:
        margins = np.asarray(predictor.margin(rows))
        allowed = 0.0 if exact and not verdict.kind.twofold else TOLERANCE
        off = _compare(f"{where}: margin", rows, margins, native.margins, allowed, verdict)
        verdict.margins_off[backend] = max(verdict.margins_off.get(backend, 0.0), off)
    if native.labels is not None and scores.shape == native.scores.shape:
        strict = case.exact_labels and exact
        wrong = _other_class(scores, native.labels, strict)
        if strict and margins is not None and margins.shape == native.scores.shape:
            wrong |= _other_class(margins, native.labels, True)
        _tell(f"{where}: class", rows, wrong, scores, native.labels[:, None], verdict)


def _compare(what: str, rows: Matrix, got: Matrix, wanted: Matrix, allowed: float, verdict: Verdict) -> float:
    """The largest difference, scaled by what is wanted where that is above 1; infinite where the shapes differ."""
    if got.shape != wanted.shape:
        verdict.wrong.append(f"{what}: answers are of shape {got.shape}, the native ones of {wanted.shape}")
        return np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted))
    off = np.where(got == wanted, 0.0, np.where(np.isnan(off), np.inf, off))
    _tell(what, rows, (off > allowed).any(axis=1), got, wanted, verdict)
    return float(off.max())


def _other_class(scores: Matrix, labels: Any, strict: bool) -> Any:
    """Where the class that scores name is not the native one; ties within the tolerance may fall either way."""
    if scores.shape[1] == 1:
        return ((scores[:, 0] > 0.5) != (labels == 1)) & (np.abs(scores[:, 0] - 0.5) > TOLERANCE)
    if strict:
        return scores.argmax(axis=1) != labels
    return scores[np.arange(len(scores)), labels] < scores.max(axis=1) - TOLERANCE


def _tell(what: str, rows: Matrix, wrong: Any, got: Matrix, wanted: Any, verdict: Verdict) -> None:
    if not wrong.any():
        return
    first = int(np.flatnonzero(wrong)[0])
    verdict.wrong.append(
        f"{what}: {int(wrong.sum())} of {len(rows)} differ; the first, row {first}, {rows[first].tolist()}, "
        f"is answered {got[first].tolist()}, natively {wanted[first].tolist()}"
    )


def _checked(native: Answers, rows: Matrix) -> Answers:
    """The oracle must have an answer to every row that is asked."""
    for answers in (native.margins, native.scores):
        if answers is not None:
            assert answers.ndim == 2, answers.shape
            assert len(answers) == len(rows), (answers.shape, rows.shape)
            assert not np.isnan(answers).any()
    return native
