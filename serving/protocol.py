"""The scoring request, answered straight from uvicorn's HTTP parser: no task, no ASGI messages.

`direct(endpoints)` makes a protocol class for `uvicorn.Config(http=...)`. It takes what is plainly a scoring request -
POST to a scoring path, HTTP/1.1, nothing else in flight on the connection, no upgrade, no `Expect`, a peer that reads
its answers - and hands everything else, untouched, to uvicorn's own class, where the FastAPI twin of each path waits.

Where the score is not ready at once, a `_Pending` stands where uvicorn keeps its request cycle, so that pipelining,
graceful shutdown and a lost connection work by uvicorn's own rules while the answer is outstanding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.answers import Answer, plain, refusal
from serving.errors import BodyTooLarge, ContentTypeRefused, RequestRefused
from serving.scoring import Score

PLAIN_JSON = frozenset({b"", b"application/json"})
JSON_TYPES = frozenset({b"application/json", b"text/json"})
READ_ON = 16  # times the body limit is read and thrown away, so that the sender sees the 413; then the line is cut
NAMED_LENGTHS = frozenset(map(len, (b"content-type", b"x-request-id", b"x-unit", b"expect")))
Headers = list[tuple[bytes, bytes]]


class Door:
    """What all connections of a worker share."""

    def __init__(self, endpoints: Mapping[bytes, Score], *, max_body_bytes: int, on_answer: Callable[[int, int], None]):
        self.endpoints = endpoints
        self.max_body_bytes = max_body_bytes
        self.on_answer = on_answer  # (status, µs from arrival to the write)
        self.draining = False  # every answer says `connection: close` and means it


def direct(door: Door) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, with the door's endpoints answered in place."""

    class DirectProtocol(_Direct):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(door, *args, **kwargs)

    return DirectProtocol


class _NoEvent:
    """uvicorn wakes a waiting ASGI application by its cycle's event; a direct request has none."""

    def set(self) -> None:
        pass


class _Pending:
    """The reply of one direct request; stands in for uvicorn's RequestResponseCycle while it is outstanding."""

    __slots__ = ("_arrived", "_protocol", "disconnected", "keep_alive", "response_complete")
    message_event = _NoEvent()

    def __init__(self, protocol: _Direct) -> None:
        self._protocol = protocol
        self._arrived = 0
        self.keep_alive = True
        self.response_complete = False
        self.disconnected = False

    def of(self, arrived: int, keep_alive: bool) -> _Pending:
        """Of the request that is being answered. One that was not kept waiting leaves it to the next."""
        self._arrived = arrived
        self.keep_alive = keep_alive
        return self

    def __call__(self, answer: Answer) -> None:
        self.response_complete = True
        if not self.disconnected and not self._protocol.transport.is_closing():
            self._protocol.write(answer, self._arrived, self.keep_alive)
            self._protocol.on_response_complete()


