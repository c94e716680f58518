"""Arrivals on a schedule, for an open loop within Locust: whoever is free takes the next, and waits until it is due.

As many requests are in flight at most as there are takers. One that falls due while all of them wait for answers is taken
when the first is free, and is late by as much: its latency counts from when it was due. What is still not taken when the
run's time, and some to catch up, is over is counted as not sent, and that is a failure. So no request is left out because
the server was slow, which is what a user who waits for his answer before he asks again would do.

The event loop below gevent counts in whole milliseconds; a timer of the kernel's wakes it in between.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator

from gevent import get_hub
from gevent.hub import Waiter

CLOCK_MONOTONIC, ABSOLUTE = 1, 1  # linux/time.h; time.perf_counter reads the same clock
NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("every", _Timespec), ("at", _Timespec))


class Alarm:
    """Wakes greenlets at instants of `time.perf_counter`; they must ask in ascending order."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._waiting: deque[tuple[float, Waiter]] = deque()
        self._set = _Timer()
        self._watcher = get_hub().loop.io(self._fd, 1)
        self._watcher.start(self._ring)

    def wait_until(self, instant: float) -> None:
        waiter = Waiter()
        self._waiting.append((instant, waiter))
        if len(self._waiting) == 1:
            self._arm(instant)
        waiter.get()

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        os.close(self._fd)

    def _arm(self, instant: float) -> None:
        at = self._set.at
        at.s, at.ns = int(instant), int(instant % 1 * 1e9)
        self._libc.timerfd_settime(self._fd, ABSOLUTE, ctypes.byref(self._set), None)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        now = time.perf_counter()
        waiting = self._waiting
        while waiting and waiting[0][0] <= now:
            waiting.popleft()[1].switch(None)
        if waiting:
            self._arm(waiting[0][0])


class Schedule:
    """The instants of a run, handed out one by one."""

    def __init__(self, instants: Iterable[float], seconds: float, catch_up_s: float) -> None:
        self._instants: Iterator[float] = iter(instants)
        self._alarm = Alarm()
        self._seconds, self._catch_up_s = seconds, catch_up_s
        self.began = 0.0
        self.taken = 0

    def begin(self) -> None:
        self.began = time.perf_counter()

    def take(self) -> tuple[float, bool] | None:
        """(when it was due, on the clock of perf_counter; whether the taker was there by then), as soon as it is due. None
        when nothing is left, or it is too late."""
        now = time.perf_counter()
        if now - self.began > self._seconds + self._catch_up_s:
            return None
        at_s = next(self._instants, None)
        if at_s is None:
            return None
        self.taken += 1
        due = self.began + at_s
        if due > now:
            self._alarm.wait_until(due)
        return due, due > now

    def left(self) -> list[float]:
        """Those that nobody took: when each was due, in s since the beginning."""
        return list(self._instants)
