"""A panel of the dashboard: its figures, what it shows of them, and since when and from what they come.

A panel is made by a function of its own, in `dashboard_predictions`, `dashboard_traffic`, `dashboard_checks`,
`dashboard_release` and `dashboard_glance`. One that fails says why, and the others stay. `figures` is fit for
JSON: NaN and infinities are null in it.
"""

from __future__ import annotations

import html
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from compile.errors import CompileError
from monitoring.dashboard_filters import Asked
from monitoring.dashboard_history import History
from monitoring.dashboard_live import Live
from monitoring.dashboard_releases import Releases
from monitoring.errors import MonitoringError
from monitoring.summing import Summing
from serving.errors import ServingError

Tone = Literal["good", "bad", "unsure", ""]
Figures = dict[str, Any]
TOLD = (MonitoringError, ServingError, CompileError)  # which say what is wrong, and where


@dataclass(frozen=True)
class Sources:
    """All that panels read. What they are of may be absent."""

    summing: Summing
    releases: Releases
    live: Live
    checks: History
    traffic: Path


@dataclass(frozen=True)
class Panel:
    """`body` is HTML; `verdict`, a word or two, and `source`, a sentence, are text."""

    figures: Figures
    body: str
    source: str
    verdict: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Shown:
    name: str
    title: str
    panel: Panel
    failed: bool = field(default=False)


Make = Callable[[Sources, Asked], Panel]


class Nothing(MonitoringError):
    """There is nothing to show, and these words say what would bring something. `more`: HTML after them."""

    def __init__(self, words: str, more: str = "") -> None:
        super().__init__(words)
        self.more = more


def show(name: str, title: str, make: Make, sources: Sources, asked: Asked) -> Shown:
    """Never raises: a panel that can't be made tells why."""
    try:
        made = make(sources, asked)
        return Shown(name, title, Panel(finite(made.figures), made.body, made.source, made.verdict, made.tone))
    except Nothing as nothing:
        body = f'<p class="empty">{code(str(nothing))}{nothing.more}</p>'
        return Shown(name, title, Panel({}, body, "", "nothing yet", ""))
    except TOLD as refused:
        return Shown(name, title, _failed(str(refused)), failed=True)
    except Exception as failed:  # the edge: a panel must not take the page with it
        logging.getLogger(__name__).exception("panel %s", name)
        words = f"it could not be made ({type(failed).__name__}); the dashboard's log has more"
        return Shown(name, title, _failed(words), failed=True)


def finite(value: Any) -> Any:
    """The same with null for what JSON does not have.

    >>> finite({"a": [1.5, float("nan")]})
    {'a': [1.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def code(words: str) -> str:
    """Escaped; what stands between backticks as code.

    >>> code("run `a<b`")
    'run <code>a&lt;b</code>'
    """
    parts = html.escape(words).split("`")
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))


def facts(told: Mapping[str, str]) -> str:
    """Numbers with their names, to be seen at a glance."""
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in told.items()
    )
    return f'<dl class="facts">{rows}</dl>'


def _failed(why: str) -> Panel:
    return Panel({}, f'<p class="trouble">{html.escape(why)}</p>', "", "can’t be shown", "bad")
