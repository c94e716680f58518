"""Times and lengths of time as people type them, in µs."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from monitoring.errors import MonitoringError

UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


def moment_us(option: str, text: str | None) -> int | None:
    """ISO 8601, UTC unless it says otherwise. Raises MonitoringError, naming the option."""
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise MonitoringError(f"{option}: {text!r} is not a time such as 2026-01-31T09:30") from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return round(when.timestamp() * 1_000_000)


def length_us(option: str, text: str) -> int:
    """Raises MonitoringError, naming the option.

    >>> length_us("--label-window", "1.5h")
    5400000000
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None:
        raise MonitoringError(f"{option}: {text!r} is not a length of time such as 7d, 12h, 30m or 0s")
    return round(float(found[1]) * UNITS_US[found[2]])


def told(us: int) -> str:
    """
    >>> told(0)
    '1970-01-01T00:00:00'
    """
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S")
