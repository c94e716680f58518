"""Ready is a quorum: at least half of the workers beat, serve the committed release and are not draining.

Half, and not all: a host whose workers restart one after the other stays in the balancer, since the connections of the
one that is away are served by its successor. A worker that serves another release than the committed one is not ready, unless
it has that one loaded: it flips at its next look, a few milliseconds after the commit, and no balancer need hear of it.
What the sync process could not do - reach the store, serve a generation - is told here, and makes no host unready.
"""

from __future__ import annotations

from time import time_ns
from typing import Any

from serving import board as boards
from serving import page

STALE_US = 5_000_000
STATES = {page.EMPTY: "empty", page.STARTING: "starting", page.READY: "ready", page.DRAINING: "draining"}


def readiness(shared: page.Page, now_us: int | None = None) -> tuple[bool, dict[str, Any]]:
    """(ready, details for a person): what `/readyz` answers."""
    now_us = time_ns() // 1000 if now_us is None else now_us
    board = shared.board
    number = board.committed
    workers = [_worker(slot, number, now_us) for slot in shared.slots()]
    ready = number > 0 and 2 * sum(worker["ready"] for worker in workers) >= len(workers)
    release = board.release(number)
    return ready, {
        "release": number,
        "generations": release.generations if release else {},
        "workers": workers,
        "sync": {
            "pid": int(board.cells[boards.PID]),
            "silent_s": round(max(0, now_us - int(board.cells[boards.HEARTBEAT_US])) / 1e6, 1),
            "pending": board.offered or None,
            **board.told(),
        },
    }


def _worker(slot: page.Slot, committed: int, now_us: int) -> dict[str, Any]:
    beating = now_us - slot.heartbeat_us < STALE_US
    told = {
        "pid": slot.pid,
        "ready": slot.state == page.READY and beating and committed in (slot.serving, slot.loaded),
        "state": STATES.get(slot.state, "stopped") if beating or slot.state == page.EMPTY else "silent",
        "release": slot.serving,
    }
    return told | ({"failure": slot.failure} if slot.failed > slot.serving else {})
