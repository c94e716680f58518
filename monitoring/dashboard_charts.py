"""Small charts as SVG inside a page: lines over time, a histogram, a heat strip. No scripts, no styles of their own.

A drawing is stretched to the width that there is, and strokes stay as they are; so labels are text of the page beside it,
and are read on a phone as on a wall. Colours are classes of the page's style sheet. Each has a title and a description for
who can't see it, and `table` gives the numbers. What is not a number up to `LARGEST` is a gap.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeGuard

WIDE, HIGH = 1000, 100
MOST_DOTS = 40  # of a line, and cells with a gap between them
LARGEST, SMALLEST = 1e300, 1e-300

Values = Sequence[float | None]
Tell = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """`low`, `high`: a band around it. `dotted`: a dot at each value, if they are few; always where one stands alone."""

    name: str
    values: Values
    low: Values = ()
    high: Values = ()
    dotted: bool = False
    dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Mark:
    """A line from top to bottom, with what it says."""

    at: float
    told: str


def lines(
    title: str,
    at: Sequence[float],
    drawn: Sequence[Line],
    *,
    tell: Tell,
    since_us: float,
    until_us: float,
    from_zero: bool = True,
    level: float | None = None,
    marks: Sequence[Mark] = (),
) -> str:
    """`at`: µs since 1970 of each value, ascending. Where there is no value at all, it says so."""
    told = [value for line in drawn for row in (line.values, line.low, line.high) for value in row if _finite(value)]
    if not told:
        return f'<p class="empty">{html.escape(title)}: nothing to draw.</p>'
    low, high = _bounds([value for value in [*told, level] if _finite(value)], from_zero=from_zero)

    def x(place: float) -> float:
        return WIDE * (place - since_us) / ((until_us - since_us) or 1)

    def y(value: float) -> float:
        return HIGH * (1 - (value - low) / (high - low))

    parts = [_rule(y(level), "level")] if level is not None and _finite(level) else []
    for n, line in enumerate(drawn):
        parts += _line(line, [x(place) for place in at], y, n if line.colour is None else line.colour)
    parts += [
        f'<path class="mark" d="M{x(mark.at):.1f} 0V{HIGH}"><title>{html.escape(mark.told)}</title></path>'
        for mark in marks
        if since_us <= mark.at <= until_us
    ]
    said = "; ".join(_said(line, tell) for line in drawn)
    top = [tell(high), tell((low + high) / 2), tell(low)]
    legend = _legend(
        [(line.name, n if line.colour is None else line.colour, line.dashed) for n, line in enumerate(drawn)]
    )
    return _framed(title, said, "".join(parts), top, _moments(since_us, until_us), legend)


def histogram(
    title: str, edges: tuple[float, float], shares: Sequence[tuple[str, Sequence[float]]], known: Sequence[float] = ()
) -> str:
    """Steps of each share by bin; `known`, the reference's, as a shape behind them. Shares are of 1."""
    top = max((share for _, row in [*shares, ("", known)] for share in row if _finite(share)), default=0.0)
    if not top:
        return f'<p class="empty">{html.escape(title)}: nothing to draw.</p>'
    parts = [f'<path class="known" d="{_steps(known, top, closed=True)}"/>'] if known else []
    parts += [f'<path class="line c{n % 6}" d="{_steps(row, top)}"/>' for n, (_, row) in enumerate(shares)]
    legend = _legend([(name, n, False) for n, (name, _) in enumerate(shares)])
    if known:
        legend = legend.replace("</ul>", '<li><i class="key known"></i>reference</li></ul>')
    middle = (edges[0] + edges[1]) / 2
    foot = [f"{value:.4g}" for value in (edges[0], middle, edges[1])]
    said = f"{len(shares)} arms over {len(known or shares[0][1])} bins; the fullest holds {top:.1%}"
    side = [f"{100 * share:.3g}%" for share in (top, top / 2, 0.0)]
    return _framed(title, said, "".join(parts), side, foot, legend)


def heat(title: str, rows: Sequence[tuple[str, Sequence[tuple[int | None, str]]]], foot: Sequence[str]) -> str:
    """A row of cells by name; a cell is how strong it is, 0 to 4 (None: nothing known), and what it says."""
    if not rows:
        return f'<p class="empty">{html.escape(title)}: nothing to draw.</p>'
    drawn = []
    for name, cells in rows:
        wide = WIDE / max(len(cells), 1)
        filled = wide * (0.94 if len(cells) <= MOST_DOTS else 1)
        body = "".join(
            f'<rect class="{"none" if strong is None else f"h{strong}"}" x="{n * wide:.2f}" y="0" width="{filled:.2f}" '
            f'height="10"><title>{html.escape(told)}</title></rect>'
            for n, (strong, told) in enumerate(cells)
        )
        hot = sum(strong == 4 for strong, _ in cells)
        svg = _svg(f"{title}: {name}", f"{hot} of {len(cells)} windows drifted", body, 10, "strip")
        drawn.append(f"<dt>{html.escape(name)}</dt><dd>{svg}</dd>")
    return f'<dl class="heat">{"".join(drawn)}<dt></dt><dd class="foot">{_spans(foot)}</dd></dl>'


