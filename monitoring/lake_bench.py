"""What the lake costs: compaction beside a plain `write_table` of the same rows, and the daily questions to ten million rows.

    python -m monitoring.lake_bench [--rows 10000000] [--folder DIR] [--engine duckdb]

Compaction: a real log's segments of 30 features are made parts, verification included; beside it pyarrow's `write_table` of
the very rows, with its defaults, interleaved. Questions: a lake of one day, made once in --folder and kept there, is asked
by the verbs themselves, each a process of its own, as a scheduler would. Writes loadtests/results/lake.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from compile.bundle import locate
from compile.bundle import read as read_bundle
from compile.runtime import open_predictor
from loadtests.servers import commit, machine
from monitoring.compaction import compact, put_outcomes
from monitoring.demo import Places, verb
from monitoring.lake import HOUR_US, OUTCOMES_SCHEMA, SCHEMA
from monitoring.lake_files import open_files, put_table
from serving import page
from serving.routes import read as read_routes
from serving.traffic import Tag, TrafficLog

FEATURES = 30
T0_US = 20_416 * 24 * HOUR_US  # a midnight
PART_ROWS = 210_000  # of a segment of 64 MB
LABELLED = 0.3  # share of rows with an outcome
RESULTS = Path(__file__).parent.parent / "loadtests" / "results" / "lake.md"
QUESTIONS = ("operations", "performance", "drift")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "coppice-lake-bench")
    parser.add_argument("--engine", default="duckdb")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    page_text = [*_head(given), *_compaction(given.folder), *_questions(given)]
    RESULTS.write_text("\n".join(page_text) + "\n", encoding="utf-8")
    print("\n".join(page_text))


def prepare(folder: Path) -> None:
    """A store that serves a model of the lake's features, trained on rows like the lake's, by the verbs themselves."""
    if (folder / "prepared").exists():
        return
    places = Places(folder)
    rng = np.random.default_rng(9)
    features = rng.normal(size=(20_000, FEATURES)).round(4)
    truth = np.where(rng.random(len(features)) < 1 / (1 + np.exp(-features[:, 0])), "1", "0")
    columns = {f"f{n}": features[:, n] for n in range(FEATURES)} | {"y": truth}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    verb(
        places,
        ["train", "--data", str(folder / "rows.parquet"), "--target", "y", "--name", "bench", "--alias", "champion"],
    )
    digest = verb(places, ["compile", "bench@champion"]).split()[-1]
    verb(places, ["routes", "publish", "bench", "--arm", f"champion={digest}", "--note", "benchmark"])
    (folder / "prepared").touch()


def ask(folder: Path, engine: str, question: str) -> tuple[float, float, str]:
    """(seconds, largest resident size in MB, the last line but what is about files) of the verb, as a scheduler runs it."""
    places = Places(folder)
    end = datetime.fromtimestamp(T0_US / 1e6, UTC) + timedelta(days=1)
    since = ["--since", f"{end - timedelta(days=1):%Y-%m-%dT%H:%M}", "--until", f"{end:%Y-%m-%dT%H:%M}"]
    checks = ["--checks", str(folder / "checks"), "--lake", str(places.lake), "--engine", engine]
    calls = {
        "operations": [*since, "--every", "1h"],
        "performance": [*since, "--label-window", "0s", "--out", str(folder / "performance")],
        "drift": [*since, "--every", "day", "--out", str(folder / "drift")],
    }
    call = [sys.executable, "-m", "coppice", question, "bench", *calls[question], *checks]
    began = perf_counter()
    with (folder / f"{question}.log").open("w+", encoding="utf-8") as out:
        process = subprocess.Popen(call, env=places.environment, stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        took = perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        said = out.read()
    if process.returncode not in (0, 1):
        raise SystemExit(f"coppice {question} exited with {process.returncode}: {said[-2000:]}")
    lines = [line.strip() for line in said.splitlines() if line.strip() and str(folder) not in line]
    return took, used.ru_maxrss / 1024, lines[-1] if lines else ""


def make_lake(folder: Path, rows: int) -> Path:
    """A day of `rows` rows by 30 features, in parts as compaction makes them, and outcomes for LABELLED of them."""
    lake, files = Places(folder).lake, open_files(Places(folder).lake)
    fingerprint, predictor = read_bundle(_bundle(folder)).schema.fingerprint, open_predictor(_bundle(folder))
    done = folder / f"made-{rows}-{fingerprint[:12]}"
    if done.exists():
        return lake
    shutil.rmtree(lake, ignore_errors=True)
    rng = np.random.default_rng(0)
    made = 0
    while made < rows:
        hour = made * 24 // rows
        count = min(PART_ROWS, -((hour + 1) * rows // -24) - made)
        ts_us = T0_US + (np.arange(made, made + count) * 24 * HOUR_US // rows)
        table, outcomes = _made(rng, made, ts_us, fingerprint, predictor)
        when = datetime.fromtimestamp(T0_US / 1e6 + hour * 3600, UTC)
        put_table(files, f"model=bench/date={when:%Y-%m-%d}/hour={when:%H}/part-s-{made % 4}-{made:09}.parquet", table)
        put_outcomes(files, f"s-{made:09}", outcomes)
        made += count
        print(f"\r{made:,} of {rows:,} rows", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    done.touch()
    return lake


def _bundle(folder: Path) -> Path:
    return locate(Places(folder).store, read_routes(Places(folder).store, "bench").arms["champion"])


def _made(
    rng: np.random.Generator, first: int, ts_us: np.ndarray[Any, Any], fingerprint: str, predictor: Any
) -> tuple[pa.Table, pa.Table]:
    count = len(ts_us)
    features = rng.normal(size=(count, FEATURES)).round(4)
    score = predictor.score(features)[:, 0].copy()
    ids = pa.array([f"0{stamp:x}{number:06x}" for stamp, number in zip(ts_us, range(count), strict=True)])
    columns: dict[str, Any] = {
        "ts_us": ts_us, "request_id": ids, "row": np.zeros(count, np.int32), "unit": ids,
        "features": pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * FEATURES, features.ravel()),
        "score": score, "status": np.full(count, 200, np.int32),
        "parse_us": rng.integers(3, 40, count).astype(np.int32), "queue_us": rng.integers(0, 900, count).astype(np.int32),
        "score_us": rng.integers(2, 30, count).astype(np.int32), "batch_rows": np.ones(count, np.int32),
        "seq": np.arange(first, first + count), "scores": pa.nulls(count, SCHEMA.field("scores").type),
        "version": pa.array(["1"] * count), "arm": pa.array(["champion"] * count),
        "generation": np.ones(count, np.int64), "role": pa.array(["served"] * count), "schema": pa.array([fingerprint] * count),
        "writer": pa.array([f"s-{first % 4}"] * count),
    }  # fmt: skip
    labelled = np.flatnonzero(rng.random(count) < LABELLED)
    values = (rng.random(count) < 1 / (1 + np.exp(-features[:, 0])))[labelled].astype(float)
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
    prepare(given.folder)
    make_lake(given.folder, given.rows)
    lines = [
        f"## A day of {given.rows:,} rows of {FEATURES} features, {LABELLED:.0%} with an outcome; {given.engine}",
        "",
        "| `coppice` | s | largest resident size, MB | what it said |",
        "| --- | --- | --- | --- |",
    ]
    spent = 0.0
    for question in QUESTIONS:
        took, peak, said = ask(given.folder, given.engine, question)
        spent += took
        lines.append(f"| {question} | {took:.1f} | {peak:,.0f} | {said} |")
        print(lines[-1], file=sys.stderr)
    return [*lines, "", f"All three, start of Python included: {spent:.1f} s (aim 60 s, and 2 GB)."]


def _head(given: argparse.Namespace) -> list[str]:
    told = f"`python -m monitoring.lake_bench --rows {given.rows} --engine {given.engine}`"
    return ["# The lake", "", f"{told}, commit {commit()}, {machine()}", ""]


if __name__ == "__main__":
    main()
