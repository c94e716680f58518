"""What a plan's metric is of one unit, by its name, as Ibis expressions over the unit's rows.

    failed       1 where the unit's own arm failed on one of its rows (status other than 200), whoever answered then
    latency_ms   its rows' mean time in the server: parsing, waiting, scoring
    accuracy     \\
    error         | means over its rows with an outcome, of the scores that its arm gave: of binary models
    log_loss      |
    brier        /
    any other    the outcome itself: of a `mean` the sum over the unit's rows (revenue), of a `proportion` or something
                 `rare` 1 where one of them is positive (conversion)

The first two are known at once. The others wait until the label window of the unit is over, and know the unit's rows within
the window after its first. Outcomes are read as `monitoring.labels` does; what is no label of the model is no outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ibis

from compile.bundle import Manifest
from monitoring.errors import PlanRefused
from monitoring.labels import places
from monitoring.plan import Metric, Plan

AT_ONCE = ("failed", "latency_ms")
OF_SCORES = ("accuracy", "error", "log_loss", "brier")
LEAST = 1e-15  # of a probability whose logarithm is taken


def metrics(plan: Plan) -> list[Metric]:
    return [plan.metric, *(guardrail.metric for guardrail in plan.guardrails)]


def refuse(plan: Plan, manifests: Mapping[str, Manifest]) -> None:
    """Metrics that these models do not have. Raises PlanRefused, naming it."""
    for metric in metrics(plan):
        where = f"metric {metric.name!r}"
        if metric.name in OF_SCORES and any(manifest.task != "binary" for manifest in manifests.values()):
            raise PlanRefused(f"{where}: is of binary models; this one's task is {_task(manifests)}")
        if metric.name == "failed" and metric.kind == "mean":
            raise PlanRefused(f"{where}: is 0 or 1: its kind is rare, or proportion")
        if metric.name in ("latency_ms", *OF_SCORES) and metric.kind != "mean":
            raise PlanRefused(f"{where}: its kind is mean")
    if plan.adjusted:
        raise PlanRefused("adjusted: the champion's score of a challenger's units is not in the log; leave it out")


def at_once(metric: Metric, units: Any) -> Any:
    """Of a table of units with `failed` and `latency_us`."""
    if metric.name == "failed":
        return units.failed.cast("float64")
    return _cut(metric, units.latency_us / 1000.0)


def of_rows(metric: Metric, rows: Any, manifests: Mapping[str, Manifest]) -> Any:
    """An aggregate over a unit's rows, null where it has none with an outcome."""
    if metric.name in OF_SCORES:
        return _cut(metric, _by_score(metric.name, rows, manifests).mean())
    if metric.kind == "mean":
        usable = ~(rows.value_number.isnan() | rows.value_number.isinf())
        return _cut(metric, ibis.ifelse(usable, rows.value_number, None).sum())
    return truth(rows, next(iter(manifests.values()))).max()


def truth(rows: Any, manifest: Manifest) -> Any:
    """1.0 or 0.0, or null where there is no outcome that says which."""
    cases = [(rows.value_text == name, float(code)) for code, name in enumerate(manifest.classes[:2])]
    known = places(manifest.classes) if manifest.task == "binary" else {0.0: 0.0, 1.0: 1.0}
    cases += [(rows.value_number == value, code) for value, code in known.items()]
    return ibis.cases(*cases, else_=ibis.null("float64"))


def _by_score(name: str, rows: Any, manifests: Mapping[str, Manifest]) -> Any:
    true = truth(rows, next(iter(manifests.values())))
    score = ibis.ifelse((rows.status == 200) & ~rows.score.isnan(), rows.score, ibis.null("float64"))
    if name == "brier":
        return (score - true) * (score - true)
    if name == "log_loss":
        sure = score.clip(LEAST, 1 - LEAST)
        return ibis.cases((true == 1.0, -sure.ln()), (true == 0.0, -(1.0 - sure).ln()), else_=ibis.null("float64"))
    threshold = ibis.cases(
        *((rows.arm == arm, manifest.threshold) for arm, manifest in manifests.items()), else_=ibis.null("float64")
    )
    right = ((score > threshold).cast("float64") == true).cast("float64")
    return right if name == "accuracy" else 1.0 - right


def _cut(metric: Metric, value: Any) -> Any:
    return value if metric.cap is None else value.clip(-metric.cap, metric.cap)


def _task(manifests: Mapping[str, Manifest]) -> str:
    return ", ".join(sorted({manifest.task for manifest in manifests.values()}))
