"""What servers count at this moment: their `/metrics`, looked at every few seconds by a thread, and kept for some minutes.

A server that does not answer is told as silent; the others are shown.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from time import time_ns

from monitoring.errors import ServerSilent
from monitoring.scrapes import Figures, Scrape, between, parse

EVERY_S = 5.0
KEPT = 61  # five minutes
TIMEOUT_S = 2.0
LONGEST_ANSWER = 4_000_000
MOST_SERVERS = 64


@dataclass(frozen=True)
class Now:
    """Of one server: what happened over `figures.seconds`; or why nothing is known."""

    url: str
    figures: Figures | None
    rates: tuple[tuple[int, float], ...] = ()  # (at_us, requests/s since the look before)
    workers: int = 0
    ready: int = 0
    silent: str = ""


class Live:
    def __init__(self, servers: Sequence[str]) -> None:
        self.servers = tuple(dict.fromkeys(servers))[:MOST_SERVERS]
        self._seen: dict[str, deque[tuple[Scrape, str]]] = {url: deque(maxlen=KEPT) for url in self.servers}
        self._silent: dict[str, str] = {}

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. Does nothing where there are no servers."""
        if not self.servers:
            return
        with ThreadPoolExecutor(min(8, len(self.servers))) as several:
            while not stop.is_set():
                list(several.map(self.look, self.servers))
                stop.wait(EVERY_S)

    def look(self, url: str) -> None:
        """Once; what it finds, or why nothing, is kept."""
        try:
            text = _metrics(url)
            whole = parse(text, "", where=url, at_us=time_ns() // 1000)  # refuses what is no page of ours
            self._seen[url].append((whole, text))
            self._silent.pop(url, None)
        except ServerSilent as silent:
            self._silent[url] = str(silent)

    def now(self, model: str) -> list[Now]:
        """Of each server."""
        return [self._now(url, model) for url in self.servers]

    def _now(self, url: str, model: str) -> Now:
        looks = list(self._seen[url])
        if url in self._silent or not looks:
            return Now(url, None, silent=self._silent.get(url, "was not looked at yet"))
        first, last = (parse(text, model, where=url, at_us=whole.at_us) for whole, text in (looks[0], looks[-1]))
        figures = between(first if len(looks) > 1 else None, last)
        steps = [between(one, other) for (one, _), (other, _) in pairwise(looks)]
        rates = [(other.at_us, step.requests / step.seconds) for step, (other, _) in zip(steps, looks[1:], strict=True)]
        return Now(url, figures, tuple(rates), last.workers, last.ready)


def _metrics(url: str) -> str:
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(f"{url.rstrip('/')}/metrics"), timeout=TIMEOUT_S) as answer:
            return str(answer.read(LONGEST_ANSWER).decode("utf-8", "replace"))
    except (URLError, OSError, ValueError) as why:
        raise ServerSilent(f"{url}: {why}") from None