def shares(title: str, parts: Sequence[tuple[str, float]]) -> str:
    """One bar, cut by share."""
    begin, body = 0.0, ""
    for n, (name, share) in enumerate(parts):
        body += (
            f'<rect class="fill c{n % 6}" x="{begin:.2f}" y="0" width="{WIDE * share:.2f}" height="10">'
            f"<title>{html.escape(name)} {share:.1%}</title></rect>"
        )
        begin += WIDE * share
    return _svg(title, ", ".join(f"{name} {share:.1%}" for name, share in parts), body, 10, "strip")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, summary: str = "") -> str:
    """Cells are text. With a `summary` it is folded away under that."""
    cells = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    made = f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'
    return f"<details><summary>{html.escape(summary)}</summary>{made}</details>" if summary else made


def time_told(us: float) -> str:
    """
    >>> time_told(0)
    '1970-01-01 00:00'
    """
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")


def _line(line: Line, xs: Sequence[float], y: Callable[[float], float], colour: int) -> list[str]:
    kind = f"line c{colour % 6}" + (" dashed" if line.dashed else "")
    parts = []
    for run in _runs(line.values):
        if line.low and line.high:
            edge = [(xs[n], high) for n in run if _finite(high := line.high[n])]
            edge += [(xs[n], low) for n in reversed(run) if _finite(low := line.low[n])]
            parts.append(f'<path class="band c{colour % 6}" d="{_path(edge, y)}Z"/>' if edge else "")
        places = [(xs[n], line.values[n]) for n in run]
        parts.append(f'<path class="{kind}" d="{_path(places, y)}"/>')
        if (line.dotted and len(line.values) <= MOST_DOTS) or len(run) == 1:
            dots = "".join(f"M{x:.1f} {y(value):.2f}h0" for x, value in places if value is not None)
            parts.append(f'<path class="dots c{colour % 6}" d="{dots}"/>')
    return parts


def _path(places: Sequence[tuple[float, float | None]], y: Callable[[float], float]) -> str:
    return "M" + "L".join(f"{x:.1f} {y(value):.2f}" for x, value in places if value is not None)


def _steps(row: Sequence[float], top: float, *, closed: bool = False) -> str:
    wide = WIDE / len(row)
    steps = "".join(
        f"V{HIGH * (1 - (share if _finite(share) else 0) / top):.2f}H{(n + 1) * wide:.2f}"
        for n, share in enumerate(row)
    )
    return f"M0 {HIGH}{steps}V{HIGH}" + ("Z" if closed else "")


def _runs(values: Values) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for n, value in enumerate(values):
        if _finite(value):
            runs[-1].append(n)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _bounds(told: Sequence[float], *, from_zero: bool) -> tuple[float, float]:
    low, high = min(told), max(told)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
        return low, (_round_up(high) if high - low > SMALLEST else 1.0)
    pad = max(0.08 * (high - low), abs(high) * 0.001, abs(low) * 0.001) or 1.0
    return low - max(pad, SMALLEST), high + max(pad, SMALLEST)


def _round_up(value: float) -> float:
    """To 1, 2, 3, 5 or 8 times a power of ten."""
    if value <= SMALLEST:
        return 0.0
    step = 10.0 ** math.floor(math.log10(value))
    return next((step * each for each in (1, 2, 3, 5, 8) if step * each >= value), step * 10)


def _said(line: Line, tell: Tell) -> str:
    told = [value for value in line.values if value is not None and _finite(value)]
    if not told:
        return f"{line.name}: nothing"
    return f"{line.name}: last {tell(told[-1])}, lowest {tell(min(told))}, highest {tell(max(told))}"


def _moments(since_us: float, until_us: float) -> list[str]:
    short = until_us - since_us <= 2 * 86_400e6
    form = "%d %b %H:%M" if short else "%d %b"
    return [
        datetime.fromtimestamp(us / 1e6, UTC).strftime(form) for us in (since_us, (since_us + until_us) / 2, until_us)
    ]


def _legend(entries: Sequence[tuple[str, int, bool]]) -> str:
    keys = "".join(
        f'<li><i class="key c{colour % 6}{" dashed" if dashed else ""}"></i>{html.escape(name)}</li>'
        for name, colour, dashed in entries
    )
    return f'<ul class="legend">{keys}</ul>'


def _framed(title: str, said: str, body: str, side: Sequence[str], foot: Sequence[str], legend: str) -> str:
    grid = "".join(_rule(y, "grid") for y in (0, HIGH / 2, HIGH))
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption>{legend}<div class="plot"><div class="side">{_spans(side)}'
        f'</div>{_svg(title, said, grid + body, HIGH, "drawing")}<div class="foot">{_spans(foot)}</div></div></figure>'
    )


def _svg(title: str, said: str, body: str, high: int, kind: str) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {WIDE} {high}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(title)}"><desc>{html.escape(said)}</desc>{body}</svg>'
    )


def _rule(y: float, kind: str) -> str:
    return f'<path class="{kind}" d="M0 {y:.2f}H{WIDE}"/>'


def _spans(texts: Sequence[str]) -> str:
    return "".join(f"<span>{html.escape(text)}</span>" for text in texts)


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and abs(value) <= LARGEST  # which NaN is not, either
