"""Drift over windows as one picture, an SVG of its own: a row for each column, a cell for each window.

A cell is the darker the larger the effect (white: nothing moved; full from FULL on: three rows in ten elsewhere), and outlined
where the column drifted. Below, the windows whose verdict was drift are marked. Hovering tells a cell's figures. Columns are
in the order of the largest effect that any window had, the predictions first; at most MOST of them, and of windows the last
WINDOWS. Light and dark alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from monitoring.drift import Column, Drift

FULL = 0.3
MOST, WINDOWS = 40, 400
CELL, ROW, LEFT, TOP, LEAST = 22.0, 20, 190, 46, 6.0
WIDEST = 1400
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1d2a25}.faint{fill:#66756e}.cell{fill:#1b5e4b}.none{fill:none;stroke:#b8c4be}"
    ".hit{fill:none;stroke:#c2452d;stroke-width:1.6}.bad{fill:#c2452d}.back{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#e4ebe7}.faint{fill:#93a39b}.cell{fill:#58c7a3}.none{stroke:#46534d}"
    ".hit{stroke:#ff8a70}.bad{fill:#ff8a70}.back{fill:#141a17}}"
)


def picture(title: str, windows: Sequence[tuple[str, Drift | None]]) -> str:
    """`windows`: label and finding, in the order of time; None where there were too few rows to judge."""
    legend, windows = _legend(windows), windows[-WINDOWS:]
    names = _names([drift for _, drift in windows if drift])
    cell = max(LEAST, min(CELL, (WIDEST - LEFT) / max(1, len(windows))))
    width, height = LEFT + cell * len(windows) + 20, TOP + ROW * (len(names) + 1) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" role="img"><style>{STYLE}</style>',
        f'<rect class="back" width="100%" height="100%"/><text x="12" y="20">{escape(title)}</text>',
        f'<text x="12" y="36" class="faint">{escape(legend)}</text>',
    ]
    for place, name in enumerate(names):
        shown = name if len(name) <= 26 else name[:25] + "…"
        parts.append(f'<text x="12" y="{TOP + ROW * place + 14}">{escape(shown)}</text>')
    parts.append(f'<text x="12" y="{TOP + ROW * len(names) + 16}" class="faint">verdict</text>')
    for place, (label, drift) in enumerate(windows):
        parts += _window(label, drift, names, LEFT + cell * place, cell)
    if windows:
        bottom = TOP + ROW * (len(names) + 1) + 20
        parts.append(f'<text x="{LEFT}" y="{bottom}" class="faint">{escape(windows[0][0])}</text>')
        if len(windows) > 1:
            end = LEFT + cell * len(windows)
            parts.append(
                f'<text x="{end:.1f}" y="{bottom}" class="faint" text-anchor="end">{escape(windows[-1][0])}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


def _names(drifts: Sequence[Drift]) -> list[str]:
    largest: dict[str, float] = {}
    predictions: dict[str, None] = {}
    for drift in drifts:
        for column in drift.columns:
            if column.weight is None:
                predictions[column.name] = None
            else:
                largest[column.name] = max(largest.get(column.name, 0.0), column.effect or 0.0)
    return [*predictions, *sorted(largest, key=lambda name: -largest[name])][:MOST]


def _legend(windows: Sequence[tuple[str, Drift | None]]) -> str:
    judged = [drift for _, drift in windows if drift]
    drifted = sum(drift.found for drift in judged)
    few = f", {len(windows) - len(judged)} with too few rows" if len(judged) < len(windows) else ""
    shown = f"; the last {WINDOWS} are shown" if len(windows) > WINDOWS else ""
    return f"{len(windows):,} windows: {drifted:,} drifted, {len(judged) - drifted:,} did not{few}{shown}"


def _window(label: str, drift: Drift | None, names: Sequence[str], left: float, cell: float) -> list[str]:
    by_name: dict[str, Column] = {column.name: column for column in drift.columns} if drift else {}
    parts = []
    for place, name in enumerate(names):
        column, top = by_name.get(name), TOP + ROW * place
        box = f'x="{left + 1:.1f}" y="{top + 1}" width="{cell - 2:.1f}" height="{ROW - 2}"'
        if column is None or column.effect is None:
            parts.append(f'<rect class="none" {box}/>')
            continue
        verdict = "drifted" if column.drifted else "did not drift"
        told = f"{label}: {name} {verdict}; {column.effect:.1%} of rows, p {column.p:.2g}"
        shade = min(1.0, column.effect / FULL)
        parts.append(f'<rect class="cell" fill-opacity="{shade:.3f}" {box}><title>{escape(told)}</title></rect>')
        if column.drifted:
            parts.append(f'<rect class="hit" {box}/>')
    if drift and drift.found:
        top = TOP + ROW * len(names)
        parts.append(
            f'<circle class="bad" cx="{left + cell / 2:.1f}" cy="{top + ROW / 2:.1f}" r="{min(5.0, cell / 2 - 1):.1f}">'
            f"<title>{escape(f'{label}: {drift.reason}')}</title></circle>"
        )
    return parts
