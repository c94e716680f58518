"""What all connections of a worker share: the scoring paths, the limits, and how a whole request becomes an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

from serving.answers import Answer, failed, refusal
from serving.compressed import inflate
from serving.edge import At, Edge, Through
from serving.errors import BodyTooLarge, OverrideRefused, RequestRefused
from serving.heads import Named, Rare, content_type_refused
from serving.overrides import Overrides
from serving.pending import Pending
from serving.quick import Quick
from serving.scoring import Reply, Score

logger = logging.getLogger("coppice")

PLAIN_JSON = frozenset({b"", b"application/json"})
READ_ON = 16  # times the body limit is read and thrown away, so that the sender sees the 413; then the line is cut
OVERRIDE_REFUSED = "x-arm: this needs an API key whose line says `override`"


class Door:
    """`answer` is what the protocol asks, `admitted` what comes behind the edge: the same where there is no edge."""

    def __init__(
        self,
        endpoints: Mapping[bytes, Score],
        *,
        max_body_bytes: int,
        on_answer: Callable[[int, int], None],
        max_batch_bytes: int = 0,
        edge: Edge | None = None,
    ):
        self.endpoints = endpoints
        self.max_body_bytes = max_body_bytes
        self.max_message_bytes = READ_ON * max_body_bytes
        self.max_other_bytes = max(self.max_message_bytes, 2 * max_batch_bytes)  # of what the application answers
        self.on_answer = on_answer  # (status, µs from arrival to the write)
        self.quick: Quick | None = None  # answers what it can before any of this is asked
        self.draining = False  # every answer says `connection: close` and means it
        self.edge = edge
        self.overrides: Overrides | None = None
        self.answer = self.admitted if edge is None else partial(edge.answer, self.admitted)

    def take(self, paths: Mapping[bytes, Score]) -> None:
        """Answer these paths from now on."""
        if self.edge is not None and self.edge.watch is not None:
            paths = {path: At(path.decode(), score) for path, score in paths.items()}
        self.endpoints = paths

    def admitted(
        self, score: Score, body: bytes, received: int, named: Named, arrived: int, reply: Reply
    ) -> Answer | None:
        """The answer, or None and `reply` gets it. `body` holds what was kept of the `received` bytes. Never raises."""
        request_id, unit, content_type, timeout, rare = named
        if rare is not None and (rare.encoding or rare.arm or rare.trace is not None):
            return self._unusual(score, body, received, named, rare, arrived, reply)
        if content_type not in PLAIN_JSON or received > self.max_body_bytes:
            refused = self._refused(received, content_type)
            if refused is not None:
                return refusal(refused, request_id)
        try:
            return score(body, request_id, unit, timeout, arrived, reply)
        except Exception:  # endpoint edge: this request fails, its connection and its worker go on
            logger.exception("scoring failed")
            return failed()

    def again(self, path: bytes, body: bytes, request_id: bytes, unit: bytes, reply: Pending) -> Answer | None:
        """A request that C could not finish."""
        named = request_id, unit, b"", b"", None
        return self.admitted(self.endpoints[path], body, len(body), named, reply.arrived, reply)

    def _unusual(
        self, score: Score, body: bytes, received: int, named: Named, rare: Rare, arrived: int, reply: Reply
    ) -> Answer | None:
        """Of a request with headers that most have not: translated to one without them."""
        request_id, unit, content_type, timeout, _ = named
        trace = rare.trace
        if trace is not None:
            request_id = request_id or trace.request_id
            reply = Through(reply, trace.marked)
        try:
            refused = self._refused(received, content_type)
            if refused is not None:
                raise refused
            if rare.encoding:
                body = inflate(body, rare.encoding, self.max_body_bytes)
            if rare.arm:
                score = self._overridden(score, rare)
            plain = (request_id, unit, content_type, timeout, None)
            answer = self.admitted(score, body, len(body), plain, arrived, reply)
        except RequestRefused as refused:
            answer = refusal(refused, request_id)
        return answer and (answer if trace is None else trace.marked(answer))

    def _overridden(self, score: Score, rare: Rare) -> Score:
        if self.edge is None or self.overrides is None or not self.edge.may_override(rare):
            raise OverrideRefused(OVERRIDE_REFUSED)
        return self.overrides.score_of(score.score if isinstance(score, At) else score, rare.arm)

    def _refused(self, received: int, content_type: bytes) -> RequestRefused | None:
        if received > self.max_body_bytes:
            return BodyTooLarge.over(self.max_body_bytes)
        return content_type_refused(content_type)
