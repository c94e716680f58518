"""A direct request that has to wait, in the place that uvicorn's class keeps for its own request cycles."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl

from serving.answers import Answer


class Connection(Protocol):
    def reply(self, pending: Pending, answer: Answer) -> None: ...

    def reply_laid_out(self, content: bytes) -> None: ...


class NoEvent:
    """uvicorn wakes a waiting ASGI application by its cycle's event; a direct request has none."""

    def set(self) -> None:
        pass


class Pending:
    """The reply of one direct request; stands in for uvicorn's RequestResponseCycle while it is outstanding."""

    __slots__ = ("_connection", "arrived", "ask", "disconnected", "keep_alive", "response_complete", "since")
    message_event = NoEvent()

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.arrived = 0
        self.since = 0
        self.keep_alive = True
        self.ask: Callable[[Pending], Answer | None] | None = None  # where its turn has not come yet
        self.response_complete = False
        self.disconnected = False  # nobody waits for the answer any more

    def of(self, arrived: int, keep_alive: bool, since: int = 0) -> Pending:
        """Of the request that is being answered. One that was not kept waiting leaves it to the next."""
        self.arrived = arrived
        self.since = since
        self.keep_alive = keep_alive
        return self

    def __call__(self, answer: Answer) -> None:
        self.response_complete = True
        if not self.disconnected:
            self._connection.reply(self, answer)

    def laid_out(self, content: bytes) -> None:
        """The reply as it is sent, logged and counted already."""
        self.response_complete = True
        if not self.disconnected:
            self._connection.reply_laid_out(content)


class Flow(FlowControl):
    """uvicorn's, but nothing is read while requests wait: uvicorn reads on at each answer, and its pipeline has no bound.

    A request waits only behind one that is received whole, so no one waits for what is not read.
    """

    line: Sized = ()

    def resume_reading(self) -> None:
        if not self.line:
            super().resume_reading()
