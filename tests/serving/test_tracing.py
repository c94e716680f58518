"""W3C trace context: what is a traceparent, and what is none."""

from __future__ import annotations

import pytest

from serving.heads import named_headers
from serving.tracing import Trace

GOOD = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("value", [GOOD, GOOD[:-1] + b"0", b"01" + GOOD[2:], b"cc" + GOOD[2:] + b"-more"])
def test_these_are_traces(value: bytes) -> None:
    trace = Trace.of([value])
    assert trace is not None
    assert (trace.trace_id, trace.span_id) == (GOOD[3:35], GOOD[36:52])
    assert trace.sampled == value.split(b"-")[3].endswith(b"1")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"ff" + GOOD[2:],
        GOOD.upper(),
        GOOD + b"-more",
        GOOD + b"0",
        GOOD[:-1],
        GOOD + b"\n",
        b"cc" + GOOD[2:] + b"more",
        GOOD.replace(GOOD[3:35], b"0" * 32),
        GOOD.replace(GOOD[36:52], b"0" * 16),
        GOOD.replace(b"a", b"g"),
        GOOD.replace(b"-", b"_"),
    ],
)
def test_these_are_none(value: bytes) -> None:
    assert Trace.of([value], b"a=b") is None


def test_two_parents_are_none_and_states_are_joined() -> None:
    assert named_headers([(b"traceparent", GOOD), (b"TraceParent", GOOD)])[4] is not None
    assert named_headers([(b"traceparent", GOOD), (b"TraceParent", GOOD)])[4].trace is None  # type: ignore[union-attr]
    rare = named_headers([(b"tracestate", b"a=1"), (b"traceparent", GOOD), (b"TraceState", b"b=2")])[4]
    assert rare is not None
    assert rare.trace is not None
    assert rare.trace.state == b"a=1,b=2"
    assert named_headers([(b"tracestate", b"a=1"), (b"user-agent", b"x")])[4] is None


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"Authorization", b"Bearer  k ")], b"k"),
        ([(b"authorization", b"bearer k")], b"k"),
        ([(b"authorization", b"Basic k"), (b"X-Api-Key", b"other")], b"other"),
        ([(b"x-api-key", b" k ")], b"k"),
        ([(b"x-api-key", b"a"), (b"authorization", b"Bearer k")], b"k"),
        ([(b"authorization", b"k")], b""),
        ([(b"authorization", b"Bearer")], b""),
    ],
)
def test_where_a_key_is_found(headers: list[tuple[bytes, bytes]], key: bytes) -> None:
    rare = named_headers(headers)[4]
    assert rare is not None
    assert rare.key == key
