"""Figures over time as SVG that needs nothing else: a file of its own, or a part of a page; light or dark as the reader is."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

WIDTH, LEFT, RIGHT, TOP, GAP = 760, 56, 12, 26, 30
STYLE = (
    "svg{--ink:#1b5e4b;--said:#b0562b;--faint:#8a978f;--text:#1d2622;--band:#1b5e4b26;--bad:#b3261e;"
    "font:12px system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{--ink:#7cc4ac;--said:#e39a6f;--faint:#76827b;--text:#e4eae7;--band:#7cc4ac30;"
    "--bad:#f2817a}}"
    "text{fill:var(--text)}.faint{fill:var(--faint)}.axis{stroke:var(--faint);stroke-width:.5}"
    ".seen{stroke:var(--ink);stroke-width:1.8;fill:none}"
    ".said{stroke:var(--said);stroke-width:1.5;fill:none;stroke-dasharray:5 3}"
    ".band{fill:var(--band)}.level{stroke:var(--faint);stroke-dasharray:2 3}.dot{fill:var(--ink)}.drop{fill:var(--bad)}"
    ".trusted{fill:var(--said)}.doubted{fill:none;stroke:var(--said)}.bar{fill:var(--ink);opacity:.45}"
    ".alarm{stroke:var(--bad);stroke-width:1.2}"
)


@dataclass(frozen=True)
class Line:
    """`kind`: a class of STYLE. None: a gap. `low`, `high`: a band around it. `dots`: the class of each point's dot."""

    name: str
    kind: str
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    dots: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """Lines, or bars from 0, over the chart's times; `level`: a line across."""

    title: str
    lines: Sequence[Line] = ()
    bars: Sequence[float | None] = ()
    level: float | None = None
    height: int = 150
    low: float | None = None
    high: float | None = None
    legend: Sequence[tuple[str, str]] = field(default=())


def chart(
    at: Sequence[float], ticks: Sequence[tuple[float, str]], panels: Sequence[Panel], marks: Sequence[float] = ()
) -> str:
    """`at`: where each value stands, ascending; `ticks` name places below; `marks`: alarms, across all panels."""
    if not at:
        return ""
    first, last = at[0], at[-1]
    span = (last - first) or 1.0
    wide = WIDTH - LEFT - RIGHT
    edge = wide / len(at) / 2

    def x(place: float) -> float:
        return LEFT + edge + (place - first) / span * (wide - 2 * edge)

    parts, top = [], TOP
    for panel in panels:
        parts.append(_panel(panel, [x(place) for place in at], top))
        top += panel.height + GAP + TOP
    bottom = top - GAP
    parts += [
        f'<line class="alarm" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" y2="{bottom - TOP}"/>' for mark in marks
    ]
    parts += [
        f'<text class="faint" x="{x(place):.1f}" y="{bottom - 8}" text-anchor="middle">{html.escape(told)}</text>'
        for place, told in ticks
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" role="img"><style>{STYLE}</style>'
        f"{''.join(parts)}</svg>"
    )


def time_ticks(at: Sequence[float], most: int = 6) -> list[tuple[float, str]]:
    """Some of the places, µs since 1970, as people write them; with the hour where they lie within few days."""
    kept = [at[round(k * (len(at) - 1) / (most - 1))] for k in range(most)] if len(at) > most else list(at)
    form = "%Y-%m-%d" if at[-1] - at[0] > 4 * 86_400e6 else "%m-%d %H:%M"
    return [(place, datetime.fromtimestamp(place / 1e6, UTC).strftime(form)) for place in dict.fromkeys(kept)]


def _panel(panel: Panel, xs: Sequence[float], top: float) -> str:
    low, high = _range(panel)

    def y(value: float) -> float:
        return top + panel.height * (1 - (min(max(value, low), high) - low) / (high - low))

    parts = [f'<text x="{LEFT}" y="{top - 9}">{html.escape(panel.title)}</text>', _legend(panel, top - 9)]
    for value in (low, (low + high) / 2, high):
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="faint" x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    if panel.level is not None:
        at = y(panel.level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    wide = max((WIDTH - LEFT - RIGHT) / max(len(xs), 1) * 0.6, 1)
    parts += [
        f'<rect class="bar" x="{place - wide / 2:.1f}" y="{y(value):.1f}" width="{wide:.1f}" height="{y(low) - y(value):.1f}"/>'
        for place, value in zip(xs, panel.bars, strict=False)
        if value is not None
    ]
    for line in panel.lines:
        parts += _line(line, xs, y)
    return "".join(parts)


def _line(line: Line, xs: Sequence[float], y: Callable[[float], float]) -> list[str]:
    parts = []
    for run in _runs(line.values):
        if line.low:
            band = [(n, line.low[n], line.high[n]) for n in run]
            edge = [(xs[n], high) for n, _, high in band if high is not None]
            edge += [(xs[n], low) for n, low, _ in reversed(band) if low is not None]
            parts.append(f'<polygon class="band" points="{_points(edge, y)}"/>')
        values = [(xs[n], value) for n in run if (value := line.values[n]) is not None]
        parts.append(f'<polyline class="{line.kind}" points="{_points(values, y)}"/>')
    parts += [
        f'<circle class="{kind}" cx="{xs[n]:.1f}" cy="{y(value):.1f}" r="2.6"/>'
        for n, kind in enumerate(line.dots)
        if (value := line.values[n]) is not None
    ]
    return parts


def _points(places: Sequence[tuple[float, float]], y: Callable[[float], float]) -> str:
    return " ".join(f"{x:.1f},{y(value):.1f}" for x, value in places)


def _runs(values: Sequence[float | None]) -> list[list[int]]:
    """Places of values without a gap."""
    runs: list[list[int]] = [[]]
    for n, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(n)
    return [run for run in runs if run]


def _range(panel: Panel) -> tuple[float, float]:
    told = [
        value
        for line in panel.lines
        for row in (line.values, line.low, line.high)
        for value in row
        if value is not None
    ]
    told += [value for value in panel.bars if value is not None] + ([panel.level] if panel.level is not None else [])
    told = [value for value in told if math.isfinite(value)]
    low = panel.low if panel.low is not None else min(told, default=0.0)
    high = panel.high if panel.high is not None else max(told, default=1.0)
    spread = (high - low) or abs(high) or 1.0
    if panel.low is None:
        low -= 0.05 * spread
    if panel.high is None:
        high = min(high + 0.05 * spread, 1.0) if high <= 1 else high + 0.05 * spread
    return low, high


def _legend(panel: Panel, y: float) -> str:
    parts, x = [], WIDTH - RIGHT
    for told, kind in reversed(panel.legend):
        parts.append(f'<text x="{x}" y="{y}" text-anchor="end">{html.escape(told)}</text>')
        x -= round(6.2 * len(told)) + 8
        parts.append(f'<line class="{kind}" x1="{x - 20}" x2="{x}" y1="{y - 4}" y2="{y - 4}"/>')
        x -= 34
    return "".join(parts)
