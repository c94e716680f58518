"""One lane for each (worker, bundle): rows in, scores out, in the order they came, never mixed with another version's.

How a row is dispatched is decided once, from the model's measured cost `fixed_us + rows * row_us`:

    inline   one row costs at most the inline budget: scored at once, on the loop
    tick     the fixed cost outweighs the row's (a batch pays) and the row is still cheap: the rows that arrive within
             one iteration of the event loop are scored together, at its end; no timer
    busy     dearer: scored in the lane's own thread; what arrives while it runs forms the next batch

Rows wait in the lane's bounded buffer; `Overloaded` is raised when it is full. One whose deadline passed, or whose asker has
gone, leaves it unscored. A batch that fails is scored again row by row, so that one bad row harms nobody else. What a batch
really takes corrects the measured cost as it goes. All public methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol

import numpy as np

from compile.runtime import native_call
from serving.cost import Bindable, Cost, Matrix, Reason, dispatch_reason
from serving.errors import Overloaded

logger = logging.getLogger("coppice")

Scores = float | tuple[float, ...]
"""A row's: a float of a model with one output, else a tuple. NaN, or NaN for each, where the model failed on the row; no
model answers NaN, and an infinite score is an answer, which `finite_test` tells from one that can be sent."""


class Scored(NamedTuple):
    """What became of one row. Times in µs; `rows` shared the call."""

    score: Scores
    queue_us: int
    score_us: int
    rows: int


Done = Callable[[Scored | None], None]
"""None: the row was not scored, since its deadline passed or its asker has gone."""


class Asker(Protocol):
    """Who waits for a row."""

    @property
    def disconnected(self) -> bool: ...


class _Patient:
    disconnected = False


PATIENT = _Patient()


class Waiting(NamedTuple):
    row: bytes
    since: int  # perf_counter_ns, as is the next
    expires: int  # 0: never
    done: Done
    asker: Asker


class NativeLane(NamedTuple):
    """A lane's call and its buffers, by address, for `serving.quick`; valid as long as this is."""

    function: int
    handle: int
    rows: int
    scores: int
    most: int  # rows
    keep: object


class Tally(Protocol):
    """Where a lane counts: called once a batch."""

    def __call__(self, reason: Reason, rows: int, queue_us: int) -> None: ...


