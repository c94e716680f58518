"""A column on its way through a pipeline, from the schema's input to what the model reads.

It is either `Coded` - all the values it can have are known: one for each code of the schema, for missing and for unseen -
or a `Number`, which is a chain of steps. A coded column ends as one table, whatever happened to it on the way.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from compile.errors import ModelRefused
from compile.originals import Original, Outcome
from compile.program import Column, Step, Table, value


@dataclass(frozen=True)
class Absent:
    """A column that the pipeline was trained with and the schema does not have: it may be dropped, not read."""

    name: str


@dataclass(frozen=True)
class Number:
    name: str
    input: int
    missing: bool  # NaN may arrive here
    steps: tuple[Step, ...] = ()
    dtype: np.dtype[Any] = np.dtype(np.float64)  # noqa: RUF009  # immutable


@dataclass(frozen=True)
class Coded:
    name: str
    input: int
    outcomes: tuple[Outcome, ...]
    values: npt.NDArray[Any]  # one for each outcome

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype


Flowing: TypeAlias = Number | Coded | Absent


def first_column(original: Original, number: int) -> Number | Coded:
    """The schema's input of this number, before any transform."""
    feature = original.feature
    if feature.kind == "number":
        return Number(feature.name, number, missing=feature.missing == "nan")
    outcomes = original.outcomes()
    return Coded(feature.name, number, tuple(outcomes), array_of(list(outcomes.values())))


def last_column(column: Flowing, where: str) -> Column:
    """The program's column that ends here. Raises ModelRefused where text would reach the model."""
    if isinstance(column, Absent):
        raise absent(column, where)
    if isinstance(column, Number):
        return Column(column.input, column.steps)
    try:
        values = [float(number) for number in column.values.tolist()]
    except (TypeError, ValueError):
        raise ModelRefused(
            f"{where}: {column.name} reaches the model as text; encode it, with OrdinalEncoder say"
        ) from None
    answers = dict(zip(column.outcomes, values, strict=True))
    missing, other = answers.pop("missing", None), answers.pop("other", None)
    return Column(column.input, (table({float(code): y for code, y in answers.items()}, missing, other),))


def absent(column: Absent, where: str) -> ModelRefused:
    return ModelRefused(f"{where}: reads the column {column.name!r}, which the schema does not have")


def array_of(values: list[Any]) -> npt.NDArray[Any]:
    """float64 where all are floats, else objects, as pandas has text."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.astype(np.float64) if all(isinstance(v, float) for v in values) else array


def table(answers: dict[float, float], missing: float | None, other: float | None, *, codes: bool = True) -> Table:
    """The table of these answers. Where most are `other`'s, keys alone say which are not. What the schema keeps from
    ever arriving (None) answers as most do."""
    common = float(Counter(map(repr, answers.values())).most_common(1)[0][0]) if answers else math.nan
    rest = common if other is None else other
    odd = {key: y for key, y in answers.items() if repr(y) != repr(rest)}
    lost = value(rest if missing is None else missing)
    if codes and 2 * len(odd) > len(answers):
        return Table(tuple(value(answers[key]) for key in sorted(answers)), lost, value(rest))
    keys = sorted(odd)
    return Table(tuple(value(odd[key]) for key in keys), lost, value(rest), tuple(value(key) for key in keys))
