"""The scoring request, answered straight from uvicorn's HTTP parser: no task, no ASGI messages.

`direct(door)` makes a protocol class for `uvicorn.Config(http=...)`. It takes what is plainly a scoring request - POST to a
scoring path, HTTP/1.1, no `Expect` - and hands everything else to uvicorn's own class, where the FastAPI twin of each path
waits.

Answers leave in the order of their requests. Where one has to wait - its score is not ready, another is being answered,
or the peer does not read - a `Pending` stands in uvicorn's own pipeline, so that graceful shutdown and a lost connection
work by uvicorn's rules. While anything waits there the socket is not read: what a connection holds is bounded by one read,
one body and the transport's write buffer. `tests/serving/conversations.py` lists where we differ from uvicorn, and why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.answers import Answer, plain
from serving.door import Door
from serving.heads import Named, named_headers, without_upgrade
from serving.pending import Flow, Pending
from serving.quick_protocol import QuickProtocol
from serving.scoring import Score

NONE, HEAD, BODY = range(3)
MAX_HEAD_BYTES = 65_536  # of request line and headers: httptools has no limit of its own
LONG_HEAD = f"request line and headers are longer than {MAX_HEAD_BYTES} bytes"


def direct(door: Door) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, with the door's endpoints answered in place."""

    class DirectProtocol(_Direct):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(door, *args, **kwargs)

    return DirectProtocol


