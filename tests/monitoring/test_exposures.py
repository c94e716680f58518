"""An experiment's sums are those of its units, as a slow oracle has them, on either engine; who is not of it is left out."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joined import manifest_of

from monitoring import experiment_bench
from monitoring.compaction import compact, put_outcomes
from monitoring.engine import Engine, open_engine
from monitoring.errors import MonitoringError, PlanRefused
from monitoring.evidence import Evidence
from monitoring.experiment import Experiment, Phase
from monitoring.exposures import look
from monitoring.lake import HOUR_US, outcomes_table
from monitoring.lake_files import open_files
from monitoring.plan import CHAMPION, CONTROL, Guardrail, Metric, Plan, Step
from monitoring.unit_metrics import refuse
from serving import page
from serving.outcomes import Outcome
from serving.routes import Routes, split_slots
from serving.traffic import Tag, TrafficLog

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # py4j's
T0 = 400_000 * HOUR_US
WINDOW_US = 2 * HOUR_US
NOW_US = T0 + 9 * HOUR_US
FAILED = Guardrail(metric=Metric(name="failed", kind="rare", better="lower"), margin=0.5)
Opener = Callable[[str | Path], Engine]


def metric(name: str, kind: str = "mean", better: str = "lower", cap: float | None = None) -> Metric:
    return Metric(name=name, kind=kind, better=better, cap=cap)  # type: ignore[arg-type]


def guardrail(name: str, kind: str = "mean") -> Guardrail:
    return Guardrail(metric=metric(name, kind), margin=1.0)


PLAN = Plan(
    name="four",
    unit="customer",
    metric=metric("converted", "proportion", "higher"),
    n_star=1000.0,
    ramp=(Step(share=0.1), Step(share=0.3)),
    guardrails=(
        FAILED,
        *(guardrail(name) for name in ("latency_ms", "accuracy", "log_loss", "brier")),
        Guardrail(metric=metric("revenue", cap=0.5), margin=1.0),
    ),
    label_window_hours=2,
    max_units=10_000,
)


def routes(generation: int, share: float) -> Routes:
    return Routes(
        model="m",
        generation=generation,
        salt="ab" * 16,
        slots=split_slots({CHAMPION: 1 - 2 * share, CONTROL: share, "challenger": share}),
        arms=dict.fromkeys((CHAMPION, CONTROL, "challenger"), "0" * 64),
    )


EXPERIMENT = Experiment(
    PLAN,
    tuple(Phase(n, at, {CHAMPION: s, "challenger": s}) for n, at, s in ((3, T0, 0.1), (4, T0 + 4 * HOUR_US, 0.3))),
    routes(3, 0.1),
    None,
)


def traffic(folder: Path) -> list[dict[str, Any]]:
    """Eight hours of 400 units, some of which a broken client sends to both arms; testers, shadows and fallbacks beside."""
    rng = np.random.default_rng(5)
    (folder / "pages").mkdir(parents=True)
    slot = page.Page.create(folder / "pages" / "s.page", 1).slot(0)
    slot.begin(2**22 + 1)
    log = TrafficLog(folder, server="s", worker=0, slot=slot, block_rows=50, max_blocks=1000)
    tags: dict[tuple[int, str, str], int] = {}
    rows = []
    for n in range(3000):
        ts = T0 - HOUR_US + n * 9 * HOUR_US // 3000
        generation = 2 if ts < T0 else 3 if ts < T0 + 4 * HOUR_US else 4
        number = int(rng.integers(400))
        unit = "" if number == 0 else f"u{number}"
        now = routes(generation, 0.3 if generation == 4 else 0.1)
        arm = now.arm_for((unit or f"r{n}").encode())
        if number > 395:
            arm = str(rng.choice([CONTROL, "challenger"]))
        role = str(rng.choice(["served", "override", "shadow"], p=[0.9, 0.05, 0.05]))
        failed = role == "served" and rng.random() < 0.05
        row = {
            "ts": ts, "id": f"r{n}", "unit": unit or f"r{n}", "arm": arm, "generation": generation, "role": role,
            "failed": failed, "score": math.nan if failed else float(rng.random()),
            "us": [int(us) for us in rng.integers(1, 900, 3)],
        }  # fmt: skip
        for told in (row, row | {"role": "fallback", "arm": CHAMPION, "failed": False}) if failed else (row,):
            key = (generation, told["arm"], told["role"])
            if key not in tags:
                tags[key] = log.register(
                    Tag(model="m", version="1", arm=key[1], generation=generation, role=key[2], schema="s")  # type: ignore[arg-type]
                )
            log.put(
                tags[key], ts, row["id"].encode(), 0, unit.encode(), rng.normal(size=2).tobytes(),
                told["score"], 500 if told["failed"] else 200, *row["us"], 1,
            )  # fmt: skip
        rows.append(row)
    assert log.close(20)
    return rows


def outcomes(rows: list[dict[str, Any]]) -> dict[str, float | str]:
    """Of two rows in three; now and then one that is no label."""
    rng = np.random.default_rng(6)
    values: list[float | str] = [0.0, 1.0, "yes", "no", "perhaps"]
    return {row["id"]: values[int(rng.choice(5, p=[0.3, 0.3, 0.15, 0.2, 0.05]))] for row in rows if rng.random() < 0.7}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], dict[str, float | str]]:
    folder = tmp_path_factory.mktemp("exposures")
    rows = traffic(folder / "traffic")
    told = outcomes(rows)
    compact(folder / "traffic", folder / "lake")
    sent = [Outcome(T0, T0 + n, name, 0, value, n, "w") for n, (name, value) in enumerate(reversed(told.items()))]
    put_outcomes(open_files(folder / "lake"), "import", outcomes_table(sent))
    return folder / "lake", rows, told


TRUE = {0.0: 0.0, 1.0: 1.0, "yes": 1.0, "no": 0.0}


def oracle(rows: list[dict[str, Any]], told: dict[str, float | str], now_us: int) -> dict[str, Any]:
    """A unit at a time."""
    by_unit = defaultdict(list)
    for row in rows:
        if row["role"] == "served" and row["arm"] != CHAMPION and T0 <= row["ts"] < now_us:
            by_unit[row["unit"]].append(row)
    assigned: dict[tuple[int, str], int] = defaultdict(int)
    values: dict[str, dict[tuple[int, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    both = 0
    for theirs in by_unit.values():
        first = min(theirs, key=lambda row: row["ts"])
        cell = (first["generation"], first["arm"])
        assigned[cell] += 1
        both += len({row["arm"] for row in theirs}) > 1
        mine = [row for row in theirs if row["arm"] == first["arm"]]
        values["failed"][cell].append(float(any(row["failed"] for row in mine)))
        values["latency_ms"][cell].append(float(np.mean([sum(row["us"]) / 1000 for row in mine])))
        if first["ts"] + WINDOW_US > now_us:
            continue
        within = [row for row in mine if row["ts"] <= first["ts"] + WINDOW_US]
        labels = [told.get(row["id"]) for row in within]
        values["unlabelled"][cell].append(float(all(label is None for label in labels)))
        true = [TRUE[label] for label in labels if label in TRUE]
        if true:
            values["converted"][cell].append(max(true))
        numbers = [label for label in labels if isinstance(label, float)]
        if numbers:
            values["revenue"][cell].append(min(sum(numbers), 0.5))
        scored = [(row["score"], TRUE[label]) for row, label in zip(within, labels, strict=True)
                  if label in TRUE and not row["failed"]]  # fmt: skip
        if scored:
            values["accuracy"][cell].append(float(np.mean([(s > 0.5) == t for s, t in scored])))
            values["brier"][cell].append(float(np.mean([(s - t) ** 2 for s, t in scored])))
            values["log_loss"][cell].append(float(np.mean([-math.log(s if t else 1 - s) for s, t in scored])))
    return {"assigned": assigned, "values": values, "both": both}


def by_cell(evidence: Evidence) -> dict[tuple[int, str], list[float]]:
    return {
        (int(stratum[0].split()[1]), CONTROL if arm == CHAMPION else arm): [
            sums.n,
            sums.nonzero,
            sums.total,
            sums.squares,
        ]
        for (stratum, arm), sums in evidence.cells.items()
    }


def test_sums_are_those_of_the_units(opener: Opener, world: Any, tiny: Path) -> None:
    """Five hours in, when a part of the units waits for its outcome."""
    agrees(opener(world[0]), world, tiny, T0 + 5 * HOUR_US)


def test_in_the_end_every_unit_has_its_outcome(world: Any, tiny: Path) -> None:
    agrees(open_engine(world[0]), world, tiny, NOW_US + WINDOW_US)


def agrees(engine: Engine, world: Any, tiny: Path, now_us: int) -> None:
    _, rows, told = world
    manifests = dict.fromkeys((CONTROL, "challenger"), manifest_of(tiny))
    seen = look(engine, EXPERIMENT, manifests, now_us)
    wanted = oracle(rows, told, now_us)
    found = {
        (int(phase.split()[1]), CONTROL if arm == CHAMPION else arm): units
        for phase, arms in seen.assigned.items()
        for arm, units in arms.items()
    }
    assert found == wanted["assigned"]
    assert seen.in_two_arms == wanted["both"] > 0
    assert seen.started_us == T0
    assert seen.last_us is not None
    assert seen.last_us < now_us
    for name, evidence in {**seen.metrics, "unlabelled": seen.unlabelled}.items():
        values = wanted["values"][name]
        expected = {cell: [len(x), sum(v != 0 for v in x), sum(x), sum(v * v for v in x)] for cell, x in values.items()}
        got = {cell: sums for cell, sums in by_cell(evidence).items() if sums[0]}
        assert got.keys() == expected.keys()
        for cell, sums in expected.items():
            assert got[cell] == pytest.approx(sums, rel=1e-9), (name, cell)


def test_an_outcome_that_no_sum_can_hold_is_told(world: Any, tiny: Path, tmp_path: Path) -> None:
    lake, rows, _ = world
    copy = tmp_path / "lake"
    shutil.copytree(lake, copy)
    huge = [Outcome(T0, NOW_US, row["id"], 0, 1e200, n, "x") for n, row in enumerate(rows)]
    put_outcomes(open_files(copy), "huge", outcomes_table(huge))
    manifests = dict.fromkeys((CONTROL, "challenger"), manifest_of(tiny))
    plan = Plan(name="x", unit="c", metric=metric("paid"), n_star=10.0, ramp=(Step(share=0.5),), max_units=9)
    experiment = Experiment(plan, EXPERIMENT.phases, EXPERIMENT.first, None)
    with pytest.raises(MonitoringError, match=r"paid: .*finite.* a cap in the plan"):
        look(open_engine(copy), experiment, manifests, NOW_US)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": metric("failed")}, "its kind is rare"),
        ({"metric": metric("latency_ms", "proportion")}, "its kind is mean"),
        ({"adjusted": True}, "adjusted"),
    ],
)
def test_a_metric_that_there_is_not_is_refused(tiny: Path, changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"name": "x", "unit": "c", "metric": metric("paid"), "n_star": 10.0, "max_units": 9}
    with pytest.raises(PlanRefused, match=words):
        refuse(Plan(**(given | {"ramp": (Step(share=0.5),)} | changes)), {CONTROL: manifest_of(tiny)})


def test_accuracy_is_of_two_classes(tiny: Path) -> None:
    manifest = manifest_of(tiny, task="regression", classes=())
    plan = Plan(name="x", unit="c", metric=metric("accuracy"), n_star=10.0, ramp=(Step(share=0.5),), max_units=9)
    with pytest.raises(PlanRefused, match=r"accuracy.*task is regression"):
        refuse(plan, {CONTROL: manifest})


def test_the_bench_measures_what_it_made(tmp_path: Path) -> None:
    experiment_bench.make_lake(tmp_path, 3000, 2)
    told = experiment_bench.answer(tmp_path / "lake", "duckdb", 2)
    assert told["units"] == 3000
    paid = told["sums"]["paid"]
    assert sum(sums[0] for sums in paid.values()) == 0  # two days in, no window of a week is over
    assert sum(sums[0] for sums in told["sums"]["failed"].values()) == 3000
