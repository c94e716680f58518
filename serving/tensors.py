"""Tensors of the Open Inference Protocol: datatypes, and values from and to JSON and raw bytes. Any thread.

Raw bytes are little-endian, row by row; a BOOL is a byte, an element of BYTES its length as uint32, then itself, as UTF-8.
JSON has the values flat or nested by rows; null is a missing value among FP*, BOOL and BYTES. A value of FP32 or FP16 is
rounded to that kind, then widened exactly, so that JSON and raw bytes mean the same numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from types import GenericAlias
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from serving.columns import Column
from serving.errors import BodyMalformed

BYTES, BOOL = "BYTES", "BOOL"
KINDS: dict[str, np.dtype[Any]] = {
    BOOL: np.dtype("?"),
    **{f"{sign}INT{8 * size}": np.dtype(f"<{code}{size}") for sign, code in (("U", "u"), ("", "i")) for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}  # fmt: skip

_ELEMENT: dict[str, Any] = {"f": float | None, "i": int, "u": int, "b": bool | None, "s": str | None}
_FLAT: dict[str, Any] = {kind: msgspec.json.Decoder(GenericAlias(list, element)) for kind, element in _ELEMENT.items()}
_NESTED: dict[str, Any] = {
    kind: msgspec.json.Decoder(GenericAlias(list, GenericAlias(list, element))) for kind, element in _ELEMENT.items()
}


def elements(name: str, datatype: str, shape: Sequence[int]) -> int:
    """How many there are. Raises BodyMalformed for a shape or datatype that is none of ours."""
    if datatype != BYTES and datatype not in KINDS:
        raise BodyMalformed(f"{name}: unknown datatype {datatype!r}; known are {', '.join([*KINDS, BYTES])}")
    if not shape or len(shape) > 2 or min(shape) < 0:
        raise BodyMalformed(f"{name}: the shape must be [rows] or [rows, columns], got {list(shape)}")
    return math.prod(shape)


def from_json(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Column:
    """The elements, row by row. Raises BodyMalformed."""
    count = elements(name, datatype, shape)
    kind = "s" if datatype == BYTES else KINDS[datatype].kind
    nested = data.lstrip()[1:].lstrip()[:1] == b"["
    try:
        values: list[Any] = (
            list(chain.from_iterable(_NESTED[kind].decode(data))) if nested else _FLAT[kind].decode(data)
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as malformed:
        raise BodyMalformed(f"{name}: the data is not of {datatype}: {malformed}") from None
    if len(values) != count:
        raise _unfit(name, shape, len(values))
    if kind in "sb":
        return values
    try:
        with np.errstate(over="ignore"):  # too large for its kind: infinite, which the schema has a rule for
            numbers: npt.NDArray[Any] = np.array(values, np.float64 if kind == "f" else KINDS[datatype])
            return numbers.astype(KINDS[datatype])
    except OverflowError:
        raise BodyMalformed(f"{name}: a number is out of the range of {datatype}") from None


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> Column:
    """The elements, row by row. Raises BodyMalformed."""
    count = elements(name, datatype, shape)
    if datatype == BYTES:
        texts = _texts(name, data)
        if len(texts) != count:
            raise _unfit(name, shape, len(texts))
        return texts
    kind = KINDS[datatype]
    if len(data) != count * kind.itemsize:
        raise BodyMalformed(f"{name}: has {len(data)} bytes; {list(shape)} of {datatype} has {count * kind.itemsize}")
    if datatype == BOOL:  # by hand: a byte that is neither 0 nor 1 is no boolean of numpy's
        return np.not_equal(np.frombuffer(data, np.uint8), 0)
    return np.frombuffer(data, kind)


def to_bytes(datatype: str, values: npt.NDArray[Any] | Sequence[str]) -> bytes:
    if datatype == BYTES:
        encoded = [str(text).encode() for text in values]
        return b"".join([struct.pack("<I", len(text)) + text for text in encoded])
    return np.asarray(values).astype(KINDS[datatype]).tobytes()


def _texts(name: str, data: memoryview) -> list[str]:
    texts: list[str] = []
    at, end = 0, len(data)
    try:
        while at < end:
            (length,) = struct.unpack_from("<I", data, at)
            at += 4 + length
            if at > end:
                raise BodyMalformed(f"{name}: the last of its elements is cut short")
            texts.append(str(data[at - length : at], "utf-8"))
    except struct.error:
        raise BodyMalformed(f"{name}: the length of its last element is cut short") from None
    except UnicodeDecodeError:
        raise BodyMalformed(f"{name}: an element is not UTF-8") from None
    return texts


def _unfit(name: str, shape: Sequence[int], count: int) -> BodyMalformed:
    return BodyMalformed(f"{name}: the shape {list(shape)} does not fit the {count} elements that were sent")