class _Direct(QuickProtocol):
    def __init__(self, door: Door, *args: Any, **kwargs: Any) -> None:
        super().__init__(door, *args, **kwargs)
        self._endpoint: Score | None = None  # of the request being received, where it is a direct one
        self._named: Named = (b"", b"", b"", b"", None)
        self._body: Any = b""  # bytes, or a bytearray where it came in parts
        self._received = 0  # bytes of the body
        self._part = NONE  # of a message, that is being received
        self._message_bytes = 0  # of the reads after the one that the message began in
        self._careful = False  # something about this read or connection has to be looked at message by message
        self._arrived = 0
        self._ended = False  # no further request of this connection is answered
        self._idle_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        flow = Flow(transport)
        flow.line = self.pipeline
        self.flow = flow
        self._active_ns = perf_counter_ns()
        self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def data_received(self, data: bytes) -> None:
        if self._ended or (self._part == NONE and not self._careful and self._answer_quickly(data)):
            return
        last = self._arrived
        if len(data) > MAX_HEAD_BYTES:
            self._careful = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._part or self._careful:
            self._look_after(len(data), began=self._arrived != last)

    # Parser callbacks, in the order they come

    def on_message_begin(self) -> None:
        self._arrived = perf_counter_ns()
        self._part = HEAD
        self._endpoint = None
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._part = BODY
        if self._careful and (self._ended or self._refuse_long_head()):
            return
        endpoint = self._door.endpoints.get(self.url)
        if endpoint is None or not self._is_plain():
            self._leave_to_uvicorn()
            return
        self._endpoint = endpoint
        self._body = b""
        self._received = 0

    def on_body(self, body: bytes) -> None:
        if self._endpoint is None:
            if not self._ended:
                super().on_body(body)
            return
        self._received += len(body)
        if self._received == len(body):
            self._body = body
        elif self._received <= self._door.max_body_bytes:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)  # not a list: that of a body in 2-byte chunks is 20 times its size
            self._body += body

    def on_message_complete(self) -> None:
        self._part = NONE
        score = self._endpoint
        if score is None:
            self._end_of_uvicorns()
            return
        self._endpoint = None
        keep_alive = self.parser.should_keep_alive()
        if not keep_alive:
            self._end()
        pending = self._spare.of(self._arrived, keep_alive, self._active_ns)
        cycle = self.cycle
        if (cycle is not None and not cycle.response_complete) or self.flow.write_paused:
            self._wait_in_line(pending, self._asked(score))
            return
        answer = self._door.answer(score, self._body, self._received, self._named, self._arrived, pending)
        if answer is not None:
            self.write(answer, self._arrived, keep_alive)
        else:
            self._current = self.cycle = pending  # type: ignore[assignment]  # all that uvicorn's class reads of a cycle
            self._spare = Pending(self)

    # Answers

    def write(self, answer: Answer, arrived: int, keep_alive: bool) -> None:
        """The whole answer in one write; closes the connection after it where it is not kept alive."""
        if self._door.draining:
            keep_alive = False
        ending = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(b"".join((self._lead_in.of(answer.status), answer.head, ending, answer.body)))
        self.server_state.total_requests += 1
        self._active_ns = perf_counter_ns()
        self._door.on_answer(answer.status, (self._active_ns - arrived) // 1000)
        if not keep_alive:
            self._end()
            self.transport.close()

    def reply(self, pending: Pending, answer: Answer) -> None:
        """The answer of a request that was kept waiting."""
        if not self.transport.is_closing():
            self.write(answer, pending.arrived, pending.keep_alive)
            self._answer_line()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._active_ns = perf_counter_ns()
        self._answer_line()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    # The connection's life

    def resume_writing(self) -> None:
        super().resume_writing()
        self._active_ns = perf_counter_ns()
        if self._is_answered(self._current):
            self._answer_line()

    def shutdown(self) -> None:
        if self._endpoint is not None:  # half received: its answer will say `connection: close`
            self._door.draining = True
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._endpoint = None
        self._end()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if not self._is_answered(self._current):
            self._current.disconnected = True  # uvicorn tells the newest alone
            self._current.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    # Private: one message

    def _is_plain(self) -> bool:
        self._named = named = named_headers(self.headers)
        parser, rare = self.parser, named[4]
        return (
            (rare is None or not rare.expects)
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and not parser.should_upgrade()
        )

    def _leave_to_uvicorn(self) -> None:
        """Replay what was received so far: uvicorn's class then holds what it would have held without us."""
        if self._upgrades():
            return
        url, headers = self.url, self.headers
        super().on_message_begin()
        super().on_url(url)
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _end_of_uvicorns(self) -> None:
        if not self._ended and not self._upgrades():
            super().on_message_complete()
            if not self.parser.should_keep_alive():
                self._end()

    def _upgrades(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """httptools ends an upgrade request at its head, body or not. We upgrade to nothing: it is a plain request."""
        if self._ended or self.parser.get_method() == b"CONNECT":
            return
        version = b"HTTP/1.1" if self.parser.get_http_version() == "1.1" else b"HTTP/1.0"
        head = without_upgrade(self.parser.get_method(), self.url, version, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(head + rest)

    def _asked(self, score: Score) -> Callable[[Pending], Answer | None]:
        door, body, received, named = self._door, self._body, self._received, self._named
        return lambda pending: door.answer(score, body, received, named, pending.arrived, pending)

    # Private: the line of those that wait

    def _end(self) -> None:
        self._ended = self._careful = True

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._current = cycle
        super()._start_asgi_task(cycle, app)

    def _wait_in_line(self, pending: Pending, ask: Callable[[Pending], Answer | None]) -> None:
        pending.ask = ask
        self.cycle = pending  # type: ignore[assignment]  # as above
        self._spare = Pending(self)
        self.flow.pause_reading()
        self.pipeline.appendleft((pending, self.app))  # type: ignore[arg-type]  # as above

    def _answer_line(self) -> None:
        """Answer what waits, in order, as far as that goes; then read on. A loop: uvicorn's recursion has a limit."""
        while self.pipeline and not self.flow.write_paused and not self.transport.is_closing():
            self._current, app = self.pipeline.pop()
            if not isinstance(self._current, Pending):
                super()._start_asgi_task(self._current, app)
                return
            pending = self._current
            answer = pending.ask(pending) if pending.ask is not None else None
            if answer is None:
                return
            pending.response_complete = True
            self.write(answer, pending.arrived, pending.keep_alive)
        if not self.transport.is_closing():
            self.flow.resume_reading()

    # Private: limits

    def _refuse(self, status: int, message: str) -> None:
        """The last answer of the connection, after those that are due before it."""
        if self._ended:
            return
        self._end()
        if self._part == BODY and self._endpoint is None and not self._is_answered(self.cycle):
            self._forget_newest()
        self._part = NONE
        self._endpoint = None
        pending = self._spare.of(perf_counter_ns(), keep_alive=False)
        answer = plain(status, {"error": message})
        if self._is_answered(self.cycle):
            self.write(answer, pending.arrived, keep_alive=False)
        else:
            self._wait_in_line(pending, lambda _: answer)

    def _forget_newest(self) -> None:
        """Of the request that uvicorn's class holds a part of, the rest will not come."""
        if self._current is self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.cycle = None  # type: ignore[assignment]  # as it is in uvicorn's class before the first
        else:
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._current

    def _look_after(self, read_bytes: int, *, began: bool) -> None:
        """After a read that ended inside a message. `began`: that message began in it."""
        self._careful = self._ended or self._part != NONE
        self._message_bytes = 0 if began else self._message_bytes + read_bytes
        if self._part == HEAD and self._message_bytes > MAX_HEAD_BYTES:
            self._refuse(431, LONG_HEAD)
        elif self._part and self._message_bytes > (
            self._door.max_other_bytes if self._endpoint is None else self._door.max_message_bytes
        ):
            self.transport.abort()

    def _refuse_long_head(self) -> bool:
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) <= MAX_HEAD_BYTES:
            return False
        self._refuse(431, LONG_HEAD)
        return True

    def _close_if_idle(self) -> None:
        """One timer a connection, re-armed when it fires: arming one for every answer cost 1 µs of each."""
        self._idle_timer = None
        if self.transport.is_closing():
            return
        since = self._arrived if self._part else self._active_ns
        wait_s = self.timeout_keep_alive - (perf_counter_ns() - since) / 1e9
        if wait_s > 0:
            pass
        elif self._part:
            self._refuse(408, f"the request was not received within {self.timeout_keep_alive} s")
        elif self.flow.write_paused:
            self.transport.abort()
        elif self._is_answered(self.cycle):
            self.transport.close()
        if not self.transport.is_closing():
            wait_s = wait_s if wait_s > 0 else self.timeout_keep_alive
            self._idle_timer = self.loop.call_later(wait_s, self._close_if_idle)
