"""The panels of what checks found: which features drifted, and how good the model was, with and without labels.

Figures come from the checks' history (`monitoring.checks`), the newest look at each window that overlaps the asked span.

    drift         {"windows": [{"since_us", "until_us", "version", "verdict", "reason", "window_rows", "prediction_drifted"}],
                  "features": [{"name", "weight", "drifted": how often, "cells": [{"drifted", "p", "effect",
                  "strength"} or null]}]}
    performance   {"arms": [{"version", "arm", "role", "metric", "level", "windows": [{"since_us", "until_us", "value", "low",
                  "high", "estimate", "trust", "coverage", "labelled", "rows", "verdict", "reason"}], "alarms": [...]}]}

What another release wrote may lack fields: what is not there is shown as not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monitoring import dashboard_words as say
from monitoring.checks import Check
from monitoring.dashboard_charts import Line, Mark, heat, lines, table, time_told
from monitoring.dashboard_filters import Asked
from monitoring.dashboard_panels import Figures, Nothing, Panel, Sources, Tone, code, facts

MOST_WINDOWS = 120
MOST_FEATURES = 16
MOST_ARMS = 6
STRENGTHS = (0.01, 0.03, 0.06)  # effects, below which a cell that did not drift is shaded 0, 1, 2
DRIFTED = 4
DRIFT_TONES: dict[str, Tone] = {"drift": "bad", "no drift": "good"}
TONES: dict[str, Tone] = {"drop": "bad", "fine": "good", "level": "good"}


def drift(sources: Sources, asked: Asked) -> Panel:
    kept = _within(sources, asked, "drift")
    if not kept:
        raise _unchecked(sources, asked, "drift", f"coppice drift {asked.model or 'MODEL'}")
    columns = [{column["name"]: column for column in _columns(check)} for check in kept]
    features = _features(columns)
    windows = [
        {
            "since_us": check.since_us,
            "until_us": check.until_us,
            "version": check.version,
            "verdict": check.verdict,
            "reason": check.reason,
            "window_rows": check.found.get("window_rows"),
            "prediction_drifted": check.found.get("prediction_drifted"),
        }
        for check in kept
    ]
    last = kept[-1]
    drifted = sum(check.verdict == "drift" for check in kept)
    body = f'<p class="reason">{code(_clipped(last.reason))}</p>'
    body += facts(
        {
            "newest window": f"to {time_told(last.until_us)}",
            "its rows": say.count(last.found.get("window_rows")),
            "windows that drifted": f"{drifted} of {len(kept)}",
        }
    )
    shown = [(each["name"], [_cell(cell, window) for cell, window in zip(each["cells"], windows, strict=True)])
             for each in features[:MOST_FEATURES]]  # fmt: skip
    ends = [time_told(kept[0].since_us)[:10], time_told(last.until_us)[:10]]
    body += heat("Drift by feature and window", shown, ends if len(kept) > 1 else [f"{ends[0]} to {ends[1]}"])
    body += HEAT_KEY
    if len(features) > MOST_FEATURES:
        body += f'<p class="note">{len(features) - MOST_FEATURES} more, which drifted less, are in the numbers.</p>'
    body += table(
        ["feature", "importance", "drifted in", "p, newest", "effect, newest"],
        [
            [each["name"], say.share(each["weight"]), f"{each['drifted']} of {len(kept)}", *_newest(each)]
            for each in features
        ],
        summary="Features",
    )
    rows = [[time_told(w["since_us"]), time_told(w["until_us"]), w["version"], say.count(w["window_rows"]), w["verdict"],
             _clipped(w["reason"])] for w in reversed(windows)]  # fmt: skip
    body += table(["from (UTC)", "until", "version", "rows", "verdict", "reason"], rows, summary="Windows")
    return Panel(
        {"windows": windows, "features": features},
        body,
        _source(sources, asked, kept),
        last.verdict,
        DRIFT_TONES.get(last.verdict, "unsure"),
    )


HEAT_KEY = (
    '<ul class="legend"><li><i class="cell none"></i>not tested</li><li><i class="cell h0"></i>alike</li>'
    '<li><i class="cell h3"></i>differs, within chance</li><li><i class="cell h4"></i>drifted</li></ul>'
)


def performance(sources: Sources, asked: Asked) -> Panel:
    kept = [check for check in _within(sources, asked, "performance") if asked.arm in (None, check.found.get("arm"))]
    if not kept:
        raise _unchecked(sources, asked, "performance", f"coppice performance {asked.model or 'MODEL'}")
    by: dict[tuple[str, str, str], list[Check]] = {}
    for check in kept:
        found = check.found
        by.setdefault((check.version, str(found.get("arm", "")), str(found.get("role", "served"))), []).append(check)
    arms = [
        _arm(who, checks) for who, checks in sorted(by.items(), key=lambda item: (item[0][1] != "champion", item[0]))
    ]
    body = "".join(_arm_body(arm, asked) for arm in arms[:MOST_ARMS])
    if len(arms) > MOST_ARMS:
        body += f'<p class="note">{len(arms) - MOST_ARMS} more arms: choose a version or an arm.</p>'
    decided = [window for arm in arms[:1] for window in arm["windows"] if window["verdict"] in TONES]
    last = decided[-1] if decided else arms[0]["windows"][-1]
    source = f"{_source(sources, asked, kept)} Intervals are of 95 %; the estimate is made without labels, of all rows."
    return Panel({"arms": arms}, body, source, last["verdict"], TONES.get(last["verdict"], "unsure"))


def newest(sources: Sources, asked: Asked, kind: str) -> Check | None:
    """The newest look in the span, of the asked version and arm."""
    kept = [check for check in _within(sources, asked, kind) if asked.arm in (None, check.found.get("arm", asked.arm))]
    return kept[-1] if kept else None


def _within(sources: Sources, asked: Asked, kind: str) -> list[Check]:
    """By window; of each, and of each version and arm, the newest look."""
    looks: dict[tuple[Any, ...], Check] = {}
    for check in sources.checks.read(kind, asked.model):
        overlaps = check.since_us < asked.until_us and check.until_us > asked.since_us
        if overlaps and asked.version in (None, check.version, ""):
            found = check.found
            looks[check.version, found.get("arm"), found.get("role"), check.since_us, check.until_us] = check
    kept = sorted(looks.values(), key=lambda check: (check.until_us, check.since_us, check.at_us))
    return kept[-MOST_WINDOWS:]


def _unchecked(sources: Sources, asked: Asked, kind: str, verb: str) -> Nothing:
    every = sources.checks.read(kind, asked.model)
    if not every:
        return Nothing(f"Never checked: {sources.checks.name} holds no look of this kind. Run `{verb}`.")
    last = max(check.until_us for check in every)
    return Nothing(
        f"No look at this window that fits; the newest of {len(every):,} goes to {time_told(last)} UTC. Run `{verb}`."
    )


def _source(sources: Sources, asked: Asked, kept: Sequence[Check]) -> str:
    looked = time_told(max(check.at_us for check in kept))
    return (
        f"{say.span(asked.since_us, asked.until_us)}, from the checks in {sources.checks.name}: {len(kept)} windows, "
        f"the newest look at {looked}."
    )


def _columns(check: Check) -> list[dict[str, Any]]:
    told = check.found.get("columns")
    return [each for each in told if isinstance(each, dict) and "name" in each] if isinstance(told, list) else []


def _features(columns: Sequence[Mapping[str, dict[str, Any]]]) -> list[Figures]:
    """Those that drifted most often first, then by importance; the prediction before all."""
    names = list(dict.fromkeys(name for window in columns for name in window))
    found = []
    for name in names:
        cells = [_strength(window[name]) if name in window else None for window in columns]
        weights = [weight for window in columns if (weight := window.get(name, {}).get("weight")) is not None]
        drifted = sum(bool(cell and cell["drifted"]) for cell in cells)
        found.append({"name": name, "weight": weights[-1] if weights else None, "drifted": drifted, "cells": cells})
    return sorted(
        found,
        key=lambda each: (not str(each["name"]).startswith("prediction"), -each["drifted"], -(each["weight"] or 0)),
    )


def _strength(column: Mapping[str, Any]) -> Figures:
    effect, drifted = column.get("effect"), bool(column.get("drifted"))
    strength = DRIFTED if drifted else None
    if strength is None and isinstance(effect, (int, float)):
        strength = sum(effect >= edge for edge in STRENGTHS)
    return {"drifted": drifted, "p": column.get("p"), "effect": effect, "strength": strength}


def _cell(cell: Figures | None, window: Figures) -> tuple[int | None, str]:
    when = f"{time_told(window['since_us'])} to {time_told(window['until_us'])}"
    if cell is None:
        return None, f"{when}: not looked at"
    said = "drifted" if cell["drifted"] else "not tested" if cell["strength"] is None else "no drift"
    return cell["strength"], f"{when}: {said}, p {_number(cell['p'])}, effect {_number(cell['effect'])}"


def _newest(feature: Figures) -> tuple[str, str]:
    last = feature["cells"][-1]
    return (_number(last["p"]), _number(last["effect"])) if last else ("–", "–")


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else "–"


def _arm(who: tuple[str, str, str], checks: Sequence[Check]) -> Figures:
    version, arm, role = who
    metric = next((str(check.found["metric"]) for check in reversed(checks) if check.found.get("metric")), "")
    windows = [_window(check, str(check.found.get("metric", metric))) for check in checks]
    alarms = [each for check in checks for each in check.found.get("alarms") or () if isinstance(each, dict)]
    level = _interval(checks[-1].found.get("level", checks[-1].found.get("baseline")))[0]
    return {
        "version": version,
        "arm": arm,
        "role": role,
        "metric": metric,
        "level": level,
        "windows": windows,
        "alarms": alarms,
    }


def _window(check: Check, metric: str) -> Figures:
    found = check.found
    value, low, high = _interval(_of(found.get("figures"), metric))
    estimate = found.get("estimate")
    return {
        "since_us": check.since_us,
        "until_us": check.until_us,
        "value": value,
        "low": low,
        "high": high,
        "estimate": _interval(_of(_of(estimate, "figures"), metric))[0],
        "trust": _of(estimate, "trust") or "",
        "coverage": found.get("coverage"),
        "labelled": found.get("labelled"),
        "rows": found.get("rows"),
        "verdict": check.verdict,
        "reason": check.reason,
    }


def _of(told: Any, name: str) -> Any:
    return told.get(name) if isinstance(told, dict) else None


def _interval(told: Any) -> tuple[float | None, float | None, float | None]:
    if isinstance(told, (int, float)):
        return float(told), None, None
    value, low, high = (_of(told, name) for name in ("value", "low", "high"))
    return value, low, high


def _arm_body(arm: Figures, asked: Asked) -> str:
    windows, metric = arm["windows"], arm["metric"]
    at = [(window["since_us"] + window["until_us"]) / 2 for window in windows]
    begin, end = min(asked.since_us, *at), max(asked.until_us, *at)
    role = f", {arm['role']}" if arm["role"] not in ("served", "") else ""
    title = f"{arm['arm'] or 'all arms'} (version {arm['version']}{role})"
    measured = Line(
        f"{metric}, labelled",
        [window["value"] for window in windows],
        [window["low"] for window in windows],
        [window["high"] for window in windows],
        dotted=True,
        colour=0,
    )
    drawn = [measured]
    if any(window["estimate"] is not None for window in windows):
        drawn.append(
            Line("estimated without labels", [w["estimate"] for w in windows], dotted=True, dashed=True, colour=1)
        )
    marks = [Mark(each["at_us"], _alarm(each)) for each in arm["alarms"] if each.get("worse") and "at_us" in each]
    last = windows[-1]
    body = f"<h3>{code(title)}</h3>"
    told = {
        f"{metric}, newest": _told(last),
        "estimated": say.figure(last["estimate"]),
        "labels": say.share(last["coverage"]),
    }
    body += facts(told | ({"level": say.figure(arm["level"])} if arm["level"] is not None else {}))
    span: dict[str, Any] = {"since_us": begin, "until_us": end}
    body += lines(
        f"{metric} by window", at, drawn, tell=say.figure, from_zero=False, level=arm["level"], marks=marks, **span
    )
    labels = Line("share of rows with a label", [window["coverage"] for window in windows], dotted=True, colour=3)
    body += lines("Label coverage", at, [labels], tell=say.share, **span)
    rows = [
        [
            time_told(window["since_us"]),
            _told(window),
            say.figure(window["estimate"]),
            str(window["trust"]),
            say.share(window["coverage"]),
            say.count(window["labelled"]),
            say.count(window["rows"]),
            window["verdict"],
            _clipped(window["reason"]),
        ]
        for window in reversed(windows)
    ]
    head = ["from (UTC)", metric, "estimate", "trust", "labels", "labelled", "rows", "verdict", "reason"]
    return (
        body
        + "".join(f'<p class="note">{code(mark.told)}</p>' for mark in marks)
        + table(head, rows, summary="Numbers")
    )


def _told(window: Figures) -> str:
    if window["low"] is None or window["high"] is None:
        return say.figure(window["value"])
    return f"{say.figure(window['value'])} ({say.figure(window['low'])} to {say.figure(window['high'])})"


def _alarm(alarm: Mapping[str, Any]) -> str:
    before, after = (_number(alarm.get(name)) for name in ("before", "after"))
    return f"Alarm ({alarm.get('detector', 'detector')}) at {time_told(alarm['at_us'])}: error rate {before} to {after}"


def _clipped(reason: str) -> str:
    return reason if len(reason) <= 300 else reason[:299] + "…"
