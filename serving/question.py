"""A request of many rows, from its body to its answer: what `/predict/batch` and the protocols of other servers share.

Large bodies are inflated, decoded and answered by a thread, so that the loop goes on; the rows are scored by `serving.many`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastapi import Request

from serving.answers import Answer
from serving.live import Arm, Snapshot
from serving.many import Context, Many, score_many
from serving.responses import read_content

LOOP_BYTES = 1 << 15  # a body up to this is decoded on the loop: less than a slice of it
LOOKED_UP_BYTES = 1 << 12  # the same of a model that looks entities up: some 80 of them, at 13 µs each
LOOP_ROWS = 500  # an answer up to this is spelled there


class Question(NamedTuple):
    """A body, read: its rows as `Decode` makes them, and what writes the answer. `timeout` as x-request-timeout-ms;
    `units` is empty where the request has no unit by row."""

    rows: list[bytes]
    write: Callable[[Many], Answer]
    timeout: bytes = b""
    units: Sequence[bytes] = ()


Read = Callable[[bytes], Question]
"""Of a body; any thread. Raises RequestRefused."""


class Watcher:
    """Whether the client is still there. To be made when the body has been read."""

    def __init__(self, request: Request) -> None:
        self.disconnected = False
        self._gone = asyncio.ensure_future(request.receive())
        self._gone.add_done_callback(self._look)

    def stop(self) -> None:
        self._gone.cancel()

    def _look(self, gone: asyncio.Future[Any]) -> None:
        if not gone.cancelled() and gone.exception() is None:
            self.disconnected = gone.result()["type"] == "http.disconnect"


async def answer_question(
    context: Context,
    request: Request,
    now: Snapshot,
    arm: Arm | None,
    read: Read,
    *,
    request_id: bytes,
    unit: bytes,
    timeout: bytes,
    arrived: int,
) -> Answer:
    """`arm` None: the experiment's split. Raises RequestRefused."""
    body = await read_content(request, context.max_bytes, context.thread)
    watcher = Watcher(request)
    try:
        loop = asyncio.get_running_loop()
        at_most = LOOP_BYTES if now.champion.manifest.lookup is None else LOOKED_UP_BYTES
        asked = await loop.run_in_executor(context.thread, read, body) if len(body) > at_most else read(body)
        many = await score_many(
            context, now, arm, asked.rows, request_id=request_id, unit=unit, timeout=timeout or asked.timeout,
            arrived=arrived, asker=watcher, units=asked.units,
        )  # fmt: skip
        if len(asked.rows) <= LOOP_ROWS:
            return asked.write(many)
        return await loop.run_in_executor(context.thread, asked.write, many)
    finally:
        watcher.stop()
