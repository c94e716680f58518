"""Numbers as the dashboard writes them."""

from __future__ import annotations

from monitoring.dashboard_charts import time_told


def count(value: float | None) -> str:
    """
    >>> count(1234567), count(None)
    ('1,234,567', '–')
    """
    return "–" if value is None else f"{value:,.0f}"


def share(value: float | None) -> str:
    """
    >>> share(0.5), share(0.00012), share(0.0), share(0.0123)
    ('50.0 %', '0.012 %', '0 %', '1.23 %')
    """
    if value is None:
        return "–"
    percent = 100 * value
    if not percent:
        return "0 %"
    return f"{percent:.1f} %" if abs(percent) >= 10 else f"{percent:.2f} %" if abs(percent) >= 1 else f"{percent:.2g} %"


def ms(value: float | None) -> str:
    """
    >>> ms(0.0372), ms(4.2), ms(317.2)
    ('0.037 ms', '4.20 ms', '317 ms')
    """
    if value is None:
        return "–"
    return f"{value:.3f} ms" if value < 1 else f"{value:.2f} ms" if value < 100 else f"{value:,.0f} ms"


def rate(value: float | None) -> str:
    """
    >>> rate(0.05), rate(12.34), rate(1234.5)
    ('0.05/s', '12.3/s', '1,234/s')
    """
    if value is None:
        return "–"
    return f"{value:,.0f}/s" if value >= 100 else f"{value:.3g}/s"


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def ago(us: float, now_us: float) -> str:
    """
    >>> ago(0, 30e6), ago(0, 300e6), ago(0, 3 * 3600e6), ago(0, 5 * 86400e6)
    ('30 s ago', '5 min ago', '3 h ago', '5 days ago')
    """
    seconds = max(0.0, (now_us - us) / 1e6)
    for most, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < most:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{seconds / 86_400:.0f} days ago"


def span(since_us: float, until_us: float) -> str:
    return f"{time_told(since_us)} to {time_told(until_us)} UTC"


def length(us: float) -> str:
    """
    >>> length(60e6), length(3 * 3600e6), length(86400e6)
    ('minute', '3 hours', 'day')
    """
    for unit, name in ((7 * 86_400e6, "week"), (86_400e6, "day"), (3600e6, "hour"), (60e6, "minute")):
        if us >= unit:
            many = us / unit
            return name if many == 1 else f"{many:.0f} {name}s"
    return f"{us / 1e6:.0f} seconds"
