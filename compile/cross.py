"""What the usual converters make of the same model, beside the native library. Findings for the report, never a backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from compile import links
from compile.gate import Oracle
from compile.normalise import Normal
from compile.parity import apart

Matrix = npt.NDArray[np.float64]
Answer = Callable[[Matrix], Matrix]

FAR = 1e-6
MOST_ROWS = 4_000  # of a kind, evenly spaced; the finding says how many were asked


def cross_checks(normal: Normal, checkpoint: bytes | None, oracle: Oracle) -> dict[str, str]:
    """One line a tool."""
    if normal.forest is None or normal.native.answers_labels:
        return {}
    tool = "skl2onnx" if normal.native.library == "sklearn" else "onnxmltools"
    found = {f"{tool}, scores": _finding(lambda: _off_the_shelf(normal), oracle, oracle.scores)}
    if checkpoint is not None and normal.program is None:
        known = {kind: margins for kind, margins in oracle.margins.items() if margins is not None}
        theirs = known or oracle.scores
        link = links.Link("identity") if known else normal.link
        found["treelite gtil, " + ("margins" if known else "scores")] = _finding(
            lambda: _gtil(normal, checkpoint, link), oracle, theirs
        )
    return found


def _finding(made: Callable[[], Answer], oracle: Oracle, theirs: dict[str, Matrix]) -> str:
    wrong: dict[str, int] = {}
    asked, worst = 0, 0.0
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            answer = made()
            for kind, rows in oracle.rows.items():
                picked = np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(int)
                block, wanted = rows[picked], theirs[kind][picked]
                asked += len(block)
                got = answer(block)
                if got.shape != wanted.shape:
                    return f"answers {got.shape[1]} values a row, the trained model {wanted.shape[1]}"
                differences = apart(got, wanted).max(axis=1)
                worst = max(worst, float(differences.max(initial=0.0)))
                bad = int((differences > FAR).sum())
                wrong |= {kind: bad} if bad else {}
    except Exception as failure:  # whatever it raises is the finding
        words = (str(failure).strip() or "no reason given").splitlines()[0]
        return f"does not convert: {type(failure).__name__}: {words[:160]}"
    if not wrong:
        return f"within {FAR:g} on all of {asked:,} rows"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in wrong.items())
    return f"{sum(wrong.values()):,} of {asked:,} rows more than {FAR:g} off, by up to {worst:.2g} ({kinds})"


def _gtil(normal: Normal, checkpoint: bytes, link: links.Link) -> Answer:
    """Treelite's reference interpreter."""
    import treelite

    model = treelite.Model.deserialize_bytes(checkpoint)
    dtype = np.float32 if normal.native.library == "xgboost" else np.float64

    def answer(rows: Matrix) -> Matrix:
        margins = treelite.gtil.predict(model, rows.astype(dtype), nthread=1)
        return links.apply(link, np.asarray(margins, dtype=np.float64).reshape(len(rows), -1))

    return answer


def _off_the_shelf(normal: Normal) -> Answer:
    """The usual conversion, as its documentation has it: float32 inputs."""
    import onnxruntime

    model = off_the_shelf(normal.final, normal.native.library)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model, options)
    last = session.get_outputs()[-1].name
    binary = normal.task == "binary"

    def answer(rows: Matrix) -> Matrix:
        got = np.asarray(session.run([last], {session.get_inputs()[0].name: rows.astype(np.float32)})[0])
        return np.asarray(
            got[:, 1:] if binary and got.ndim == 2 and got.shape[1] == 2 else got.reshape(len(rows), -1), np.float64
        )

    return answer


def off_the_shelf(model: Any, library: str) -> bytes:
    """onnxmltools' or skl2onnx's own conversion of a model over one float32 matrix."""
    from onnxmltools import convert_lightgbm, convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    width = _width(model)
    if library == "lightgbm":
        inputs = [("rows", FloatTensorType([None, width]))]
        return bytes(convert_lightgbm(model, initial_types=inputs, target_opset=15, zipmap=False).SerializeToString())
    if library == "xgboost":
        booster = model.get_booster().copy() if hasattr(model, "get_booster") else model.copy()
        booster.feature_names = None
        inputs = [("rows", FloatTensorType([None, width]))]
        return bytes(convert_xgboost(booster, initial_types=inputs, target_opset=15).SerializeToString())
    from skl2onnx import to_onnx

    options = {id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else None
    return bytes(to_onnx(model, np.zeros((1, width), np.float32), options=options, target_opset=15).SerializeToString())


def _width(model: Any) -> int:
    for count in ("num_features", "num_feature"):  # XGBoost's booster, LightGBM's
        if hasattr(model, count):
            return int(getattr(model, count)())
    return int(model.n_features_in_)
