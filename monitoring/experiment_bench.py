"""What it costs to evaluate an experiment: 1 million units in three arms over 90 days, from the lake to a verdict.

    python -m monitoring.experiment_bench [--units 1000000] [--days 90] [--folder DIR] [--engine duckdb] [--engine local[2]]

The lake is made once in --folder and kept there: an hour's rows a part, two rows a unit, each with an outcome, which come in a
part a day. Each engine is asked by a process of its own, three times, and what it found is compared with what the first found.
Writes loadtests/results/experiments.md.
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
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from loadtests.servers import commit, machine
from monitoring.acting import Phase as Mark
from monitoring.compaction import put_outcomes
from monitoring.decisions import Inputs, decide
from monitoring.engine import open_engine
from monitoring.experiment import Experiment, Phase
from monitoring.exposures import look
from monitoring.lake import HOUR_US, OUTCOMES_SCHEMA, SCHEMA
from monitoring.lake_files import open_files, put_table
from monitoring.plan import CHAMPION, CONTROL, Guardrail, Metric, Plan, Step
from serving.routes import Routes, split_slots

ARMS = (CONTROL, "second", "third")
GENERATION = 2
FEATURES = 30
ROWS_OF_A_UNIT = 2
T0_US = 490_000 * HOUR_US // 24 * 24 // HOUR_US * HOUR_US
RESULTS = Path(__file__).parent.parent / "loadtests" / "results" / "experiments.md"
TIMES = 3
PLAN = Plan(
    name="bench",
    unit="customer",
    metric=Metric(name="paid", kind="mean", better="higher", cap=50.0),
    n_star=1_000_000.0,
    challengers=("second", "third"),
    ramp=(Step(share=1 / 3),),
    guardrails=(
        Guardrail(metric=Metric(name="failed", kind="rare", better="lower"), margin=0.5),
        Guardrail(metric=Metric(name="latency_ms", kind="mean", better="lower"), margin=1.0),
    ),
    label_window_hours=24 * 7,
    max_days=120,
    max_units=10_000_000,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "coppice-experiment-bench")
    parser.add_argument("--engine", action="append", help="duckdb, or a Spark; may be given twice")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        print(json.dumps(answer(given.folder / "lake", given.ask, given.days)))
        return
    make_lake(given.folder, given.units, given.days)
    text = [*_head(given), *_measured(given)]
    RESULTS.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


def answer(lake: Path, engine: str, days: int) -> dict[str, Any]:
    began = perf_counter()
    now_us = T0_US + days * 24 * HOUR_US
    seen = look(open_engine(lake, engine), _experiment(), {}, now_us)
    looked = perf_counter()
    made = decide(Inputs("bench", GENERATION, now_us, False, PLAN, (Mark(f"generation {GENERATION}", T0_US),), seen))
    sums = {
        name: {
            arm: [cell.n, cell.nonzero, cell.total, cell.squares] for (_, arm), cell in sorted(evidence.cells.items())
        }
        for name, evidence in {**seen.metrics, "unlabelled": seen.unlabelled}.items()
    }
    return {
        "look_s": looked - began,
        "whole_s": perf_counter() - began,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "units": sum(sum(arms.values()) for arms in seen.assigned.values()),
        "state": f"{made.verdict.state}: {made.verdict.reason}",
        "sums": sums,
    }


def make_lake(folder: Path, units: int, days: int) -> None:
    done, files = folder / f"made-{units}-{days}", open_files(folder / "lake")
    if done.exists():
        return
    shutil.rmtree(folder / "lake", ignore_errors=True)
    rng = np.random.default_rng(0)
    rows, made = units * ROWS_OF_A_UNIT, 0
    who = rng.permutation(np.repeat(np.arange(units), ROWS_OF_A_UNIT))
    arm_of = rng.integers(0, len(ARMS), units)
    for day in range(days):
        outcomes = []
        for hour in range(24):
            end = rows * (24 * day + hour + 1) // (24 * days)
            begin_us = T0_US + (24 * day + hour) * HOUR_US
            table = _rows(rng, who[made:end], arm_of, made, begin_us)
            when = datetime.fromtimestamp(begin_us / 1e6, UTC)
            put_table(files, f"model=bench/date={when:%Y-%m-%d}/hour={when:%H}/part-s-0-{made:09}.parquet", table)
            outcomes.append(_outcomes(rng, table))
            made = end
        put_outcomes(files, f"s-{day:04}", pa.concat_tables(outcomes))
        print(f"\r{made:,} of {rows:,} rows", end="", file=sys.stderr, flush=True)
    done.touch()


def _rows(rng: np.random.Generator, who: Any, arm_of: Any, first: int, begin_us: int) -> pa.Table:
    count = len(who)
    times = rng.integers(20, 400, (3, count))
    columns = {
        "ts_us": begin_us + np.sort(rng.integers(0, HOUR_US, count)),
        "request_id": [f"{first + n:032x}" for n in range(count)],
        "row": np.zeros(count, np.int32),
        "unit": [f"customer-{number:09}" for number in who],
        "features": pa.FixedSizeListArray.from_arrays(rng.normal(size=count * FEATURES), FEATURES).cast(
            SCHEMA.field("features").type
        ),
        "score": rng.random(count),
        "status": np.where(rng.random(count) < 0.001, 500, 200),
        "parse_us": times[0], "queue_us": times[1], "score_us": times[2],
        "batch_rows": np.ones(count, np.int32),
        "seq": np.arange(first, first + count),
        "scores": pa.nulls(count, SCHEMA.field("scores").type),
        "version": ["1"] * count,
        "arm": [ARMS[number] for number in arm_of[who]],
        "generation": np.full(count, GENERATION),
        "role": ["served"] * count,
        "schema": ["s"] * count,
        "writer": ["s-0"] * count,
    }  # fmt: skip
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _outcomes(rng: np.random.Generator, rows: pa.Table) -> pa.Table:
    """What each row's customer pays: most nothing, some a lot."""
    count, at = rows.num_rows, rows["ts_us"].to_numpy()
    paid = np.where(rng.random(count) < 0.1, rng.lognormal(2.0, 1.0, count), 0.0)
    columns = {
        "ts_us": at, "received_us": at + HOUR_US, "request_id": rows["request_id"], "row": rows["row"], "value_number": paid,
        "value_text": pa.nulls(count, pa.string()), "seq": rows["seq"], "writer": rows["writer"],
    }  # fmt: skip
    return pa.table([columns[name] for name in OUTCOMES_SCHEMA.names], schema=OUTCOMES_SCHEMA)


