"""What a request passes before anything else, and what is told of its answer: one decision for every path.

`Edge.answer` stands before the door where the protocol answers itself; `EdgeApp`, outermost around the application, does the
same for all that goes through ASGI, whichever routes it has. Health and metrics are open to all, as balancers and scrapers
need them to be, and in no access log; the admin API has keys of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import page
from serving.answers import Answer
from serving.guard import Guard
from serving.heads import Named, Rare, named_headers
from serving.scoring import Reply, Score
from serving.settings import Settings
from serving.tracing import Trace
from serving.watching import Watch

OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/health", "/ping", "/v2/health/live", "/v2/health/ready"})
ADMIN = "/v1/admin/"
NOTHING = Rare()
Admitted = Callable[[Score, bytes, int, Named, int, Reply], Answer | None]
"""(scoring function, body, bytes received, headers, arrival, reply): `Door.admitted`"""


@dataclass(frozen=True, slots=True)
class At:
    """A path's scoring function that knows its path."""

    path: str
    score: Score

    def __call__(
        self, body: bytes, request_id: bytes, unit: bytes, timeout: bytes, arrived: int, reply: Reply
    ) -> Answer | None:
        return self.score(body, request_id, unit, timeout, arrived, reply)


class Through:
    """A reply whose answer passes through `change` first."""

    def __init__(self, reply: Reply, change: Callable[[Answer], Answer]) -> None:
        self._reply = reply
        self._change = change

    @property
    def disconnected(self) -> bool:
        return self._reply.disconnected

    @property
    def since(self) -> int:
        return self._reply.since

    def __call__(self, answer: Answer) -> None:
        self._reply(self._change(answer))


class Edge(NamedTuple):
    """One worker's. `guard` None: all may ask; `watch` None: nothing is told."""

    guard: Guard | None
    watch: Watch | None
    admin: bool  # there is an admin API

    @classmethod
    def of(cls, settings: Settings, slot: page.Slot) -> Edge | None:
        """None where there is nothing to do: then nothing is done."""
        guard, watch = Guard.of(settings, slot), Watch.of(settings, slot)
        return None if guard is None and watch is None else cls(guard, watch, bool(settings.admin_keys))

    def refuse(self, rare: Rare) -> Answer | None:
        return None if self.guard is None else self.guard.refuse(rare.key)

    def name(self, rare: Rare) -> str:
        """Whose key it is."""
        key = self.guard.find(rare.key) if self.guard is not None else None
        return key.name if key else ""

    def may_override(self, rare: Rare) -> bool:
        key = self.guard.find(rare.key) if self.guard is not None else None
        return key is not None and key.override

    def answer(
        self,
        admitted: Admitted,
        score: Score,
        body: bytes,
        received: int,
        named: Named,
        arrived: int,
        reply: Reply,
    ) -> Answer | None:
        """Of a scoring request that the protocol answers. Never raises."""
        rare = named[4] or NOTHING
        answer = self.refuse(rare)
        if answer is not None and rare.trace is not None:
            answer = rare.trace.marked(answer)
        if self.watch is None:
            return answer or admitted(score, body, received, named, arrived, reply)
        assert isinstance(score, At)
        see = self._seer(self.watch, score.path, received, rare, arrived)
        answer = answer or admitted(score, body, received, named, arrived, Through(reply, see))
        return answer and see(answer)

    def _seer(self, watch: Watch, path: str, received: int, rare: Rare, arrived: int) -> Callable[[Answer], Answer]:
        key = self.name(rare)

        def see(answer: Answer) -> Answer:
            sizes = received, len(answer.body)
            watch.see(arrived, "POST", path, answer.status, answer.head, sizes, key, rare.trace)
            return answer

        return see


class EdgeApp:
    """The same around an application. A traced answer has its trace id, whoever made it."""

    def __init__(self, app: ASGIApp, edge: Edge | None) -> None:
        self._app = app
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        edge = self._edge
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        rare = named_headers(scope["headers"])[4] or NOTHING
        if rare.trace is not None:
            send = _marking(send, rare.trace)
        if edge is None:
            await self._app(scope, receive, send)
            return
        if edge.watch is not None:
            receive, send = _watched(edge.watch, scope, receive, send, edge.name(rare), rare.trace)
        administers = edge.admin and scope["path"].startswith(ADMIN)
        refused = None if administers else edge.refuse(rare)
        if refused is None:
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": refused.status, "headers": refused.header_pairs()})
        await send({"type": "http.response.body", "body": refused.body})


def _marking(send: Send, trace: Trace) -> Send:
    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            if all(name != b"x-trace-id" for name, _ in headers):
                message["headers"] = [*headers, (b"x-trace-id", trace.trace_id)]
        await send(message)

    return marked


def _watched(
    watch: Watch, scope: Scope, receive: Receive, send: Send, key: str, trace: Trace | None
) -> tuple[Receive, Send]:
    arrived = perf_counter_ns()
    status, head, bytes_in, bytes_out = 0, b"", 0, 0

    async def receiving() -> Message:
        nonlocal bytes_in
        message = await receive()
        bytes_in += len(message.get("body", b""))
        return message

    async def sending(message: Message) -> None:
        nonlocal status, head, bytes_out
        if message["type"] == "http.response.start":
            status = message["status"]
            head = b"\r\n".join(name + b": " + value for name, value in message["headers"])
        bytes_out += len(message.get("body", b""))
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            sizes = bytes_in, bytes_out
            watch.see(arrived, scope["method"], scope["path"], status, head, sizes, key, trace)

    return receiving, sending
