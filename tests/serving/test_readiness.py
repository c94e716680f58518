"""Who counts as ready while releases change."""

from __future__ import annotations

import os
from pathlib import Path
from time import time_ns

from serving import page
from serving.readiness import readiness


def test_a_flip_makes_no_host_unready_and_a_worker_left_behind_does(tmp_path: Path) -> None:
    shared = page.Page.create(tmp_path / "a.page", 2)
    slots = shared.slots()
    for slot in slots:
        slot.begin(os.getpid())
        slot.state, slot.heartbeat_us = page.READY, time_ns() // 1000
    for _ in range(2):
        offered = shared.board.offer("m", {"m": shared.board.committed + 1}).number
        for slot in slots:
            slot.loaded = offered
        shared.board.commit()
        assert readiness(shared)[0]  # committed, and not flipped to yet
        for slot in slots:
            slot.serving = offered
        assert readiness(shared)[0]
    shared.board.offer("m", {"m": 3})
    shared.board.commit()
    assert not readiness(shared)[0]  # no worker has it
    slots[0].loaded = shared.board.committed
    assert readiness(shared)[0]  # one of two
    slots[0].heartbeat_us -= 60_000_000
    assert not readiness(shared)[0]