class Lane:
    def __init__(
        self,
        predictor: Bindable,
        loop: asyncio.AbstractEventLoop,
        *,
        cost: Cost,
        max_batch_rows: int,
        max_queue_rows: int,
        inline_budget_us: float,
        tally: Tally,
    ) -> None:
        self.reason: Reason = dispatch_reason(cost, inline_budget_us, max_batch_rows)
        self.cost = cost
        self.probe_rows = predictor.probe_rows
        self.failed: Scores = math.nan if predictor.outputs == 1 else (math.nan,) * predictor.outputs
        self._loop = loop
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._tally = tally
        self._rows = np.zeros((max_batch_rows, predictor.width))
        self._scores = np.zeros((max_batch_rows, predictor.outputs))
        self._run = predictor.bound(self._rows, self._scores)
        self.native = self._native(predictor)
        self._row_view = memoryview(self._rows.data).cast("B")
        self.score_now = _single(self._row_view[: 8 * predictor.width], self._run, self._scores)
        """row -> its scores, on the caller's thread; raises the model's own exception where it fails. Inline lanes only."""
        self._read = _reader(self._scores)
        self._row_bytes = 8 * predictor.width
        self._waiting: list[Waiting] = []
        self._running = 0  # rows of the batch that the thread has
        self._pace = 1.0  # what calls take, as a multiple of the measured cost: a moving average
        self._flushing = False
        self._lock = Lock()  # of what waits, and of who takes it next
        self._thread = ThreadPoolExecutor(1, "lane") if self.reason == "busy" else None

    def _native(self, predictor: Bindable) -> NativeLane | None:
        """Of a tick lane with buffers of its own: its rows may wait in C while others wait here."""
        if self.reason != "tick":
            return native_lane(self._run, self._rows, self._scores)
        rows, scores = np.zeros_like(self._rows), np.zeros_like(self._scores)
        return native_lane(predictor.bound(rows, scores), rows, scores)

    def count(self, rows: int, queue_us: int, us: int) -> None:
        """A batch that C scored."""
        self._tally(self.reason, rows, queue_us)
        self._learn(rows, us)

    @property
    def depth(self) -> int:
        """Rows waiting."""
        return len(self._waiting)

    @property
    def room(self) -> int:
        """Rows that a request of many may add now: it leaves half of the queue to requests of one."""
        return min(self._max_batch_rows, max(1, self._max_queue_rows // 2) - len(self._waiting))

    def wait_us(self, rows: int = 1) -> float:
        """When the last of `rows` that came now would be scored, in µs from now, by the cost as it is of late."""
        before = len(self._waiting) + self._running
        ahead = before + rows
        calls = -(-ahead // self._max_batch_rows)
        return self._pace_for(idle=not before) * (calls * self.cost.fixed_us + ahead * self.cost.row_us)

    def rows_within(self, us: float) -> int:
        """How many rows one call scores in `us`; at least 1, and no more than a call may have."""
        each = max(self.cost.row_us, 0.01) * self._pace
        return max(1, min(self._max_batch_rows, int((us - self.cost.fixed_us * self._pace) / each)))

    def refuse_if_full(self) -> None:
        if len(self._waiting) >= self._max_queue_rows:
            raise Overloaded(f"{self._max_queue_rows} rows are waiting for this model already")

    def submit(self, row: bytes, done: Done, *, expires: int = 0, asker: Asker = PATIENT) -> None:
        """`done` is called on the loop with the row's score, at once if the lane is inline. Raises Overloaded."""
        self.refuse_if_full()
        with self._lock:
            self._waiting.append(Waiting(row, perf_counter_ns(), expires, done, asker))
            starts, self._flushing = not self._flushing, True
        if self.reason == "inline":
            self._flush()
        elif starts:
            self._loop.call_soon(self._flush if self.reason == "tick" else self._start)

    def score_part(self, rows: Sequence[bytes], queue_us: int) -> tuple[list[Scores], int]:
        """The scores of at most `max_batch_rows` rows, which waited `queue_us`, and the µs they took: one call, made at
        once on the loop. Not of a busy lane, whose buffers are its thread's."""
        assert self.reason != "busy"
        scores, us = self._score(rows)
        assert len(scores) == len(rows), "every row has its score"
        self._tally(self.reason, len(rows), queue_us)
        self._learn(len(rows), us)
        return scores, us

    def close(self) -> None:
        """No more rows will come; returns when the thread has finished the call it is in."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    def _flush(self) -> None:
        self._flushing = False
        while self._waiting:
            batch, unscored = self._take()
            if batch:
                started = perf_counter_ns()
                self._deliver(batch, started, *self._score(_rows_of(batch)))
            _leave(unscored)

    def _start(self) -> None:
        assert self._thread is not None
        self._thread.submit(self._work)

    def _work(self) -> None:
        """The lane's thread, until nothing waits. It takes the next batch itself: a loop that is busy refusing what comes too
        much would leave it idle for a whole iteration, and that is when it is needed most."""
        while True:
            with self._lock:
                batch, unscored = self._take()
                self._running = len(batch)
                self._flushing = bool(batch)
            if unscored:
                self._loop.call_soon_threadsafe(_leave, unscored)
            if not batch:
                return
            started = perf_counter_ns()
            scored = self._score(_rows_of(batch))
            self._running = 0  # before it is told: who asks on hearing the answer finds the lane idle
            self._loop.call_soon_threadsafe(self._deliver, batch, started, *scored)

    def _take(self) -> tuple[list[Waiting], list[Waiting]]:
        """The next batch, without the late and the gone, which are the second list. Both empty: nothing waits.

        A row that would be answered after its deadline is late already: scoring it would only make others late. And a
        batch ends where one more row would make the ones before it late.
        """
        now = perf_counter_ns()
        batch: list[Waiting] = []
        unscored: list[Waiting] = []
        taken = 0
        soonest = math.inf  # of the batch's deadlines
        alone = len(self._waiting) == 1 and not self._running
        pace = self._pace_for(idle=alone)
        fixed_ns, row_ns = (1000 * pace * us for us in self.cost)
        for waiting in self._waiting:
            if len(batch) == self._max_batch_rows:
                break
            ends = now + fixed_ns + (len(batch) + 1) * row_ns
            if batch and ends > soonest:
                break
            taken += 1
            if waiting.asker.disconnected or 0 < waiting.expires < ends:
                unscored.append(waiting)
                continue
            batch.append(waiting)
            soonest = min(soonest, waiting.expires or math.inf)
        del self._waiting[:taken]
        return batch, unscored

    def _pace_for(self, *, idle: bool) -> float:
        """An idle lane takes a row at its measured cost at most: what a slow call's pace refuses never shows a better one."""
        return min(1.0, self._pace) if idle else self._pace

    def _score(self, rows: Sequence[bytes]) -> tuple[list[Scores], int]:
        """The scores and the µs they took. Only one thread is ever in here: the lane's own, or the loop's."""
        began = perf_counter_ns()
        count = len(rows)
        self._row_view[: count * self._row_bytes] = b"".join(rows)
        try:
            self._run(count)
            scores = self._read(count)
        except Exception:  # fan-out: one bad row must not harm its neighbours
            logger.exception("a call of %d rows failed; each is scored alone", count)
            scores = [self._score_alone(row) for row in rows]
        return scores, (perf_counter_ns() - began) // 1000

    def _score_alone(self, row: bytes) -> Scores:
        try:
            return self.score_now(row)
        except Exception:  # this row is the bad one: NaN tells its owner
            return self.failed

    def _deliver(self, batch: list[Waiting], started: int, scores: list[Scores], us: int) -> None:
        count = len(batch)
        assert len(scores) == count, "every row of a batch has its score before anyone is answered"
        self._tally(self.reason, count, (started - batch[0].since) // 1000)
        self._learn(count, us)
        for waiting, score in zip(batch, scores, strict=True):
            waiting.done(Scored(score, (started - waiting.since) // 1000, us, count))

    def _learn(self, rows: int, us: int) -> None:
        """One call in ten is forgotten in ten; a single slow one (a page fault, a neighbour) moves little."""
        expected = self.cost.fixed_us + rows * self.cost.row_us
        if expected > 0:
            self._pace += 0.1 * (min(max(us / expected, 0.1), 100.0) - self._pace)


def _rows_of(batch: list[Waiting]) -> list[bytes]:
    return [waiting.row for waiting in batch]


def _leave(unscored: list[Waiting]) -> None:
    for waiting in unscored:
        waiting.done(None)


def finite_test(outputs: int) -> Callable[[Any], bool]:
    """Whether a row's scores can be answered: JSON has no word for NaN and infinities. C's own of one: 0.04 µs."""
    return math.isfinite if outputs == 1 else lambda scores: all(map(math.isfinite, scores))


def native_lane(run: Callable[[int], None], rows: Matrix, scores: Matrix) -> NativeLane | None:
    """None where scoring is not one call of C."""
    call = native_call(run)
    return (
        None
        if call is None
        else NativeLane(*call, rows.ctypes.data, scores.ctypes.data, len(rows), (run, rows, scores))
    )


def _single(row_view: memoryview, run: Callable[[int], None], scores: Matrix) -> Callable[[bytes], Scores]:
    """One row through the buffers. Of one output without a tuple: -0.1 µs a request (`python -m serving.bench`)."""
    view = memoryview(scores.data).cast("B")
    first_of = view.cast("d")
    unpack = struct.Struct(f"={scores.shape[1]}d").unpack_from

    def score(row: bytes) -> Scores:
        row_view[:] = row
        run(1)
        return first_of[0]

    def score_several(row: bytes) -> Scores:
        row_view[:] = row
        run(1)
        return unpack(view)

    return score if scores.shape[1] == 1 else score_several


def _reader(scores: Matrix) -> Callable[[int], list[Scores]]:
    """The scores of the first rows, as Python's numbers."""
    if scores.shape[1] == 1:
        return lambda count: scores[:count, 0].tolist()
    return lambda count: list(map(tuple, scores[:count].tolist()))
