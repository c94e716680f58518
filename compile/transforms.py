"""One fitted scikit-learn transform, as steps of a program. What it does to a category is asked, not derived.

A transform that works column by column is applied to a coded column (`compile.columns`) by handing it every value that
the column can have: so the table holds what the fitted transform says, with all its settings. On a number it becomes
the steps it takes, in its own order of operations.

What raises on a value that the schema lets through is refused: the pipeline would refuse a row that we would answer.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.feature_selection import SelectorMixin
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)

from compile.columns import Absent, Coded, Flowing, Number, absent, array_of, table
from compile.errors import ModelRefused
from compile.originals import is_missing, is_nan
from compile.program import Add, Clip, Divide, Fill, Missing, Multiply, Step, Subtract, value

SCALERS = (StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler)
ENCODERS = (OneHotEncoder, OrdinalEncoder, TargetEncoder)
IMPUTERS = (SimpleImputer, MissingIndicator)


def sources(transform: Any, width: int) -> list[int]:
    """The input column of each output column."""
    if isinstance(transform, SimpleImputer):
        kept = [i for i in range(width) if transform.keep_empty_features or not is_nan(transform.statistics_[i])]
        return kept + (list(transform.indicator_.features_) if transform.add_indicator else [])
    if isinstance(transform, MissingIndicator):
        return list(transform.features_)
    if isinstance(transform, OneHotEncoder):
        return [i for i, count in enumerate(transform._n_features_outs) for _ in range(count)]
    if isinstance(transform, TargetEncoder) and transform.target_type_ == "multiclass":
        return [i for i in range(width) for _ in transform.classes_]
    if isinstance(transform, SelectorMixin):
        return [int(i) for i in transform.get_support(indices=True)]
    return list(range(width))


def applied(transform: Any, columns: Sequence[Flowing], where: str) -> list[Flowing]:
    """The columns that the fitted transform makes of these. Raises ModelRefused, naming the step and why."""
    check_kind(transform, where)
    present = [_present(transform, column, where) for column in columns]
    if not present or (isinstance(transform, FunctionTransformer) and not transform.validate):
        return list(present)
    questions = [_questions(transform, i, column, where) for i, column in enumerate(present)]
    answers = _ask(transform, present, questions, where)
    origins = sources(transform, len(present))
    if len(origins) != len(answers[0]):
        raise ModelRefused(f"{where}: gives {len(answers[0])} columns where {len(origins)} were expected")
    made: list[Flowing] = []
    for k, i in enumerate(origins):
        column, answer = present[i], answers[i][k]
        if isinstance(column, Coded):
            made.append(replace(column, values=answer))
        else:
            made.append(
                _continued(transform, (i, k), column, dict(zip(questions[i], answer.tolist(), strict=True)), where)
            )
    return [replace(c, dtype=answers[0][k].dtype) if isinstance(c, Number) else c for k, c in enumerate(made)]


def check_kind(transform: Any, where: str) -> None:
    """Raises ModelRefused where the transform is not one of those that are understood."""
    own = type(transform).__module__.startswith("sklearn.")
    if own and isinstance(transform, (*SCALERS, *ENCODERS, *IMPUTERS, SelectorMixin)):
        return
    if own and isinstance(transform, FunctionTransformer):
        if transform.func is None:
            return
        raise ModelRefused(f"{where}: calls a Python function; a bundle holds no code")
    raise ModelRefused(f"{where}: is not among the transforms that are compiled")


def _present(transform: Any, column: Flowing, where: str) -> Number | Coded:
    if isinstance(column, Absent):
        raise absent(column, where)
    if column.dtype in (np.float32, np.float16) and isinstance(transform, (*SCALERS, SimpleImputer)):
        raise ModelRefused(f"{where}: computes with {column.dtype}; set dtype=float64 in the step before it")
    return column


def _questions(transform: Any, i: int, column: Number | Coded, where: str) -> list[Any]:
    """The values that the transform must be asked about in its column number `i`."""
    if isinstance(column, Coded):
        return list(column.values.tolist())
    asked = [math.nan] if column.missing else []
    if isinstance(transform, ENCODERS):
        keys = [key for key in transform.categories_[i].tolist() if not is_missing(key)]
        if not all(isinstance(key, numbers.Real) for key in keys):
            raise ModelRefused(f"{where}: {column.name} is a number in the schema, and text to this step")
        most = float(max(keys, default=0.0))
        stranger = max(math.floor(most) + 1.0, math.nextafter(most, math.inf))
        return [*asked, *sorted({float(key) for key in keys}), stranger]
    if isinstance(transform, IMPUTERS):
        marker = _marker(transform)
        if marker is None:
            raise ModelRefused(f"{where}: missing_values={transform.missing_values!r} is no number, {column.name} is")
        return asked if math.isnan(marker) and asked else [*asked, marker]
    return asked


def _marker(transform: Any) -> float | None:
    """What an imputer takes as missing, if that is a number."""
    marker = transform.missing_values
    if str(marker) == "<NA>":
        return math.nan
    return float(marker) if isinstance(marker, numbers.Real) else None


def _ask(
    transform: Any, columns: Sequence[Number | Coded], questions: Sequence[list[Any]], where: str
) -> list[list[npt.NDArray[Any]]]:
    """answers[i][k]: what output `k` is for each of the questions on column `i`, the other columns being unremarkable."""
    ordinary = [_ordinary(transform, i, column) for i, column in enumerate(columns)]
    asked = [(i, question) for i, mine in enumerate(questions) for question in mine]
    rows = [[*ordinary[:i], question, *ordinary[i + 1 :]] for i, question in asked] or [ordinary]
    try:
        outputs = _transformed(transform, columns, rows)
    except Exception as whole:  # whatever it raises is its answer; which row raised it is found one by one
        for (i, question), row in zip(asked, rows, strict=False):
            try:
                _transformed(transform, columns, [row])
            except Exception as error:
                raise _not_accepted(columns[i], question, error, where) from error
        raise ModelRefused(f"{where}: raises on ordinary values: {_first_line(whole)}") from whole
    ends = np.cumsum([len(mine) for mine in questions])
    return [[out[end - len(mine) : end] for out in outputs] for mine, end in zip(questions, ends, strict=True)]


def _ordinary(transform: Any, i: int, column: Number | Coded) -> object:
    """A value that the transform accepts in this column."""
    if isinstance(transform, ENCODERS):
        categories = transform.categories_[i].tolist()
        return next((known for known in categories if not is_missing(known)), categories[0])
    if isinstance(column, Number):
        return 0.0
    return next((v for v in column.values.tolist() if not is_missing(v)), column.values.tolist()[0])


def _transformed(transform: Any, columns: Sequence[Number | Coded], rows: list[list[object]]) -> list[npt.NDArray[Any]]:
    """The transform's output, column by column, of rows that come as its input came in training: array or frame."""
    import pandas as pd

    names = getattr(transform, "feature_names_in_", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = [array_of([row[i] for row in rows]).astype(c.dtype, copy=False) for i, c in enumerate(columns)]
        if names is None:
            given: Any = np.column_stack([a.astype(np.result_type(*(a.dtype for a in arrays))) for a in arrays])
        else:
            given = pd.DataFrame(dict(zip(names, arrays, strict=True)))
        made = transform.transform(given)
    if isinstance(made, pd.DataFrame):
        return [made.iloc[:, k].to_numpy() for k in range(made.shape[1])]
    made = made.toarray() if hasattr(made, "toarray") else made
    return [made[:, k] for k in range(made.shape[1])]


def _not_accepted(column: Number | Coded, question: object, error: Exception, where: str) -> ModelRefused:
    cure = "the schema must not let it through (missing='refuse', or a value), or the pipeline must take it"
    if not is_missing(question):
        cure = "the pipeline must take it (handle_unknown='ignore'), or the schema must not let it through"
    said = "a missing value" if is_missing(question) else repr(question)
    return ModelRefused(f"{where}: raises on {said} in {column.name}: {cure}; it said: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _continued(transform: Any, way: tuple[int, int], column: Number, answers: dict[Any, Any], where: str) -> Number:
    """The number after the transform, on its way from its column `i` to its output `k`."""
    i, k = way
    if isinstance(transform, SCALERS):
        return replace(column, steps=column.steps + _scaled(transform, i))
    if isinstance(transform, ENCODERS):
        known = {key: float(y) for key, y in answers.items() if not is_nan(key)}
        other = known.pop(max(known))
        missing = next((float(y) for key, y in answers.items() if is_nan(key)), None)
        may_be_nan = any(math.isnan(y) for y in (*known.values(), other, other if missing is None else missing))
        return replace(column, steps=(*column.steps, table(known, missing, other, codes=False)), missing=may_be_nan)
    if not isinstance(transform, IMPUTERS):
        return column
    marker = _marker(transform)
    assert marker is not None
    kept = sum(not is_nan(s) or transform.keep_empty_features for s in getattr(transform, "statistics_", ()))
    if k >= kept:
        return replace(column, steps=(*column.steps, Missing(value(marker))), missing=False)
    found = next(y for key, y in answers.items() if key == marker or (is_nan(key) and math.isnan(marker)))
    if not isinstance(found, numbers.Real):
        raise ModelRefused(f"{where}: fills {column.name}, a number, with {found!r}")
    fill = float(found)
    still = math.isnan(fill) or (column.missing and not math.isnan(marker))
    return replace(column, steps=(*column.steps, Fill(value(fill), value(marker))), missing=still)


def _scaled(scaler: Any, i: int) -> tuple[Step, ...]:
    """In the scaler's own order of operations, so that the last bit is the same."""
    if isinstance(scaler, MinMaxScaler):
        steps: list[Step] = [Multiply(value(scaler.scale_[i])), Add(value(scaler.min_[i]))]
        return (*steps, *([Clip(*map(value, scaler.feature_range))] if scaler.clip else []))
    if isinstance(scaler, MaxAbsScaler):
        return (Divide(value(scaler.scale_[i])), *([Clip(-1.0, 1.0)] if getattr(scaler, "clip", False) else []))
    robust = isinstance(scaler, RobustScaler)
    centre, scale = (scaler.center_, scaler.scale_) if robust else (scaler.mean_, scaler.scale_)
    centred, spread = (scaler.with_centering, scaler.with_scaling) if robust else (scaler.with_mean, scaler.with_std)
    return (*([Subtract(value(centre[i]))] if centred else []), *([Divide(value(scale[i]))] if spread else []))
