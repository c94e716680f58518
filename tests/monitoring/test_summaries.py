"""Summaries say what the lake says, are made again when an hour changes, and are nothing that anybody misses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT

from monitoring import queries
from monitoring.dashboard_bench import hour_of_rows
from monitoring.engine import open_engine
from monitoring.lake import HOUR_US
from monitoring.lake_files import open_files, put_table
from monitoring.latency_buckets import BUCKETS, ERROR, quantiles_us
from monitoring.summaries import BINS, folder_of, hours_of, read_days, stale
from monitoring.summary_frame import Frame
from monitoring.summing import Summing

T0 = 490_000 * HOUR_US  # 2025-11-24 16:00


def part(lake: Path, hour: int, rows: pa.Table, name: str = "a") -> None:
    date, within = np.datetime_as_string(np.datetime64(T0 // 1_000_000 + 3600 * hour, "s"), "h").split("T")
    put_table(open_files(lake), f"model=m/date={date}/hour={within}/part-{name}.parquet", rows)


def lake_of(folder: Path, hours: int = 10, rows: int = 300) -> Path:
    for hour in range(hours):
        part(folder / "lake", hour, hour_of_rows(T0 + hour * HOUR_US, rows, hour))
    return folder / "lake"


def summing(folder: Path) -> Summing:
    return Summing(str(folder / "lake"), "duckdb", folder / "cache", lambda _: (0.0, 1.0))


def frame(of: Summing) -> Frame:
    found = of.summary("m")
    assert found is not None, of.trouble
    assert (found.waiting, found.trouble, of.trouble) == (0, "", "")
    return found.frame


def test_sums_are_those_of_the_queries(tmp_path: Path) -> None:
    lake = lake_of(tmp_path)
    kept = summing(tmp_path)
    kept.refresh()
    engine = open_engine(lake)
    table = queries.operations(engine, "m", HOUR_US).to_pylist()
    assert len(table) == 20
    for row in table:
        found = frame(kept).pick(since_us=row["begin_us"], until_us=row["begin_us"] + HOUR_US, shadow=False)
        sums = found.of(row["arm"], row["version"], False).sums()
        for name in ("rows", "requests", "errors", "fallbacks", "overrides", "max_us"):
            assert getattr(sums, name) == row[name]
        assert sums.batch_rows / sums.timed == row["batch_rows"]
        exact = [row["p50_us"], row["p95_us"], row["p99_us"]]
        for told, known in zip(quantiles_us(sums.latency, [0.5, 0.95, 0.99]), exact, strict=True):
            assert told is not None
            assert abs(told - known) <= ERROR * known
    scored = queries.score_histogram(engine, "m", (0.0, 1.0), BINS).to_pylist()
    for row in scored:
        assert frame(kept).of(row["arm"], row["version"], False).sums().scores[row["bin"]] == row["rows"]
    assert sum(row["rows"] for row in scored) == sum(
        int(frame(kept).of(*who).sums().scores.sum()) for who in frame(kept).arms() if not who[2]
    )


def test_an_hour_that_changes_is_summed_up_again_and_no_other(tmp_path: Path) -> None:
    lake = lake_of(tmp_path)
    kept = summing(tmp_path)
    kept.refresh()
    assert frame(kept).sums().latency.sum() == 3000
    files = open_files(lake)
    assert not stale(read_days(tmp_path / "cache", str(lake), "m"), hours_of(files, "m"), (0.0, 1.0))
    part(lake, 3, hour_of_rows(T0 + 3 * HOUR_US, 50, 99), "late")
    (changed,) = stale(read_days(tmp_path / "cache", str(lake), "m"), hours_of(files, "m"), (0.0, 1.0))
    assert changed == ("2025-11-24", ["19"])
    kept.refresh()
    assert frame(kept).sums().latency.sum() == 3050
    (gone,) = (lake / "model=m/date=2025-11-24/hour=16").iterdir()
    gone.unlink()
    kept.refresh()
    assert frame(kept).sums().latency.sum() == 2750


def test_a_second_start_finds_what_the_first_summed_up(tmp_path: Path) -> None:
    lake_of(tmp_path)
    first, second = summing(tmp_path), summing(tmp_path)
    first.refresh()
    days = sorted(folder_of(tmp_path / "cache", str(tmp_path / "lake"), "m").iterdir())
    written = {path: path.stat().st_mtime_ns for path in days}
    assert [path.name for path in days] == ["2025-11-24.json", "2025-11-25.json"]
    second.refresh()
    assert {path: path.stat().st_mtime_ns for path in days} == written
    for one, other in zip(vars_of(frame(first)), vars_of(frame(second)), strict=True):
        assert np.array_equal(one, other)


def vars_of(found: Frame) -> list[np.ndarray]:
    return [getattr(found, name) for name in Frame.__dataclass_fields__]


@pytest.mark.parametrize("spoil", [b"", b"{}", b"00000000\n{}", None])
def test_a_spoiled_file_costs_a_look_and_nothing_else(spoil: bytes | None, tmp_path: Path) -> None:
    lake = lake_of(tmp_path, hours=2, rows=50)
    summing(tmp_path).refresh()
    (path,) = folder_of(tmp_path / "cache", str(lake), "m").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"16"', b'"17"', 1) if spoil is None else spoil)
    again = summing(tmp_path)
    again.refresh()
    assert frame(again).sums().latency.sum() == 100
    assert path.read_bytes() == whole


WRITER = """
import os, signal, sys, time
from pathlib import Path
from monitoring.summaries import Day, Hour, Stretch, write_day
one = Stretch(begin_us=0, arm="a", version="1", shadow=False, rows=1, requests=1, errors=0, fallbacks=0, overrides=0,
              timed_us=1, batch_rows=1, max_us=1, last_us=1, latency=tuple((n, 1) for n in range(400)), scores=())
