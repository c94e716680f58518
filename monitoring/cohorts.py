"""Scored rows with what became of them, by who answered, and cut into windows.

A row is one of: failed (the model did: status not 200), not finite (its score is), open (its label window has not passed,
so whether it has an outcome yet says nothing), or closed: and a closed one is labelled, of a label that the model does not
know, or unlabelled, which is not negative. Of closed rows alone performance is told; an outcome that is early or late,
sent twice or corrected counts as the lake joined it: the last one wins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from compile.bundle import Manifest
from monitoring.errors import MonitoringError
from monitoring.labels import read_truth
from training.features import Matrix
from training.intervals import Floats, Labels

Times = npt.NDArray[np.int64]
Every = Literal["day", "hour"] | int
SPANS_US = {"day": 86_400_000_000, "hour": 3_600_000_000}
ROLES = ("served", "shadow")


class Who(NamedTuple):
    version: str
    arm: str
    role: str


@dataclass(frozen=True)
class Rows:
    """What one arm answered, in the order of events. `scores` is (n, k); `truth` as in `monitoring.labels`."""

    ts_us: Times
    failed: Labels
    scores: Floats
    truth: Floats
    unknown: Labels
    features: Matrix | None
    strange: Counter[str]

    def usable(self) -> Labels:
        return ~self.failed & np.isfinite(self.scores).all(axis=1)

    def closed(self, label_window_us: int, now_us: int) -> Labels:
        return self.usable() & (self.ts_us + label_window_us <= now_us)


class Span(NamedTuple):
    """Rows first..last-1 lie in since_us <= ts_us < until_us; `whole`: the window has all the rows that it will have."""

    since_us: int
    until_us: int
    first: int
    last: int
    whole: bool = True


def read_rows(table: pa.Table, manifest: Manifest) -> Rows:
    """One arm's rows in any order: `ts_us, row, status, score` or `scores`, `features` or not, `value_number, value_text`.
    Raises MonitoringError for a task that outcomes do not judge row by row."""
    if manifest.task == "regression" and len(manifest.outputs) > 1:
        raise MonitoringError(f"{manifest.model}: it has {len(manifest.outputs)} values a row, and an outcome has one")
    table = _in_order(table)
    truth = read_truth(manifest.task, manifest.classes, table["value_number"], table["value_text"])
    width = manifest.schema.width
    return Rows(
        ts_us=table["ts_us"].to_numpy(),
        failed=table["status"].to_numpy() != 200,
        scores=_scores(table, len(manifest.outputs)),
        truth=truth.value,
        unknown=truth.unknown,
        features=matrix(table["features"], width) if "features" in table.column_names else None,
        strange=truth.strange,
    )


def in_a_row(parts: Sequence[Rows]) -> Rows:
    """Parts of one arm, each later than the one before; at least one."""
    features = [part.features for part in parts if part.features is not None]
    return Rows(
        ts_us=np.concatenate([part.ts_us for part in parts]),
        failed=np.concatenate([part.failed for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        truth=np.concatenate([part.truth for part in parts]),
        unknown=np.concatenate([part.unknown for part in parts]),
        features=np.concatenate(features) if features else None,
        strange=sum((part.strange for part in parts), Counter()),
    )


def windows(ts_us: Times, every: Every) -> list[Span]:
    """The windows that hold a row, in order: of the calendar (UTC), or of so many rows - more where the next ones came in
    the same microsecond, as those of one request do - the last of which may be short."""
    rows = len(ts_us)
    if isinstance(every, int):
        spans: list[Span] = []
        while (first := spans[-1].last if spans else 0) < rows:
            newest = int(ts_us[min(first + every, rows) - 1])
            last = int(np.searchsorted(ts_us, newest, side="right"))
            spans.append(Span(int(ts_us[first]), newest + 1, first, last, last - first >= every))
        return spans
    length = SPANS_US[every]
    number = ts_us // length
    firsts = np.flatnonzero(np.r_[True, number[1:] != number[:-1]]) if rows else np.array([], dtype=np.intp)
    lasts = [*firsts[1:].tolist(), rows]
    starts = (number[firsts] * length).tolist()
    return [
        Span(start, start + length, first, last)
        for start, first, last in zip(starts, firsts.tolist(), lasts, strict=False)
    ]


def _in_order(table: pa.Table) -> pa.Table:
    """By time; rows of one request by their place; requests of one instant, which nothing tells apart, by what they got."""
    order = np.lexsort([table[name].to_numpy() for name in ("score", "row", "ts_us")])
    return table if (order[1:] > order[:-1]).all() else table.take(pa.array(order))


def _scores(table: pa.Table, outputs: int) -> Floats:
    if outputs == 1:
        score = pc.fill_null(table["score"], float("nan"))
        return np.asarray(score.to_numpy(), dtype=np.float64).reshape(-1, 1)
    return matrix(table["scores"], outputs)


def matrix(lists: pa.ChunkedArray, width: int) -> Matrix:
    """Lists as (n, width); a row of NaN where the list is null or of another length."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), -1).to_numpy())
    found = np.full((len(lists), width), np.nan)
    fitting = lengths == width
    kept = lists if fitting.all() else lists.filter(pa.array(fitting))
    flat = np.asarray(pc.list_flatten(kept).to_numpy(), dtype=np.float64)
    found[fitting] = flat.reshape(-1, width)
    return found
