"""What scoring reads of a request's head, by plain functions that the protocol and the FastAPI twin both call."""

from __future__ import annotations

from typing import NamedTuple

from serving.errors import ContentTypeRefused
from serving.tracing import Trace

JSON_TYPES = frozenset({b"application/json", b"text/json"})
USUAL = (b"content-type", b"x-request-id", b"x-unit", b"x-request-timeout-ms")
RARE = frozenset({b"expect", b"content-encoding", b"traceparent", b"x-arm", b"authorization", b"x-api-key"})
NAMED = (*USUAL, *sorted(RARE))
NAMED_LENGTHS = frozenset(map(len, NAMED))
RARE_LENGTHS = frozenset(map(len, (*RARE, b"tracestate")))  # which is looked for where there is a parent alone
UNUSUAL = frozenset({b"transfer-encoding", b"upgrade", b"proxy-connection"})
"""Others that change what a request is, or what becomes of its connection."""
Headers = list[tuple[bytes, bytes]]


class Rare(NamedTuple):
    """What most requests don't have, and so don't pay for."""

    expects: bool = False  # there is an `expect`
    encoding: bytes = b""  # content-encoding; all of them where it is repeated
    arm: bytes = b""  # x-arm
    key: bytes = b""  # of `authorization: Bearer KEY`, else of `x-api-key`
    trace: Trace | None = None


Named = tuple[bytes, bytes, bytes, bytes, Rare | None]
"""(x-request-id, x-unit, content-type, x-request-timeout-ms, the RARE ones: None where there are none)"""


def named_headers(headers: Headers) -> Named:
    """b"" where a header is absent, the last value where it is repeated."""
    request_id = unit = content_type = timeout = b""
    rare = False
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
        elif name == b"x-request-timeout-ms":
            timeout = value or b"-"  # there, and no number
        elif name in RARE:
            rare = True
    return request_id, unit, content_type, timeout, rare_headers(headers) if rare else None


def rare_headers(headers: Headers) -> Rare:
    authorization = api_key = arm = encoding = state = b""
    expects = False
    parents: list[bytes] = []
    for spelled, value in headers:
        if len(spelled) not in RARE_LENGTHS:
            continue
        name = spelled.lower()
        if name == b"authorization":
            authorization = value
        elif name == b"x-api-key":
            api_key = value
        elif name == b"traceparent":
            parents.append(value)
        elif name == b"tracestate":
            state = state + b"," + value if state else value
        elif name == b"x-arm":
            arm = value
        elif name == b"content-encoding":
            encoding = encoding + b", " + value if encoding else value
        elif name == b"expect":
            expects = True
    key = _bearer(authorization) or api_key.strip()
    return Rare(expects, encoding, arm, key, Trace.of(parents, state) if parents else None)


def _bearer(value: bytes) -> bytes:
    scheme, _, key = value.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def content_type_refused(content_type: bytes) -> ContentTypeRefused | None:
    """None for JSON, and for a sender that does not say: the decoder will tell."""
    if not content_type or content_type.split(b";")[0].strip().lower() in JSON_TYPES:
        return None
    return ContentTypeRefused(f"content-type: must be application/json, got {content_type.decode('latin-1')!r}")


def without_upgrade(method: bytes, url: bytes, version: bytes, headers: Headers) -> bytes:
    """The head of a request as its sender would have written it had it asked for no other protocol.

    >>> without_upgrade(b"POST", b"/", b"HTTP/1.1", [(b"Connection", b"Upgrade, close"), (b"Upgrade", b"h2c"), (b"a", b"b")])
    b'POST / HTTP/1.1\\r\\nConnection: close\\r\\na: b\\r\\n\\r\\n'
    """
    lines = [b"%b %b %b" % (method, url, version)]
    for name, value in headers:
        kept = value
        if name.lower() == b"upgrade":
            continue
        if name.lower() == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            kept = b", ".join(token for token in tokens if token.lower() not in (b"upgrade", b"http2-settings"))
            if not kept:
                continue
        lines.append(name + b": " + kept)
    return b"\r\n".join(lines) + b"\r\n\r\n"
