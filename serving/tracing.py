"""W3C trace context: whose trace a request belongs to, and where its answer and its log rows say so.

A valid `traceparent` makes `x-trace-id` a header of the answer. Where the sender gave no `x-request-id`, the request's id
is `<trace id>-<the caller's span id>`: one trace may ask for many scores, and outcomes are told by id, so the trace id
alone would not do. An invalid `traceparent`, or two of them, is as good as none, as the standard has it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Self

import msgspec

from serving.answers import Answer

TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
ZEROS = b"0" * 32
SAMPLED = 1
MAX_STATE_BYTES = 512


class Trace(NamedTuple):
    trace_id: bytes  # 32 hex digits
    span_id: bytes  # of the caller's span: 16 hex digits
    sampled: bool
    state: bytes  # `tracestate`, as it came

    @classmethod
    def of(cls, parents: Sequence[bytes], state: bytes = b"") -> Self | None:
        """
        >>> Trace.of([b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]).sampled
        True
        >>> Trace.of([b"00-00000000000000000000000000000000-b7ad6b7169203331-01"])
        """
        found = TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
        if found is None:
            return None
        version, trace_id, span_id, flags, more = found.groups()
        if version == b"ff" or (version == b"00" and more) or trace_id == ZEROS or span_id == ZEROS[:16]:
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & SAMPLED), state if len(state) <= MAX_STATE_BYTES else b"")

    @property
    def request_id(self) -> bytes:
        return self.trace_id + b"-" + self.span_id

    def marked(self, answer: Answer) -> Answer:
        return msgspec.structs.replace(answer, head=answer.head + b"x-trace-id: %b\r\n" % self.trace_id)
