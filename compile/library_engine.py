"""Open a native library (`compile.library`) and score with it, with nothing but ctypes and NumPy in the process.

The bytes that are verified are the bytes that run: they are hashed, checked, put into a sealed memory file and loaded from
there. No path is involved, so nothing can be exchanged between check and use, and a replaced file can't be mistaken for the
one before: the dynamic linker knows libraries by path and would give the old one again.

A library is code. Whoever opens one has decided, by `compile.trust`, that these bytes may run in this process.
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import re
import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from compile import elf
from compile.kernel import HOLD_GIL_US

Matrix = npt.NDArray[np.float64]

ABI = 1
ENTRY = re.compile(r"coppice_[0-9a-f]{16}")
ARGUMENTS = (None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
MFD_EXEC = 0x10  # Linux 6.3; older kernels know no such flag, and need none


class LibraryUnavailable(Exception):
    """This machine can't run the library, though there is nothing wrong with it; the text says why."""


class NativeLibrary:
    """An opened library. Any number of threads may call it at once, each with its own arrays. Closed with its last user."""

    def __init__(self, data: bytes, *, sha256: str) -> None:
        """Raises ValueError where `data` is not a sound library of that digest, LibraryUnavailable where it can't run."""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("is not the library that its digest names")
        entry = _entry(elf.inspect(data))
        self._handle = _load(data, entry)
        self._close = weakref.finalize(self, _unload, *self._handle)
        self._close.atexit = False  # the process ends with it: no thread may find its code gone before
        library = ctypes.CDLL(None, handle=self._handle[0])
        abi, self.width, self.outputs, value_bytes = (ctypes.c_uint32 * 4).in_dll(library, f"{entry}_shape")
        if abi != ABI or value_bytes not in (4, 8) or not self.width or not self.outputs:
            raise ValueError("is a library of another version; compile the model again")
        self.dtype = np.float32 if value_bytes == 4 else np.float64
        address = ctypes.cast(library[entry], ctypes.c_void_p).value
        assert address is not None
        self._held, self._released = ctypes.PYFUNCTYPE(*ARGUMENTS)(address), ctypes.CFUNCTYPE(*ARGUMENTS)(address)

    def margin(self, rows: Matrix) -> Matrix:
        """(n, width) float64, C-contiguous -> (n, outputs) float64, which the caller owns."""
        margins = np.empty((len(rows), self.outputs))
        self._refuse_unfit(rows, margins)
        self._released(rows.ctypes.data, len(rows), margins.ctypes.data)
        return margins

    def bound(self, rows: Matrix, margins: Matrix, row_us: float) -> Callable[[int], None]:
        """run(n): margins of rows[:n] into margins[:n]. `row_us`, a row's cost, decides who holds the GIL."""
        self._refuse_unfit(rows, margins)
        held, released = self._held, self._released
        rows_at, margins_at, most = rows.ctypes.data, margins.ctypes.data, len(rows)
        few = int(HOLD_GIL_US / max(row_us, 0.01))
        keep = (self, rows, margins)

        def run(count: int) -> None:
            if not 0 <= count <= most:
                raise ValueError(f"{count} rows: the buffer has {most}")
            call = held if count <= few else released
            call(rows_at, count, margins_at)

        run.keep = keep  # type: ignore[attr-defined]  # what the addresses point into must outlive the closure
        return run

    def _refuse_unfit(self, rows: Matrix, margins: Matrix) -> None:
        for name, given, columns in (("rows", rows, self.width), ("margins", margins, self.outputs)):
            fits = given.shape == (len(rows), columns) and given.dtype == np.float64 and given.flags.c_contiguous
            if not fits:
                raise ValueError(
                    f"{name}: C-contiguous float64 ({len(rows)}, {columns}) is needed, got {given.dtype} {given.shape}"
                )


def _entry(library: elf.SharedObject) -> str:
    """The one function's name, once the file is seen to be a library of ours for this machine."""
    names = [name for name in library.exports if ENTRY.fullmatch(name)]
    if len(names) != 1 or library.exports != (names[0], f"{names[0]}_shape"):
        raise ValueError("does not hold the one function that a compiled model has")
    if library.needs or library.runs_when_opened:
        raise ValueError("needs other libraries or runs code when opened, as no compiled model does")
    if library.machine != platform.machine():
        raise LibraryUnavailable(f"is for {library.machine or 'another machine'}, this one is {platform.machine()}")
    return names[0]


def _load(data: bytes, entry: str) -> tuple[int, int]:
    """(the library's handle, the memory file's descriptor), the bytes sealed before they are loaded.

    The descriptor stays open as long as the library: closed, its number and so its path could be another library's.
    """
    descriptor = _memory_file(entry)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        handle = _ctypes.dlopen(f"/proc/self/fd/{descriptor}", os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as refused:
        os.close(descriptor)
        raise LibraryUnavailable(f"can't be loaded from memory here: {refused}") from None
    try:
        _ctypes.dlsym(handle, entry)
    except OSError:
        _unload(handle, descriptor)
        raise LibraryUnavailable("the dynamic linker gave another library") from None
    return handle, descriptor


def _memory_file(name: str) -> int:
    if not hasattr(os, "memfd_create"):
        raise LibraryUnavailable("native libraries are opened on Linux only")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    with contextlib.suppress(OSError):
        return os.memfd_create(name, flags | MFD_EXEC)
    try:
        return os.memfd_create(name, flags)
    except OSError as refused:
        raise LibraryUnavailable(f"no file in memory can be made here: {refused}") from None


def _unload(handle: int, descriptor: int) -> None:
    _ctypes.dlclose(handle)
    os.close(descriptor)
