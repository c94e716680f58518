"""A shadow: a bundle that scores a sample of the answered rows, and never answers. The first thing shed.

Rows wait for `HOLD_S`, so that scoring never runs between a request and its answer, and go through a lane of their own, some
at a time; more than `LIMIT` waiting rows are dropped and counted.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Protocol

from serving import page
from serving.lanes import Lane, Scored

HOLD_S = 0.002
LIMIT = 1024


class Ring(Protocol):
    """`serving.quick_shadows.QuickShadow`"""

    @property
    def layout(self) -> Any: ...

    def begin(self) -> None: ...

    def drain_now(self) -> None: ...


class ShadowLane:
    """Rows that Python answered; `ring` has those that C did, where it can score them."""

    SLICE = 32  # rows scored in one go on the loop

    def __init__(
        self,
        lane: Lane,
        sample: float,
        tag: int,
        put: Callable[..., None],
        finite: Callable[[Any], bool],
        slot: page.Slot,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.lane = lane
        self.sample = sample
        self.tag = tag
        self.ring: Ring | None = None
        self._put = put
        self._finite = finite
        self._cells = slot.cells
        self._loop = loop
        self._waiting: list[tuple[int, bytes, bytes, bytes, int]] = []

    def offer(self, ts_us: int, request_id: bytes, unit: bytes, row: bytes, place: int = 0) -> None:
        if self.sample < 1 and random.random() >= self.sample:
            return
        if len(self._waiting) + self.lane.depth >= LIMIT:
            self._cells[page.SHADOW_SHED] += 1
            return
        if not self._waiting:
            self._loop.call_later(HOLD_S, self._drain)
        self._waiting.append((ts_us, request_id, unit, row, place))

    def drain_now(self) -> None:
        while self._waiting:
            self._drain()
        if self.ring is not None:
            self.ring.drain_now()

    def _drain(self) -> None:
        rows = self._waiting[: self.SLICE]
        del self._waiting[: self.SLICE]
        for waiting in rows:
            self._score(*waiting)
        if self._waiting:
            self._loop.call_soon(self._drain)

    def _score(self, ts_us: int, request_id: bytes, unit: bytes, row: bytes, place: int) -> None:
        def done(scored: Scored | None) -> None:
            assert scored is not None, "a shadow row has no deadline and no asker"
            value, queue_us, score_us, rows = scored
            status = 200 if self._finite(value) else 500
            self._put(self.tag, ts_us, request_id, place, unit, row, value, status, 0, queue_us, score_us, rows)

        self.lane.submit(row, done)
