"""Performance over time as one page that needs nothing else: each arm's figure with its interval, the estimate beside it,
label coverage below, alarms across, and the windows as a table."""

from __future__ import annotations

import html
from collections.abc import Sequence

from monitoring.charts import Line, Panel, chart, time_ticks
from monitoring.performance import Arm, Performance, Segment, Window
from monitoring.times import told
from training.intervals import Interval

SHOWN = 60  # rows of a table, the newest
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "svg{width:100%;height:auto}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}"
    "td,th{padding:.15rem .7rem;border-bottom:1px solid #8886;text-align:left;white-space:nowrap}"
    ".drop{font-weight:600}small{opacity:.75}"
)


def page(found: Performance) -> str:
    title = f"Performance of {found.model}"
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p><b>{found.verdict}</b>: {html.escape(found.reason)}</p>"]
    parts += [f"<p>Left out: {rows:,} rows, {html.escape(why)}</p>" for why, rows in found.left_out.items()]
    for arm in found.arms:
        parts += [_heading(arm), chart_of(arm, found), _alarms(arm), _strange(arm), _table(arm), _segments(arm)]
    parts.append(
        "<p><small>Figures of rows whose label window has passed, with 95 % intervals. The estimate is of all rows, "
        "made without their labels: a full dot is trusted, an empty one is not, or is unverified. Times are UTC.</small></p>"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def chart_of(arm: Arm, found: Performance) -> str:
    """Windows of the calendar stand at their time, those of so many rows one after the other."""
    windows = arm.windows
    if not windows:
        return ""
    middles = [(window.since_us + window.until_us) / 2 for window in windows]
    evenly = isinstance(found.every, int)
    at = [float(n) for n in range(len(windows))] if evenly else middles
    ticks = [(at[middles.index(place)], name) for place, name in time_ticks(middles)]
    marks = [_place(alarm.at_us, windows) if evenly else float(alarm.at_us) for alarm in arm.alarms if alarm.worse]
    seen = [window.figures[arm.metric] for window in windows]
    lines = [
        Line(
            "labelled",
            "seen",
            [figure.value for figure in seen],
            [figure.low for figure in seen],
            [figure.high for figure in seen],
            ["drop" if window.verdict == "drop" else "dot" for window in windows],
        )
    ]
    legend = [(f"{arm.metric}, labelled", "seen")]
    said = [window.estimate.figures.get(arm.metric) for window in windows]
    if any(value is not None for value in said):
        dots = ["trusted" if window.estimate.trust == "trusted" else "doubted" for window in windows]
        lines.append(Line("estimated", "said", said, dots=dots))
        legend.append(("estimated without labels", "said"))
    level = arm.level.value if arm.level else None
    title = f"version {arm.version}, {arm.arm}" + ("" if arm.role == "served" else f" ({arm.role})")
    panels = [
        Panel(title, lines, level=level, height=190, legend=legend),
        Panel(
            "share of closed rows with a label", bars=[window.coverage for window in windows], low=0, high=1, height=50
        ),
    ]
    return chart(at, ticks, panels, marks)


def _place(us: int, windows: Sequence[Window]) -> float:
    return float(next((n for n, window in enumerate(windows) if us < window.until_us), len(windows) - 1))


def _heading(arm: Arm) -> str:
    source = {"given": "as given", "first windows": "from its first closed windows", "none": ""}[arm.level_from]
    level = f"; level {_figure(arm.level)} {source}" if arm.level else "; no level yet"
    role = "" if arm.role == "served" else f", {arm.role}"
    return f"<h2>Version {html.escape(arm.version)}, {html.escape(arm.arm)}{role}</h2><p>{arm.metric}{level}</p>"


def _figure(figure: Interval | None) -> str:
    return html.escape(str(figure)) if figure else "-"


def _alarms(arm: Arm) -> str:
    return "".join(
        f"<p>{'Alarm' if alarm.worse else 'Improvement'} ({alarm.detector}) at {told(alarm.at_us)}: the error rate went from "
        f"{alarm.before:.3f} to {alarm.after:.3f} about {told(alarm.since_us)}</p>"
        for alarm in arm.alarms
    )


def _strange(arm: Arm) -> str:
    if not arm.strange:
        return ""
    listed = ", ".join(f"{html.escape(repr(label))} {rows:,} times" for label, rows in list(arm.strange.items())[:12])
    return f"<p>Outcomes that are no label of this model: {listed}</p>"


def _table(arm: Arm) -> str:
    names = list(arm.windows[0].figures) if arm.windows else []
    head = ["window", "verdict", "rows", "failed", "open", "labelled", "coverage", *names, "estimate", "trust"]
    rows = [
        [
            told(window.since_us),
            window.verdict,
            f"{window.rows:,}",
            f"{window.failed + window.not_finite:,}",
            f"{window.open:,}",
            f"{window.labelled:,}",
            "-" if window.coverage is None else f"{window.coverage:.0%}",
            *(_figure(window.figures[name]) for name in names),
            _estimate(window.estimate.figures.get(arm.metric)),
            window.estimate.trust + "".join(f"; {html.escape(why)}" for why in window.estimate.reasons),
        ]
        for window in reversed(arm.windows[-SHOWN:])
    ]
    return _rows(head, rows)


def _segments(arm: Arm) -> str:
    rows = [
        [told(window.since_us), _part(part), f"{part.labelled:,}", _figure(part.figures[arm.metric])]
        for window in reversed(arm.windows[-SHOWN:])
        for part in window.segments
    ]
    return _rows(["window", "segment", "labelled", arm.metric], rows) if rows else ""


def _part(part: Segment) -> str:
    return html.escape(f"{part.feature} = {part.value}")


def _estimate(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(
        f"<tr{' class=drop' if 'drop' in row else ''}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>'
