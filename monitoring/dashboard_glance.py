"""The dashboard's first lines: the few numbers that say whether to read on.

glance    {"requests", "rate", "p95_ms", "error_rate", "drift": verdict, "performance": {"metric", "value", "verdict"},
          "generation"}; null where nothing is known. Each is the same as in its own panel.
"""

from __future__ import annotations

import html

from monitoring import dashboard_words as say
from monitoring.dashboard_checks import DRIFT_TONES, TONES, drift, performance
from monitoring.dashboard_filters import Asked
from monitoring.dashboard_panels import Figures, Make, Panel, Sources, show
from monitoring.dashboard_traffic import errors, latency


def glance(sources: Sources, asked: Asked) -> Panel:
    fast = _figures(latency, sources, asked).get("whole", {})
    failed = _figures(errors, sources, asked).get("whole", {})
    windows = _figures(drift, sources, asked).get("windows") or [{}]
    arms = _figures(performance, sources, asked).get("arms") or [{"windows": [{}]}]
    best = next((w for w in reversed(arms[0]["windows"]) if w.get("value") is not None), arms[0]["windows"][-1])
    figures = {
        "requests": fast.get("requests"),
        "rate": fast.get("rate"),
        "p95_ms": fast.get("p95_ms"),
        "error_rate": failed.get("error_rate"),
        "drift": windows[-1].get("verdict"),
        "performance": {"metric": arms[0].get("metric"), "value": best.get("value"), "verdict": best.get("verdict")},
    }
    told = figures["performance"]
    tiles = [
        ("latency", "requests", say.count(figures["requests"]), say.rate(figures["rate"]), ""),
        ("latency", "p95", say.ms(figures["p95_ms"]), "of a row", ""),
        ("errors", "failed", say.share(figures["error_rate"]), f"{say.count(failed.get('errors'))} rows", ""),
        ("drift", "drift", figures["drift"] or "–", "newest window", DRIFT_TONES.get(str(figures["drift"]), "")),
        ("performance", told["metric"] or "performance", say.figure(told["value"]), told["verdict"] or "no labels yet",
         TONES.get(str(told["verdict"]), "")),
    ]  # fmt: skip
    body = "".join(
        f'<a class="tile {tone}" href="#{panel}"><span>{html.escape(name)}</span><b>{html.escape(value)}</b>'
        f"<small>{html.escape(more)}</small></a>"
        for panel, name, value, more, tone in tiles
    )
    return Panel(figures, f'<div class="tiles">{body}</div>', say.span(asked.since_us, asked.until_us))


def _figures(make: Make, sources: Sources, asked: Asked) -> Figures:
    """Of a panel; none where it has nothing, or fails: it says so itself."""
    return show("glance", "", make, sources, asked).panel.figures
