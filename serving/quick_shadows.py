"""The rows that C answered and that a shadow has yet to score: C keeps them, and scores some at a time between requests.

Only where the shadow's rows are scored in one call of C and soon done; a dearer shadow's rows go through Python, to its lane's
thread (`serving.shadows`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from serving import quick_layout
from serving.lanes import NativeLane
from serving.quick_layout import address
from serving.shadows import HOLD_S, LIMIT, Ring, ShadowLane

SLICE_US = 250.0  # of one call: what an answer may have to wait for


def ring_of(lane: ShadowLane, width: int, score: Callable[[int], int], *, held_us: float) -> Ring | None:
    """The one that the lane has, or a new one; None where its rows are not C's to score within `held_us` each."""
    native, cost = lane.lane.native, lane.lane.cost
    has_one_output = isinstance(lane.lane.failed, float)
    if native is None or lane.lane.reason == "busy" or not has_one_output or cost.fixed_us + cost.row_us > held_us:
        return None
    lane.ring = lane.ring or QuickShadow(lane, native, width, score)
    return lane.ring


class QuickShadow:
    def __init__(self, lane: ShadowLane, native: NativeLane, width: int, score: Callable[[int], int]) -> None:
        """`score(address)` scores rows of the ring there, and says how many; 0: none waits, or the log has no room."""
        self._lane = lane
        self._score = score
        self._scheduled = False
        self._rows = np.zeros((LIMIT, width))
        self._ring = (quick_layout.Seen * LIMIT)()
        self._native = native
        self.layout = quick_layout.Shadow(
            run=native.function,
            plan=native.handle,
            row=native.rows,
            score=native.scores,
            most=min(native.most, lane.lane.rows_within(SLICE_US)),
            tag=lane.tag,
            width=width,
            sampled=round(lane.sample * 2**32),
            ring=address(self._ring),
            rows=self._rows.ctypes.data,
            room=LIMIT,
        )

    def begin(self) -> None:
        """Rows wait."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(HOLD_S, self._drain)

    def drain_now(self) -> None:
        while self._drain_some():
            pass

    def _drain(self) -> None:
        self._scheduled = self._drain_some()
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain_some(self) -> bool:
        """Whether rows still wait."""
        if self.layout.count:
            scored = self._score(address(self.layout))
            if scored:
                self._lane.lane.count(scored, 0, self.layout.score_us)
        return bool(self.layout.count)
