"""What an outcome says in a model's own terms: which of its classes, or which value.

Outcomes come as a number, true or false, or text; the lake keeps true and false as 1 and 0. Of a classifier

    text      is the class of exactly that name
    a number  is the class whose name is that number ("1", "2.5"); of a binary model without such classes, 1 is the
              positive one and 0 the negative

and of a regression a number is the value. Everything else is unknown: counted and reported, and never guessed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compile.bundle import Task
from monitoring.errors import MonitoringError
from training.intervals import Floats, Labels

TASKS = ("binary", "multiclass", "regression")


@dataclass(frozen=True)
class Truth:
    """By row. `value`: the class's place in `classes`, or the number; NaN where there is none. `unknown`: an outcome came,
    and is no label of the model; `strange` counts those by how they were written."""

    value: Floats
    unknown: Labels
    strange: Counter[str]


def read_truth(task: Task, classes: tuple[str, ...], number: pa.ChunkedArray, text: pa.ChunkedArray) -> Truth:
    """`number` (float64) and `text` are null where the outcome is not of that kind, both where there is none."""
    if task not in TASKS:
        raise MonitoringError(f"performance is told of {', '.join(TASKS)} models; this one is of the task {task}")
    numbers = np.asarray(pc.fill_null(number, float("nan")).to_numpy(), dtype=np.float64)
    written = ~np.isnan(numbers)
    value = np.full(len(numbers), np.nan)
    strange: Counter[str] = Counter()
    if task == "regression":
        value = np.where(np.isfinite(numbers), numbers, np.nan)
    else:
        distinct, place = np.unique(numbers[written], return_inverse=True)
        known = places(classes)
        value[written] = np.array([known.get(one, np.nan) for one in distinct.tolist()], dtype=np.float64)[place]
    words = pc.dictionary_encode(text).combine_chunks() if len(text) else None
    if words is not None and len(words.dictionary):
        named = {} if task == "regression" else {name: float(code) for code, name in enumerate(classes)}
        codes = np.asarray(pc.fill_null(words.indices, -1).to_numpy(zero_copy_only=False), dtype=np.intp)
        meant = np.array([named.get(word, np.nan) for word in words.dictionary.to_pylist()] + [np.nan])
        value = np.where(codes >= 0, meant[codes], value)
        for code, rows in zip(*np.unique(codes[(codes >= 0) & np.isnan(value)], return_counts=True), strict=True):
            strange[words.dictionary[int(code)].as_py()] += int(rows)
        written = written | (codes >= 0)
    unknown = written & np.isnan(value)
    for one, rows in zip(*np.unique(numbers[unknown & ~np.isnan(numbers)], return_counts=True), strict=True):
        strange[f"{one:g}"] += int(rows)
    return Truth(value, unknown, strange)


def places(classes: tuple[str, ...]) -> dict[float, float]:
    """Numbers that mean a class."""
    found: dict[float, float] = {}
    for code, name in enumerate(classes):
        try:
            found.setdefault(float(name), float(code))
        except ValueError:
            continue
    return found if found or len(classes) != 2 else {0.0: 0.0, 1.0: 1.0}
