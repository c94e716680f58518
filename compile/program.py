"""The program: the transforms before the trees, as data. A served row in, the row that the final estimator saw out.

A served row is float64, encoded by the FeatureSchema: numbers with NaN for missing, booleans 0 or 1, categories as their
codes. A program has one column for each value that the estimator reads: the input it starts from and a chain of steps,
each a function of that one value, in float64. So what scikit-learn's transforms do to a row is done here in the same
order, with the same rounding, and nothing of it is code. As JSON it is canonical; NaN and the infinities, which JSON
lacks, are "nan", "inf" and "-inf".

    fill       value instead of what equals `of` (NaN, unless told otherwise)
    subtract, divide, multiply, add    value
    clip       to low..high; NaN stays
    missing    1.0 where it equals `of` (NaN, unless told otherwise), else 0.0
    sentinel   NaN instead of what equals value as a float32: XGBoost's `missing`
    constant   value, whatever comes in
    table      values[i] for the code i, or for keys[i] where there are keys (ascending); `missing` for NaN, else `other`

Packed for `program.c`, little-endian, nothing aligned:

    header     magic "COPPPRG1"; uint32: inputs, columns, steps, values
    columns    {uint32 input, uint32 its steps}[columns]
    steps      {uint32 kind, uint32 its values}[steps]      in the order of columns
    values     float64[values]                              in the order of steps

Kinds number as in KINDS below. A table's values are missing, other, and then the values of the codes (kind 10), or the
keys and then their values (kind 11).
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from functools import lru_cache, reduce
from itertools import pairwise
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from compile.kernel import _libraries

Matrix = npt.NDArray[np.float64]
Value: TypeAlias = float | Literal["nan", "inf", "-inf"]

MOST_COLUMNS = 1 << 20


class _Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag=str.lower):
    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            held = getattr(self, field)
            for number in held if isinstance(held, tuple) else (held,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{field}: a number that is not finite must be given by its name")


class Fill(_Step, frozen=True):
    value: Value
    of: Value = "nan"


class Subtract(_Step, frozen=True):
    value: Value


class Divide(_Step, frozen=True):
    value: Value


class Multiply(_Step, frozen=True):
    value: Value


class Add(_Step, frozen=True):
    value: Value


class Clip(_Step, frozen=True):
    low: Value
    high: Value

    def __post_init__(self) -> None:
        super().__post_init__()
        if not float(self.low) <= float(self.high):
            raise ValueError("clip: low must not be above high")


class Missing(_Step, frozen=True):
    of: Value = "nan"


class Sentinel(_Step, frozen=True):
    value: Value


class Constant(_Step, frozen=True):
    value: Value


class Table(_Step, frozen=True):
    values: tuple[Value, ...]
    missing: Value
    other: Value
    keys: tuple[Value, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keys is None:
            return
        if len(self.keys) != len(self.values):
            raise ValueError("table: as many keys as values are needed")
        keys = [float(key) for key in self.keys]
        if any(map(math.isnan, keys)) or any(not a < b for a, b in pairwise(keys)):
            raise ValueError("table: keys must ascend")


Step: TypeAlias = Fill | Subtract | Divide | Multiply | Add | Clip | Missing | Sentinel | Constant | Table
KINDS = (Fill, Subtract, Divide, Multiply, Add, Clip, Missing, Sentinel, Constant, Table)  # from 1; 11: Table with keys


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One value that the estimator reads: `steps`, one after the other, of the input numbered `input`."""

    input: int
    steps: tuple[Step, ...] = ()


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of `inputs` values in, of `width` values out."""

    inputs: int
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.inputs <= MOST_COLUMNS or not 1 <= len(self.columns) <= MOST_COLUMNS:
            raise ValueError(f"program: between 1 and {MOST_COLUMNS} inputs and columns are needed")
        if any(not 0 <= column.input < self.inputs for column in self.columns):
            raise ValueError("program: a column reads an input that there is not")

    @property
    def width(self) -> int:
        return len(self.columns)

    def then(self, step: Step) -> Program:
        """The program that goes on to take `step` in every column."""
        return Program(self.inputs, tuple(Column(c.input, (*c.steps, step)) for c in self.columns))

    def to_json(self) -> bytes:
        """Canonical: sorted keys, every field present, no white space."""
        return msgspec.json.encode(self, order="sorted")

    @classmethod
    def from_json(cls, text: bytes) -> Program:
        """Raises ValueError where the text is not a program."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a program: {error}") from error


def identity(width: int) -> Program:
    return Program(width, tuple(Column(j) for j in range(width)))


def side_by_side(programs: Sequence[Program]) -> Program:
    """One program that makes the columns of all, in their order."""
    return Program(programs[0].inputs, tuple(column for program in programs for column in program.columns))


