"""The slow, obvious twin of `links.c`, for machines without the kernel: the same bits, from the same C library's exp."""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.links import Calibrator, Isotonic, Link, Matrix, Platt, Temperature, width

Values = npt.NDArray[Any]  # float64, or float32 where the trained model computes so


def apply_slowly(link: Link, margins: Matrix) -> Matrix:
    """`links.apply` in NumPy: bit for bit where both use one C library, about 0.3 µs an exponential."""
    with np.errstate(over="ignore", invalid="ignore"):
        folds = np.split(np.asarray(margins, dtype=np.float64), max(1, len(link.folds)), axis=1)
        width(link, margins.shape[1])
        kept = [_transformed(link, fold)[:, _columns(link)] for fold in folds]
        if not link.folds:
            return np.array(kept[0], dtype=np.float64)
        total = np.zeros(kept[0].shape)
        for calibrators, values in zip(link.folds, kept, strict=True):
            total += _calibrated(calibrators, values)
        return total / len(link.folds)


def _columns(link: Link) -> slice:
    return slice(None) if link.column is None else slice(link.column, link.column + 1)


def _transformed(link: Link, margins: Matrix) -> Values:
    x: Values = (margins / link.divisor).astype(np.float32 if link.single else np.float64)
    if link.kind == "logistic" and link.single:
        return np.float32(1) / (_exp(np.minimum(-x, np.float32(88.7))) + np.float32(1) + np.float32(1e-16))
    if link.kind == "logistic":
        return np.asarray(1.0 / (1.0 + _exp(-link.sigmoid * x)))
    if link.kind == "softmax":
        return _softmax(x)
    if link.kind == "exp":
        return _exp(x)
    if link.kind == "log1pexp":
        return _each("log1p", _exp(x))
    if link.kind == "signed_square":
        return np.asarray(((x > 0).astype(float) - (x < 0)) * x * x)
    if link.kind == "hinge":
        return (x > 0).astype(np.float64)
    if link.kind == "isolation":
        power = _c_function("pow", False, 2)
        return np.array([-power(2.0, -depth) - link.offset for depth in x.ravel().tolist()]).reshape(x.shape)
    return x


def _softmax(x: Values) -> Values:
    """XGBoost adds its float32 powers in float64."""
    powers = _exp(x - x.max(axis=1, keepdims=True))
    total = np.add.accumulate(powers.astype(np.float64), axis=1)[:, -1:]
    return np.asarray(powers / total.astype(x.dtype))


def _calibrated(calibrators: tuple[Calibrator, ...], values: Values) -> Matrix:
    if isinstance(calibrators[0], Temperature):
        scores = _tempered(calibrators[0], values)
    else:
        columns = [_one(calibrator, values[:, [j]]) for j, calibrator in enumerate(calibrators)]
        scores = np.ascontiguousarray(np.hstack(columns), dtype=np.float64)
        if len(calibrators) > 1:
            total = scores.sum(axis=1, keepdims=True)
            uniform = np.full_like(scores, 1 / len(calibrators))
            scores = np.divide(scores, total, out=uniform, where=total != 0)
    scores[(scores > 1.0) & (scores <= 1.0 + 1e-5)] = 1.0
    return scores


def _one(calibrator: Calibrator, values: Values) -> Values:
    if isinstance(calibrator, Platt):
        return np.asarray(1.0 / (1.0 + _exp(calibrator.a * values.astype(np.float64) + calibrator.b)))
    assert isinstance(calibrator, Isotonic)
    if not calibrator.single or len(calibrator.x) == 1:
        return np.asarray(np.interp(values.astype(np.float64), calibrator.x, calibrator.y))
    x, y = np.array(calibrator.x, dtype=np.float32), np.array(calibrator.y, dtype=np.float32)
    at = np.clip(values.astype(np.float32), x[0], x[-1])
    high = np.searchsorted(x, at).clip(1, len(x) - 1)
    low = high - 1
    return np.asarray((y[high] - y[low]) / (x[high] - x[low]) * (at - x[low]) + y[low])


def _tempered(calibrator: Temperature, values: Values) -> Matrix:
    values = values.astype(np.float32 if calibrator.single else np.float64)
    probabilities = calibrator.inputs == "probabilities"
    if binary := values.shape[1] == 1:
        values = np.hstack([1 - values if probabilities else -values, values])
    logits = values.dtype.type(calibrator.beta) * (
        _each("log", values + values.dtype.type(1e-12)) if probabilities else values
    )
    powers = _exp(logits - logits.max(axis=1, keepdims=True))
    scores = powers / np.add.accumulate(powers, axis=1)[:, -1:]
    return scores[:, 1:].astype(np.float64) if binary else scores.astype(np.float64)


def _exp(values: Values) -> Values:
    return _each("exp", values)


def _each(name: str, values: Values) -> Values:
    """The C library's own function: NumPy's may differ in the last bit."""
    function = _c_function(name, values.dtype == np.float32)
    return np.array([function(value) for value in values.ravel().tolist()], dtype=values.dtype).reshape(values.shape)


@cache
def _c_function(name: str, single: bool, arguments: int = 1) -> Any:
    function = getattr(ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6"), name + "f" * single)
    function.restype = ctypes.c_float if single else ctypes.c_double
    function.argtypes = [function.restype] * arguments
    return function