def _experiment() -> Experiment:
    third = 1 / len(ARMS)
    routes = Routes(
        model="bench", generation=GENERATION, salt="ab" * 16, arms=dict.fromkeys((CHAMPION, *ARMS), "0" * 64),
        slots=split_slots(dict.fromkeys(ARMS, third)),
    )  # fmt: skip
    shares = dict.fromkeys((CHAMPION, *PLAN.challengers), third)
    return Experiment(PLAN, (Phase(GENERATION, T0_US, shares),), routes, None)


def _measured(given: argparse.Namespace) -> list[str]:
    lines = [
        "| engine | looking, s | verdict and all, s | largest resident size, MB | agrees |",
        "|---|---|---|---|---|",
    ]
    first: dict[str, Any] | None = None
    for engine in given.engine or ["duckdb"]:
        told = [_asked(given, engine) for _ in range(TIMES)]
        first = first or told[0]
        agrees = all(_alike(first["sums"], one["sums"]) and first["units"] == one["units"] for one in told)
        seconds = [f"{median(one[name] for one in told):.1f}" for name in ("look_s", "whole_s")]
        peak = max(one["peak_mb"] for one in told)
        lines.append(f"| {engine} | {seconds[0]} | {seconds[1]} | {peak:,.0f} | {'yes' if agrees else 'NO'} |")
    assert first is not None
    return [*lines, "", f"{first['units']:,} units; {first['state']}."]


def _asked(given: argparse.Namespace, engine: str) -> dict[str, Any]:
    call = [
        sys.executable,
        "-m",
        "monitoring.experiment_bench",
        "--folder",
        str(given.folder),
        "--days",
        str(given.days),
    ]
    ran = subprocess.run([*call, "--ask", engine], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def _alike(ours: Any, theirs: Any) -> bool:
    """Counts to the unit, sums of fractions to a part in 10^9."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(_alike(ours[name], theirs[name]) for name in ours)
    return ours[:2] == theirs[:2] and bool(np.allclose(ours[2:], theirs[2:], rtol=1e-9))


def _head(given: argparse.Namespace) -> list[str]:
    call = "python -m monitoring.experiment_bench " + " ".join(f"--engine {name}" for name in given.engine or [])
    return [
        "# Evaluating an experiment",
        "",
        f"`{call.strip()}`, commit {commit()}, {datetime.now(UTC):%Y-%m-%d}, {machine()}: {given.units:,} units of "
        f"{ROWS_OF_A_UNIT} rows with an outcome each, {len(ARMS)} arms, {given.days} days, in {24 * given.days:,} "
        f"parts. Medians of {TIMES}, each in a process of its own, the interpreter's start and imports left out.",
        "",
    ]


if __name__ == "__main__":
    main()
