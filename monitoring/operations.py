"""How a model was served: how much, how fast, with how many errors; from the lake over a window, or live from the servers.

What was found is a check of kind "operations", of all versions. `verdict`: "fine", "broken" (it says why), or "no traffic".

    found    {"source": "lake" | "live", "seconds": ..., "rows": ..., "requests": ..., "rate": requests/s, "errors": ...,
              "error_rate": ..., "p50_ms": ..., "p95_ms": ..., "p99_ms": ...}
    lake     also "fallbacks", "overrides", "arms": [{"arm", "version", "rows", "errors", "p50_ms", "p95_ms", "p99_ms"}, ...];
             times are of a row, from parsed to scored, and the slowest arm's
    live     also "servers", "shed", "shed_rate", "arm_errors", "dropped"; times are of a request, to its answer's write
    books    "dropped", "lost": since the check before; "dropped_total", "lost_total": of all servers whose pages are there;
             "faults": where served is not logged + dropped + lost. "lost" and "faults" only where the books were asked for

What is not known is absent.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import Any

from monitoring import checks as memory
from monitoring.checks import Check
from monitoring.engine import Engine
from monitoring.errors import MonitoringError, ServerSilent
from monitoring.scrapes import Scrape, between, scrape, together
from serving import page

QUANTILES = ("p50", "p95", "p99")
LONGEST_US = 1 << 60  # a stretch that holds every window


@dataclass(frozen=True)
class Limits:
    """Beyond these a window is broken."""

    error_rate: float = 0.01
    shed_rate: float = 0.05


@dataclass(frozen=True)
class Stretch:
    """One arm in one stretch of time. Times in ms; None: nothing was timed."""

    begin_us: int
    arm: str
    version: str
    rows: int
    requests: int
    errors: int
    fallbacks: int
    overrides: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


def stretches(engine: Engine, model: str, bucket_us: int, *, since_us: int, until_us: int) -> list[Stretch]:
    """By time, then arm."""
    from monitoring.queries import operations

    table = operations(engine, model, bucket_us, since_us=since_us, until_us=until_us)
    counts = ("begin_us", "rows", "requests", "errors", "fallbacks", "overrides")
    return [
        Stretch(
            arm=row["arm"],
            version=row["version"],
            p50_ms=_ms(row["p50_us"]),
            p95_ms=_ms(row["p95_us"]),
            p99_ms=_ms(row["p99_us"]),
            **{name: int(row[name]) for name in counts},
        )
        for row in table.to_pylist()
    ]


def from_lake(arms: Sequence[Stretch], seconds: float) -> dict[str, Any]:
    """`found` of a window, given each arm's stretch that holds all of it."""
    counts = {
        name: sum(getattr(arm, name) for arm in arms)
        for name in ("rows", "requests", "errors", "fallbacks", "overrides")
    }
    told = ("arm", "version", "rows", "errors", *(f"{q}_ms" for q in QUANTILES))
    slowest = {
        f"{q}_ms": max((ms for arm in arms if (ms := getattr(arm, f"{q}_ms")) is not None), default=None)
        for q in QUANTILES
    }
    return _known(
        {
            "source": "lake",
            "seconds": seconds,
            **counts,
            "rate": counts["requests"] / seconds if seconds else None,
            "error_rate": counts["errors"] / counts["rows"] if counts["rows"] else None,
            **slowest,
            "arms": [{name: getattr(arm, name) for name in told} for arm in arms],
        }
    )


def live(model: str, servers: Sequence[str], seconds: float) -> dict[str, Any]:
    """`found` of the `seconds` from now on; 0: since the servers started. Raises ServerSilent, naming the server."""
    before = _scraped(servers, model) if seconds else {}
    time.sleep(seconds)
    figures = together(between(before.get(url), seen) for url, seen in _scraped(servers, model).items())
    return {"source": "live", "servers": list(servers), "seconds": figures.seconds, **figures.found()}


def _scraped(servers: Sequence[str], model: str) -> dict[str, Scrape]:
    seen = scrape(servers, model)
    for silent in seen.values():
        if isinstance(silent, ServerSilent):
            raise silent
    return {url: one for url, one in seen.items() if isinstance(one, Scrape)}


def books(traffic: Path, lake: str | Path, before: Iterable[Check], *, whole: bool) -> dict[str, Any]:
    """The books' part of `found`. Without `whole` nothing is read but the servers' pages: no losses, no faults."""
    last = max(
        (check for check in before if "dropped_total" in check.found), key=lambda check: check.at_us, default=None
    )
    known: Mapping[str, Any] = last.found if last else {}
    dropped = dropped_by_pages(traffic)
    found: dict[str, Any] = {"dropped_total": dropped, "dropped": max(0, dropped - known.get("dropped_total", 0))}
    if whole:
        from monitoring.reconcile import reconcile

        balance = reconcile(traffic, lake)
        lost = balance.total("lost")
        found |= {"lost_total": lost, "lost": max(0, lost - known.get("lost_total", 0)), "faults": list(balance.faults)}
    elif "lost_total" in known:
        found["lost_total"] = known["lost_total"]
    return found


def dropped_by_pages(traffic: Path) -> int:
    """Rows that the log dropped, of all servers whose pages are there."""
    try:
        pages = [page.Page.open(path, readonly=True) for path in sorted((traffic / "pages").glob("*.page"))]
    except (OSError, ValueError) as why:
        raise MonitoringError(f"--traffic: {why}") from None
    cells = (page.ROWS_DROPPED_FULL, page.ROWS_DROPPED_DISK)
    return sum(int(slot.cells[cell]) for shared in pages for slot in shared.slots() for cell in cells)


def judge(found: Mapping[str, Any], limits: Limits) -> tuple[str, str]:
    """(verdict, reason)."""
    wrong = [
        *found.get("faults", ()),
        *(f"{found[name]:,} rows were {name} by the log" for name in ("dropped", "lost") if found.get(name)),
        *_beyond(found, "error_rate", limits.error_rate, "failed"),
        *_beyond(found, "shed_rate", limits.shed_rate, "were shed"),
    ]
    if wrong:
        return "broken", "; ".join(wrong)
    rows = found.get("requests") or found.get("rows")
    return ("fine", f"{rows:,} requests") if rows else ("no traffic", "nobody asked")


def remember(checks: Path, model: str, since_us: int, until_us: int, found: dict[str, Any], limits: Limits) -> Check:
    """Append the look to the checks."""
    verdict, reason = judge(found, limits)
    check = Check("operations", model, "", since_us, until_us, verdict, reason, found, time_ns() // 1000)
    memory.append(checks, check)
    return check


def _beyond(found: Mapping[str, Any], name: str, limit: float, what: str) -> list[str]:
    share = found.get(name)
    return [f"{share:.2%} of what was asked {what}"] if share is not None and share > limit else []


def _ms(us: float | None) -> float | None:
    return None if us is None else us / 1000


def _known(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}
