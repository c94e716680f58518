"""One worker process: from loading its bundles to sealing its log, in the order it happens.

    start   page slot, traffic log, the committed release (bundles opened and proved), application, heartbeat, listener
    serve   until SIGTERM, or until the supervisor's end of the pipe closes; flipping from release to release
    stop    not ready, serving on with `connection: close` (drain delay) -> no new connections -> what came in answered
            (grace), connections closed -> shadows scored -> lanes closed -> log flushed, synced and sealed -> exit 0

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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import time_ns

import uvicorn
import uvloop

from compile.errors import CompileError
from serving import page
from serving.admin import Admin
from serving.admission import Admission
from serving.app import Health, create
from serving.door import Door
from serving.edge import Edge
from serving.errors import ServingError
from serving.flip import Flipper
from serving.live import Live, Loader
from serving.many import Context
from serving.metrics import arm_counts, render
from serving.outcomes import OutcomeLog
from serving.overrides import Overrides
from serving.protocol import direct
from serving.quick import Asked, Quick
from serving.readiness import readiness
from serving.scoring import Score, scorer
from serving.served import Served
from serving.settings import Settings
from serving.store import local_folder
from serving.tls import refuse_unusable
from serving.traffic import TrafficLog

logger = logging.getLogger("coppice")

HEARTBEAT_S = 0.2
GRACE_S = 0.2  # between the last connection accepted and the close, for its first request to arrive
SWITCH_S = 0.0005  # for how long a busy thread keeps the interpreter from another: the loop, or a lane that has scored
TELL_S = 2.0  # for what waits to be told to access log and tracing; the log of traffic is sealed by then
EXIT_OK = 0
EXIT_CANNOT_SERVE = 3  # the supervisor does not restart what would fail in the same way again


def main(settings: Settings, index: int, listener: socket.socket, page_path: Path, alive: int) -> int:
    """Serve until told to stop; the exit status. `alive` is the reading end of the supervisor's pipe."""
    sys.setswitchinterval(SWITCH_S)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(process)d %(levelname)s %(message)s")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, index, listener, page_path, alive))
    except (ServingError, CompileError) as refused:
        print(f"coppice: worker {index} can't serve: {refused}", file=sys.stderr, flush=True)
        return EXIT_CANNOT_SERVE


async def _serve(settings: Settings, index: int, listener: socket.socket, page_path: Path, alive: int) -> int:
    loop = asyncio.get_running_loop()
    refuse_unusable(settings)
    shared = page.Page.open(page_path)
    slot = shared.slot(index)
    slot.begin(os.getpid())
    log = TrafficLog(settings.traffic, server=page_path.stem, worker=index, slot=slot)
    door = make_door(settings, slot)
    served = make_served(settings, door, log, slot)
    flipper = Flipper(shared.board, slot, Loader(settings, log, slot, loop), served)
    await flipper.first()
    health = Health(lambda: readiness(shared), lambda: render(shared), lambda: arm_counts(shared.slots()))
    outcomes = OutcomeLog(settings.traffic / "outcomes", log.writer, slot=slot, loop=loop)
    store = local_folder(settings.store, settings.traffic)
    server = _Server(_config(settings, create(served, door, health, Admin.of(settings, slot), outcomes, store), door))
    gc.collect()
    gc.freeze()  # what is loaded now lives as long as the process: no collection need look at it again

    stop = _Stopper(settings, door, slot, server)
    loop.add_signal_handler(signal.SIGTERM, stop.begin)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C reaches the supervisor too, which sends SIGTERM
    loop.add_reader(alive, stop.begin)
    tasks = [asyncio.create_task(_beat(slot, log, server)), asyncio.create_task(flipper.follow())]
    await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()
    outcomes.close(settings.stop_timeout_s)
    _finish(settings, door, served, log, slot)
    return EXIT_OK


def make_door(settings: Settings, slot: page.Slot) -> Door:
    return Door(
        {},
        max_body_bytes=settings.max_body_bytes,
        on_answer=_counter(slot),
        max_batch_bytes=settings.max_batch_bytes,
        edge=Edge.of(settings, slot),
    )


def make_served(settings: Settings, door: Door, log: TrafficLog, slot: page.Slot) -> Served:
    """No model yet; each release that it flips to replaces the door's table of paths."""
    admission = Admission(settings.deadline_ms)
    admission.watch(asyncio.get_running_loop())

    def scorer_of(live: Live, split: bool) -> Score:
        return scorer(live, log, slot, admission, split=split, unit_field=settings.unit_field)

    overrides = Overrides(lambda live: scorer_of(live, False), log.register, slot)
    door.overrides = overrides

    def learned(live: Live, split: bool) -> Score:
        score = scorer_of(live, split)
        overrides.learn(score, live)
        return score

    def flip(paths: Mapping[bytes, Asked]) -> None:
        if door.quick is not None:
            door.quick.flip(paths)

    if settings.http == "direct" and door.edge is None and not settings.unit_field:
        door.quick = Quick.of(log, slot, admission, door.again, max_body_bytes=settings.max_body_bytes)
    return Served(learned, door.take, flip, Context.of(settings, log, slot, admission))


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
        http="httptools" if settings.http == "asgi" else direct(door),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        headers=[("server", "coppice")],
        server_header=False,
        backlog=4096,
        ssl_certfile=settings.tls_cert or None,
        ssl_keyfile=settings.tls_key or None,
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
        asyncio.get_running_loop().call_later(self._settings.drain_delay_s, self._accept_no_more)

    def _accept_no_more(self) -> None:
        """New connections wait in the socket, which the supervisor keeps, for the worker that comes after this one."""
        for listening in self._server.servers:
            listening.close()
        asyncio.get_running_loop().call_later(GRACE_S, self._close)

    def _close(self) -> None:
        self._server.should_exit = True


async def _beat(slot: page.Slot, log: TrafficLog, server: uvicorn.Server) -> None:
    while True:
        if server.started and slot.state == page.STARTING:
            slot.state = page.READY
        slot.heartbeat_us = time_ns() // 1000
        log.tick()
        await asyncio.sleep(HEARTBEAT_S)


def _finish(settings: Settings, door: Door, served: Served, log: TrafficLog, slot: page.Slot) -> None:
    snapshots = served.snapshots().values()
    for snapshot in snapshots:
        for shadow in snapshot.shadows:
            shadow.drain_now()
    for snapshot in snapshots:
        snapshot.close()
    log.close(settings.stop_timeout_s)
    if door.edge is not None and door.edge.watch is not None:
        door.edge.watch.close(TELL_S)
    slot.state = page.STOPPED
