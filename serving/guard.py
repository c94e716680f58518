"""Who may ask, and how often: API keys before scoring, decided before a body is looked at.

    401   no key: `authorization: Bearer KEY` or `x-api-key: KEY`
    403   a key that is not known
    429   a key's rate is used up; `Retry-After` says when the next request may come

A known key is remembered until the file changes, which is looked for every `LOOK_S`: a dictionary's look-up tells a guesser
nothing, since it goes by a hash that nobody outside can know; a key that is not remembered is compared with all, in
constant time. A rate is shared evenly by the workers: each allows its part, to a key over all of its connections there.
Without keys there is neither guard nor rate: behind a proxy all clients have one address.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic

import msgspec

from serving import page
from serving.answers import Answer, plain
from serving.api_keys import Key, Keys
from serving.settings import Settings, cgroup_cpus

LOOK_S = 0.5
REMEMBERED = 4096
NO_KEY = "this needs an API key, as `authorization: Bearer KEY` or `x-api-key: KEY`"
WRONG_KEY = "this API key is not known here"


class Bucket:
    """Holds `burst` requests and is filled by `rate` a second."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = monotonic) -> None:
        self.rate = rate
        self.burst = max(1.0, burst)
        self._clock = clock
        self._tokens = self.burst
        self._at = clock()

    def take(self) -> float:
        """0.0 and a request less, or the seconds until there is one to take."""
        now = self._clock()
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.rate
        self._tokens -= 1.0
        return 0.0


class Guard:
    """One worker's; belongs to its loop's thread."""

    def __init__(self, keys: Keys, slot: page.Slot, workers: int) -> None:
        self._keys = keys
        self._cells = slot.cells
        self._workers = workers
        self._version = -1
        self._remembered: dict[bytes, Key] = {}
        self._buckets: dict[str, Bucket] = {}

    @classmethod
    def of(cls, settings: Settings, slot: page.Slot) -> Guard | None:
        if not settings.api_keys:
            return None
        keys = Keys(settings.api_keys, "COPPICE_API_KEYS", LOOK_S)
        keys.look()  # what is wrong with the file is told at the start
        return cls(keys, slot, settings.workers or cgroup_cpus())

    def refuse(self, offered: bytes) -> Answer | None:
        """What is told to who may not ask now. None: go on, and a request less of the key's rate."""
        key = self.find(offered)
        if key is None:
            self._cells[page.KEYS_WRONG if offered else page.KEYS_MISSING] += 1
            return _refusal(403, WRONG_KEY) if offered else _refusal(401, NO_KEY, b"www-authenticate: Bearer\r\n")
        wait_s = self._bucket(key).take() if key.rate else 0.0
        if not wait_s:
            return None
        self._cells[page.SHED_RATE] += 1
        return _refusal(
            429, f"more than {key.rate:g} requests a second by this key", b"retry-after: %d\r\n" % math.ceil(wait_s)
        )

    def find(self, offered: bytes) -> Key | None:
        self._keys.look()
        if self._version != self._keys.version:
            self._version = self._keys.version
            self._remembered.clear()
        key = self._remembered.get(offered)
        if key is None and offered:
            key = self._keys.who(offered)
            if key is not None:
                if len(self._remembered) >= REMEMBERED:
                    self._remembered.clear()
                self._remembered[offered] = key
        return key

    def _bucket(self, key: Key) -> Bucket:
        rate, burst = key.rate / self._workers, (key.burst or key.rate) / self._workers
        bucket = self._buckets.get(key.digest)
        if bucket is None or (bucket.rate, bucket.burst) != (rate, max(1.0, burst)):
            if len(self._buckets) >= REMEMBERED:
                self._buckets.clear()
            bucket = self._buckets[key.digest] = Bucket(rate, burst)
        return bucket


def _refusal(status: int, error: str, line: bytes = b"") -> Answer:
    answer = plain(status, {"error": error})
    return msgspec.structs.replace(answer, head=answer.head + line)
