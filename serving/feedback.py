"""`POST /feedback`: what became of what was scored. 202 when it is on disk, 503 when it is not; never dropped.

    application/json       {"request_id": "...", "row": 0, "value": 1.5, "ts": "2026-01-31T12:00:00Z"}, or a list of such
    application/x-ndjson   one a line

What the fields mean stands in `serving.given`. The answer is {"written": n}; all are written or none. To send one again is
safe: of several for one row, the last counts (`serving.outcomes`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import time_ns
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response

from serving.answers import plain, refusal
from serving.errors import BodyMalformed, BodyTooLarge, ContentTypeRefused, RequestRefused
from serving.given import LAST_S, MOST_LABEL_BYTES, MOST_ROW, read_given
from serving.heads import JSON_TYPES
from serving.many import Context
from serving.outcomes import Given, OutcomeLog
from serving.responses import AnswerResponse, read_content, told_length

NDJSON = b"application/x-ndjson"
LOOP_BYTES = 1 << 15  # a body up to this is decoded on the loop


_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def add_feedback(app: FastAPI, outcomes: OutcomeLog, context: Context) -> None:
    @app.post("/feedback", tags=["outcomes"], summary="Tell what became of scored rows", openapi_extra=DOCUMENTED)
    async def feedback(request: Request) -> Response:
        try:
            with context.body(told_length(request)):
                body = await read_content(request, context.max_bytes, context.thread)
                kind, limit = request.headers.get("content-type", "").encode("latin-1"), context.max_rows
                if len(body) <= LOOP_BYTES:
                    given = read_feedback(kind, body, limit)
                else:
                    loop = asyncio.get_running_loop()
                    given = await loop.run_in_executor(context.thread, read_feedback, kind, body, limit)
            await outcomes.write(given)
        except RequestRefused as refused:
            return AnswerResponse(refusal(refused, b""))
        return AnswerResponse(plain(202, {"written": len(given)}))


def read_feedback(content_type: bytes, body: bytes, limit: int) -> list[Given]:
    """The outcomes that the body tells. Any thread. Raises RequestRefused, naming the row, if it is one of a list, and
    the field."""
    texts, several = _texts(content_type, body)
    if len(texts) > limit:
        raise BodyTooLarge.of_rows(limit)
    received_us = time_ns() // 1000
    given: list[Given] = []
    for text in texts:
        try:
            given.append(read_given(text, received_us))
        except RequestRefused as refused:
            raise (refused.of_row(len(given)) if several else refused) from None
    return given


def _texts(content_type: bytes, body: bytes) -> tuple[Sequence[bytes], bool]:
    """(each outcome's JSON, whether they were a list)."""
    kind = content_type.split(b";")[0].strip().lower()
    if kind == NDJSON:
        return [line for line in body.split(b"\n") if line.strip()], True
    if kind and kind not in JSON_TYPES:
        known = "application/json or application/x-ndjson"
        raise ContentTypeRefused(f"content-type: must be {known}, got {content_type.decode('latin-1')!r}")
    if body.lstrip()[:1] != b"[":
        return [body], False
    try:
        return [bytes(text) for text in _LIST.decode(body)], True
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as malformed:
        raise BodyMalformed(f"the body is not JSON: {malformed}") from None


_ONE = {
    "type": "object",
    "required": ["request_id", "value"],
    "additionalProperties": False,
    "properties": {
        "request_id": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=@-]{1,128}$"},
        "value": {
            "anyOf": [{"type": "number"}, {"type": "boolean"}, {"type": "string", "maxLength": MOST_LABEL_BYTES}]
        },
        "row": {"type": "integer", "minimum": 0, "maximum": MOST_ROW, "default": 0},
        "ts": {"anyOf": [{"type": "number", "minimum": 0, "maximum": LAST_S}, {"type": "null"}]},
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "field": {"type": "string"}, "row": {"type": "integer"}},
}
_REFUSALS = {
    "400": "not JSON",
    "413": "too long, or too many",
    "415": "another content type",
    "422": "a field of an outcome is missing or wrong",
    "503": "not written: send it again, after the seconds that the header says",
}
DOCUMENTED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"oneOf": [_ONE, {"type": "array", "items": _ONE}]}},
            "application/x-ndjson": {"schema": {"type": "string"}},
        },
    },
    "responses": {
        "202": {
            "description": "on disk",
            "content": {
                "application/json": {"schema": {"type": "object", "properties": {"written": {"type": "integer"}}}}
            },
        }
    }
    | {
        status: {"description": said, "content": {"application/json": {"schema": _ERROR}}}
        for status, said in _REFUSALS.items()
    },
}
