"""What all connections of a worker share: the scoring paths, the limits, and how a whole request becomes an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from serving.answers import Answer, failed, refusal
from serving.errors import BodyTooLarge, RequestRefused
from serving.heads import Named, content_type_refused
from serving.quick import Quick
from serving.scoring import Reply, Score

logger = logging.getLogger("coppice")

PLAIN_JSON = frozenset({b"", b"application/json"})
READ_ON = 16  # times the body limit is read and thrown away, so that the sender sees the 413; then the line is cut


class Door:
    def __init__(
        self,
        endpoints: Mapping[bytes, Score],
        *,
        max_body_bytes: int,
        on_answer: Callable[[int, int], None],
        max_batch_bytes: int = 0,
    ):
        self.endpoints = endpoints
        self.max_body_bytes = max_body_bytes
        self.max_message_bytes = READ_ON * max_body_bytes
        self.max_other_bytes = max(self.max_message_bytes, 2 * max_batch_bytes)  # of what the application answers
        self.on_answer = on_answer  # (status, µs from arrival to the write)
        self.quick: Quick | None = None  # answers what it can before any of this is asked
        self.draining = False  # every answer says `connection: close` and means it

    def answer(
        self, score: Score, body: bytes, received: int, named: Named, arrived: int, reply: Reply
    ) -> Answer | None:
        """The answer, or None and `reply` gets it. `body` holds what was kept of the `received` bytes. Never raises."""
        request_id, unit, content_type, timeout, _ = named
        if content_type not in PLAIN_JSON or received > self.max_body_bytes:
            refused = self._refused(received, content_type)
            if refused is not None:
                return refusal(refused, request_id)
        try:
            return score(body, request_id, unit, timeout, arrived, reply)
        except Exception:  # endpoint edge: this request fails, its connection and its worker go on
            logger.exception("scoring failed")
            return failed()

    def _refused(self, received: int, content_type: bytes) -> RequestRefused | None:
        if received > self.max_body_bytes:
            return BodyTooLarge.over(self.max_body_bytes)
        return content_type_refused(content_type)
