"""A block of traffic rows in memory that C writes: `block` of quick.h, and its arrays.

Pieces of varying length lie one after the other in arrays with room for the average; the block is full when one more row
of the longest kind might not fit. Everything is laid out as the log's thread will write it, so nothing is copied twice.
"""

from __future__ import annotations

import ctypes
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.blocks import RECORD, Packed

ID_BYTES, UNIT_BYTES = 48, 32  # a row's share of the room
MOST_BYTES = 128  # an id or a unit: MAX_ID and MAX_UNIT of quick.h


class Layout(ctypes.Structure):
    _fields_ = [
        ("records", ctypes.c_void_p),
        ("id_ends", ctypes.c_void_p),
        ("unit_ends", ctypes.c_void_p),
        ("feature_ends", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("units", ctypes.c_void_p),
        ("features", ctypes.c_void_p),
        ("id_room", ctypes.c_int64),
        ("unit_room", ctypes.c_int64),
        ("feature_room", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("count", ctypes.c_int64),
    ]


class Arena:
    """For at most `rows` rows, each of at most `row_bytes` bytes of features. It is C's, on the loop, until handed over."""

    scores: dict[int, tuple[float, ...]] = {}  # noqa: RUF012  # never filled: its rows have one score each

    def __init__(self, rows: int, row_bytes: int) -> None:
        self.born = monotonic()
        self.row_bytes = row_bytes
        self.records = np.empty(RECORD.size * rows, dtype=np.uint8)
        self._ends = np.zeros((3, rows + 1), dtype=np.int32)
        self._data = [np.empty(room, dtype=np.uint8) for room in _rooms(rows, row_bytes)]
        self.layout = Layout(
            self.records.ctypes.data,
            *(ends.ctypes.data for ends in self._ends),
            *(data.ctypes.data for data in self._data),
            *(data.size for data in self._data),
            rows,
            0,
        )

    @property
    def count(self) -> int:
        return int(self.layout.count)

    def pieces(self) -> tuple[Packed, Packed, Packed]:
        ids, units, features = (self._packed(n) for n in range(3))
        return ids, units, features

    def _packed(self, n: int) -> Packed:
        ends: npt.NDArray[np.int32] = self._ends[n, : self.count + 1]
        data: npt.NDArray[Any] = self._data[n][: ends[-1]]
        return Packed(ends, data)


def _rooms(rows: int, row_bytes: int) -> tuple[int, int, int]:
    return rows * ID_BYTES + MOST_BYTES, rows * UNIT_BYTES + MOST_BYTES, rows * row_bytes
