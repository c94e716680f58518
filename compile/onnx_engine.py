"""Score with an ONNX model: our own exact forest, or a conversion by skl2onnx. ONNX Runtime on one thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from compile.forest import ZERO_SNAP, CategoryRule
from compile.onnx_guard import refuse_programs

Matrix = npt.NDArray[np.float64]

METADATA = "coppice.rows"
MOST_CATEGORY = {"truncated": 2.0**24, "int": 2.0**31, "exact": 2.0**53}


class Inputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done to float64 rows before the graph sees them, in the order of the fields.

    snapped: |x| <= 1e-35 becomes 0. zero_missing: in these columns zero becomes NaN. categorical: in these columns a
    category becomes a whole number, or -1, which is no member of any set. rounded: to float32. dtype: the graph's.
    """

    dtype: Literal["float32", "float64"]
    snapped: bool = False
    zero_missing: tuple[int, ...] = ()
    categorical: tuple[int, ...] = ()
    category_rule: CategoryRule = "truncated"
    rounded: bool = False


class OnnxEngine:
    """Answers the graph's last output, as float64 (n, outputs): of ours the margins, of a conversion the scores."""

    def __init__(self, model: bytes, *, converted: bool = False) -> None:
        """`converted`: by skl2onnx. Raises ValueError where `model` is no sound ONNX model of that kind."""
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # must be set before the import, which would report it
        import onnxruntime

        refuse_programs(model, converted=converted)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what is wrong with a graph is raised, and told once
        try:
            session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            described = session.get_modelmeta().custom_metadata_map.get(METADATA, "")
            self._inputs = msgspec.json.decode(described, type=Inputs)
        except Exception as unsound:  # ONNX Runtime's errors have no base of their own
            raise ValueError(f"not a sound model: {str(unsound).splitlines()[0][:200]}") from None
        self._run: Callable[[Sequence[str] | None, dict[str, Any]], list[Any]] = session.run
        self._input, self.width = _matrix(session)
        self._output = [session.get_outputs()[-1].name]
        self._dtype = np.dtype(self._inputs.dtype)
        plain = not (self._inputs.snapped or self._inputs.zero_missing or self._inputs.categorical)
        self._prepared = self._cast if plain else self._prepare
        columns = session.get_outputs()[-1].shape
        self.outputs = columns[1] if len(columns) > 1 and isinstance(columns[1], int) else 1

    def margin(self, rows: Matrix) -> Matrix:
        """(n, width) float64 -> (n, outputs) float64."""
        if not len(rows):
            return np.empty((0, self.outputs))
        with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 a number is infinite, natively as well
            prepared = self._prepared(rows)
        answers = self._run(self._output, {self._input: prepared})[0]
        return np.asarray(answers, dtype=np.float64).reshape(len(rows), -1)

    def _cast(self, rows: Matrix) -> npt.NDArray[Any]:
        return (rows.astype(np.float32) if self._inputs.rounded else rows).astype(self._dtype)

    def _prepare(self, rows: Matrix) -> npt.NDArray[Any]:
        rows = rows.copy()
        if self._inputs.snapped:
            rows[np.abs(rows) <= ZERO_SNAP] = 0.0
        for column in self._inputs.zero_missing:
            rows[rows[:, column] == 0.0, column] = np.nan
        rule = self._inputs.category_rule
        for column in self._inputs.categorical:
            rows[:, column] = whole_categories(rows[:, column], rule)
        return self._cast(rows)


def _matrix(session: Any) -> tuple[str, int]:
    """(name, columns) of the one input. Raises ValueError where the graph takes anything but one matrix of stated width."""
    inputs = {given.name: list(given.shape) for given in session.get_inputs()}
    if len(inputs) != 1 or any(len(shape) != 2 or not isinstance(shape[1], int) for shape in inputs.values()):
        raise ValueError(f"takes {inputs}, not one matrix")
    ((name, shape),) = inputs.items()
    return name, shape[1]


def whole_categories(values: Matrix, rule: CategoryRule) -> Matrix:
    """Each category as the whole number that the library reads, -1 where it is none of any set; NaN stays."""
    if rule == "truncated":
        values = values.astype(np.float32).astype(np.float64)  # XGBoost has rounded by then
    cut = np.trunc(values)
    known = (cut >= 0 if rule == "int" else values >= 0) & (cut < MOST_CATEGORY[rule])
    if rule == "exact":
        known &= cut == values
    return np.where(known | np.isnan(values), cut, -1.0)
