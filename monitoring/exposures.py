"""What an experiment has seen, asked of the lake: who was exposed to which arm first, and what became of them.

A unit belongs to the arm and the phase (generation) of its first row in the experiment, for good: of its own request's arm
(role `served`), never of an arm that a tester named (`override`), of a shadow, or of the champion that stood in for an arm that
failed. A request without a unit is a unit. Those that came to two arms are counted, and stay with their first.

One question is asked, whatever the number of units, which reads the lake once: sums over units by (generation, arm), of what is
known at once and of what waits for its outcome. They are exact sums of each unit's value, so every engine gives the same, but
for the last digits of sums of fractions.
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
from monitoring.plan import CHAMPION, CONTROL
from monitoring.unit_metrics import AT_ONCE, at_once, metrics, of_rows
from monitoring.verdict import HOUR_US, Seen

UNLABELLED = "unlabelled"
PARTS = ("n", "nonzero", "total", "squares")


def look(engine: Engine, experiment: Experiment, manifests: Mapping[str, Manifest], now_us: int) -> Seen:
    """As of `now_us`. `manifests` by arm, the control's first. Raises LakeRefused where the lake has nothing of the model."""
    asked = metrics(experiment.plan)
    found = engine.ask(_question(engine, experiment, manifests, now_us)).to_pylist()
    return Seen(
        shares={phase.name: phase.shares for phase in experiment.phases},
        assigned={
            phase.name: {_arm(row): row["units"] for row in found if row["generation"] == phase.generation}
            for phase in experiment.phases
        },
        metrics={metric.name: _evidence(found, metric.name) for metric in asked},
        started_us=experiment.started_us,
        last_us=max((row["last_us"] for row in found), default=None),
        in_two_arms=sum(row["in_two_arms"] for row in found),
        unlabelled=_evidence(found, UNLABELLED) if any(metric.name not in AT_ONCE for metric in asked) else Evidence(),
    )


def _question(engine: Engine, experiment: Experiment, manifests: Mapping[str, Manifest], now_us: int) -> Any:
    """Sums over units, by (generation, arm): PARTS of each metric, and of `unlabelled`, and counts of units."""
    window_us = round(experiment.plan.label_window_hours * HOUR_US)
    asked = metrics(experiment.plan)
    later = [metric for metric in asked if metric.name not in AT_ONCE]
    rows = _rows(engine, experiment, now_us)
    values: dict[str, Any] = {}
    if later:
        rows = _with_outcomes(engine, experiment, rows, window_us)
        values = {f"value_{n}": of_rows(metric, rows, manifests) for n, metric in enumerate(later)}
        values[UNLABELLED] = 1 - (rows.value_number.notnull() | rows.value_text.notnull()).cast("int64").max()
    units = _units(rows, values)
    closed = units.first_us + window_us <= now_us
    sums: dict[str, Any] = {}
    for metric in asked:
        if metric.name in AT_ONCE:
            sums |= _sums(metric.name, at_once(metric, units))
    for n, metric in enumerate(later):
        sums |= _sums(metric.name, ibis.ifelse(closed, units[f"value_{n}"], ibis.null("float64")))
    if later:
        sums |= _sums(UNLABELLED, ibis.ifelse(closed, units[UNLABELLED].cast("float64"), ibis.null("float64")))
    return units.group_by("generation", "arm").agg(
        units=units.count(), last_us=units.last_us.max(), in_two_arms=units.in_two_arms.sum().cast("int64"), **sums
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


def _with_outcomes(engine: Engine, experiment: Experiment, rows: Any, window_us: int) -> Any:
    """Each row's outcome, null where there is none, or where the row came after its unit's window."""
    told = queries.counting(engine, since_us=experiment.started_us)
    told = told.select("value_number", "value_text", told_id="request_id", told_row="row")
    joined = rows.left_join(told, [rows.request_id == told.told_id, rows.row == told.told_row])
    first_us = joined.ts_us.min().over(ibis.window(group_by=["who", "arm"]))
    joined = joined.mutate(within=joined.ts_us <= first_us + window_us)
    return joined.mutate(
        value_number=ibis.ifelse(joined.within, joined.value_number, ibis.null("float64")),
        value_text=ibis.ifelse(joined.within, joined.value_text, ibis.null("string")),
    )


def _units(rows: Any, values: Mapping[str, Any]) -> Any:
    """One line a unit: `who, arm, generation, first_us, last_us, failed, latency_us, in_two_arms`, and its `values`."""
    by_arm = rows.group_by("who", "arm").agg(
        generation=rows.generation.min(),
        first_us=rows.ts_us.min(),
        last_us=rows.ts_us.max(),
        failed=(rows.status != 200).cast("int64").max(),
        latency_us=rows.whole_us.mean(),
        **values,
    )
    order = [by_arm.generation, by_arm.first_us, by_arm.arm]
    placed = by_arm.mutate(
        place=ibis.row_number().over(ibis.window(group_by="who", order_by=order)),
        in_two_arms=(by_arm.arm.count().over(ibis.window(group_by="who")) > 1).cast("int64"),
    )
    return placed.filter(placed.place == 0).drop("place")


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
