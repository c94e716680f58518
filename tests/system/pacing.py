"""A bounded, paced load: so many requests a second over a few connections, every answer kept for judgement."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Told:
    """What one answer said."""

    path: str
    unit: str
    status: int
    version: str
    generation: int
    arm: str
    at: float
    took_s: float


@dataclass
class Load(threading.Thread):
    """`rate` requests a second until `stop`. `failed`: requests that got no answer at all, with why."""

    port: int
    rate: float
    bodies: list[bytes]
    paths: list[str]
    units: list[str]
    connections: int = 16
    told: list[Told] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._stopping = False

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        asyncio.run(self._all())

    def finish(self) -> None:
        self._stopping = True
        self.join(30)
        assert not self.is_alive()

    async def _all(self) -> None:
        await asyncio.gather(*(self._one(n) for n in range(self.connections)))

    async def _one(self, number: int) -> None:
        due = time.perf_counter() + number / self.rate
        count = number
        streams = None
        while not self._stopping:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            due = max(due + self.connections / self.rate, time.perf_counter() - 0.5)  # it does not catch up for ever
            path, unit = self.paths[count % len(self.paths)], self.units[count % len(self.units)]
            body = self.bodies[count % len(self.bodies)]
            count += self.connections
            try:
                if streams is None:
                    streams = await asyncio.open_connection("127.0.0.1", self.port)
                if not await asyncio.wait_for(self._ask(*streams, path, unit, body), 20):
                    streams[1].close()
                    streams = None
            except (OSError, ValueError, IndexError, EOFError, TimeoutError) as failure:
                self.failed.append(f"{path}: {failure!r}")
                if streams is not None:
                    streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, unit: str, body: bytes
    ) -> bool:
        """Whether the connection stays open."""
        began = time.perf_counter()
        writer.write(
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-unit: {unit}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        await reader.readexactly(int(headers["content-length"]))
        now = time.perf_counter()
        self.told.append(
            Told(
                path,
                unit,
                int(first.split()[1]),
                headers.get("x-model-version", ""),
                int(headers.get("x-routes-generation", 0)),
                headers.get("x-arm", ""),
                now,
                now - began,
            )
        )
        return headers.get("connection") != "close"
