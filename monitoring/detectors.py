"""Concept-drift alarms: has a model's error rate moved, and where in the stream of labelled rows?

The stream is 0 and 1 in the order of events: wrong or right at the threshold; of a regression, whether the row's error is
above what one in ten rows had in the beginning, so that every stream has a rate that ADWIN's bound and Page-Hinkley's
thresholds are made for. Two detectors of river watch it, as they come:

    adwin         two parts of the recent stream differ in their means (Bifet and Gavaldà 2007, delta 0.002), either way
    page_hinkley  the rate's excess over its own mean has added up to 50 (Page 1954); upwards alone

Where the change lies they do not say, or (ADWIN, in buckets) roughly: the likeliest place between the change before and
the alarm is searched afterwards.

With 0.10 -> 0.20 both alarm after some 300 to 500 rows and, while the rate stays, hardly ever in thousands; a change of a
few points takes thousands of rows (`docs/performance.md`). A stream longer than LONGEST is fed as means of equally many rows
each, which says the place to that many rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from training.intervals import Floats

LONGEST = 500_000
FIRST = 1_000  # rows that say what an ordinary error is
ORDINARY = 0.9
EDGE = 30  # rows, of the shorter side of a change

Detector = Literal["adwin", "page_hinkley"]


class Alarm(msgspec.Struct, frozen=True):
    """`at`: the row of the stream after which it was raised; `since`: the row from which the rate probably is another.
    `before` and `after` are the rates on either side of it, from where the alarm before saw a change, and up to `at`."""

    detector: Detector
    at: int
    since: int
    before: float
    after: float

    @property
    def worse(self) -> bool:
        return self.after > self.before


def alarms(stream: Floats) -> list[Alarm]:
    """Of values from 0 to 1, in the order of their raising."""
    step = -(-len(stream) // LONGEST) if len(stream) > LONGEST else 1
    whole = stream if step == 1 else np.add.reduceat(stream, np.arange(0, len(stream), step)) / step
    if step > 1 and len(stream) % step:
        whole = whole[:-1]
    found = [alarm for detector in get_args(Detector) for alarm in _raised(detector, whole, step)]
    return sorted(found, key=lambda alarm: alarm.at)


def errors_beyond(error: Floats) -> Floats:
    """The stream of a regression: 1 where the absolute error is above the ORDINARY quantile of the FIRST rows'."""
    if not len(error):
        return error
    return (error > np.quantile(error[:FIRST], ORDINARY)).astype(np.float64)


def _raised(detector: Detector, stream: Floats, step: int) -> Iterator[Alarm]:
    began, watch = 0, _watch(detector)
    for row, value in enumerate(stream.tolist(), start=1):
        watch.update(value)
        if watch.drift_detected:
            since = began + _split(stream[began:row])
            before, after = float(stream[began:since].mean()), float(stream[since:row].mean())
            yield Alarm(detector, row * step - 1, since * step, before, after)
            began = since


def _watch(detector: Detector) -> Any:
    from river import drift

    known: Any = drift  # untyped
    return known.ADWIN() if detector == "adwin" else known.PageHinkley(mode="up")


def _split(stream: Floats) -> int:
    """Where the newer of two parts begins, by the largest sum of squares between them; neither is shorter than EDGE."""
    rows = len(stream)
    edge = min(EDGE, rows // 2)
    first = np.arange(edge, rows - edge + 1)
    sums = np.cumsum(stream)[first - 1]
    apart = (sums - first * stream.mean()) ** 2 / (first * (rows - first))
    return int(first[np.argmax(apart)])