class _Direct(HttpToolsProtocol):
    def __init__(self, door: Door, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = door
        self._endpoint: Score | None = None  # of the request being received, where it is a direct one
        self._request_id = self._unit = self._content_type = b""
        self._spare = _Pending(self)
        self._chunks: list[bytes] = []
        self._received = 0
        self._arrived = 0
        self._last_answer = 0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._default_headers: Headers = []
        self._preamble: dict[int, bytes] = {}

    # Parser callbacks, in the order they come

    def on_message_begin(self) -> None:
        self._arrived = perf_counter_ns()
        self._endpoint = None
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        endpoint = self._door.endpoints.get(self.url)
        if endpoint is None or not self._is_plain():
            self._leave_to_uvicorn()
            return
        self._endpoint = endpoint
        self._chunks = []
        self._received = 0

    def on_body(self, body: bytes) -> None:
        if self._endpoint is None:
            super().on_body(body)
            return
        self._received += len(body)
        if self._received <= self._door.max_body_bytes:
            self._chunks.append(body)
        elif self._received > READ_ON * self._door.max_body_bytes:
            self.transport.abort()

    def on_message_complete(self) -> None:
        score = self._endpoint
        if score is None:
            super().on_message_complete()
            return
        self._endpoint = None
        keep_alive = self.parser.should_keep_alive() and not self._door.draining
        if self._content_type not in PLAIN_JSON or self._received > self._door.max_body_bytes:
            refused = self._refused()
        else:
            refused = None
        if refused is not None:
            self.write(refusal(refused, self._request_id), self._arrived, keep_alive)
            return
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        pending = self._spare.of(self._arrived, keep_alive)
        answer = score(body, self._request_id, self._unit, self._arrived, pending)
        if answer is not None:
            self.write(answer, self._arrived, keep_alive)
        else:
            self.cycle = pending  # type: ignore[assignment]  # has all that uvicorn's class reads of a cycle
            self._spare = _Pending(self)

    # The connection's life

    def write(self, answer: Answer, arrived: int, keep_alive: bool) -> None:
        """The whole answer in one write; closes the connection after it where it is not kept alive."""
        ending = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(b"".join((self._lead_in(answer.status), answer.head, ending, answer.body)))
        self.server_state.total_requests += 1
        self._last_answer = perf_counter_ns()
        self._door.on_answer(answer.status, (self._last_answer - arrived) // 1000)
        if not keep_alive:
            self.transport.close()
        elif self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def shutdown(self) -> None:
        if self._endpoint is not None:  # half received: its answer will say `connection: close`
            self._door.draining = True
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._endpoint = None
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._endpoint = None
        self.write(plain(400, {"error": msg}), perf_counter_ns(), keep_alive=False)

    # Private

    def _is_plain(self) -> bool:
        self._request_id, self._unit, self._content_type, expects = named_headers(self.headers)
        parser = self.parser
        return (
            not expects
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and (self.cycle is None or self.cycle.response_complete)
            and not parser.should_upgrade()
            and not self.flow.write_paused
        )

    def _leave_to_uvicorn(self) -> None:
        """Replay what was received so far: uvicorn's class then holds what it would have held without us."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        super().on_url(url)
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _refused(self) -> RequestRefused | None:
        if self._received > self._door.max_body_bytes:
            return BodyTooLarge.over(self._door.max_body_bytes)
        return content_type_refused(self._content_type)

    def _lead_in(self, status: int) -> bytes:
        """Status line, date and server: laid out again only when uvicorn's once-a-second tick replaced the date."""
        if self._default_headers is not self.server_state.default_headers:
            self._default_headers = self.server_state.default_headers
            self._preamble.clear()
        if status not in self._preamble:
            lines = [name + b": " + value + b"\r\n" for name, value in self._default_headers]
            self._preamble[status] = STATUS_LINE[status] + b"".join(lines)
        return self._preamble[status]

    def _close_if_idle(self) -> None:
        """One timer a connection, re-armed when it fires: arming one for every answer cost 1 µs of each."""
        self._idle_timer = None
        if self.transport.is_closing():
            return
        idle_s = (perf_counter_ns() - self._last_answer) / 1e9
        busy = self._endpoint is not None or (self.cycle is not None and not self.cycle.response_complete)
        if not busy and idle_s >= self.timeout_keep_alive:
            self.transport.close()
        else:
            wait_s = self.timeout_keep_alive if busy else self.timeout_keep_alive - idle_s
            self._idle_timer = self.loop.call_later(wait_s, self._close_if_idle)


def named_headers(headers: Headers) -> tuple[bytes, bytes, bytes, bool]:
    """(x-request-id, x-unit, content-type, is there an `expect`); b"" where absent, the last where repeated."""
    request_id = unit = content_type = b""
    expects = False
    for spelled, value in headers:
        if len(spelled) not in NAMED_LENGTHS:
            continue
        name = spelled.lower()
        if name == b"content-type":
            content_type = value
        elif name == b"x-request-id":
            request_id = value
        elif name == b"x-unit":
            unit = value
        elif name == b"expect":
            expects = True
    return request_id, unit, content_type, expects


def content_type_refused(content_type: bytes) -> ContentTypeRefused | None:
    """None for JSON, and for a sender that does not say: the decoder will tell."""
    if not content_type or content_type.split(b";")[0].strip().lower() in JSON_TYPES:
        return None
    return ContentTypeRefused(f"content-type: must be application/json, got {content_type.decode('latin-1')!r}")
