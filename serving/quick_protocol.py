"""The part of our protocol class that asks C: requests that are answered, or wait for their batch, without the parser."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.answers import Answer
from serving.door import Door
from serving.lead_in import LeadIn
from serving.pending import Pending
from serving.quick import LONGEST_ANSWER


class QuickProtocol(HttpToolsProtocol):
    def __init__(self, door: Door, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = door
        self._spare = Pending(self)
        self._current: Any = None  # the Pending or cycle whose answer is the next to leave
        self._active_ns = 0
        self._lead_in = LeadIn(self.server_state)

    def _answer_quickly(self, data: bytes) -> bool:
        """Where `data` is the usual request, whole, and its answer may leave now: one call of C, which did all the rest."""
        quick = self._door.quick
        if quick is None or self._door.draining or self.flow.write_paused or not self._is_answered(self.cycle):
            return False
        if quick.headers is not self.server_state.default_headers:
            quick.begin_answers_with(self._lead_in.of(200), self.server_state.default_headers)
        length = quick.answer(quick.address, data, len(data), self._active_ns)
        if not length:
            return False
        if length < LONGEST_ANSWER:
            pending = self._spare.of(perf_counter_ns(), keep_alive=True, since=self._active_ns)
            self._current = self.cycle = pending  # type: ignore[assignment]  # all that uvicorn reads of a cycle
            self._spare = Pending(self)
            quick.wait(length, pending, data)
            return True
        self.transport.write(quick.out[: abs(length)])
        self._active_ns = perf_counter_ns()
        if length < 0 or quick.shadowed:
            quick.after_answer(length)
        return True

    def reply_laid_out(self, content: bytes) -> None:
        """The answer of a request that waited in C."""
        if not self.transport.is_closing():
            self.transport.write(content)
            self._active_ns = perf_counter_ns()
            self._answer_line()

    def reply(self, pending: Pending, answer: Answer) -> None:
        raise NotImplementedError

    def _answer_line(self) -> None:
        raise NotImplementedError

    @staticmethod
    def _is_answered(cycle: Any) -> bool:
        return cycle is None or cycle.response_complete
