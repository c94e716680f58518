"""Looking entities up in a view in Redis: by a thread, many at a time, so that the loop never waits for the network.

Who asks while a round trip is under way waits for the next one, which asks for all of them at once. As many may wait as
`LIMIT`; the next is refused as by a full lane. Redis not answering is a 503 for those who asked, told in the log once.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from serving.errors import Found, LookedUpElsewhere, Overloaded, SettingsRefused, ViewMissing
from training.view import Facts, Lookup, ViewRefused
from training.view_redis import RedisView

logger = logging.getLogger("coppice")

LIMIT = 1024
AT_ONCE = 256


class Asked(NamedTuple):
    entity: str
    then: Found
    loop: asyncio.AbstractEventLoop


class RedisFinder:
    """Loop's thread alone. Its own thread ends when it is let go."""

    def __init__(self, address: str, lookup: Lookup, refuse: Callable[[Facts], None]) -> None:
        """Raises SettingsRefused where Redis could never be asked."""
        try:
            view = RedisView(address, lookup.view)
        except ViewRefused as refused:
            raise SettingsRefused(f"COPPICE_VIEWS: {refused}") from None
        self._queue: SimpleQueue[Asked | None] = SimpleQueue()
        weakref.finalize(self, self._queue.put, None)
        Thread(target=_answer_all, args=(view, refuse, self._queue), name="lookup", daemon=True).start()

    def find(self, entity: str) -> bytes | None:
        raise LookedUpElsewhere.by(lambda then: self._ask(entity, then))

    def _ask(self, entity: str, then: Found) -> None:
        if self._queue.qsize() >= LIMIT:
            raise Overloaded("too many requests are being looked up")
        self._queue.put(Asked(entity, then, asyncio.get_running_loop()))


def _answer_all(view: RedisView, refuse: Callable[[Facts], None], queue: SimpleQueue[Asked | None]) -> None:
    told, judged = "", None
    while (first := queue.get()) is not None:
        asked, ended = _others(first, queue)
        answers: list[bytes | ViewMissing | None]
        try:
            answers = [*view.find([one.entity for one in asked])]
            if view.facts is not None and view.facts is not judged:
                refuse(view.facts)
                judged = view.facts
            told = ""
        except ViewRefused as refused:
            if str(refused) != told:
                told = str(refused)
                logger.error("%s", refused)
            answers = [_missing(view) for _ in asked]
        except Exception:  # this thread must outlive any one look-up, or nobody would be answered any more
            logger.exception("looking up %d entities failed", len(asked))
            answers = [_missing(view) for _ in asked]
        _deliver(asked, answers)
        if ended:
            return


def _missing(view: RedisView) -> ViewMissing:
    return ViewMissing(f"the view {view.name} can't be read here just now")


def _others(first: Asked, queue: SimpleQueue[Asked | None]) -> tuple[list[Asked], bool]:
    asked = [first]
    while len(asked) < AT_ONCE:
        try:
            another = queue.get_nowait()
        except Empty:
            break
        if another is None:
            return asked, True
        asked.append(another)
    return asked, False


def _deliver(asked: list[Asked], answers: list[bytes | ViewMissing | None]) -> None:
    def tell() -> None:
        for one, answer in zip(asked, answers, strict=True):
            one.then(answer)

    loop = asked[0].loop
    if not loop.is_closed():
        loop.call_soon_threadsafe(tell)
