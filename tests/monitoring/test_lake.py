"""Compaction moves every row once, whenever it is killed and however often it is run; the books say what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FULL

from monitoring.compaction import compact
from monitoring.errors import LakeRefused
from monitoring.lake import window
from monitoring.merging import tidy
from monitoring.reconcile import reconcile
from serving import page
from serving.traffic import Tag, TrafficLog

HOUR_US = 3_600_000_000


def serve(traffic: Path, count: int, *, finish: bool = True, name: str = "s", step_us: int = 1000) -> page.Page:
    """A server's run: `count` rows put. Unfinished, it is left as a crash leaves it."""
    (traffic / "pages").mkdir(parents=True, exist_ok=True)
    shared = page.Page.create(traffic / "pages" / f"{name}.page", 1)
    slot = shared.slot(0)
    slot.begin(2**22 + 1)  # beyond the largest process id: a process that does not exist
    log = TrafficLog(traffic, server=name, worker=0, slot=slot, block_rows=10, max_blocks=1000)
    tag = log.register(Tag(model="m", version="1", arm="champion", generation=1, role="served", schema="s"))
    for n in range(count):
        log.put(
            tag,
            5 * HOUR_US + n * step_us,
            b"%s-%d" % (name.encode(), n),
            0,
            b"",
            np.array([float(n)]).tobytes(),
            0.5,
            200,
            1,
            1,
            1,
            1,
        )
    if finish:
        assert log.close(10)
        shared.retire(0)
    else:
        wait_until_written(slot, count // 10 * 10)
    return shared


def wait_until_written(slot: page.Slot, rows: int) -> None:
    import time

    deadline = time.monotonic() + 10
    while slot.cells[page.WRITER_LOGGED] < rows:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ids(lake: Path) -> list[str]:
    return sorted(window(lake, "m", columns=["request_id"]).column("request_id").to_pylist())


def test_all_rows_reach_the_lake_once_and_the_books_balance(tmp_path: Path) -> None:
    traffic, lake = tmp_path / "traffic", tmp_path / "lake"
    serve(traffic, 1234, step_us=HOUR_US // 400)
    done = compact(traffic, lake)
    assert (done.rows, done.segments, done.duplicates, done.bad_bytes) == (1234, 1, 0, 0)
    assert {path.split("/")[2] for path in done.parts} == {"hour=05", "hour=06", "hour=07", "hour=08"}
    assert ids(lake) == sorted(f"s-{n}" for n in range(1234))
    table = window(lake, "m", since_us=6 * HOUR_US, until_us=7 * HOUR_US)
    assert table.num_rows == 400
    assert set(table.column("unit").to_pylist()) == set(table.column("request_id").to_pylist())
    books = reconcile(traffic, lake)
    assert (books.total("served"), books.total("logged"), books.total("lost")) == (1234, 1234, 0)
    assert not books.faults
    assert compact(traffic, lake).segments == 0


def test_segments_and_parts_of_version_1_and_2_are_one_lake(tmp_path: Path) -> None:
    golden = Path(__file__).parent.parent / "contracts"
    traffic, lake = tmp_path / "traffic", tmp_path / "lake"
    (traffic / "sealed").mkdir(parents=True)
    for name in ("golden.seg", "golden2.seg"):
        shutil.copy(golden / name, traffic / "sealed" / name)
    done = compact(traffic, lake)
    assert (done.rows, done.bad_bytes) == (12, 0)
    assert [row["scores"] for row in window(lake, "churn").to_pylist()] == [None] * 5
    assert [row["scores"] for row in window(lake, "price").to_pylist()] == [None] * 5
    species = {row["request_id"]: row for row in window(lake, "species").to_pylist()}
    assert species["species-0"]["scores"] == [0.25, 0.5, 0.25]
    for part in lake.rglob("model=price/**/*.parquet"):  # as an older release wrote it
        pq.write_table(pq.ParquetFile(part).read().drop_columns(["scores"]), part)
    (part,) = lake.rglob("model=species/**/*.parquet")
    folder = lake / part.relative_to(lake).parent.as_posix().replace("species", "price")
    shutil.copy(part, folder / "part-later.parquet")
    mixed = window(lake, "price", columns=["request_id", "score", "scores"]).to_pylist()
    assert {row["request_id"]: row["scores"] for row in mixed}["species-0"] == [0.25, 0.5, 0.25]
    assert {row["request_id"]: row["scores"] for row in mixed}["price-0"] is None


def test_killed_between_writing_and_deleting_nothing_is_doubled(tmp_path: Path) -> None:
    traffic, lake = tmp_path / "traffic", tmp_path / "lake"
    serve(traffic, 100)
    kept = tmp_path / "kept"
    shutil.copytree(traffic / "sealed", kept)
    compact(traffic, lake)
    shutil.copytree(kept, traffic / "sealed", dirs_exist_ok=True)
    assert reconcile(traffic, lake).faults == () or "twice" in reconcile(traffic, lake).faults[0]
    compact(traffic, lake)
    assert ids(lake) == sorted(f"s-{n}" for n in range(100))
    assert not reconcile(traffic, lake).faults


def test_a_segment_under_another_name_brings_its_rows_no_second_time(tmp_path: Path) -> None:
    traffic, lake = tmp_path / "traffic", tmp_path / "lake"
    serve(traffic, 50)
    (segment,) = (traffic / "sealed").glob("*.seg")
    shutil.copy(segment, segment.with_name(segment.name.replace("000000", "000777")))
    done = compact(traffic, lake)
    assert (done.rows, done.duplicates) == (50, 50)
    assert not reconcile(traffic, lake).faults


def test_a_dead_writers_open_segment_is_salvaged_and_its_losses_are_named(tmp_path: Path) -> None:
    traffic, lake = tmp_path / "traffic", tmp_path / "lake"
    shared = serve(traffic, 57, finish=False)
    (segment,) = (traffic / "open").glob("*.seg")
    with segment.open("ab") as torn:
        torn.write(b"BLK1\xff\xff\x00\x00 torn")
    shared.retire(0)
    done = compact(traffic, lake)
    assert (done.rows, done.salvaged) == (50, 1)
    assert done.bad_bytes > 0
    assert not done.damaged
    books = reconcile(traffic, lake)
    (writer,) = books.writers
    assert (writer.served, writer.logged, writer.lost, writer.ranges) == (57, 50, 7, ((51, 57),))
    assert not books.faults


def test_a_live_writers_segment_is_left_alone(tmp_path: Path) -> None:
    import os

    traffic, lake = tmp_path / "traffic", tmp_path / "lake"
    shared = serve(traffic, 57, finish=False)
    shared.slot(0).cells[page.PID] = os.getpid()
    assert compact(traffic, lake).segments == 0
    books = reconcile(traffic, lake)
    assert (books.total("logged"), books.total("pending"), books.total("lost")) == (50, 7, 0)


def test_a_spoiled_block_keeps_its_segment_and_is_missed_by_the_books(tmp_path: Path) -> None:
    traffic, lake = tmp_path / "traffic", tmp_path / "lake"
    serve(traffic, 100)
    (segment,) = (traffic / "sealed").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    done = compact(traffic, lake)
    assert done.rows == 90
    assert [Path(path).exists() for path in done.damaged] == [True]
    assert "10 acknowledged rows are nowhere" in reconcile(traffic, lake).faults[0]


def test_a_spoiled_part_is_refused_by_name(tmp_path: Path) -> None:
    traffic, lake = tmp_path / "traffic", tmp_path / "lake"
    serve(traffic, 2000)
    (path,) = compact(traffic, lake).parts
    part = lake / path
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 0xFF
    part.write_bytes(data)
    with pytest.raises(LakeRefused, match=part.name):
        window(lake, "m")


def read_right(lake: Path, part: Path, expected: pa.Table) -> bool:
    """Equal to what it was, or refused by its name."""
    try:
        return window(lake, "m", since_us=5 * HOUR_US + 10).equals(expected)
    except LakeRefused as told:
        return part.name in str(told)


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    """Pages have Parquet's checksums; page headers and the footer, where a bit can hide rows or end the process, ours."""
    traffic, lake = tmp_path / "traffic", tmp_path / "lake"
    serve(traffic, 300)
    (path,) = compact(traffic, lake).parts
    part, expected = lake / path, window(lake, "m", since_us=5 * HOUR_US + 10)
    whole = part.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.permutation(len(whole))[: None if FULL else 600]:
        data = bytearray(whole)
        data[place] ^= 1 << rng.integers(8)
        part.write_bytes(data)
        assert read_right(lake, part, expected)
    for length in range(0, len(whole), 97):
        part.write_bytes(whole[:length])
        with pytest.raises(LakeRefused, match=part.name):
            window(lake, "m")


def test_a_model_without_traffic_is_told_what_there_is(tmp_path: Path) -> None:
    serve(tmp_path / "traffic", 10)
    compact(tmp_path / "traffic", tmp_path / "lake")
    with pytest.raises(LakeRefused, match="it has: m"):
        window(tmp_path / "lake", "other")


def test_what_is_deleted_for_its_age_stays_in_the_books(tmp_path: Path) -> None:
    traffic, lake = tmp_path / "traffic", tmp_path / "lake"
    serve(traffic, 1000, step_us=HOUR_US // 250)
    compact(traffic, lake)
    tidy(lake, grace_s=1e9)
    now = 7 * 3600 + 0.04 * 86_400  # hours 5 and 6 ended longer ago than that, 7 and 8 did not
    done = tidy(lake, keep_days=0.04, now=lambda: now)
    assert (done.retired, done.retired_rows) == (1, 250)
    assert ids(lake) == sorted(f"s-{n}" for n in range(250, 1000))
    books = reconcile(traffic, lake)
    assert (books.total("logged"), books.total("lost")) == (1000, 0)
    assert not books.faults
    assert tidy(lake, keep_days=0.0, now=lambda: 1e9).retired == 3
    with pytest.raises(LakeRefused, match="holds no traffic of 'm'"):
        window(lake, "m")
    assert not reconcile(traffic, lake).faults
