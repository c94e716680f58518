"""What the checks found, as the facts that `monitoring.watch` decides from; and the decisions, remembered.

A decision is a check of kind "watch": `verdict` is retrain, wait or investigate; `found` has "rule", "reasons", "inputs" (the
hash of what it was decided from) and "facts". Decided again from the same facts, to the same end, it is not written again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Literal

from monitoring import checks as memory
from monitoring.checks import Check, latest
from monitoring.consecutive import alike, consecutive
from monitoring.watch import Facts, Limits, Verdict, decide, inputs_hash

LOSSES = ("log_loss", "brier", "mae", "rmse")
LEAST_BEFORE = 3  # windows before the newest that say what is usual
ESTIMATE_DROP, ESTIMATE_LOSS_SHARE = 0.02, 0.1


def watch(checks: Path, model: str, version: str, limits: Limits, *, now_us: int) -> tuple[Verdict, Check]:
    """Decide from what is remembered, and remember it."""
    facts = gather(checks, model, version, limits, now_us=now_us)
    before = memory.read(checks, "watch", model)
    verdict = decide(facts, limits, since_retrain_us=_since_retrain(before, inputs_hash(facts, limits), now_us))
    last = before[-1] if before else None
    if last and (last.found.get("inputs"), last.found.get("rule")) == (verdict.inputs, verdict.rule):
        return verdict, last
    reason = f"{verdict.reasons[0]} (inputs {verdict.inputs[:12]})"
    found = json.loads(json.dumps(asdict(verdict) | {"facts": asdict(facts)}))  # as it will be read
    check = Check(
        "watch", model, version, now_us - limits.stale_after_us, now_us, verdict.decision, reason, found, now_us
    )
    memory.append(checks, check)
    return verdict, check


def gather(checks: Path, model: str, version: str, limits: Limits, *, now_us: int) -> Facts:
    since_us = now_us - limits.stale_after_us
    drift = [check for check in memory.read(checks, "drift", model) if check.version == version]
    performance = [check for check in memory.read(checks, "performance", model) if _served(check)]
    own = [check for check in performance if check.version == version]
    operations = [check for check in memory.read(checks, "operations", model) if check.at_us >= since_us]
    lately = [check for check in (*drift, *own) if check.at_us >= since_us]
    return Facts(
        model=model,
        version=version,
        unseen=not lately,
        labelled=_labelled(performance),
        **_of_operations(operations),
        **_of_drift(consecutive(latest(drift))),
        **_of_performance(latest(own)),
    )


def _since_retrain(before: Sequence[Check], inputs: str, now_us: int) -> int | None:
    """Since the newest decision to retrain; one made of the very same findings is the present one, made again."""
    decided = [one.at_us for one in before if one.verdict == "retrain" and one.found.get("inputs") != inputs]
    return now_us - max(decided) if decided else None


def _of_operations(checks: Sequence[Check]) -> dict[str, Any]:
    """The newest look counts; drops and losses are each look's own, and of all that were made lately."""
    if not checks:
        return {}
    newest = max(checks, key=lambda check: check.at_us)
    faults = tuple(map(str, newest.found.get("faults", ())))
    dropped, lost = (sum(_count(check.found, name) for check in checks) for name in ("dropped", "lost"))
    other = newest.verdict == "broken" and not (faults or newest.found.get("dropped") or newest.found.get("lost"))
    return {
        "faults": faults,
        "dropped": dropped,
        "lost": lost,
        "served": _count(newest.found, "rows"),
        "broken": newest.reason if other else "",
    }


def _of_drift(windows: Sequence[Check]) -> dict[str, Any]:
    if not windows:
        return {}
    newest = windows[-1]
    before = [check for check in windows[:-1] if alike(check, newest) and "window_rows" in check.found]
    usual = [_count(check.found, "window_rows") for check in before[-10:]]
    judged = [check for check in windows if check.verdict in ("drift", "no drift")]
    running = 0
    while running < len(judged) and judged[-1 - running].verdict == "drift":
        running += 1
    columns = newest.found.get("columns", ())
    return {
        "inputs": tuple(said for column in columns if (said := _unfit(column))),
        "rows": _count(newest.found, "window_rows") if "window_rows" in newest.found else None,
        "usual_rows": round(median(usual)) if len(usual) >= LEAST_BEFORE else None,
        "drifted": running,
        "drift_says": judged[-1].reason if running else "",
    }


def _unfit(column: Mapping[str, Any]) -> str:
    """Of a column that came without any value, where the reference has some."""
    name, note = column.get("name"), str(column.get("note", ""))
    if note.startswith("in the window: "):
        return f"{name}: {note}"
    before, now = column.get("missing_reference"), column.get("missing_window")
    return f"{name} has no values" if now == 1 and before is not None and before < 1 else ""


def _of_performance(windows: Sequence[Check]) -> dict[str, Any]:
    decided = [check for check in windows if check.verdict in ("fine", "drop", "level")]
    newest = decided[-1] if decided else None
    after_us = newest.since_us if newest else 0
    alarms = tuple(
        f"{alarm.get('detector')} saw errors rise from {_figure(alarm.get('before'))} to {_figure(alarm.get('after'))}"
        for check in windows
        if check.since_us >= after_us
        for alarm in check.found.get("alarms", ())
        if alarm.get("worse")
    )
    told = {"alarms": alarms, **_of_estimate(windows)}
    if newest:
        verdict: Literal["fine", "drop"] = "drop" if newest.verdict == "drop" else "fine"
        told |= {"performance": verdict, "performance_says": newest.reason}
    return told


def _of_estimate(windows: Sequence[Check]) -> dict[str, Any]:
    """The newest window's, where it can be trusted and there is a level to hold it against."""
    if not windows:
        return {}
    found = windows[-1].found
    estimate, metric = found.get("estimate") or {}, str(found.get("metric"))
    value = (estimate.get("figures") or {}).get(metric)
    level = (found.get("level") or {}).get("value")
    if estimate.get("trust") != "trusted" or value is None or level is None:
        return {}
    worse = value - level if metric in LOSSES else level - value
    fell = worse > (ESTIMATE_LOSS_SHARE * abs(level) if metric in LOSSES else ESTIMATE_DROP)
    said = f"{metric} is estimated as {value:.4g}, against {level:.4g} before"
    return {"estimate": "drop" if fell else "fine", "estimate_says": said}


def _labelled(performance: Iterable[Check]) -> int:
    """Labelled rows of all versions; where windows of several lengths were looked at, those of the length that has the most."""
    whose: dict[tuple[Any, ...], list[Check]] = {}
    for check in performance:
        key = (check.found.get("every"), check.version, check.found.get("arm"))
        whose.setdefault(key, []).append(check)
    sums: dict[Any, int] = {}
    for (every, *_), windows in whose.items():
        labelled = sum(_count(check.found, "labelled") for check in consecutive(latest(windows)))
        sums[every] = sums.get(every, 0) + labelled
    return max(sums.values(), default=0)


def _served(check: Check) -> bool:
    return check.found.get("role") in (None, "served")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _count(found: Mapping[str, Any], name: str) -> int:
    value = found.get(name)
    return value if isinstance(value, int) else 0
