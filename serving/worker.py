"""One worker process: from loading its bundles to sealing its log, in the order it happens.

    start   page slot, traffic log, snapshot (bundles opened and proved), application, listener, heartbeat
    serve   until SIGTERM, or until the supervisor's end of the pipe closes
    stop    not ready, serving on with `connection: close` (drain delay) -> listener closed, what is in flight answered
            -> shadows scored -> lanes closed -> log flushed, synced and sealed -> exit 0

Stop is start backwards: an answer may still be logged until the last one is written, so the log closes last.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import time_ns

import uvicorn
import uvloop

from compile.errors import CompileError
from serving import page
from serving.admission import Admission
from serving.app import Health, create
from serving.door import Door
from serving.errors import ServingError
from serving.live import Live, Loader, Snapshot, default_model
from serving.metrics import render
from serving.protocol import direct
from serving.readiness import readiness
from serving.scoring import scorer
from serving.settings import Settings
from serving.traffic import TrafficLog

logger = logging.getLogger("coppice")

HEARTBEAT_S = 0.2
EXIT_OK = 0
EXIT_CANNOT_SERVE = 3  # the supervisor does not restart what would fail in the same way again


def main(settings: Settings, index: int, listener: socket.socket, page_path: Path, alive: int) -> int:
    """Serve until told to stop; the exit status. `alive` is the reading end of the supervisor's pipe."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(process)d %(levelname)s %(message)s")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, index, listener, page_path, alive))
    except (ServingError, CompileError) as refused:
        print(f"coppice: worker {index} can't serve: {refused}", file=sys.stderr, flush=True)
        return EXIT_CANNOT_SERVE


async def _serve(settings: Settings, index: int, listener: socket.socket, page_path: Path, alive: int) -> int:
    loop = asyncio.get_running_loop()
    shared = page.Page.open(page_path)
    slot = shared.slot(index)
    slot.begin(os.getpid())
    log = TrafficLog(settings.traffic, server=page_path.stem, worker=index, slot=slot)
    live = Live(Loader(settings, log, slot, loop).load(default_model(settings)))
    door = make_door(settings, live, log, slot)
    health = Health(ready=lambda: readiness(shared), metrics=lambda: render(shared))
    server = _Server(_config(settings, create(live, door, health), door))
    gc.collect()
    gc.freeze()  # what is loaded now lives as long as the process: no collection need look at it again

    stop = _Stopper(settings, door, slot, server)
    loop.add_signal_handler(signal.SIGTERM, stop.begin)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C reaches the supervisor too, which sends SIGTERM
    loop.add_reader(alive, stop.begin)
    slot.loaded_generation = slot.committed_generation = live.snapshot.routes.generation
    beating = asyncio.create_task(_beat(slot, log, server))
    await server.serve(sockets=[listener])
    beating.cancel()
    _finish(settings, live.snapshot, log, slot)
    return EXIT_OK


def make_door(settings: Settings, live: Live, log: TrafficLog, slot: page.Slot) -> Door:
    admission = Admission(settings.deadline_ms)
    admission.watch(asyncio.get_running_loop())
    endpoints = {
        b"/predict": scorer(live, log, slot, admission, split=False, unit_field=settings.unit_field),
        b"/predict/ab": scorer(live, log, slot, admission, split=True, unit_field=settings.unit_field),
    }
    return Door(endpoints, max_body_bytes=settings.max_body_bytes, on_answer=_counter(slot))


def _counter(slot: page.Slot) -> Callable[[int, int], None]:
    """(status, µs) -> counted: every answer of this worker, whichever way it went out."""
    cells = slot.cells
    observe = slot.observe

    def on_answer(status: int, us: int) -> None:
        if status < 400:
            cells[page.REQUESTS_2XX] += 1
        elif status < 500:
            cells[page.REQUESTS_4XX] += 1
        elif status == 503:
            cells[page.REQUESTS_SHED] += 1
        else:
            cells[page.REQUESTS_5XX] += 1
        observe(page.REQUEST_SECONDS, us)

    return on_answer


def _config(settings: Settings, app: object, door: Door) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # an ASGI application by Starlette's types, which are wider than uvicorn's
        http=direct(door) if settings.http == "direct" else "httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        headers=[("server", "coppice")],
        server_header=False,
        backlog=4096,
        timeout_keep_alive=int(settings.keep_alive_s),
        timeout_graceful_shutdown=max(1, int(settings.stop_timeout_s)),
    )


class _Server(uvicorn.Server):
    """uvicorn's server, whose signals are ours: it would close its listener at once and knows no drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Stopper:
    def __init__(self, settings: Settings, door: Door, slot: page.Slot, server: uvicorn.Server) -> None:
        self._settings = settings
        self._door = door
        self._slot = slot
        self._server = server
        self._begun = False

    def begin(self) -> None:
        """Idempotent: a second SIGTERM, or the pipe closing after the first, changes nothing."""
        if self._begun:
            return
        self._begun = True
        self._door.draining = True
        self._slot.state = page.DRAINING
        asyncio.get_running_loop().call_later(self._settings.drain_delay_s, self._close)

    def _close(self) -> None:
        self._server.should_exit = True


async def _beat(slot: page.Slot, log: TrafficLog, server: uvicorn.Server) -> None:
    while True:
        if server.started and slot.state == page.STARTING:
            slot.state = page.READY
        slot.heartbeat_us = time_ns() // 1000
        log.tick()
        await asyncio.sleep(HEARTBEAT_S)


def _finish(settings: Settings, snapshot: Snapshot, log: TrafficLog, slot: page.Slot) -> None:
    for shadow in snapshot.shadows:
        shadow.drain_now()
    snapshot.close()
    log.close(settings.stop_timeout_s)
    slot.state = page.STOPPED
