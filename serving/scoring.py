"""One scoring request, from body to answer: what the protocol and its FastAPI twin both call."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter_ns, time_ns
from typing import Any, Protocol

import msgspec

from serving import page
from serving.admission import Admission
from serving.answers import Answer, model_failed, refusal, score_not_finite
from serving.errors import (
    AskerGone,
    DeadlinePassed,
    LookedUpElsewhere,
    LoopLate,
    Overloaded,
    RequestRefused,
    ViewMissing,
)
from serving.given import SANE_ID
from serving.lanes import Scored, Scores
from serving.live import Arm, Live, Snapshot
from serving.traffic import TrafficLog

logger = logging.getLogger("coppice")

MAX_UNIT_BYTES = 256
ENTITY = "entity"
_ENTITY = msgspec.json.Decoder(dict[str, str | int])
ODD_UNIT = f"x-unit: must be ASCII and at most {MAX_UNIT_BYTES} bytes"


class Reply(Protocol):
    """Gets the answer that was not ready at once."""

    @property
    def disconnected(self) -> bool: ...

    @property
    def since(self) -> int:
        """When the connection was answered last, by perf_counter_ns: the request came after that. 0 where nobody knows."""

    def __call__(self, answer: Answer) -> None: ...


Score = Callable[[bytes, bytes, bytes, bytes, int, Reply], Answer | None]
"""(body, request id, unit, x-request-timeout-ms, arrival by perf_counter_ns, reply): the answer, or None and `reply` gets
it. A header that was not sent is b""."""


class Request(msgspec.Struct, frozen=True, gc=False):
    """A decoded request. `now` is the one generation it sees."""

    now: Snapshot
    arm: Arm
    ts_us: int
    id: bytes
    unit: bytes
    row: bytes
    parse_us: int
    expires: int  # 0: never
    reply: Reply


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """A request whose features are being looked up."""

    now: Snapshot
    arm: Arm
    ts_us: int
    id: bytes
    unit: bytes
    arrived: int
    expires: int
    reply: Reply


SHED_CELLS: dict[type[RequestRefused], int] = {
    Overloaded: page.SHED_QUEUE_FULL,
    DeadlinePassed: page.SHED_DEADLINE,
    LoopLate: page.SHED_LOOP_LAG,
    AskerGone: page.SHED_GONE,
}


def scorer(
    live: Live, log: TrafficLog, slot: page.Slot, admission: Admission, *, split: bool, unit_field: str = ""
) -> Score:
    """The scoring function of one path. `split`: the experiment's arms answer; otherwise the champion does.

    It sees one routes generation, never raises for what a client sent, and logs every row that reached a model.
    Event-loop thread only.
    """
    cells = slot.cells
    new_id = id_maker(log.writer)
    find_unit = unit_finder(unit_field)

    def score(body: bytes, request_id: bytes, unit: bytes, timeout: bytes, arrived: int, reply: Reply) -> Answer | None:
        ts_us = time_ns() // 1000
        if not request_id or SANE_ID.fullmatch(request_id) is None:
            request_id = new_id(ts_us)
        now = live.snapshot  # held in a local: a swap during this request is not ours to see
        expires = 0
        try:
            if not unit:
                if unit_field:
                    unit = unit_of(now, body)
            elif len(unit) > MAX_UNIT_BYTES or not unit.isascii():
                raise RequestRefused(ODD_UNIT)
            arm = now.points[now.point_of(unit or request_id)] if split else now.champion
            if timeout or admission.strict or not arm.inline:
                expires = admission.admit(timeout, arrived, arm.lane, reply.since)
            row = now.decode(body)
        except LookedUpElsewhere as elsewhere:
            wanted = Wanted(now, arm, ts_us, request_id, unit, arrived, expires, reply)
            return look_up(elsewhere, wanted)
        except RequestRefused as refused:
            return refuse(refused, request_id)
        decoded = perf_counter_ns()
        parse_us = (decoded - arrived) // 1000
        if not arm.inline:
            return submit(Request(now, arm, ts_us, request_id, unit, row, parse_us, expires, reply))
        # `finish(score_inline(...))` written out for the common case: -1.5 µs a request (`python -m serving.bench`)
        try:
            value = arm.lane.score_now(row)
        except Exception:  # endpoint edge: recorded, and the champion answers instead
            logger.exception("%s failed on a row", arm.name)
            value = arm.lane.failed
        score_us = (perf_counter_ns() - decoded) // 1000
        cells[page.DISPATCH_INLINE] += 1
        if not arm.finite(value):
            request = Request(now, arm, ts_us, request_id, unit, row, parse_us, expires, reply)
            return finish(request, Scored(value, 0, score_us, 1))
        arm.put(arm.tag, ts_us, request_id, 0, unit, row, value, 200, parse_us, 0, score_us, 1)
        cells[arm.rows_cell] += 1
        if now.shadows:
            now.offer_to_shadows(ts_us, request_id, unit, row)
        return arm.encode(value, request_id, parse_us, 0, score_us)

    def look_up(elsewhere: LookedUpElsewhere, wanted: Wanted) -> Answer | None:
        """The answer comes by `reply`, when the features have."""

        def found(content: bytes | ViewMissing | None) -> None:
            answer = go_on(elsewhere, wanted, content)
            if answer is not None:
                wanted.reply(answer)

        try:
            elsewhere.ask(found)
        except RequestRefused as refused:
            return refuse(refused, wanted.id)
        return None

    def go_on(elsewhere: LookedUpElsewhere, wanted: Wanted, content: bytes | ViewMissing | None) -> Answer | None:
        if wanted.reply.disconnected:
            cells[page.SHED_GONE] += 1
            return None
        try:
            if isinstance(content, ViewMissing):
                raise content
            if 0 < wanted.expires < perf_counter_ns():
                raise DeadlinePassed("this request was not answered by its deadline")
            row = wanted.now.decode(elsewhere.complete(content))
        except RequestRefused as refused:
            return refuse(refused, wanted.id)
        request = Request(
            wanted.now, wanted.arm, wanted.ts_us, wanted.id, wanted.unit, row,
            (perf_counter_ns() - wanted.arrived) // 1000, wanted.expires, wanted.reply,
        )  # fmt: skip
        return score_inline(request) if wanted.arm.inline else submit(request)

    def score_inline(request: Request) -> Answer | None:
        began = perf_counter_ns()
        cells[page.DISPATCH_INLINE] += 1
        try:
            value = request.arm.lane.score_now(request.row)
        except Exception:  # endpoint edge, as above
            logger.exception("%s failed on a row", request.arm.name)
            value = request.arm.lane.failed
        return finish(request, Scored(value, 0, (perf_counter_ns() - began) // 1000, 1))

    def submit(request: Request) -> Answer | None:
        def done(scored: Scored | None) -> None:
            answer = unscored(request) if scored is None else finish(request, scored)
            if answer is not None:
                request.reply(answer)

        try:
            request.arm.lane.submit(request.row, done, expires=request.expires, asker=request.reply)
        except Overloaded as overloaded:
            return refuse(overloaded, request.id)
        return None

    def unscored(request: Request) -> Answer | None:
        if request.reply.disconnected:
            cells[page.SHED_GONE] += 1
            return None
        return refuse(DeadlinePassed("this request was not answered by its deadline"), request.id)

    def refuse(refused: RequestRefused, request_id: bytes) -> Answer:
        cell = SHED_CELLS.get(type(refused))
        if cell is not None:
            cells[cell] += 1
        return refusal(refused, request_id)

    def unit_of(now: Snapshot, body: bytes) -> bytes:
        try:
            return find_unit(body)
        except RequestRefused:
            with suppress(LookedUpElsewhere):
                now.decode(body)  # raises what is wrong with the body as a whole, which is told first
            raise

    def finish(request: Request, scored: Scored) -> Answer | None:
        """Log, count, answer. An arm that failed falls back to the champion; the log has a row of each."""
        arm, (value, queue_us, score_us, rows) = request.arm, scored
        finite = arm.finite(value)
        status = 200 if finite else 500
        arm.put(
            arm.tag, request.ts_us, request.id, 0, request.unit, request.row, value, status,
            request.parse_us, queue_us, score_us, rows,
        )  # fmt: skip
        if not finite:
            return fall_back(request, value)
        cells[arm.rows_cell] += 1
        if request.now.shadows:
            request.now.offer_to_shadows(request.ts_us, request.id, request.unit, request.row)
        return arm.encode(value, request.id, request.parse_us, queue_us, score_us)

    def fall_back(request: Request, value: Scores) -> Answer | None:
        cells[request.arm.errors_cell] += 1
        champion = request.arm.fallback
        if champion is None:
            return model_failed(request.id) if has_nan(value) else score_not_finite(request.id)
        cells[page.FALLBACKS] += 1
        request = msgspec.structs.replace(request, arm=champion)
        return score_inline(request) if champion.inline else submit(request)

    return score


def has_nan(scores: Scores) -> bool:
    """NaN is how a lane says that the model failed on the row."""
    return any(score != score for score in (scores if isinstance(scores, tuple) else (scores,)))


def unit_finder(field: str) -> Callable[[bytes], bytes]:
    """The unit that a body names in `field`, or its entity does; b"" where neither does, or where no field is configured."""
    if not field:
        return lambda _: b""
    fields: list[tuple[str, Any, Any]] = [("unit", str | int | None, None)]
    if field != ENTITY:
        fields.append((ENTITY, msgspec.Raw, msgspec.Raw()))
    decode = msgspec.json.Decoder(msgspec.defstruct("Unit", fields, rename={"unit": field})).decode

    def find(body: bytes) -> bytes:
        try:
            named: Any = decode(body)
        except msgspec.MsgspecError:
            raise RequestRefused(f"{field}: the unit must be a string or a whole number", field) from None
        unit = named.unit
        if unit is None and field != ENTITY and named.entity:
            unit = _unit_of_entity(named.entity, field)
        encoded = b"" if unit is None else str(unit).encode()
        if len(encoded) > MAX_UNIT_BYTES:
            raise RequestRefused(f"{field}: the unit must be at most {MAX_UNIT_BYTES} bytes", field)
        return encoded

    return find


def _unit_of_entity(entity: msgspec.Raw, field: str) -> str | int | None:
    """None too where it is no entity: who looks it up refuses it in his own words."""
    try:
        return _ENTITY.decode(entity).get(field)
    except msgspec.MsgspecError:
        return None


def id_maker(writer: str) -> Callable[[int], bytes]:
    """Request ids that sort by time and are unique over workers: 14 hex digits of µs, the writer's mark, a count.

    The upper half of the count is left to the ids that quick.c makes.
    """
    mark = id_mark(writer)
    count = itertools.count()

    def new_id(ts_us: int) -> bytes:
        return b"%014x%b%06x" % (ts_us, mark, next(count) & 0x7FFFFF)

    return new_id


def id_mark(writer: str) -> bytes:
    return re.sub(rb"[^A-Za-z0-9]", b"", writer.encode())[-8:]
