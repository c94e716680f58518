"""What a visitor asks to see: the query of the page's address, checked, and the span of time that it means.

    model     one that has traffic, routes or checks; without it, the first
    version   rows of this version alone
    arm       rows of this arm alone
    window    hour, day (the default), week, 90d, or custom
    since     with custom: from this time on (ISO 8601, UTC unless it says otherwise)
    until     before this time; without it, now

Spans longer than `LONGEST_FINE_US` begin and end on whole hours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from monitoring.errors import MonitoringError
from monitoring.lake import HOUR_US
from monitoring.summing import LONGEST_FINE_US, MINUTE_US
from monitoring.times import moment_us

DAY_US = 24 * HOUR_US
WINDOWS = {"hour": HOUR_US, "day": DAY_US, "week": 7 * DAY_US, "90d": 90 * DAY_US}
CUSTOM = "custom"
NAMES = ("model", "version", "arm", "window", "since", "until")
LONGEST_US = 400 * DAY_US
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
BUCKETS_US = (MINUTE_US, 5 * MINUTE_US, HOUR_US, 3 * HOUR_US, 6 * HOUR_US, 12 * HOUR_US, DAY_US, 7 * DAY_US)
MOST_BUCKETS = 190


class QueryRefused(MonitoringError):
    """Names the field."""


@dataclass(frozen=True)
class Asked:
    """`model` is empty where there is none at all. `text` is the query as it was given."""

    model: str
    since_us: int
    until_us: int
    window: str
    version: str | None = None
    arm: str | None = None
    text: tuple[tuple[str, str], ...] = ()

    @property
    def fine(self) -> bool:
        """Whether it is short enough to be shown by the minute."""
        return self.until_us - self.since_us <= LONGEST_FINE_US

    @property
    def bucket_us(self) -> int:
        """The length of a stretch of time, so that there are not too many to see."""
        steps = [step for step in BUCKETS_US if self.fine or step >= HOUR_US]
        fits = [step for step in steps if (self.until_us - self.since_us) / step <= MOST_BUCKETS]
        return fits[0] if fits else steps[-1]

    def query(self, **changed: str) -> str:
        """The query of this view, with some fields changed; an empty one goes."""
        told = dict(self.text) | changed
        return urlencode({name: value for name, value in told.items() if value})


def asked(query: Iterable[tuple[str, str]], models: Iterable[str], now_us: int) -> Asked:
    """Raises QueryRefused."""
    given = _given(query)
    window = given.get("window", "day")
    if window not in WINDOWS and window != CUSTOM:
        raise QueryRefused(f"window: {window!r} is none of {', '.join([*WINDOWS, CUSTOM])}")
    for name in ("version", "arm"):
        if name in given and not PLAIN.fullmatch(given[name]):
            raise QueryRefused(f"{name}: {given[name]!r} is not a name: letters, digits, '.', '_', '-', at most 128")
    since_us, until_us = _span(given, window, now_us)
    found = Asked(
        model=_model(given, models),
        since_us=since_us,
        until_us=until_us,
        window=window,
        version=given.get("version"),
        arm=given.get("arm"),
        text=tuple(given.items()),
    )
    if found.fine:
        return found
    return replace(found, since_us=since_us // HOUR_US * HOUR_US, until_us=-(-until_us // HOUR_US) * HOUR_US)


def _given(query: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Fields of a form that were left empty are not given."""
    found: dict[str, str] = {}
    for name, value in query:
        if name not in NAMES:
            raise QueryRefused(f"{name[:40]}: no such field; there are {', '.join(NAMES)}")
        if name in found:
            raise QueryRefused(f"{name}: is given twice")
        if value.strip():
            found[name] = value.strip()
    return found


def _model(given: Mapping[str, str], models: Iterable[str]) -> str:
    there = sorted(models)
    model = given.get("model", there[0] if there else "")
    if "model" in given and model not in there:
        raise QueryRefused(f"model: there is no {model[:128]!r}; there are: {', '.join(there) or 'none'}")
    return model


def _span(given: Mapping[str, str], window: str, now_us: int) -> tuple[int, int]:
    until = _moment(given, "until")
    end = now_us if until is None else until
    since = _moment(given, "since")
    if window != CUSTOM:
        return end - WINDOWS[window], end
    if since is None:
        raise QueryRefused("since: must be given with window=custom")
    if since >= end:
        raise QueryRefused("since: is not before until")
    if end - since > LONGEST_US:
        raise QueryRefused(f"since: more than {LONGEST_US // DAY_US} days before until")
    return since, end


def _moment(given: Mapping[str, str], name: str) -> int | None:
    try:
        found = moment_us(name, given.get(name))
    except (MonitoringError, OverflowError) as refused:
        raise QueryRefused(str(refused) if isinstance(refused, MonitoringError) else f"{name}: out of range") from None
    if found is not None and not 0 <= found < 4_102_444_800_000_000:  # 1970 to 2100
        raise QueryRefused(f"{name}: {given[name]!r} is not between 1970 and 2100")
    return found
