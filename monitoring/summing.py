"""The lake's summaries kept up to date beside whoever looks at them: one thread, which asks the lake for what changed.

`Summing.summary` is what is known now, at once. A round lists the lake, sums up the hours whose parts changed, the newest
first, and publishes after each day; so a long lake shows its present within moments and its past as it is read. What goes
wrong with a day, such as a spoiled part, is told with the summary and tried again in the next round; the others go on.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time_ns

from monitoring.engine import Engine, open_engine
from monitoring.errors import LakeRefused, MonitoringError
from monitoring.lake import HOUR_US, models
from monitoring.lake_files import open_files
from monitoring.summaries import (
    Day,
    Days,
    Edges,
    forget_day,
    hours_of,
    read_days,
    stale,
    sum_up,
    summed,
    without,
    write_day,
)
from monitoring.summary_frame import Frame, frame_of

MINUTE_US = 60_000_000
LONGEST_FINE_US = 6 * HOUR_US  # what may be asked of the lake while somebody waits
PUBLISH_S = 0.5
KEPT_FINE = 8

EdgesOf = Callable[[str], Edges | None]


@dataclass(frozen=True)
class Summary:
    """`waiting`: hours that are still to be summed up. `trouble`: what went wrong in the last round, or nothing."""

    frame: Frame
    edges: Edges
    hours: int
    waiting: int
    looked_us: int
    trouble: str = ""

    @property
    def newest_us(self) -> int:
        return int(self.frame.last_us.max(initial=0))


class Summing:
    """`edges_of`: the bounds of a model's scores where its bundle tells them. Use `run` in a thread, the rest from any."""

    def __init__(self, lake: str, engine: str, cache: Path, edges_of: EdgesOf, fresh_s: float = 15.0) -> None:
        self.lake = lake
        self._engine = engine
        self._cache = cache
        self._edges_of = edges_of
        self._fresh_s = fresh_s
        self._known: dict[str, Summary] = {}
        self._days: dict[str, Days] = {}
        self._fine: dict[tuple[str, int, int, Edges], tuple[float, Frame]] = {}
        self._asking = threading.Lock()
        self.trouble = ""
        self.looked_us = 0

    def models(self) -> list[str]:
        return sorted(self._known)

    def summary(self, model: str) -> Summary | None:
        """None where the lake has nothing of the model, or was not looked at yet."""
        return self._known.get(model)

    def fine(self, model: str, since_us: int, until_us: int, edges: Edges) -> Frame:
        """By the minute, of at most LONGEST_FINE_US; asked of the lake, or what was asked within `fresh_s`."""
        key = (model, since_us // MINUTE_US, until_us // MINUTE_US, edges)
        with self._asking:  # one at a time: others who ask the same find the answer
            known = self._fine.get(key)
            if known is None or known[0] + self._fresh_s < monotonic():
                found = sum_up(self._open(), model, MINUTE_US, edges, since_us=since_us, until_us=until_us)
                known = (monotonic(), frame_of(found))
                self._fine = dict([*self._fine.items(), (key, known)][-KEPT_FINE:])
            return known[1]

    def run(self, every_s: float, stop: threading.Event) -> None:
        """Until `stop`."""
        while not stop.is_set():
            self.refresh(stop)
            stop.wait(every_s)

    def refresh(self, stop: threading.Event | None = None) -> None:
        """One round. What goes wrong is kept in `trouble`, and ends no later round."""
        try:
            held = models(open_files(self.lake))
            for model in held:
                self._look(model, stop or threading.Event())
            for gone in self._known.keys() - set(held):
                del self._known[gone]
            self.trouble = ""
        except MonitoringError as refused:
            self.trouble = str(refused)
        except Exception as failed:  # the engine's own: the thread must go on, and the page says what stopped it
            self.trouble = f"{type(failed).__name__}: {failed}".splitlines()[0]
        self.looked_us = _now_us()

    def _look(self, model: str, stop: threading.Event) -> None:
        files = open_files(self.lake)
        if model not in self._days:
            self._days[model] = read_days(self._cache, files.name, model)
        days, there = self._days[model], hours_of(files, model)
        engine = self._open()
        edges = self._edges(engine, model, days)
        for date, day in without(days, there).items():
            self._put(model, date, day)
        wanted = stale(days, there, edges)
        waiting, trouble, published = sum(len(hours) for _, hours in wanted), "", monotonic()
        self._publish(model, edges, waiting, trouble)
        for date, hours in wanted:
            if stop.is_set():
                return
            parts = {hour: named for (day, hour), named in there.items() if day == date}
            try:
                day = summed(engine, model, days.get(date), date, hours, parts, edges)
                waiting -= len(hours)
                self._put(model, date, day)
            except MonitoringError as refused:  # of this day alone
                trouble = str(refused)
            if monotonic() > published + PUBLISH_S:
                self._publish(model, edges, waiting, trouble)
                published = monotonic()
        self._publish(model, edges, waiting, trouble)

    def _put(self, model: str, date: str, day: Day) -> None:
        if day.hours:
            self._days[model][date] = day
            write_day(self._cache, day)
        else:
            del self._days[model][date]
            forget_day(self._cache, day)

    def _publish(self, model: str, edges: Edges, waiting: int, trouble: str) -> None:
        days = [day for _, day in sorted(self._days[model].items()) if day.edges == edges]
        frame = frame_of([stretch for day in days for hour in day.hours.values() for stretch in hour.stretches])
        hours = sum(len(day.hours) for day in days)
        self._known[model] = Summary(frame, edges, hours, waiting, _now_us(), trouble)

    def _edges(self, engine: Engine, model: str, days: Days) -> Edges:
        told = self._edges_of(model)
        if told is not None:
            return told
        if days:
            return days[max(days)].edges
        rows = engine.rows(model)
        rows = rows.filter((rows.status == 200) & ~(rows.score.isnan() | rows.score.isinf()))
        found = engine.ask(rows.agg(low=rows.score.min(), high=rows.score.max())).to_pylist()[0]
        return nice_edges(found["low"], found["high"])

    def _open(self) -> Engine:
        """A new one for each round: an engine keeps what it was asked about."""
        try:
            return open_engine(self.lake, self._engine)
        except OSError as refused:
            raise LakeRefused(f"{self.lake}: {refused}") from None


def nice_edges(low: float | None, high: float | None) -> Edges:
    """Bounds around what was seen; round, so that much the same scores have the same.

    >>> nice_edges(0.2, 0.9), nice_edges(-3.2, 41.0), nice_edges(5.0, 5.0), nice_edges(None, None)
    ((0.0, 1.0), (-10.0, 50.0), (4.5, 5.5), (0.0, 1.0))
    """
    if low is None or high is None or (low >= 0 and high <= 1):
        return (0.0, 1.0)
    if high == low:
        return (low - 0.5, high + 0.5)
    step = 10.0 ** math.floor(math.log10(high - low))
    return (math.floor(low / step) * step, math.ceil(high / step) * step)


def _now_us() -> int:
    return time_ns() // 1000
