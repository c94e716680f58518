"""A worker's own parts in this process, around a model as slow as a test needs it to be."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvicorn
from cases import MIXED, mixed_body, mixed_rows

from serving import page, worker
from serving.app import Health, create
from serving.board import Release
from serving.cost import Cost
from serving.lanes import Lane
from serving.live import Loader, lane_tally
from serving.protocol import direct
from serving.settings import Settings
from serving.traffic import TrafficLog

BODY = mixed_body(mixed_rows(1, 3)[0])


@dataclass
class Slow:
    """Takes `call_s + rows * row_s`, off the GIL, and keeps count."""

    call_s: float
    row_s: float = 0.0
    width: int = MIXED.width
    outputs: int = 1
    probe_rows: Any = field(default_factory=lambda: mixed_rows(4))
    scored: int = 0

    def bound(self, rows: np.ndarray, scores: np.ndarray) -> Callable[[int], None]:  # noqa: ARG002  # a Bindable's
        def run(count: int) -> None:
            time.sleep(self.call_s + count * self.row_s)
            scores[:count] = 0.25
            self.scored += count

        return run


@dataclass(frozen=True)
class Slowly:
    """A server on loopback, and what it counts."""

    port: int
    slot: page.Slot
    model: Slow
    lane: Lane

    async def ask(self, *lines: str, body: bytes = BODY) -> tuple[int, bytes]:
        """One request on a connection of its own: (status, all that came back)."""
        reader, writer = await self.send(*lines, body=body)
        said = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return int(said.split(b" ", 2)[1]), said

    async def send(self, *lines: str, body: bytes = BODY) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(self.request(*lines, body=body))
        return reader, writer

    @staticmethod
    def request(*lines: str, body: bytes = BODY) -> bytes:
        head = ["POST /predict HTTP/1.1", "host: x", "connection: close", f"content-length: {len(body)}", *lines]
        return "\r\n".join([*head, "", ""]).encode() + body


@contextlib.asynccontextmanager
async def slowly(
    store: Path, traffic: Path, model: Slow, *, cost: Cost, http: str = "direct", **knobs: Any
) -> AsyncIterator[Slowly]:
    """A worker whose champion is `model`, thought to cost `cost`."""
    loop = asyncio.get_running_loop()
    settings = Settings(store=store, traffic=traffic, model="mixed", **knobs)
    traffic.mkdir(parents=True, exist_ok=True)
    shared = page.Page.create(traffic / "a.page", 1)
    slot = shared.slot(0)
    log = TrafficLog(traffic, server="slow", worker=0, slot=slot)
    lane = Lane(
        model,
        loop,
        cost=cost,
        max_batch_rows=settings.max_batch_rows,
        max_queue_rows=settings.max_queue_rows,
        inline_budget_us=0.0,
        tally=lane_tally(slot),
    )
    loaded = Loader(settings, log, slot, loop).load("mixed")
    champion = msgspec.structs.replace(loaded.champion, lane=lane, inline=False)
    door = worker.make_door(settings, slot)
    served = worker.make_served(settings, door, log, slot)
    served.flip(Release(1, "mixed", {"mixed": 1}), {"mixed": replace(loaded, champion=champion)})
    health = Health(ready=lambda: (True, {}), metrics=lambda: b"")
    config = uvicorn.Config(
        create(served, door, health),  # type: ignore[arg-type]  # as in serving.worker
        http=direct(door) if http == "direct" else "httptools",
        port=0,
        log_config=None,
        access_log=False,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)  # what starting took is no lag any more
    yield Slowly(server.servers[0].sockets[0].getsockname()[1], slot, model, lane)
    server.should_exit = True
    await serving
    lane.close()
    loaded.close()
    log.close(10)
