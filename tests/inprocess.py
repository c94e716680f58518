"""A worker's request path without its process: the protocol and its FastAPI twin over one snapshot and one log."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import msgspec
import numpy as np
import uvicorn

from serving import page, routes
from serving.admission import PROBE_S
from serving.app import Health, create
from serving.board import Release
from serving.cost import Cost
from serving.lanes import Lane
from serving.live import Arm, Loader, Snapshot
from serving.protocol import direct
from serving.quick import Quick
from serving.served import Served
from serving.settings import Settings
from serving.traffic import TrafficLog
from serving.worker import make_door, make_served

T = TypeVar("T")
PAUSE_S = 0.3
CHEAP = Cost(1.0, 1.0)
Answered = tuple[int, list[tuple[bytes, bytes]], bytes]


class Capture(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += data

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002
        return default

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class InProcess:
    """Ask `direct` and `asgi`; `close` seals the log, whose rows are then under `traffic`."""

    def __init__(self, store: Path, model: str, folder: Path, **knobs: Any) -> None:
        (folder / "pages").mkdir(parents=True)
        self.traffic = folder
        self._ran = 0.0
        self.is_ready = True
        self.loop = asyncio.new_event_loop()
        self.slot = page.Page.create(folder / "pages" / "s.page", 1).slot(0)
        self.log = TrafficLog(folder, server="s", worker=0, slot=self.slot)
        settings = Settings(store=store, traffic=folder, **knobs)
        try:
            snapshot = Loader(settings, self.log, self.slot, self.loop).load(model)
        except Exception:
            self.log.close(20)
            self.loop.close()
            raise
        self._door = make_door(settings, self.slot)
        self.served = self.loop.run_until_complete(self._serving(settings))
        self._release = Release(1, model, {model: 1})
        self.served.flip(self._release, {model: snapshot})
        self.live = self.served.models[model]
        health = Health(ready=lambda: (self.is_ready, {}), metrics=lambda: b"")
        self._app = create(self.served, self._door, health, store=store)

    def direct(self, path: str, body: bytes, headers: dict[str, str]) -> Answered:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        sent = f"POST {path} HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body
        return self._run(self._direct(sent))

    def raw(self, sent: bytes, *, quick: bool = True) -> bytes:
        """What a connection writes at once for what it reads; `quick` False: without C."""
        kept = self._door.quick
        self._door.quick = kept if quick else None
        try:
            return self._run(self._raw(sent)).written
        finally:
            self._door.quick = kept

    def asgi(self, path: str, body: bytes | None, headers: dict[str, str]) -> Answered:
        return self._run(self._asgi(path, body, headers))

    def raw_together(self, sent: list[list[bytes]], *, quick: bool = True) -> list[bytes]:
        """Each list is what one connection reads, piece by piece, in one iteration of the loop."""
        kept = self._door.quick
        self._door.quick = kept if quick else None
        try:
            return [transport.written for transport in self._run(self._together(sent))]
        finally:
            self._door.quick = kept

    def replace_lane(self, name: str, predictor: Any, cost: Cost = CHEAP) -> None:
        """From now on the arm scores by that predictor."""
        now = self.live.snapshot
        lane = Lane(
            predictor,
            self.loop,
            cost=cost,
            max_batch_rows=8,
            max_queue_rows=100,
            inline_budget_us=300,
            tally=lambda reason, rows, queue_us: None,  # noqa: ARG005  # a Tally takes three
        )
        replaced = _with(now, {arm.name: arm for arm in now.arms}, name, lane)
        self.served.flip(self._release, {self._release.default: replaced})

    def flip_again(self) -> None:
        self.served.flip(self._release, {self._release.default: self.live.snapshot})

    @property
    def quick(self) -> Quick:
        assert self._door.quick is not None, "the C request path is built here"
        return self._door.quick

    def finish(self) -> None:
        """`close`, once."""
        if not self.loop.is_closed():
            self.close()

    def close(self) -> None:
        for shadow in self.live.snapshot.shadows:
            shadow.drain_now()
        assert self.log.close(20)
        self.live.snapshot.close()
        self.loop.close()

    def _run(self, asking: Coroutine[Any, Any, T]) -> T:
        """After a pause the loop, which stood still, must not be taken for one that is late."""
        if monotonic() - self._ran > PAUSE_S:
            self.loop.run_until_complete(asyncio.sleep(3 * PROBE_S))
        try:
            return self.loop.run_until_complete(asking)
        finally:
            self._ran = monotonic()

    async def _serving(self, settings: Settings) -> Served:
        return make_served(settings, self._door, self.log, self.slot)

    async def _together(self, sent: list[list[bytes]]) -> list[Capture]:
        config = uvicorn.Config(self._app, http=direct(self._door), log_config=None, lifespan="off")
        transports, connections = [], []
        for _ in sent:
            connections.append(direct(self._door)(config, uvicorn.Server(config).server_state, {}, self.loop))
            transports.append(Capture())
            connections[-1].connection_made(transports[-1])
        for connection, pieces in zip(connections, sent, strict=True):
            for piece in pieces:
                connection.data_received(piece)
        for _ in range(50):
            await asyncio.sleep(0)
        for connection in connections:
            connection.connection_lost(None)
        return transports

    async def _raw(self, sent: bytes) -> Capture:
        config = uvicorn.Config(self._app, http=direct(self._door), log_config=None, lifespan="off")
        protocol = direct(self._door)(config, uvicorn.Server(config).server_state, {}, self.loop)
        transport = Capture()
        protocol.connection_made(transport)
        protocol.data_received(sent)
        for _ in range(50):  # what FastAPI answers takes a few turns of the loop
            if not transport.written:
                await asyncio.sleep(0)
        protocol.connection_lost(None)
        return transport

    async def _direct(self, sent: bytes) -> Answered:
        config = uvicorn.Config(self._app, http=direct(self._door), log_config=None, lifespan="off")
        protocol = direct(self._door)(config, uvicorn.Server(config).server_state, {}, self.loop)
        transport = Capture()
        protocol.connection_made(transport)
        protocol.data_received(sent)
        while b"\r\n\r\n" not in transport.written:
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        head, _, body = transport.written.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        pairs = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        return int(status.split()[1]), pairs, body

    async def _asgi(self, path: str, body: bytes | None, headers: dict[str, str]) -> Answered:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET" if body is None else "POST",
            "path": path.partition("?")[0],
            "raw_path": path.encode(),
            "query_string": path.partition("?")[2].encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        messages: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body or b"", "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        await self._app(scope, receive, send)  # type: ignore[arg-type]
        start, *rest = messages
        return start["status"], list(start["headers"]), b"".join(message.get("body", b"") for message in rest)


class Failing:
    """A predictor that answers every row with `answer`, or fails on each where that is None."""

    def __init__(self, width: int, outputs: int, answer: float | None) -> None:
        self.width, self.outputs, self._answer = width, outputs, answer
        self.probe_rows = np.zeros((1, width))

    def bound(self, rows: np.ndarray, scores: np.ndarray) -> Callable[[int], None]:  # noqa: ARG002
        def run(count: int) -> None:
            if self._answer is None:
                raise RuntimeError("this model fails on every row")
            scores[:count] = 0.25
            scores[:count, -1] = self._answer

        return run


def route(store: Path, model: str, arms: dict[str, str], shadow: str = "", sample: float = 1.0) -> None:
    """The model's next generation: every arm has an equal share."""
    before = routes.history(store, model)
    routes.publish(
        store,
        routes.Routes(
            model=model,
            generation=(before[-1] if before else 0) + 1,
            salt="00" * 16 if not before else routes.new_salt(),
            slots=routes.split_slots(dict.fromkeys(arms, 1.0)),
            arms=arms,
            shadow=(routes.Shadow(name="candidate", bundle=shadow, sample=sample),) if shadow else (),
            at=routes.stamp(),
        ),
    )


def _with(now: Snapshot, arms: dict[str, Arm], name: str, lane: Lane) -> Snapshot:
    arms[name] = msgspec.structs.replace(arms[name], lane=lane, inline=lane.reason == "inline")
    champion = arms["champion"]
    for each, arm in arms.items():
        if arm.fallback is not None:
            standing_in = msgspec.structs.replace(arm.fallback, lane=champion.lane, inline=champion.inline)
            arms[each] = msgspec.structs.replace(arm, fallback=standing_in)
    points = tuple(arms[arm.name] for arm in now.points)
    return dataclasses.replace(now, champion=champion, arms=tuple(arms.values()), points=points)
