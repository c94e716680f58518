"""Ready is a quorum: every worker of the page beats, serves the committed generation and is not draining."""

from __future__ import annotations

from time import time_ns
from typing import Any

from serving import page

STALE_US = 5_000_000
STATES = {page.EMPTY: "empty", page.STARTING: "starting", page.READY: "ready", page.DRAINING: "draining"}


def readiness(shared: page.Page, now_us: int | None = None) -> tuple[bool, dict[str, Any]]:
    """(ready, details for a person): what `/readyz` answers."""
    now_us = time_ns() // 1000 if now_us is None else now_us
    workers = [_worker(shared.slot(index), now_us) for index in range(shared.workers)]
    generations = {worker["generation"] for worker in workers}
    ready = all(worker["ready"] for worker in workers) and len(generations) == 1
    return ready, {"generation": max(generations), "workers": workers}


def _worker(slot: page.Slot, now_us: int) -> dict[str, Any]:
    beating = now_us - slot.heartbeat_us < STALE_US
    return {
        "pid": slot.pid,
        "ready": slot.state == page.READY and beating and slot.loaded_generation == slot.committed_generation,
        "state": STATES.get(slot.state, "stopped") if beating else "silent",
        "generation": slot.committed_generation,
    }
