"""What servers' `/metrics` say of a while: two scrapes of each, and what happened between them.

A scrape keeps the few counters that operations are judged by. They only grow, until their server starts again from 0: a
counter that fell is counted from 0, as Prometheus does. What happened is `Figures`, summed over servers; a quantile is
interpolated within its bucket, and is the last finite edge for what lies beyond it. Requests, latency, sheds and drops are
of the server, whatever model it answered for; rows and the arms' errors are of the model.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from time import time_ns
from typing import TYPE_CHECKING, Any

import msgspec

from monitoring.errors import ServerSilent

if TYPE_CHECKING:
    import httpx

LONGEST_PAGE = 16_000_000
TIMEOUT_S = 5.0


class Scrape(msgspec.Struct, frozen=True):
    """The counters of one server at one time. `buckets`: upper edge in s (inf as text) -> requests up to it."""

    at_us: int
    requests: int
    errors: int
    shed: int
    rows: int
    arm_errors: int
    dropped: int
    buckets: dict[str, int]
    workers: int = 0
    ready: int = 0


@dataclass(frozen=True)
class Figures:
    """Operations over a while. A share of nothing is None, and so is a quantile."""

    seconds: float = 0.0
    requests: int = 0
    errors: int = 0
    shed: int = 0
    rows: int = 0
    arm_errors: int = 0
    dropped: int = 0
    lost: int | None = None
    buckets: Mapping[float, int] = field(default_factory=dict)

    def share(self, count: int) -> float | None:
        return count / self.requests if self.requests else None

    def quantile_ms(self, q: float) -> float | None:
        return quantile_ms(self.buckets, q)

    def found(self) -> dict[str, Any]:
        """As a check's `found`; keys that are None are left out: not known."""
        told = {
            "requests": self.requests,
            "rows": self.rows,
            "errors": self.errors,
            "error_rate": self.share(self.errors),
            "shed": self.shed,
            "shed_rate": self.share(self.shed),
            "arm_errors": self.arm_errors,
            "dropped": self.dropped,
            "lost": self.lost,
            "rate": self.requests / self.seconds if self.seconds else None,
            **{f"p{round(100 * q)}_ms": self.quantile_ms(q) for q in (0.5, 0.95, 0.99)},
        }
        return {name: value for name, value in told.items() if value is not None}


def scrape(urls: Sequence[str], model: str, *, timeout_s: float = TIMEOUT_S) -> dict[str, Scrape | ServerSilent]:
    """Of each server its counters, or why there are none; all at once, so that one that is away keeps no other waiting."""
    import httpx

    async def ask() -> list[Scrape | ServerSilent]:
        async with httpx.AsyncClient(timeout=timeout_s) as client:
            return await asyncio.gather(*(_scrape(client, url, model, timeout_s) for url in urls))

    return dict(zip(urls, asyncio.run(ask()), strict=True))


async def _scrape(client: httpx.AsyncClient, url: str, model: str, timeout_s: float) -> Scrape | ServerSilent:
    import httpx

    page = bytearray()
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("GET", f"{url.rstrip('/')}/metrics") as answer,
        ):
            if answer.status_code != 200:
                return ServerSilent(f"{url}: no metrics: answered {answer.status_code}")
            async for part in answer.aiter_bytes():
                page += part
                if len(page) > LONGEST_PAGE:
                    return ServerSilent(f"{url}: no metrics: more than {LONGEST_PAGE:,} bytes")
    except (TimeoutError, httpx.TimeoutException):
        return ServerSilent(f"{url}: no metrics within {timeout_s:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as why:
        return ServerSilent(f"{url}: no metrics: {type(why).__name__}")
    try:
        return parse(page.decode(errors="replace"), model, where=url)
    except ServerSilent as silent:
        return silent


def parse(text: str, model: str, *, where: str = "metrics", at_us: int | None = None) -> Scrape:
    """Raises ServerSilent, naming `where`, for what is no page of Coppice's metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        counted = _counted(samples, model, time_ns() // 1000 if at_us is None else at_us)
    except (ValueError, KeyError, OverflowError) as why:
        raise ServerSilent(f"{where}: not in Prometheus' text format: {why}") from None
    if not any(sample.name == "coppice_requests_total" for sample in samples):
        raise ServerSilent(f"{where}: no server of Coppice: coppice_requests_total is absent")
    return counted


def _counted(samples: Sequence[Any], model: str, at_us: int) -> Scrape:
    def total(name: str, **labels: str) -> int:
        return sum(
            round(sample.value)
            for sample in samples
            if sample.name == name and all(sample.labels.get(label) == value for label, value in labels.items())
        )

    return Scrape(
        at_us=at_us,
        requests=total("coppice_requests_total"),
        errors=total("coppice_requests_total", outcome="5xx"),
        shed=total("coppice_requests_total", outcome="shed"),
        rows=total("coppice_arm_rows_total", model=model),
        arm_errors=total("coppice_arm_errors_total", model=model),
        dropped=total("coppice_traffic_rows_dropped_total"),
        buckets={
            sample.labels["le"]: round(sample.value)
            for sample in samples
            if sample.name == "coppice_request_seconds_bucket" and float(sample.labels["le"])
        },
        workers=sum(sample.name == "coppice_worker_ready" for sample in samples),
        ready=total("coppice_worker_ready"),
    )


def between(before: Scrape | None, after: Scrape) -> Figures:
    """What happened from one scrape to the next of a server; without one before, since the server started."""
    if before is None or after.requests < before.requests:
        before = Scrape(after.at_us, 0, 0, 0, 0, 0, 0, {})
    counts = {
        name: _grown(getattr(before, name), getattr(after, name))
        for name in ("requests", "errors", "shed", "rows", "arm_errors", "dropped")
    }
    buckets = {float(edge): _grown(before.buckets.get(edge, 0), count) for edge, count in after.buckets.items()}
    return Figures(seconds=(after.at_us - before.at_us) / 1e6, buckets=buckets, **counts)


def together(each: Iterable[Figures]) -> Figures:
    """Of several servers, watched at the same time."""
    given = list(each)
    edges = {edge for figures in given for edge in figures.buckets}
    summed = {
        name.name: sum(getattr(figures, name.name) for figures in given)
        for name in fields(Figures)
        if name.name not in ("seconds", "lost", "buckets")
    }
    return Figures(
        seconds=max((figures.seconds for figures in given), default=0.0),
        buckets={edge: sum(figures.buckets.get(edge, 0) for figures in given) for edge in edges},
        **summed,
    )


def quantile_ms(buckets: Mapping[float, int], q: float) -> float | None:
    """From cumulative counts by upper edge in s.

    >>> quantile_ms({0.5: 50, 1.0: 100, math.inf: 100}, 0.75)
    750.0
    >>> quantile_ms({0.1: 0, math.inf: 4}, 0.5)
    100.0
    """
    edges: Sequence[tuple[float, int]] = sorted(buckets.items())
    if not edges or not edges[-1][1]:
        return None
    wanted = q * edges[-1][1]
    low, below = 0.0, 0
    for edge, count in edges:
        if count >= wanted and count > below:
            reached = low if math.isinf(edge) else low + (edge - low) * (wanted - below) / (count - below)
            return reached * 1000
        low, below = edge, count
    return None  # counts that do not grow with their edges: not a histogram


def _grown(before: int, after: int) -> int:
    return after - before if after >= before else after
