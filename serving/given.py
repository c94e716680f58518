"""An outcome as its sender tells it, to `POST /feedback` or in a file that is imported: one JSON object.

    {"request_id": "...", "row": 0, "value": 1.5, "ts": "2026-01-31T12:00:00Z"}

`value` is a number, true or false, or a label. `row`, the row's place in a request of many, is 0 where it is left out. `ts`,
when it happened, is a time with its offset or seconds since 1970; left out: now.
"""

from __future__ import annotations

import re
from datetime import datetime

import msgspec

from serving.errors import BodyMalformed, FieldRefused
from serving.outcomes import Given, Value

SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
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


def read_given(text: bytes, received_us: int) -> Given:
    """Raises RequestRefused, naming the field."""
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
