"""What an experiment has seen, asked of the lake: who was exposed to which arm first, and what became of them.

A unit belongs to the arm and the phase (generation) of its first row in the experiment, for good: of its own request's arm
(role `served`), never of an arm that a tester named (`override`), of a shadow, or of the champion that stood in for an arm that
failed. A request without a unit is a unit. Those that came to two arms are counted, and stay with their first.

Two questions are asked, whatever the number of units: sums over units by (generation, arm), of what is known at once and of
what waits for its outcome. They are exact sums of each unit's value, so every engine gives the same, but for the last digits
of sums of fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ibis

from compile.bundle import Manifest
from monitoring import queries
from monitoring.engine import Engine
from monitoring.errors import MonitoringError
from monitoring.evidence import Evidence, Moments, Stratum
from monitoring.experiment import Experiment
from monitoring.plan import CHAMPION, CONTROL, Metric
from monitoring.unit_metrics import AT_ONCE, at_once, metrics, of_rows
from monitoring.verdict import HOUR_US, Seen

PARTS = ("n", "nonzero", "total", "squares")


def look(engine: Engine, experiment: Experiment, manifests: Mapping[str, Manifest], now_us: int) -> Seen:
    """As of `now_us`. `manifests` by arm, the control's first. Raises LakeRefused where the lake has nothing of the model."""
    rows = _rows(engine, experiment, now_us)
    units = _units(rows)
    asked = metrics(experiment.plan)
    first = engine.ask(_known(units, [metric for metric in asked if metric.name in AT_ONCE])).to_pylist()
    later = [metric for metric in asked if metric.name not in AT_ONCE]
    matured = (
        engine.ask(_matured(engine, experiment, rows, units, later, manifests, now_us)).to_pylist() if later else []
    )
    found = {metric.name: _evidence(first if metric.name in AT_ONCE else matured, metric.name) for metric in asked}
    return Seen(
        shares={phase.name: phase.shares for phase in experiment.phases},
        assigned={
            phase.name: {_arm(row): row["units"] for row in first if row["generation"] == phase.generation}
            for phase in experiment.phases
        },
        metrics=found,
        started_us=experiment.started_us,
        last_us=max((row["last_us"] for row in first), default=None),
        in_two_arms=sum(row["in_two_arms"] for row in first),
        unlabelled=_evidence(matured, "unlabelled"),
    )


def _rows(engine: Engine, experiment: Experiment, now_us: int) -> Any:
    rows = engine.rows(experiment.model, since_us=experiment.started_us, until_us=now_us)
    generations = [phase.generation for phase in experiment.phases]
    ours = (rows.role == "served") & rows.generation.isin(generations) & rows.arm.isin(experiment.arms)
    rows = rows.filter(ours)
    return rows.mutate(
        who=ibis.ifelse(rows.unit == "", rows.request_id, rows.unit),
        whole_us=(rows.parse_us + rows.queue_us + rows.score_us).cast("float64"),
    )


def _units(rows: Any) -> Any:
    """One line a unit: `who, arm, generation, first_us, last_us, failed, latency_us, in_two_arms`."""
    by_arm = rows.group_by("who", "arm").agg(
        generation=rows.generation.min(),
        first_us=rows.ts_us.min(),
        last_us=rows.ts_us.max(),
        failed=(rows.status != 200).cast("int64").max(),
        latency_us=rows.whole_us.mean(),
    )
    order = [by_arm.generation, by_arm.first_us, by_arm.arm]
    window = ibis.window(group_by="who", order_by=order)
    placed = by_arm.mutate(
        place=ibis.row_number().over(window),
        in_two_arms=(by_arm.arm.count().over(ibis.window(group_by="who")) > 1).cast("int64"),
    )
    return placed.filter(placed.place == 0).drop("place")


def _known(units: Any, asked: Iterable[Metric]) -> Any:
    sums: dict[str, Any] = {}
    for metric in asked:
        sums |= _sums(metric.name, at_once(metric, units))
    return units.group_by("generation", "arm").agg(
        units=units.count(), last_us=units.last_us.max(), in_two_arms=units.in_two_arms.sum().cast("int64"), **sums
    )


def _matured(
    engine: Engine,
    experiment: Experiment,
    rows: Any,
    units: Any,
    asked: Iterable[Metric],
    manifests: Mapping[str, Manifest],
    now_us: int,
) -> Any:
    """Of units whose window is over, from the rows within it."""
    window_us = round(experiment.plan.label_window_hours * HOUR_US)
    closed = units.filter(units.first_us + window_us <= now_us)
    closed = closed.select("first_us", its_arm="arm", its_who="who", its_generation="generation")
    within = rows.join(closed, [rows.who == closed.its_who, rows.arm == closed.its_arm])
    within = within.filter(within.ts_us <= within.first_us + window_us)
    told = queries.counting(engine, since_us=experiment.started_us).rename(told_id="request_id", told_row="row")
    joined = within.left_join(told, [within.request_id == told.told_id, within.row == told.told_row])
    came = joined.value_number.notnull() | joined.value_text.notnull()
    values = {f"value_{n}": of_rows(metric, joined, manifests) for n, metric in enumerate(asked)}
    by_unit = joined.group_by("who", "arm", generation=joined.its_generation).agg(
        unlabelled=1 - came.cast("int64").max(), **values
    )
    sums = _sums("unlabelled", by_unit.unlabelled.cast("float64"))
    for n, metric in enumerate(asked):
        sums |= _sums(metric.name, by_unit[f"value_{n}"])
    return by_unit.group_by("generation", "arm").agg(**sums)


def _sums(name: str, value: Any) -> dict[str, Any]:
    found = (value.count(), (value != 0).cast("int64").sum(), value.sum(), (value * value).sum())
    return {f"{name}.{part}": one for part, one in zip(PARTS, found, strict=True)}


def _evidence(found: Iterable[Mapping[str, Any]], name: str) -> Evidence:
    cells: dict[tuple[Stratum, str], Moments] = {}
    for row in found:
        n, nonzero, total, squares = (row[f"{name}.{part}"] or 0 for part in PARTS)
        try:
            cells[(f"generation {row['generation']}",), _arm(row)] = Moments(n, nonzero, float(total), float(squares))
        except ValueError as beyond:
            raise MonitoringError(f"{name}: {beyond}; a cap in the plan bounds it") from None
    return Evidence(cells)


def _arm(row: Mapping[str, Any]) -> str:
    arm: str = row["arm"]
    return CHAMPION if arm == CONTROL else arm
