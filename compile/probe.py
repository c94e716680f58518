"""The probe: rows and what the native library answered to them. `probe.npz` is read here without trusting it.

A NumPy archive of exactly three arrays, `rows` (n, width), `margins` (n, margins; no columns where the library has no raw
scores) and `scores` (n, outputs; one column of class numbers where it answers labels), each C-ordered float64 and stored,
not deflated: so nothing in it can be larger than the file. NumPy's own reader is not used: it evaluates the headers' text,
allocates what they claim, and unpacks before it knows how much.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compile.errors import BundleRefused

Matrix = npt.NDArray[np.float64]

ARRAYS = ("rows", "margins", "scores")
MAX_ROWS = 1 << 16
NPY_1_0 = b"\x93NUMPY\x01\x00"
HEADER = re.compile(rb"\{'descr': '<f8', 'fortran_order': False, 'shape': \((\d{1,9}), (\d{1,9})\), \} *\n")


class Probe(NamedTuple):
    rows: Matrix
    margins: Matrix
    scores: Matrix


def encode(probe: Probe) -> bytes:
    """The file's content; the same arrays give the same bytes, since NumPy writes fixed dates."""
    out = io.BytesIO()
    rows, margins, scores = (np.ascontiguousarray(array, "<f8") for array in probe)
    np.savez(out, rows=rows, margins=margins, scores=scores)
    return out.getvalue()


def decode(data: bytes, path: Path, width: int) -> Probe:
    """The arrays, which own their memory. Raises BundleRefused, naming `path`."""
    try:
        probe = Probe(*_arrays(data))
    except (
        ValueError,
        OSError,
        EOFError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
    ) as broken:
        raise BundleRefused(f"{path}: {broken}") from None
    count = len(probe.rows)
    if not 0 < count <= MAX_ROWS or probe.rows.shape[1] != width:
        raise BundleRefused(f"{path}: the probe does not fit the schema's {width} features")
    if not len(probe.margins) == len(probe.scores) == count or not probe.scores.shape[1]:
        raise BundleRefused(f"{path}: the probe's answers do not fit its {count} rows")
    return probe


def _arrays(data: bytes) -> list[Matrix]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if sorted(entries) != sorted(f"{name}.npy" for name in ARRAYS) or len(archive.infolist()) != len(ARRAYS):
            raise ValueError(f"must hold exactly {', '.join(ARRAYS)}")
        for entry in entries.values():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"{entry.filename} is compressed")
            if entry.file_size > len(data):
                raise ValueError(f"{entry.filename} claims {entry.file_size} bytes")
        return [_array(name, archive.read(f"{name}.npy")) for name in ARRAYS]


def _array(name: str, npy: bytes) -> Matrix:
    start = len(NPY_1_0) + 2
    end = start + int.from_bytes(npy[len(NPY_1_0) : start], "little")
    header = HEADER.fullmatch(npy[start:end])
    if not npy.startswith(NPY_1_0) or header is None:
        raise ValueError(f"{name} is not a C-ordered float64 matrix of NumPy's format 1.0")
    shape = int(header[1]), int(header[2])
    if len(npy) - end != 8 * shape[0] * shape[1]:
        raise ValueError(f"{name} has {len(npy) - end} bytes, not those of {shape[0]} x {shape[1]} numbers")
    return np.frombuffer(npy, "<f8", offset=end).reshape(shape).astype(np.float64)
