"""The log loses nothing that it acknowledged, counts what it drops, and a reader finds every whole block."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import page
from serving.segments import MAGIC, frame
from serving.traffic import COLUMNS, Segment, Tag, TrafficLog, read_segment, split_payload

TAG = Tag(model="m", version="1", arm="champion", generation=3, role="served", schema="f" * 64)


def new_log(folder: Path, **knobs: int) -> tuple[TrafficLog, page.Slot]:
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    shared = page.Page.create(folder / "pages" / f"s{len(list((folder / 'pages').iterdir()))}.page", 1)
    slot = shared.slot(0)
    return TrafficLog(folder, server="s", worker=0, slot=slot, **knobs), slot  # type: ignore[arg-type]


def put(log: TrafficLog, count: int, tag: int) -> None:
    for n in range(count):
        features = np.array([n, -n, np.nan]).tobytes()
        log.put(
            tag, 1_000_000 + n, b"id%d" % n, 0, b"" if n % 2 else b"unit-\xc3\xa9", features, n / 7, 200, 1, 2, 3, 4
        )


def rows_of(path: Path) -> list[dict[str, object]]:
    payloads, bad = read_segment(path)
    assert bad == 0
    return [
        row for payload in payloads for row in pyarrow.ipc.open_stream(split_payload(payload)[1]).read_all().to_pylist()
    ]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_every_row_put_is_read_back_in_order(tmp_path: Path, count: int) -> None:
    log, slot = new_log(tmp_path, block_rows=8, max_blocks=1000)
    put(log, count, log.register(TAG))
    assert log.close(10)
    sealed = sorted((tmp_path / "sealed").glob("*.seg"))
    got = [row for path in sealed for row in rows_of(path)]
    assert [row["seq"] for row in got] == list(range(1, count + 1))
    assert [row["score"] for row in got] == [n / 7 for n in range(count)]
    assert [row["unit"] for row in got] == ["" if n % 2 else "unit-é" for n in range(count)]
    assert all(list(row) == [name for name, _ in COLUMNS] for row in got)
    assert slot.cells[page.ROWS] == slot.cells[page.ROWS_LOGGED] == count
    assert not list((tmp_path / "open").glob("*.seg"))
    if count:
        facts, _ = split_payload(read_segment(sealed[0])[0][0])
        assert facts.writer == log.writer
        assert facts.tags == (TAG,)


@given(rows=st.lists(st.lists(st.floats(allow_nan=False), min_size=1, max_size=5), max_size=30))
def test_scores_of_models_of_any_outputs_share_a_block(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[float]]
) -> None:
    folder = tmp_path_factory.mktemp("several")
    log, _ = new_log(folder, block_rows=7, max_blocks=1000)
    tag = log.register(TAG)
    for n, scores in enumerate(rows):
        score = scores[0] if len(scores) == 1 else tuple(scores)
        log.put_of(len(scores))(tag, n, b"id", 0, b"", np.array([1.0]).tobytes(), score, 200, 1, 2, 3, 4)
    assert log.close(10)
    got = [row for path in sorted((folder / "sealed").glob("*.seg")) for row in rows_of(path)]
    assert [row["score"] for row in got] == [scores[0] for scores in rows]
    assert [row.get("scores") for row in got] == [scores if len(scores) > 1 else None for scores in rows]


def test_a_segment_cut_anywhere_yields_the_whole_blocks_before_the_cut(tmp_path: Path) -> None:
    payloads = [b"first", b"", b"BLK1 inside a payload", bytes(range(256))]
    whole = MAGIC + b"".join(map(frame, payloads))
    ends = [len(MAGIC + b"".join(map(frame, payloads[:n]))) for n in range(len(payloads) + 1)]
    path = tmp_path / "a.seg"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends[1:])
        found, bad = read_segment(path)
        assert found == payloads[:kept], cut
        assert bad == max(0, cut - max(ends[kept], len(MAGIC))), cut


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_costs_its_own_block_alone(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    payloads = [b"x" * 40, b"y" * 50, b"z" * 60]
    whole = bytearray(MAGIC + b"".join(map(frame, payloads)))
    at = len(MAGIC) + at % (len(whole) - len(MAGIC))
    whole[at] ^= 1 << bit
    path = tmp_path_factory.mktemp("bit") / "a.seg"
    path.write_bytes(whole)
    segment = Segment(path)
    found = list(segment.payloads())
    assert len(found) == 2
    assert set(found) < set(payloads)
    assert len(segment.bad_blocks) == 1


def test_a_file_that_is_no_segment_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.seg").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"x\.seg"):
        read_segment(tmp_path / "x.seg")


def test_a_full_disk_is_counted_and_the_log_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, slot = new_log(tmp_path, block_rows=10, flush_s=0)
    tag = log.register(TAG)
    really = os.write
    full = True

    def write(handle: int, data: bytes) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(handle, data)

    monkeypatch.setattr(os, "write", write)
    put(log, 20, tag)
    wait_for(lambda: slot.cells[page.WRITER_DROPPED_DISK] == 20)
    full = False
    put(log, 30, tag)
    assert log.close(10)
    monkeypatch.undo()
    logged = sum(len(rows_of(path)) for path in (tmp_path / "sealed").glob("*.seg"))
    assert logged == 30 == slot.cells[page.WRITER_LOGGED]
    assert slot.cells[page.WRITER_SEQ] == 50


def test_a_stuck_disk_drops_whole_blocks_and_never_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    log, slot = new_log(tmp_path, block_rows=10, max_blocks=2)
    tag = log.register(TAG)
    really, release = os.write, threading.Event()

    def write(handle: int, data: bytes) -> int:
        release.wait(20)
        return really(handle, data)

    monkeypatch.setattr(os, "write", write)
    put(log, 200, tag)  # returns: nothing here waits for the disk
    dropped = slot.cells[page.WRITER_DROPPED_FULL]
    assert dropped >= 100
    release.set()
    assert log.close(10)
    monkeypatch.undo()
    assert slot.cells[page.WRITER_SEQ] == 200 == slot.cells[page.WRITER_LOGGED] + slot.cells[page.WRITER_DROPPED_FULL]


def wait_for(condition: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
