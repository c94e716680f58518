"""The way of last resort: skl2onnx converts an estimator that we do not model, and the gate decides.

Tried in float64 first, in which scikit-learn computes, then in float32. Nothing of it is promised but what the gate saw.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from compile.errors import ModelRefused
from compile.onnx_engine import METADATA, Inputs, OnnxEngine
from compile.program import Program, run

Matrix = npt.NDArray[np.float64]


def convert(estimator: Any, rows: Matrix, program: Program | None) -> bytes:
    """An ONNX model whose last output is scores. `rows`: some encoded rows. Raises ModelRefused with skl2onnx's words."""
    columns = rows[:16] if program is None else run(program, rows[:16])
    first = ""
    for dtype in ("float64", "float32"):
        try:
            return _converted(estimator, columns, dtype)
        except Exception as failure:  # skl2onnx raises what it likes, and ONNX Runtime what that led to
            first = first or f"{type(failure).__name__}: {(str(failure).strip() or 'no reason').splitlines()[0][:160]}"
    raise ModelRefused(f"skl2onnx does not convert it: {first}")


def _converted(estimator: Any, columns: Matrix, dtype: Literal["float64", "float32"]) -> bytes:
    from onnx import helper
    from skl2onnx import to_onnx

    options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "predict_proba") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = to_onnx(estimator, columns[:1].astype(dtype), options=options, target_opset={"": 18, "ai.onnx.ml": 3})
    helper.set_model_props(model, {METADATA: msgspec.json.encode(Inputs(dtype=dtype), order="sorted").decode()})
    encoded: bytes = model.SerializeToString(deterministic=True)
    theirs = estimator.predict_proba(columns) if options else estimator.predict(columns)
    ours = OnnxEngine(encoded, converted=True).margin(np.ascontiguousarray(columns))
    if not np.allclose(ours, np.asarray(theirs).reshape(len(columns), -1), atol=1e-4, rtol=1e-4, equal_nan=True):
        raise ValueError(f"in {dtype} it answers otherwise on ordinary rows")
    return encoded
