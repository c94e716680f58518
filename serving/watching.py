"""What is told of answers after they were given: the access log, and spans for OpenTelemetry.

A share of the answers (`COPPICE_ACCESS_LOG`) become a line of JSON each on stdout; so do all with status 429 or from 500, up to
`TROUBLE_S` a second, since an overload must not be made worse by telling of it. Those of traces that their sender sampled
become spans, where tracing is configured. The loop does no more than put an answer in a queue: a thread spells and
writes. More than `LIMIT` waiting answers are dropped and counted.

A line has the time of arrival, method, path (without its query), status, ms, bytes of the bodies, request id, trace id, the
version and arm that answered, and the name of the API key; never a header's value else, a body, a unit or a key.
Requests that no answer left for, and what was no HTTP, have no line.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Thread
from time import monotonic, perf_counter_ns, time_ns
from typing import NamedTuple

import msgspec

from serving import page
from serving.guard import Bucket
from serving.settings import Settings
from serving.spans import Spans
from serving.tracing import Trace

logger = logging.getLogger("coppice")

LIMIT = 4096
TROUBLE_S = 100.0
MAX_TEXT = 256  # of a path or an id: a line stays short enough to be written whole to a pipe
STDOUT = 1


class Seen(NamedTuple):
    """An answer, as the edge saw it. `head` has its header lines."""

    at_us: int
    took_us: int
    method: str
    path: str
    status: int
    head: bytes
    bytes_in: int
    bytes_out: int
    key: str
    trace: Trace | None


class Watch:
    """One worker's. `see` belongs to the loop's thread, the rest to its own."""

    def __init__(
        self,
        share: float,
        spans: Spans | None,
        slot: page.Slot,
        write: Callable[[bytes], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._share = share
        self._trouble = Bucket(TROUBLE_S, TROUBLE_S, clock)
        self._spans = spans
        self._cells = slot.cells
        self._write = write
        self._queue: SimpleQueue[tuple[Seen, bool] | None] = SimpleQueue()
        self._thread = Thread(target=self._tell, name="watching", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, settings: Settings, slot: page.Slot) -> Watch | None:
        spans = Spans.of(os.environ)
        if not settings.access_log and spans is None:
            return None
        return cls(settings.access_log, spans, slot, write_stdout)

    def see(
        self,
        arrived: int,
        method: str,
        path: str,
        status: int,
        head: bytes,
        sizes: tuple[int, int],
        key: str,
        trace: Trace | None,
    ) -> None:
        """An answer is leaving to a request that `arrived` then, by perf_counter_ns."""
        share = self._share
        trouble = status == 429 or status >= 500
        line = bool(share) and (random.random() < share or (trouble and not self._trouble.take()))
        if not line and (self._spans is None or trace is None or not trace.sampled):
            return
        if self._queue.qsize() >= LIMIT:
            self._cells[page.UNSEEN] += 1
            return
        took_us = (perf_counter_ns() - arrived) // 1000
        seen = Seen(time_ns() // 1000 - took_us, took_us, method, path, status, head, *sizes, key, trace)
        self._queue.put((seen, line))

    def close(self, deadline_s: float) -> None:
        """Tell what waits, by the deadline. The last call."""
        self._queue.put(None)
        self._thread.join(deadline_s)

    def _tell(self) -> None:
        while (waiting := self._queue.get()) is not None:
            seen, line = waiting
            try:
                if line:
                    self._print(line_of(seen))
                if self._spans is not None and seen.trace is not None and seen.trace.sampled:
                    asked = seen.method, seen.path, seen.status, seen.at_us, seen.took_us
                    self._spans.emit(*asked, seen.trace, told_by(seen.head))
            except Exception:  # this thread must outlive any one answer
                logger.exception("an answer could not be told of")
        if self._spans is not None:
            self._spans.close()

    def _print(self, line: bytes) -> None:
        try:
            self._write(line)
        except OSError:  # stdout is closed or full: counted, since there may be nowhere to say so
            self._cells[page.UNSEEN_UNWRITTEN] += 1


def line_of(seen: Seen) -> bytes:
    told = told_by(seen.head)
    arrived = datetime.fromtimestamp(seen.at_us // 1_000_000, UTC)
    line = {
        "ts": f"{arrived:%Y-%m-%dT%H:%M:%S}.{seen.at_us % 1_000_000:06d}Z",
        "method": seen.method,
        "path": seen.path[:MAX_TEXT],
        "status": seen.status,
        "ms": seen.took_us / 1000,
        "bytes_in": seen.bytes_in,
        "bytes_out": seen.bytes_out,
        "request_id": told.get("x-request-id", "")[:MAX_TEXT],
        "trace_id": seen.trace.trace_id.decode() if seen.trace else "",
        "version": told.get("x-model-version", ""),
        "arm": told.get("x-arm", ""),
        "fallback_from": told.get("x-fallback-from", ""),
        "key": seen.key,
    }
    return msgspec.json.encode({name: value for name, value in line.items() if value != ""}) + b"\n"


def told_by(head: bytes) -> dict[str, str]:
    """An answer's header lines, by name."""
    lines = [line.partition(b": ") for line in head.split(b"\r\n")]
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, _, value in lines if name}


def write_stdout(line: bytes) -> None:
    view = memoryview(line)
    while view:
        view = view[os.write(STDOUT, view) :]
