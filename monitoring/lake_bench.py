"""What the lake costs: compaction beside a plain `write_table` of the same rows, and the daily questions to ten million rows.

    python -m monitoring.lake_bench [--rows 10000000] [--folder DIR] [--engine duckdb]

Compaction: a real log's segments of 30 features are made parts, verification included; beside it pyarrow's `write_table` of
the very rows, with its defaults, interleaved. Questions: a lake of one day, made once in --folder and kept there; each
question is asked by a process of its own, whose largest resident size is told. Writes loadtests/results/lake.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loadtests.servers import commit, machine
from monitoring.compaction import compact, put_outcomes
from monitoring.lake import HOUR_US, OUTCOMES_SCHEMA, SCHEMA
from monitoring.lake_files import open_files, put_table
from serving import page
from serving.traffic import Tag, TrafficLog

FEATURES = 30
T0_US = 490_000 * HOUR_US // 24 * 24 // HOUR_US * HOUR_US
PART_ROWS = 210_000  # of a segment of 64 MB
LABELLED = 0.3  # share of rows with an outcome
RESULTS = Path(__file__).parent.parent / "loadtests" / "results" / "lake.md"
QUESTIONS = ("operations", "performance", "drift", "all three")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "coppice-lake-bench")
    parser.add_argument("--engine", default="duckdb")
    parser.add_argument("--ask", choices=QUESTIONS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        print(json.dumps(answer(given.folder / "lake", given.engine, given.ask)))
        return
    page_text = [*_head(given), *_compaction(given.folder), *_questions(given)]
    RESULTS.write_text("\n".join(page_text) + "\n", encoding="utf-8")
    print("\n".join(page_text))


def answer(lake: Path, engine: str, question: str) -> dict[str, Any]:
    """One question, asked as its verb asks it: seconds and the largest resident size in MB."""
    from monitoring.engine import open_engine

    began = perf_counter()
    opened = open_engine(lake, engine)
    asked = {"operations": _operations, "performance": _performance, "drift": _drift}
    told = {name: ask(opened) for name, ask in asked.items() if question in (name, "all three")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": perf_counter() - began, "peak_mb": peak, "told": told}


def _operations(engine: Any) -> str:
    from monitoring.queries import operations

    found = operations(engine, "bench", HOUR_US)
    return f"{sum(found.column('rows').to_pylist()):,} rows in {found.num_rows} hours and arms"


def _performance(engine: Any) -> str:
    from monitoring.queries import labelled

    found = labelled(engine, "bench", columns=("ts_us", "version", "arm", "status", "score"))
    return f"{found.num_rows:,} rows"


def _drift(engine: Any) -> str:
    from monitoring.queries import sample

    found, whole = sample(engine, "bench", 50_000)
    return f"{found.num_rows:,} of {whole:,} rows"


def make_lake(folder: Path, rows: int) -> Path:
    """A day of `rows` rows by 30 features, in parts as compaction makes them, and outcomes for LABELLED of them."""
    lake, files = folder / "lake", open_files(folder / "lake")
    done = folder / f"made-{rows}"
    if done.exists():
        return lake
    shutil.rmtree(lake, ignore_errors=True)
    rng = np.random.default_rng(0)
    made = 0
    while made < rows:
        hour = made * 24 // rows
        count = min(PART_ROWS, -((hour + 1) * rows // -24) - made)
        ts_us = T0_US + (np.arange(made, made + count) * 24 * HOUR_US // rows)
        table, outcomes = _made(rng, made, ts_us)
        when = datetime.fromtimestamp(T0_US / 1e6 + hour * 3600, UTC)
        put_table(files, f"model=bench/date={when:%Y-%m-%d}/hour={when:%H}/part-s-{made % 4}-{made:09}.parquet", table)
        put_outcomes(files, f"s-{made:09}", outcomes)
        made += count
        print(f"\r{made:,} of {rows:,} rows", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    done.touch()
    return lake


def _made(rng: np.random.Generator, first: int, ts_us: np.ndarray[Any, Any]) -> tuple[pa.Table, pa.Table]:
    count = len(ts_us)
    features = rng.normal(size=(count, FEATURES)).round(4)
    score = 1 / (1 + np.exp(-features[:, 0]))
    ids = pa.array([f"0{stamp:x}{number:06x}" for stamp, number in zip(ts_us, range(count), strict=True)])
    challenger = rng.random(count) < 0.5
    columns: dict[str, Any] = {
        "ts_us": ts_us, "request_id": ids, "row": np.zeros(count, np.int32), "unit": ids,
        "features": pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * FEATURES, features.ravel()),
        "score": score, "status": np.full(count, 200, np.int32),
        "parse_us": rng.integers(3, 40, count).astype(np.int32), "queue_us": rng.integers(0, 900, count).astype(np.int32),
        "score_us": rng.integers(2, 30, count).astype(np.int32), "batch_rows": np.ones(count, np.int32),
        "seq": np.arange(first, first + count), "scores": pa.nulls(count, SCHEMA.field("scores").type),
        "version": pa.array(np.where(challenger, "2", "1")), "arm": pa.array(np.where(challenger, "challenger", "champion")),
        "generation": np.ones(count, np.int64), "role": pa.array(["served"] * count), "schema": pa.array(["s"] * count),
        "writer": pa.array([f"s-{first % 4}"] * count),
    }  # fmt: skip
    labelled = np.flatnonzero(rng.random(count) < LABELLED)
    values = (rng.random(count) < score)[labelled].astype(float)
    told = pa.table(
        {
            "ts_us": ts_us[labelled] + HOUR_US, "received_us": ts_us[labelled] + HOUR_US,
            "request_id": ids.take(pa.array(labelled)), "row": np.zeros(len(labelled), np.int32), "value_number": values,
            "value_text": pa.nulls(len(labelled), pa.string()), "seq": first + labelled,
            "writer": pa.array(["s-0"] * len(labelled)),
        },
        schema=OUTCOMES_SCHEMA,
    )  # fmt: skip
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA), told


def _compaction(folder: Path, rows: int = 500_000, rounds: int = 3) -> list[str]:
    times: dict[str, list[float]] = {"compact": [], "write_table": []}
    for _ in range(rounds):
        place = folder / "compaction"
        shutil.rmtree(place, ignore_errors=True)
        _segments(place / "traffic", rows)
        began = perf_counter()
        done = compact(place / "traffic", place / "lake")
        times["compact"].append(perf_counter() - began)
        assert done.rows == rows
        whole = pa.concat_tables([pq.ParquetFile(place / "lake" / part).read() for part in done.parts])
        began = perf_counter()
        pq.write_table(whole, place / "plain.parquet")
        times["write_table"].append(perf_counter() - began)
        shutil.rmtree(place)
    ratio = median(plain / ours for plain, ours in zip(times["write_table"], times["compact"], strict=True))
    return [
        f"## Compaction: {rows:,} rows of {FEATURES} features, of two workers' logs, {rounds} interleaved rounds",
        "",
        "| | s, median | rows/s |",
        "| --- | --- | --- |",
        *(f"| {name} | {median(took):.2f} | {rows / median(took):,.0f} |" for name, took in times.items()),
        "",
        f"Compaction runs at {ratio:.2f} times the speed of the plain `write_table` (aim 0.5), reading segments, dropping what "
        "is known, syncing, reading back with checksums and comparing every column included.",
        "",
    ]


def _segments(traffic: Path, rows: int, workers: int = 2) -> None:
    (traffic / "pages").mkdir(parents=True)
    shared = page.Page.create(traffic / "pages" / "s.page", workers)
    features = np.random.default_rng(1).normal(size=(rows, FEATURES)).round(4)
    for worker in range(workers):
        slot = shared.slot(worker)
        slot.begin(2**22 + 1)
        log = TrafficLog(traffic, server="s", worker=worker, slot=slot, max_blocks=1 << 20)
        tag = log.register(Tag(model="bench", version="1", arm="champion", generation=1, role="served", schema="s"))
        for n in range(worker, rows, workers):
            unit = b"%032x" % n
            log.put(tag, T0_US + n * 200, unit, 0, unit, features[n].tobytes(), 0.5, 200, 5, 90, 7, 1)
            if n % 100_000 < workers:
                while log.crowded:
                    sleep(0.01)
        assert log.close(120)
        shared.retire(worker)


def _questions(given: argparse.Namespace) -> list[str]:
    make_lake(given.folder, given.rows)
    lines = [
        f"## A day of {given.rows:,} rows of {FEATURES} features, {LABELLED:.0%} with an outcome; {given.engine}",
        "",
        "| question | s | largest resident size, MB | what was found |",
        "| --- | --- | --- | --- |",
    ]
    for question in QUESTIONS:
        call = [sys.executable, "-m", "monitoring.lake_bench", "--folder", str(given.folder), "--engine", given.engine]
        ran = subprocess.run([*call, "--ask", question], capture_output=True, text=True, check=True)
        told = json.loads(ran.stdout.splitlines()[-1])
        found = "; ".join(told["told"].values()) if question != "all three" else ""
        lines.append(f"| {question} | {told['seconds']:.1f} | {told['peak_mb']:,.0f} | {found} |")
        print(lines[-1], file=sys.stderr)
    return lines


def _head(given: argparse.Namespace) -> list[str]:
    told = f"`python -m monitoring.lake_bench --rows {given.rows} --engine {given.engine}`"
    return ["# The lake", "", f"{told}, commit {commit()}, {machine()}", ""]


if __name__ == "__main__":
    main()