def value(number: float) -> Value:
    """The number as steps hold it: those that JSON lacks by their name."""
    number = float(number)
    if math.isnan(number):
        return "nan"
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    return number


def run(program: Program, rows: Matrix) -> Matrix:
    """(n, inputs) float64 -> (n, width) float64: the obvious twin of program.c."""
    with np.errstate(all="ignore"):
        columns = [reduce(_taken, column.steps, rows[:, column.input]) for column in program.columns]
    return np.column_stack(columns)


def _taken(x: Matrix, step: Step) -> Matrix:
    match step:
        case Fill(number, of):
            return np.where(_is(x, of), float(number), x)
        case Subtract(number):
            return np.asarray(x - float(number))
        case Divide(number):
            return np.asarray(x / float(number))
        case Multiply(number):
            return np.asarray(x * float(number))
        case Add(number):
            return np.asarray(x + float(number))
        case Clip(low, high):
            return np.where(x < float(low), float(low), np.where(x > float(high), float(high), x))
        case Missing(of):
            return np.where(_is(x, of), 1.0, 0.0)
        case Sentinel(number):
            return np.where(x.astype(np.float32) == np.float64(float(number)).astype(np.float32), math.nan, x)
        case Constant(number):
            return np.full(len(x), float(number))
        case Table():
            return _looked_up(step, x)


def _is(x: Matrix, wanted: Value) -> npt.NDArray[np.bool_]:
    return np.isnan(x) if wanted == "nan" else x == float(wanted)


def _looked_up(table: Table, x: Matrix) -> Matrix:
    keys = np.array(range(len(table.values)) if table.keys is None else table.keys, dtype=np.float64)
    values = np.array([*table.values, table.other], dtype=np.float64)
    place = np.searchsorted(keys, x)
    known = np.append(keys, math.nan)[place] == x
    return np.where(np.isnan(x), float(table.missing), values[np.where(known, place, len(keys))])


def pack(program: Program) -> bytes:
    """The bytes that `coppice_program_open` reads; the same program gives the same bytes."""
    steps = [step for column in program.columns for step in column.steps]
    values = [_values(step) for step in steps]
    heads = [(_kind(step), len(numbers)) for step, numbers in zip(steps, values, strict=True)]
    flat = [float(number) for numbers in values for number in numbers]
    header = struct.pack("<8s4I", b"COPPPRG1", program.inputs, program.width, len(steps), len(flat))
    columns = [(column.input, len(column.steps)) for column in program.columns]
    tail = np.array(columns, dtype="<u4").tobytes() + np.array(heads, dtype="<u4").tobytes()
    return header + tail + np.array(flat, dtype="<f8").tobytes()


def _kind(step: Step) -> int:
    return KINDS.index(type(step)) + 1 + (isinstance(step, Table) and step.keys is not None)


def _values(step: Step) -> tuple[Value, ...]:
    if isinstance(step, Table):
        return (step.missing, step.other, *(step.keys or ()), *step.values)
    return msgspec.structs.astuple(step)


class OpenProgram:
    """A packed program, opened in C. Pure: any number of threads may run it."""

    def __init__(self, data: bytes) -> None:
        """Raises KernelUnavailable, or ValueError where `data` is not a sound program."""
        self.handle: int | None = library().coppice_program_open(data, len(data))
        if not self.handle:
            raise ValueError("not a sound program")
        self.inputs: int = library().coppice_program_inputs(self.handle)
        self.width: int = library().coppice_program_outputs(self.handle)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            library().coppice_program_close(self.handle)

    def run(self, rows: Matrix) -> Matrix:
        """(n, inputs) float64, C-contiguous -> (n, width) float64."""
        if rows.dtype != np.float64 or not rows.flags.c_contiguous or rows.shape[1:] != (self.inputs,):
            raise ValueError(f"rows must be C-contiguous float64 (n, {self.inputs})")
        out = np.empty((len(rows), self.width))
        library().coppice_program_run(self.handle, len(rows), rows.ctypes.data, out.ctypes.data)
        return out


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The kernel's library with this module's calls declared; they hold the GIL. Raises KernelUnavailable."""
    held = _libraries()[0]
    held.coppice_program_open.restype = ctypes.c_void_p
    held.coppice_program_open.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    held.coppice_program_close.restype = None
    held.coppice_program_close.argtypes = [ctypes.c_void_p]
    for size in (held.coppice_program_inputs, held.coppice_program_outputs):
        size.restype = ctypes.c_uint32
        size.argtypes = [ctypes.c_void_p]
    held.coppice_program_run.restype = None
    held.coppice_program_run.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p]
    return held
