"""program.c == its numpy twin, bit for bit, whatever the program and the row; hostile bytes are refused, never run."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile import program as programs
from compile.program import (
    Add,
    Clip,
    Column,
    Constant,
    Divide,
    Fill,
    Missing,
    Multiply,
    OpenProgram,
    Program,
    Sentinel,
    Subtract,
    Table,
    value,
)

AWKWARD = [
    math.nan,
    math.inf,
    -math.inf,
    0.0,
    -0.0,
    5e-324,
    -5e-324,
    1e308,
    -1e308,
    1e-40,
    -999.0,
    0.1,
    0.5,
    1.0,
    2.0,
    3.0,
    7.0,
]
numbers = st.sampled_from(AWKWARD) | st.floats()
values = numbers.map(value)
bounds = st.tuples(*[numbers.filter(lambda x: not math.isnan(x))] * 2).map(sorted)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    results = draw(st.lists(values, max_size=6))
    keys = None
    if draw(st.booleans()):
        keys = sorted({draw(numbers.filter(lambda x: not math.isnan(x))) for _ in results})
        results = results[: len(keys)]
    return Table(
        tuple(results), draw(values), draw(values), None if keys is None else tuple(value(key) for key in keys)
    )


steps = (
    st.sampled_from([Subtract, Divide, Multiply, Add, Missing, Sentinel, Constant]).flatmap(values.map)
    | st.builds(Fill, values, values)
    | bounds.map(lambda pair: Clip(value(pair[0]), value(pair[1])))
    | tables()
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Program, np.ndarray]:
    inputs = draw(st.integers(1, 3))
    column = st.builds(Column, st.integers(0, inputs - 1), st.lists(steps, max_size=4).map(tuple))
    program = Program(inputs, tuple(draw(st.lists(column, min_size=1, max_size=4))))
    rows = draw(st.lists(st.lists(numbers, min_size=inputs, max_size=inputs), min_size=1, max_size=6))
    return program, np.array(rows, dtype=np.float64)


def bits(matrix: np.ndarray) -> np.ndarray:
    """Each number's bits; NaN is NaN, whatever its sign and payload."""
    return np.where(np.isnan(matrix), np.nan, matrix).view(np.uint64)


@given(cases())
def test_c_answers_as_numpy_does(case: tuple[Program, np.ndarray]) -> None:
    program, rows = case
    answer = OpenProgram(programs.pack(program)).run(rows)
    np.testing.assert_array_equal(bits(answer), bits(programs.run(program, rows)))


@given(cases())
def test_json_gives_the_same_program_back(case: tuple[Program, np.ndarray]) -> None:
    program, _ = case
    again = Program.from_json(program.to_json())
    assert again.to_json() == program.to_json()
    assert programs.pack(again) == programs.pack(program)


@given(cases(), st.data())
def test_damaged_bytes_are_refused_or_run_within_bounds(case: tuple[Program, np.ndarray], data: Any) -> None:
    program, rows = case
    packed = bytearray(programs.pack(program))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    packed = packed[: data.draw(st.integers(0, len(packed)))] if data.draw(st.booleans()) else packed
    try:
        opened = OpenProgram(bytes(packed))
    except ValueError:
        return
    opened.run(np.zeros((2, opened.inputs)) if opened.inputs != program.inputs else rows)


def test_counts_that_overflow_are_refused() -> None:
    packed = programs.pack(programs.identity(2))
    for at in range(8, 24, 4):
        for count in (0xFFFFFFFF, 0x80000000, 0x20000000, 0):
            forged = packed[:at] + struct.pack("<I", count) + packed[at + 4 :]
            if forged != packed:
                with pytest.raises(ValueError, match="sound"):
                    OpenProgram(forged)


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b'{"inputs":0,"columns":[{"input":0}]}',
        b'{"inputs":1,"columns":[]}',
        b'{"inputs":1,"columns":[{"input":1}]}',
        b'{"inputs":1,"columns":[{"input":0,"steps":[{"step":"run","value":1.0}]}]}',
        b'{"inputs":1,"columns":[{"input":0,"steps":[{"step":"add","value":"huge"}]}]}',
        b'{"inputs":1,"columns":[{"input":0,"steps":[{"step":"add","value":null}]}]}',
        b'{"inputs":1,"columns":[{"input":0,"steps":[{"step":"add","value":1.0,"twice":true}]}]}',
        b'{"inputs":1,"columns":[{"input":0,"steps":[{"step":"clip","low":1.0,"high":0.0}]}]}',
        b'{"inputs":1,"columns":[{"input":0,"steps":[{"step":"table","values":[1.0,2.0],"missing":0.0,"other":0.0,"keys":[1.0,1.0]}]}]}',
    ],
)
def test_what_is_no_program_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a program"):
        Program.from_json(text)


def test_a_number_that_json_lacks_must_be_named() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Fill(math.nan)


def test_a_step_can_be_taken_in_every_column() -> None:
    program = programs.identity(2).then(Sentinel(-999.0))
    rows = np.array([[-999.0, 1.0], [2.0, -999.00001]])
    np.testing.assert_array_equal(programs.run(program, rows), [[math.nan, 1.0], [2.0, math.nan]])
