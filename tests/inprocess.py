"""A worker's request path without its process: the protocol and its FastAPI twin over one snapshot and one log."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvicorn

from serving import page, routes
from serving.app import Health, create
from serving.board import Release
from serving.lanes import Cost, Lane
from serving.live import Arm, Loader, Snapshot
from serving.protocol import direct
from serving.served import Served
from serving.settings import Settings
from serving.traffic import TrafficLog
from serving.worker import make_door, make_served

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


class InProcess:
    """Ask `direct` and `asgi`; `close` seals the log, whose rows are then under `traffic`."""

    def __init__(self, store: Path, model: str, folder: Path) -> None:
        (folder / "pages").mkdir(parents=True)
        self.traffic = folder
        self.loop = asyncio.new_event_loop()
        self.slot = page.Page.create(folder / "pages" / "s.page", 1).slot(0)
        self.log = TrafficLog(folder, server="s", worker=0, slot=self.slot)
        settings = Settings(store=store, traffic=folder)
        try:
            snapshot = Loader(settings, self.log, self.slot, self.loop).load(model)
        except Exception:
            self.log.close(20)
            self.loop.close()
            raise
        self._door = make_door(settings, self.slot)
        served = self.loop.run_until_complete(self._served(settings))
        served.flip(Release(1, model, {model: 1}), {model: snapshot})
        self.live = served.models[model]
        health = Health(ready=lambda: (True, {}), metrics=lambda: b"")
        self._app = create(served, self._door, health, store=store)

    def direct(self, path: str, body: bytes, headers: dict[str, str]) -> Answered:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        sent = f"POST {path} HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body
        return self.loop.run_until_complete(self._direct(sent))

    def asgi(self, path: str, body: bytes | None, headers: dict[str, str]) -> Answered:
        return self.loop.run_until_complete(self._asgi(path, body, headers))

    def replace_lane(self, name: str, predictor: Any) -> None:
        """From now on the arm scores by that predictor, inline."""
        now = self.live.snapshot
        lane = Lane(
            predictor,
            self.loop,
            cost=Cost(1.0, 1.0),
            max_batch_rows=8,
            max_queue_rows=100,
            inline_budget_us=300,
            tally=lambda reason, rows, queue_us: None,  # noqa: ARG005  # a Tally takes three
        )
        self.live.snapshot = _with(now, {arm.name: arm for arm in now.arms}, name, lane)

    def close(self) -> None:
        for shadow in self.live.snapshot.shadows:
            shadow.drain_now()
        assert self.log.close(20)
        self.live.snapshot.close()
        self.loop.close()

    async def _served(self, settings: Settings) -> Served:
        return make_served(settings, self._door, self.log, self.slot)

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
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
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


def route(store: Path, model: str, arms: dict[str, str], shadow: str = "") -> None:
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
            shadow=(routes.Shadow(name="candidate", bundle=shadow),) if shadow else (),
            at=routes.stamp(),
        ),
    )


def _with(now: Snapshot, arms: dict[str, Arm], name: str, lane: Lane) -> Snapshot:
    arms[name] = msgspec.structs.replace(arms[name], lane=lane, inline=True)
    champion = arms["champion"]
    arms = {
        each: arm if arm.fallback is None else msgspec.structs.replace(arm, fallback=champion)
        for each, arm in arms.items()
    }
    points = tuple(arms[arm.name] for arm in now.points)
    return dataclasses.replace(now, champion=champion, arms=tuple(arms.values()), points=points)
