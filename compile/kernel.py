"""The C kernel through ctypes. Where no compiler was at hand at installation it is absent, and ONNX Runtime serves."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

ABI = 1
HOLD_GIL_US = 100.0  # releasing it costs up to 5 ms where another Python thread is busy; above this it is worth it


class KernelUnavailable(Exception):
    """There is no kernel on this machine, or it is of another version; the text says which."""


class FlatForest:
    """An opened flat forest. One thread at a time: the handle owns its scratch memory."""

    def __init__(self, data: bytes) -> None:
        """Raises KernelUnavailable, or ValueError where `data` is not a sound flat forest."""
        held, _ = _libraries()
        self._data = np.frombuffer(data, dtype=np.uint8).copy()  # aligned, and alive as long as the handle
        self._handle = held.coppice_open(self._data.ctypes.data, len(data))
        if not self._handle:
            raise ValueError("not a sound flat forest")
        self.width = int.from_bytes(data[12:16], "little")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            _libraries()[0].coppice_close(self._handle)

    def margin(self, rows: Matrix) -> Matrix:
        """(n, width) float64, C-contiguous -> (n, 1) float64."""
        margins = np.empty((len(rows), 1))
        _libraries()[1].coppice_margin(self._handle, rows.ctypes.data, len(rows), margins.ctypes.data)
        return margins

    def bound(self, rows: Matrix, scores: Matrix, row_us: float) -> Callable[[int], None]:
        """run(n): probabilities of rows[:n] into scores[:n]. `row_us`, a row's cost, decides who holds the GIL."""
        held, released = (library.coppice_score for library in _libraries())
        handle, rows_at, scores_at = self._handle, rows.ctypes.data, scores.ctypes.data
        few = int(HOLD_GIL_US / max(row_us, 0.01))
        keep = (self, rows, scores)

        def run(count: int) -> None:
            call = held if count <= few else released
            call(handle, rows_at, count, scores_at)

        run.keep = keep  # type: ignore[attr-defined]  # what the addresses point into must outlive the closure
        return run


def logistic(margins: Matrix, sigmoid: float) -> Matrix:
    """1 / (1 + exp(-sigmoid * margin)) in float64: the one link, the same bits for every backend."""
    scores = np.ascontiguousarray(margins, dtype=np.float64).copy()
    try:
        held, _ = _libraries()
    except KernelUnavailable:
        return np.asarray(1.0 / (1.0 + np.exp(-sigmoid * scores)))
    held.coppice_logistic(sigmoid, scores.size, scores.ctypes.data)
    return scores


def available() -> bool:
    try:
        _libraries()
    except KernelUnavailable:
        return False
    return True


@lru_cache(maxsize=1)
def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """(calls that hold the GIL, calls that release it)."""
    path = next((path for path in _candidates() if path.is_file()), None)
    if path is None:
        raise KernelUnavailable("the C kernel was not built at installation (was there a C compiler?)")
    held, released = ctypes.PyDLL(str(path)), ctypes.CDLL(str(path))
    for library in (held, released):
        library.coppice_open.restype = ctypes.c_void_p
        library.coppice_open.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        library.coppice_close.argtypes = [ctypes.c_void_p]
        library.coppice_close.restype = None
        for name in ("coppice_margin", "coppice_score"):
            function = getattr(library, name)
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
            function.restype = None
        library.coppice_logistic.argtypes = [ctypes.c_double, ctypes.c_uint32, ctypes.c_void_p]
        library.coppice_logistic.restype = None
    if held.coppice_kernel_abi() != ABI:
        raise KernelUnavailable(f"{path.name}: is of another version; install again")
    return held, released


def _candidates() -> list[Path]:
    return [Path(__file__).with_name("_kernel" + suffix) for suffix in EXTENSION_SUFFIXES]
