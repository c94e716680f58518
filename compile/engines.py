"""Backends by name: each turns the bytes of its file into an engine that answers margins."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from compile import trust
from compile.errors import BundleRefused
from compile.kernel import FlatForest, KernelUnavailable
from compile.library_engine import LibraryUnavailable, NativeLibrary
from compile.onnx_engine import OnnxEngine

Matrix = npt.NDArray[np.float64]

FILES = {"treelite": "model.flat", "onnx": "model.onnx", "skl2onnx": "converted.onnx"}


class EngineUnavailable(Exception):
    """This machine lacks what the backend needs; the text says what."""


class Engine(Protocol):
    """What a backend brings. One thread at a time."""

    @property
    def width(self) -> int:
        """Columns of a row, as the backend's own file says."""

    @property
    def outputs(self) -> int:
        """Margins of a row."""

    def margin(self, rows: Matrix) -> Matrix:
        """(n, width) float64, C-contiguous -> (n, outputs) float64."""


def engine_of(name: str, data: bytes, path: Path) -> Engine:
    """The engine over the file's content; `path` is where it stood, for messages and for who may execute it.

    Raises EngineUnavailable, also where a library may not be executed here, or ValueError where `data` is not sound.
    """
    try:
        if name == "treelite":
            return FlatForest(data)
        if name in ("onnx", "skl2onnx"):
            return OnnxEngine(data, converted=name == "skl2onnx")
        if name == "native":
            return _library(data, path)
    except (KernelUnavailable, LibraryUnavailable, ImportError) as reason:
        raise EngineUnavailable(str(reason)) from None
    raise ValueError(f"{name!r} is no backend of this version")


def _library(data: bytes, path: Path) -> NativeLibrary:
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        trust.may_execute(path, sha256)
    except BundleRefused as forbidden:
        raise EngineUnavailable(str(forbidden)) from None
    return NativeLibrary(data, sha256=sha256)
