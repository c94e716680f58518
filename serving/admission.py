"""Whether a request can still be served in time: asked before its body is parsed, and answered 503 at once where it can't.

A request's deadline is its arrival plus the smaller of `COPPICE_DEADLINE_MS` and its header `x-request-timeout-ms`. It is
held against what the lane's queue will take, by the lane's own measured cost, and against how late the event loop runs: what
arrives then has waited in the socket already, unseen; but no longer than since its connection was answered last. (Of more
than 1,024 connections that always have something to read, libuv reads for a second and longer before it looks at a timer, and
none of them has waited for that.) A request that C answers for less than a refusal costs is not asked about the loop, unless
it names a deadline itself: to refuse it would make nobody's wait shorter. Rows that wait in a lane meet their deadline again
when they leave it.
"""

from __future__ import annotations

import asyncio
import ctypes
import re
from collections.abc import Iterable
from time import perf_counter_ns

from serving.errors import DeadlinePassed, LoopLate, RequestRefused
from serving.lanes import Lane

PROBE_S = 0.01
MAX_LAG_NS = 1_000_000_000  # a second behind, with or without a deadline, the queue before us is what harms everyone
HEADROOM = 2  # a queue that is filled up to the deadline answers everyone just too late
WHOLE_MS = re.compile(rb"0{0,9}[1-9][0-9]{0,8}")


class Admission:
    """Event-loop thread only."""

    def __init__(self, deadline_ms: int) -> None:
        self._deadline_ns = deadline_ms * 1_000_000
        self.lag_ns = 0
        self._due = perf_counter_ns() + MAX_LAG_NS  # when the next probe should run
        most_ns = min(self._deadline_ns or MAX_LAG_NS, MAX_LAG_NS) * 4 // 5
        self.lateness = (ctypes.c_int64 * 3)(self._due, 0, most_ns)  # for quick.c, which asks no more where it is late
        self.strict = deadline_ms > 0  # there is something to ask, even of a request that sets no timeout

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Measure the loop's lag from now on, as long as the loop runs."""
        self._due = self.lateness[0] = perf_counter_ns() + int(PROBE_S * 1e9)
        loop.call_later(PROBE_S, self._probe, loop)

    def admit(self, timeout: bytes, arrived: int, lane: Lane, since: int = 0) -> int:
        """The deadline by perf_counter_ns, 0 for none. Raises RequestRefused for a malformed timeout, else Overloaded."""
        return self.admit_many(timeout, arrived, ((lane, 1),), 0.0, since)

    def admit_many(
        self, timeout: bytes, arrived: int, wanted: Iterable[tuple[Lane, int]], besides_us: float, since: int = 0
    ) -> int:
        """`admit`, of a request that wants so many rows of each lane, one lane after the other, and `besides_us` more."""
        budget_ns = self._budget(timeout)
        now = perf_counter_ns()
        lag_ns = max(self.lag_ns, now - self._due)  # a probe that is due and did not run tells as much
        lag_ns = min(lag_ns, max(0, arrived - since))
        if lag_ns > min(budget_ns or MAX_LAG_NS, MAX_LAG_NS):
            raise LoopLate("the server is behind; this request would be answered too late")
        for lane, rows in wanted:
            lane.refuse_if_full()
            besides_us += (HEADROOM if lane.depth else 1) * lane.wait_us(rows)
        if not budget_ns:
            return 0
        expires = arrived + budget_ns - lag_ns  # about as long as the loop is late, it waited in the socket, unseen
        if now + 1000 * besides_us > expires:
            raise DeadlinePassed("this request can't be answered by its deadline")
        return expires

    def _budget(self, timeout: bytes) -> int:
        if not timeout:
            return self._deadline_ns
        if WHOLE_MS.fullmatch(timeout) is None:
            raise RequestRefused("x-request-timeout-ms: must be a whole number of milliseconds, 1 to 999999999")
        asked_ns = int(timeout) * 1_000_000
        return min(asked_ns, self._deadline_ns) if self._deadline_ns else asked_ns

    def _probe(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lag_ns = self.lateness[1] = max(0, perf_counter_ns() - self._due)
        self.strict = self._deadline_ns > 0 or self.lag_ns > MAX_LAG_NS
        self.watch(loop)
