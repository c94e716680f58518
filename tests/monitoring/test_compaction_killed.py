"""Compaction and merging killed with -9 at random, again and again: no row is lost, none doubled, at any time of reading."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from conftest import FULL

from monitoring.lake import window
from monitoring.reconcile import reconcile
from serving import page
from serving.traffic import Tag, TrafficLog

KILLS = 50 if FULL else 5
SEGMENTS = 6
HOUR_US = 3_600_000_000
CHILD = """
import sys
from pathlib import Path
from monitoring.compaction import compact
from monitoring.merging import tidy
print("ready", flush=True)
while True:
    compact(Path(sys.argv[1]), sys.argv[2])
    tidy(sys.argv[2], grace_s=-1)
    print("round", flush=True)
    if len(sys.argv) > 3:
        break
"""


def serve(traffic: Path, number: int) -> int:
    """A server's run that logs to several segments over three hours; how many rows."""
    (traffic / "pages").mkdir(parents=True, exist_ok=True)
    shared = page.Page.create(traffic / "pages" / f"s{number}.page", 1)
    slot = shared.slot(0)
    slot.begin(2**22 + 1)
    log = TrafficLog(traffic, server=f"s{number}", worker=0, slot=slot, block_rows=50, rotate_bytes=1 << 16)
    tag = log.register(Tag(model="m", version="1", arm="champion", generation=1, role="served", schema="s"))
    count = SEGMENTS * 300
    for n in range(count):
        ts_us = 5 * HOUR_US + n * 3 * HOUR_US // count
        row = np.full(20, float(n)).tobytes()
        log.put(tag, ts_us, b"%d-%d" % (number, n), 0, b"", row, 0.5, 200, 1, 1, 1, 1)
        if log.crowded:
            time.sleep(0.002)
    assert log.close(20)
    shared.retire(0)
    return count


def start(traffic: Path, lake: Path, *once: str) -> subprocess.Popen[str]:
    call = [sys.executable, "-c", CHILD, str(traffic), str(lake), *once]
    child = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_killed_at_any_point_nothing_is_lost_and_nothing_doubled(tmp_path: Path) -> None:
    traffic, lake = tmp_path / "traffic", tmp_path / "lake"
    chance = random.Random(7)
    expected = serve(traffic, 0)
    with start(traffic, lake, "once") as child:
        began = time.monotonic()
        assert child.wait(60) == 0
        whole_round = time.monotonic() - began
    half_done = 0
    for number in range(1, KILLS + 1):
        expected += serve(traffic, number)
        with start(traffic, lake) as child:
            time.sleep(chance.random() * whole_round)
            child.kill()
            child.wait(10)
        half_done += len(list((traffic / "sealed").iterdir())) > 0 or bool(list(lake.rglob("*.sources")))
        books = reconcile(
            traffic, lake
        )  # what is in a segment and in the lake at once is the one thing it may see twice
        assert books.total("lost") == 0
        assert all("twice" in fault for fault in books.faults)
        held = window(lake, "m", columns=["writer", "seq"])
        assert len(held) == len(set(zip(*held.to_pydict().values(), strict=True)))
    assert half_done >= KILLS // 4
    for _ in range(2):  # what one merges, the next deletes the sources of
        with start(traffic, lake, "once") as child:
            assert child.wait(60) == 0
    books = reconcile(traffic, lake)
    assert not books.faults
    assert books.total("logged") == expected == window(lake, "m").num_rows
    assert not list((traffic / "sealed").iterdir())
    assert len(list(lake.glob("model=m/**/*.parquet"))) == 3
