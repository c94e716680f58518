"""The C kernel through ctypes. Where no compiler was at hand at installation it is absent, and ONNX Runtime serves."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

ABI = 2
HOLD_GIL_US = 100.0  # releasing it costs up to 5 ms where another Python thread is busy; above this it is worth it
SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "coppice_open": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]),
    "coppice_close": (None, [ctypes.c_void_p]),
    "coppice_width": (ctypes.c_uint32, [ctypes.c_void_p]),
    "coppice_outputs": (ctypes.c_uint32, [ctypes.c_void_p]),
    "coppice_margin": (None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]),
    "coppice_plan_open": (ctypes.c_void_p, [ctypes.c_void_p] * 7),
    "coppice_plan_close": (None, [ctypes.c_void_p]),
    "coppice_run": (None, [ctypes.c_void_p, ctypes.c_uint32]),
}


class KernelUnavailable(Exception):
    """There is no kernel on this machine, or it is of another version; the text says which."""


class NativeCall(NamedTuple):
    """`void function(void *handle, uint32_t rows)`, by address."""

    function: int
    handle: int


class FlatForest:
    """An opened flat forest. One thread at a time: the handle owns its scratch memory."""

    def __init__(self, data: bytes) -> None:
        """Raises KernelUnavailable, or ValueError where `data` is not a sound flat forest."""
        held, _ = _libraries()
        self._data = np.frombuffer(data, dtype=np.uint8).copy()  # aligned, and alive as long as the handle
        self.handle: int | None = held.coppice_open(self._data.ctypes.data, len(data))
        if not self.handle:
            raise ValueError("not a sound flat forest")
        self.width: int = held.coppice_width(self.handle)
        self.outputs: int = held.coppice_outputs(self.handle)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            _libraries()[0].coppice_close(self.handle)

    def margin(self, rows: Matrix) -> Matrix:
        """(n, width) float64, C-contiguous -> (n, outputs) float64."""
        margins = np.empty((len(rows), self.outputs))
        _libraries()[1].coppice_margin(self.handle, rows.ctypes.data, len(rows), margins.ctypes.data)
        return margins


class Plan:
    """A whole call - program, forest, link - laid out once over buffers whose addresses are taken here."""

    def __init__(
        self,
        forest: FlatForest,
        program: int | None,
        link: int | None,
        columns: Matrix | None,
        rows: Matrix,
        scores: Matrix,
        keep: object,
    ) -> None:
        """`program`, `link`: opened handles; `keep`: what holds them open, kept as long as the plan.

        `columns`: (max, program's width) where there is a program. Raises MemoryError.
        """
        held, _ = _libraries()
        margins = np.empty((len(rows), forest.outputs))
        between = 0 if columns is None else columns.ctypes.data
        self._alive = (forest, rows, columns, margins, scores, keep)
        self._handle = held.coppice_plan_open(
            forest.handle, program, link, rows.ctypes.data, between, margins.ctypes.data, scores.ctypes.data
        )
        if not self._handle:
            raise MemoryError("a plan of a scoring call")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            _libraries()[0].coppice_plan_close(self._handle)

    def caller(self, row_us: float) -> Callable[[int], None]:
        """run(n): the first n rows into the first n scores. `row_us`, a row's cost, decides who holds the GIL."""
        held, released = (library.coppice_run for library in _libraries())
        handle = self._handle
        few = int(HOLD_GIL_US / max(row_us, 0.01))

        def run(count: int) -> None:
            call = held if count <= few else released
            call(handle, count)

        run.plan = self  # type: ignore[attr-defined]  # what the handle points into must outlive the closure
        return run

    def native(self) -> NativeCall:
        address = ctypes.cast(_libraries()[0].coppice_run, ctypes.c_void_p).value
        return NativeCall(address or 0, self._handle or 0)


def native_call(run: Callable[[int], None]) -> NativeCall | None:
    """The C call that `run` of a plan makes, for callers in C; None where Python has a part in it.

    It is valid as long as `run` is, scores into the same buffers, and neither takes nor needs the GIL.
    """
    plan = getattr(run, "plan", None)
    return plan.native() if isinstance(plan, Plan) else None


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
    if held.coppice_kernel_abi() != ABI:
        raise KernelUnavailable(f"{path.name}: is of another version; install again")
    for library in (held, released):
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    return held, released


def _candidates() -> list[Path]:
    return [Path(__file__).with_name("_kernel" + suffix) for suffix in EXTENSION_SUFFIXES]
