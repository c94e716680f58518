"""The windows of a model's traffic, and what was served in one, of the lake.

A window is since_us <= ts_us < until_us: a UTC day, an hour, so many rows in the order of time, or simply the span that was
asked for. Only windows that hold rows are told. Of rows, those that do not fill a last window wait for the next look.
Days and hours are whole: a span that begins or ends inside one is widened to hold it, so that each look at it is at the
same window; the present day's window is looked at as far as it goes.

Only times are read to find windows. Of a window of far more rows than are compared, a sample is read: rows are chosen by a
hash of their time and place, in the scan itself, so that memory holds the sample and not the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from compile.bundle import Manifest
from monitoring.errors import MonitoringError
from monitoring.lake import window
from monitoring.sides import MAX_ROWS, Side, of_traffic

SPANS_US = {"hour": 3_600_000_000, "day": 86_400_000_000}
COLUMNS = ("features", "score", "scores")

Times = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """`label` names it, and its folder, in reports."""

    label: str
    since_us: int
    until_us: int
    rows: int


@dataclass(frozen=True)
class Served:
    """The answers of one version that the lake holds: asked by clients, not shadowed, and not failed."""

    lake: Path
    manifest: Manifest

    @property
    def where(self) -> pc.Expression:
        mine = (pc.field("version") == self.manifest.version) & (pc.field("role") == "served")
        return mine & (pc.field("schema") == self.manifest.schema.fingerprint) & (pc.field("status") == 200)

    def windows(self, every: str | None, since_us: int | None = None, until_us: int | None = None) -> list[Window]:
        """In the order of time. `every`: day, hour, a number of rows, or None: one window of all. Raises MonitoringError."""
        span = SPANS_US.get(every or "")
        if span is None:
            times = self._times(since_us, until_us)
            found = [_whole(times, since_us, until_us)] if every is None else _of_rows(times, every)
        else:
            since = None if since_us is None else since_us // span * span
            until = None if until_us is None else -(-until_us // span) * span
            begins, rows = np.unique(self._times(since, until) // span * span, return_counts=True)
            found = list(zip(begins.tolist(), (begins + span).tolist(), rows.tolist(), strict=True))
        return [Window(_label(since, every), since, until, rows) for since, until, rows in found]

    def read(self, found: Window, most: int = MAX_ROWS) -> Side:
        """The window's side: all its rows, or `most` of them by chance."""
        where, part = self.where, _part(found.rows, most)
        if part:
            where = where & _one_of(part)
        table = window(
            self.lake,
            self.manifest.model,
            since_us=found.since_us,
            until_us=found.until_us,
            columns=list(COLUMNS),
            where=where,
        )
        side = of_traffic(self.manifest.schema, table, self.manifest.outputs)
        return Side(side.sampled(most).columns, max(found.rows, side.rows), side.absent)

    def _times(self, since_us: int | None, until_us: int | None) -> Times:
        table = window(
            self.lake, self.manifest.model, since_us=since_us, until_us=until_us, columns=["ts_us"], where=self.where
        )
        times: Times = table.column("ts_us").to_numpy()
        return np.sort(times)


def _whole(times: Times, since_us: int | None, until_us: int | None) -> tuple[int, int, int]:
    """What was asked for, or else from the first row to the last."""
    first, last = (int(times[0]), int(times[-1]) + 1) if len(times) else (0, 0)
    return first if since_us is None else since_us, last if until_us is None else until_us, len(times)


def _of_rows(times: Times, every: str) -> list[tuple[int, int, int]]:
    """A window ends with its last row, whatever comes after it. Rows of one instant are in one window, the later."""
    if not every.isdecimal() or int(every) < 1:
        raise MonitoringError(f"--every: {every!r} is none of day, hour and a number of rows")
    size = int(every)
    begins, lasts = times[: len(times) // size * size : size], times[size - 1 :: size]
    ends = np.minimum(lasts + 1, np.append(times[size::size], lasts[-1:] + 1)[: len(lasts)])
    rows = np.searchsorted(times, ends) - np.searchsorted(times, begins)
    return [found for found in zip(begins.tolist(), ends.tolist(), rows.tolist(), strict=True) if found[2]]


def _label(since_us: int, every: str | None) -> str:
    when = datetime.fromtimestamp(since_us / 1_000_000, UTC)
    forms = {"day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H"}
    return when.strftime(forms.get(every or "", "%Y-%m-%dT%H-%M-%S.%f"))


def _part(rows: int, most: int) -> int:
    """How often to halve `rows` so that a little more than `most` are left."""
    return max(0, int(np.log2(max(1.0, rows / (1.1 * most)))))


def _one_of(halvings: int) -> pc.Expression:
    """True of one row in 2 ** halvings, by a hash of its instant, its place in its request, and its writer's count."""
    mixed = pc.multiply(pc.field("ts_us"), pc.scalar(-7046029254386353131))
    for name, factor in (("seq", -4417276706812531889), ("row", 1609587929392839161)):
        mixed = pc.add(mixed, pc.multiply(pc.field(name).cast("int64"), pc.scalar(factor)))
    mixed = pc.multiply(pc.bit_wise_xor(mixed, pc.shift_right(mixed, pc.scalar(31))), pc.scalar(-4658895280553007687))
    kept = pc.bit_wise_and(pc.shift_right(mixed, pc.scalar(24)), pc.scalar((1 << halvings) - 1))
    return kept == pc.scalar(0)
