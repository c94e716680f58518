"""The structures of quick.h, field for field, and the library that reads them.

A structure does not keep alive what its pointers point to: whoever lays one out does, in a `keep` list.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from serving.arena import Layout as Block

ABI = 4
MAX_WIDTH = 1024
MAX_ID = MAX_UNIT = 128
WAITS = -(1 << 63)  # and a batch's number: what `coppice_quick` says of a request whose row waits
KINDS = ("number", "boolean", "category")
CHOICES = ("only", "above", "below")


class Text(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_void_p), ("length", ctypes.c_int64)]


class Feature(ctypes.Structure):
    _fields_ = [
        ("key", Text),
        ("kind", ctypes.c_int64),
        ("nullable", ctypes.c_int64),
        ("missing", ctypes.c_double),
        ("low", ctypes.c_double),
        ("high", ctypes.c_double),
        ("takes_unseen", ctypes.c_int64),
        ("unseen", ctypes.c_double),
        ("categories", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("category_count", ctypes.c_int64),
    ]


class Waiting(ctypes.Structure):
    _fields_ = [
        ("arrived", ctypes.c_int64),
        ("decoded", ctypes.c_int64),
        ("ts_us", ctypes.c_int64),
        ("asked", ctypes.c_int64),
        ("answering", ctypes.c_int64),
        ("id_length", ctypes.c_int64),
        ("unit_length", ctypes.c_int64),
        ("id", ctypes.c_char * MAX_ID),
        ("unit", ctypes.c_char * MAX_UNIT),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        ("number", ctypes.c_int64),
        ("most", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("began", ctypes.c_int64),
        ("score_us", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
    ]


class Arm(ctypes.Structure):
    _fields_ = [
        ("run", ctypes.c_void_p),
        ("plan", ctypes.c_void_p),
        ("row", ctypes.c_void_p),
        ("score", ctypes.c_void_p),
        ("queue", ctypes.c_void_p),
        ("cheap", ctypes.c_int64),
        ("tag", ctypes.c_int64),
        ("rows_cell", ctypes.c_int64),
        ("choice", ctypes.c_int64),
        ("threshold", ctypes.c_double),
        ("head", Text * 6),
        ("bodies", (Text * 3) * 2),
    ]


class Seen(ctypes.Structure):
    _fields_ = [
        ("ts_us", ctypes.c_int64),
        ("id_length", ctypes.c_int64),
        ("unit_length", ctypes.c_int64),
        ("id", ctypes.c_char * MAX_ID),
        ("unit", ctypes.c_char * MAX_UNIT),
    ]


class Shadow(ctypes.Structure):
    _fields_ = [
        ("run", ctypes.c_void_p),
        ("plan", ctypes.c_void_p),
        ("row", ctypes.c_void_p),
        ("score", ctypes.c_void_p),
        ("most", ctypes.c_int64),
        ("tag", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("sampled", ctypes.c_uint64),
        ("ring", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("room", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("score_us", ctypes.c_int64),
    ]


class Endpoint(ctypes.Structure):
    _fields_ = [
        ("name", Text),
        ("split", ctypes.c_int64),
        ("arms", ctypes.c_void_p),
        ("points", ctypes.c_void_p),
        ("salted", ctypes.c_uint64 * 8),
        ("features", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("order", ctypes.c_void_p),
        ("shadows", ctypes.c_void_p),
        ("shadow_count", ctypes.c_int64),
    ]


class Door(ctypes.Structure):
    _fields_ = [
        ("endpoints", ctypes.c_void_p),
        ("endpoint_count", ctypes.c_int64),
        ("others", ctypes.c_void_p),
        ("other_count", ctypes.c_int64),
        ("max_body", ctypes.c_int64),
        ("cells", ctypes.c_void_p),
        ("seq_cell", ctypes.c_int64),
        ("rows_cell", ctypes.c_int64),
        ("ok_cell", ctypes.c_int64),
        ("inline_cell", ctypes.c_int64),
        ("seconds_cell", ctypes.c_int64),
        ("shadow_shed_cell", ctypes.c_int64),
        ("edges", ctypes.c_void_p),
        ("edge_count", ctypes.c_int64),
        ("lateness", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
        ("preamble", Text),
        ("out", ctypes.c_void_p),
        ("room", ctypes.c_int64),
        ("mark", Text),
        ("made", ctypes.c_uint64),
        ("random", ctypes.c_uint64),
        ("format", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("powers", ctypes.c_void_p),
        ("has_seen", ctypes.c_int64),
        ("row", ctypes.c_void_p),
        ("ts_us", ctypes.c_int64),
        ("unit_length", ctypes.c_int64),
        ("id_length", ctypes.c_int64),
        ("asked", ctypes.c_int64),
        ("answering", ctypes.c_int64),
        ("id", ctypes.c_char * MAX_ID),
        ("unit", ctypes.c_char * MAX_UNIT),
    ]


def text(content: bytes, keep: list[Any]) -> Text:
    held = ctypes.create_string_buffer(content, len(content) or 1)
    keep.append(held)
    return Text(ctypes.addressof(held), len(content))


def address(held: Any) -> int:
    """Of a ctypes array or structure."""
    return ctypes.addressof(held)


def array_of(kind: Any, values: Iterable[Any], keep: list[Any]) -> int:
    """The address of an array of them; 0 for none."""
    listed = list(values)
    if not listed:
        return 0
    held = (kind * len(listed))(*listed)
    keep.append(held)
    return ctypes.addressof(held)


class QuickUnavailable(Exception):
    """The library was not built at installation, or it is of another version; the text says which."""


@lru_cache(maxsize=1)
def library() -> ctypes.PyDLL:
    """Its calls hold the GIL: they use Python's own number formatting, and take microseconds. Raises QuickUnavailable."""
    candidates = (Path(__file__).with_name("_quick" + suffix) for suffix in EXTENSION_SUFFIXES)
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise QuickUnavailable("the C request path was not built at installation (was there a C compiler?)")
    found = ctypes.PyDLL(str(path))
    found.coppice_quick_size.restype = ctypes.c_int64
    sizes = [ctypes.sizeof(layout) for layout in (Feature, Arm, Endpoint, Block, Door, Waiting, Batch, Seen, Shadow)]
    if found.coppice_quick_abi() != ABI or sizes != [found.coppice_quick_size(n) for n in range(len(sizes))]:
        raise QuickUnavailable(f"{path.name}: is of another version; install again")
    found.coppice_quick.restype = ctypes.c_int64
    found.coppice_quick.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64]
    found.coppice_quick_score.restype = found.coppice_quick_empty.restype = None
    found.coppice_quick_score.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    found.coppice_quick_empty.argtypes = [ctypes.c_void_p]
    found.coppice_quick_finish.restype = ctypes.c_int64
    found.coppice_quick_finish.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    found.coppice_quick_shadow.restype = ctypes.c_int64
    found.coppice_quick_shadow.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    found.coppice_quick_has_room.argtypes = [ctypes.c_void_p]
    found.coppice_read_row.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    found.coppice_read_number.restype = found.coppice_point_of.restype = ctypes.c_int64
    found.coppice_read_number.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p]
    found.coppice_point_of.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]
    found.coppice_salt.restype = None
    found.coppice_salt.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p]
    return found


@lru_cache(maxsize=1)
def powers_of_ten() -> ctypes.Array[ctypes.c_uint64]:
    """10^-342 .. 10^308 as 128-bit mantissas, high half first: rounded down, but up from 10^-27 to 10^-1, as the proof of
    `quick_number.c`'s algorithm has it; what is half-way between two doubles is then told by the lower bits.
    """
    halves: list[int] = []
    for exponent in range(-342, 309):
        divisor = 5 ** max(0, -exponent)
        mantissa = (5 ** max(0, exponent) << (128 + 2 * divisor.bit_length())) // divisor
        mantissa >>= mantissa.bit_length() - 128
        mantissa += -27 <= exponent < 0
        halves += [mantissa >> 64, mantissa & (2**64 - 1)]
    return (ctypes.c_uint64 * len(halves))(*halves)


def functions() -> tuple[int, int]:
    """The addresses of Python's own number formatting and of what frees its text: a score is spelled as `repr` spells it."""
    own = ctypes.pythonapi
    format_, release = (ctypes.cast(f, ctypes.c_void_p).value for f in (own.PyOS_double_to_string, own.PyMem_Free))
    return format_ or 0, release or 0
