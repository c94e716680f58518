"""The windows of a model's traffic, and what was served in one, of the lake.

A window is since_us <= ts_us < until_us: a UTC day, an hour, so many rows in the order of time, or simply the span that was
asked for. Only windows that hold rows are told. Of rows, those that do not fill a last window wait for the next look.
Days and hours are whole: a span that begins or ends inside one is widened to hold it, so that each look at it is at the
same window; the present day's window is looked at as far as it goes.

Only times are read to find windows. Of a window of far more rows than are compared, a sample is read: rows are chosen by
their number, in the scan itself, so that memory holds the sample and not the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.bundle import Manifest
from monitoring.engine import Engine
from monitoring.errors import MonitoringError
from monitoring.queries import begin_of, some_of
from monitoring.sides import MAX_ROWS, Side, of_traffic

SPANS_US = {"hour": 3_600_000_000, "day": 86_400_000_000}
COLUMNS = ("features", "score", "scores")
SAMPLED = 1.1  # of the rows that are wanted, so many are read of a window of more

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

    engine: Engine
    manifest: Manifest

    def windows(self, every: str | None, since_us: int | None = None, until_us: int | None = None) -> list[Window]:
        """In the order of time. `every`: day, hour, a number of rows, or None: one window of all. Raises MonitoringError."""
        span = SPANS_US.get(every or "")
        if span is None:
            times = self._times(since_us, until_us)
            found = [_whole(times, since_us, until_us)] if every is None else _of_rows(times, every)
        else:
            since = None if since_us is None else since_us // span * span
            until = None if until_us is None else -(-until_us // span) * span
            counted = self._counted(span, since, until)
            found = [(begin, begin + span, rows) for begin, rows in counted]
        return [Window(_label(since, every), since, until, rows) for since, until, rows in found]

    def read(self, found: Window, most: int = MAX_ROWS) -> Side:
        """The window's side: all its rows, or `most` of them by chance."""
        rows = self._rows(found.since_us, found.until_us)
        if found.rows > SAMPLED * most:
            rows = some_of(rows, SAMPLED * most / found.rows)
        table = self.engine.ask(rows.select(*COLUMNS))
        side = of_traffic(self.manifest.schema, table, self.manifest.outputs)
        return Side(side.sampled(most).columns, max(found.rows, side.rows), side.absent)

    def _rows(self, since_us: int | None, until_us: int | None) -> Any:
        rows, mine = self.engine.rows(self.manifest.model, since_us=since_us, until_us=until_us), self.manifest
        rows = rows.filter((rows.version == mine.version) & (rows.role == "served"))
        return rows.filter((rows["schema"] == mine.schema.fingerprint) & (rows.status == 200))

    def _counted(self, span: int, since_us: int | None, until_us: int | None) -> list[tuple[int, int]]:
        rows = self._rows(since_us, until_us)
        counted = rows.group_by(begin=begin_of(rows.ts_us, span)).agg(rows=rows.count()).order_by("begin")
        return [(found["begin"], found["rows"]) for found in self.engine.ask(counted).to_pylist()]

    def _times(self, since_us: int | None, until_us: int | None) -> Times:
        times: Times = self.engine.ask(self._rows(since_us, until_us).select("ts_us")).column("ts_us").to_numpy()
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
