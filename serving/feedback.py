"""`POST /feedback`: what became of what was scored. 202 when it is on disk, 503 when it is not; never dropped.

    application/json       {"request_id": "...", "row": 0, "value": 1.5, "ts": "2026-01-31T12:00:00Z"}, or a list of such
    application/x-ndjson   one a line

`value` is a number, true or false, or a label. `row`, the row's place in a request of many, is 0 where it is left out. `ts`,
when it happened, is a time with its offset or seconds since 1970; left out: now. The answer is {"written": n}; all are written
or none. To send one again is safe: of several for one row, the last counts (`serving.outcomes`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime
from time import time_ns
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response

from serving.answers import plain, refusal
from serving.errors import BodyMalformed, BodyTooLarge, ContentTypeRefused, FieldRefused, RequestRefused
from serving.heads import JSON_TYPES
from serving.many import Context
from serving.outcomes import Given, OutcomeLog, Value
from serving.responses import AnswerResponse, read_content, told_length
from serving.scoring import SANE_ID

NDJSON = b"application/x-ndjson"
LOOP_BYTES = 1 << 15  # a body up to this is decoded on the loop
MOST_LABEL_BYTES = 256
MOST_ROW = (1 << 31) - 1
LAST_S = 4_102_444_800  # the year 2100
SAYS_FIELD = re.compile(r"`\$\.(\w+)|field `(\w+)`")


class Told(msgspec.Struct, forbid_unknown_fields=True):
    request_id: str
    value: Value
    row: int = 0
    ts: float | datetime | None = None


_TOLD = msgspec.json.Decoder(Told)
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
            given.append(_given(text, received_us))
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


def _given(text: bytes, received_us: int) -> Given:
    try:
        told = _TOLD.decode(text)
    except msgspec.ValidationError as wrong:
        found = SAYS_FIELD.search(str(wrong))
        field = next(filter(None, found.groups())) if found else None
        if field is None:
            raise BodyMalformed('must be an object like {"request_id": "...", "value": 1}') from None
        raise FieldRefused(f"{field}: {wrong}", field) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as malformed:
        raise BodyMalformed(f"not JSON: {malformed}") from None
    if not told.request_id.isascii() or SANE_ID.fullmatch(told.request_id.encode()) is None:
        raise FieldRefused("request_id: must be an id as an answer has it", "request_id")
    if not 0 <= told.row <= MOST_ROW:
        raise FieldRefused(f"row: must be 0 to {MOST_ROW}", "row")
    if isinstance(told.value, str) and len(told.value.encode()) > MOST_LABEL_BYTES:
        raise FieldRefused(f"value: a label must be at most {MOST_LABEL_BYTES} bytes", "value")
    return Given(_time_us(told.ts, received_us), received_us, told.request_id, told.row, told.value)


def _time_us(ts: float | datetime | None, received_us: int) -> int:
    if ts is None:
        return received_us
    if isinstance(ts, datetime):
        if ts.tzinfo is None:
            raise FieldRefused("ts: needs an offset from UTC, such as Z", "ts")
        ts = ts.timestamp()
    if not 0 <= ts <= LAST_S:
        raise FieldRefused("ts: must be a time from 1970 to 2100, in seconds or as 2026-01-31T12:00:00Z", "ts")
    return round(ts * 1_000_000)


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