day = Day("lake", "m", "2026-01-01", (0.0, 1.0), {f"{n:02}": Hour("x" * 32, (one,) * 60) for n in range(24)})
for turn in range(8):
    child = os.fork()
    while child == 0:
        write_day(Path(sys.argv[1]), day)
    time.sleep(0.05 + turn * 0.013)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(*(path.name for path in Path(sys.argv[1]).rglob("*.json") if not path.name.startswith(".")), flush=True)
"""


def test_a_writer_that_is_killed_leaves_no_half_file(tmp_path: Path) -> None:
    call = [sys.executable, "-c", WRITER, str(tmp_path)]
    said = subprocess.run(call, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert set(said.stdout.split()) == {"2026-01-01.json"}  # or nothing yet, where it was killed before its first
    assert len(read_days(tmp_path, "lake", "m")["2026-01-01"].hours) == 24


def test_a_spoiled_part_is_told_and_the_other_days_are_there(tmp_path: Path) -> None:
    lake = lake_of(tmp_path)
    (spoiled,) = (lake / "model=m/date=2025-11-25/hour=01").iterdir()
    data = bytearray(spoiled.read_bytes())
    data[-20] ^= 0xFF  # of the footer: pages of columns that are not asked for are not read
    spoiled.write_bytes(data)
    kept = summing(tmp_path)
    kept.refresh()
    found = kept.summary("m")
    assert found is not None
    assert spoiled.name in found.trouble
    assert (found.hours, found.waiting) == (8, 2)


def test_a_lake_that_is_not_there_has_no_models(tmp_path: Path) -> None:
    kept = summing(tmp_path)
    kept.refresh()
    assert (kept.models(), kept.trouble) == ([], "")
    assert not (tmp_path / "cache").exists()


def test_quantiles_of_any_times_are_within_the_bound() -> None:
    rng = np.random.default_rng(1)
    from monitoring.latency_buckets import MIDDLES_US

    for _ in range(50):
        times = np.floor(rng.lognormal(rng.uniform(0, 15), rng.uniform(0.1, 3), int(rng.integers(1, 200)))).astype(
            np.int64
        )
        times = np.clip(times, 0, 2**33)
        edges = np.floor(MIDDLES_US).astype(np.int64)
        places = np.abs(edges[None, :] - times[:, None]).argmin(axis=1)
        wanted = [0.0, 0.5, 0.95, 0.99, 1.0]
        told = quantiles_us(np.bincount(places, minlength=BUCKETS), wanted)
        for value, known in zip(told, np.quantile(times, wanted), strict=True):
            assert value is not None
            assert abs(value - known) <= ERROR * known + 1e-9
