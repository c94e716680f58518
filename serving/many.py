"""Many rows of one request, scored through the same router, lanes and log as single requests, in turns with them.

All rows see one snapshot. Each row that reaches a model is logged under its place in the request and counted as a single
one is; where an arm fails on a row, the champion answers it; each answered row is offered to the shadows. A row's score is,
bit for bit, what it would have been alone.

    inline and tick lanes   rows are scored on the loop, in slices of `SLICE_US`; between two slices the loop does whatever
                            else is due, and of all requests of many rows one slice runs between
    busy lanes              one call's rows at a time wait in the lane, and never in the upper half of its queue

Admission is asked once, for all rows. The request ends early where its deadline passes or its asker has gone. It also waits
while the log is behind, so that a thousand rows at once do not make the log drop any.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter_ns, time_ns

import msgspec

from serving import page
from serving.admission import Admission
from serving.errors import AskerGone, BodyTooLarge, DeadlinePassed, Overloaded, RequestRefused
from serving.given import SANE_ID
from serving.lanes import Asker, Scored, Scores
from serving.live import Arm, Snapshot
from serving.scoring import MAX_UNIT_BYTES, ODD_UNIT, SHED_CELLS, id_maker
from serving.settings import Settings
from serving.traffic import TrafficLog

logger = logging.getLogger("coppice")

SLICE_US = 1000  # what a single request may wait longer for a request of many
ROW_US = 3.0  # a row's cost besides the model's: log, counters, answer (`python -m serving.bench_many`)
PARALLEL = 4  # times `max_rows` may be under way at once in a worker
MOST_HELD = 16  # bodies of the largest size, in a worker
ROOM_S = 0.001  # between two looks at a full lane, or at a log that is behind
STARVED_NS = 1_000_000_000  # the longest wait for room in a lane, and, over the whole request, for the log

Shares = Sequence[tuple[Arm, Sequence[int]]]
"""Which arm is to score which rows, by their places."""


class Many(msgspec.Struct, frozen=True):
    """What became of the rows, in their order. `failed`: places of the rows that no model answered, ascending."""

    scores: list[Scores]
    arms: list[Arm]  # the one that answered, or failed last
    failed: list[int]
    request_id: bytes
    parse_us: int
    queue_us: int  # until the first call of a model
    score_us: int  # from then on, turns of others included


class Context:
    """What is a worker's: one for all its requests of many rows. Event-loop thread only."""

    def __init__(
        self,
        log: TrafficLog,
        slot: page.Slot,
        admission: Admission,
        max_rows: int,
        max_bytes: int,
        unit_field: str = "",
    ) -> None:
        self.log = log
        self.cells = slot.cells
        self.admission = admission
        self.max_rows = max_rows
        self.max_bytes = max_bytes  # of a body
        self.unit_field = unit_field
        self.held = 0  # bytes of the bodies that are read, decoded, scored or answered now
        self.thread = ThreadPoolExecutor(1, "decoding")  # of bodies too large for the loop
        self.turn = asyncio.Lock()  # first come, first served: who has it may use the loop for one slice
        self.under_way: set[_Work] = set()
        self.new_id = id_maker(log.writer + "m")  # a mark that no path of single requests has

    @classmethod
    def of(cls, settings: Settings, log: TrafficLog, slot: page.Slot, admission: Admission) -> Context:
        return cls(log, slot, admission, settings.max_rows, settings.max_batch_bytes, settings.unit_field)

    @contextmanager
    def body(self, length: str | None) -> Iterator[None]:
        """While a body is held in memory, of that content-length or, if None, of any. Raises Overloaded where too much is."""
        size = min(self.max_bytes, int(length)) if length and length.isdecimal() else self.max_bytes
        if self.held + size > MOST_HELD * self.max_bytes:
            self.cells[page.SHED_QUEUE_FULL] += 1
            raise Overloaded("too many other requests of many rows are under way")
        self.held += size
        try:
            yield
        finally:
            self.held -= size

    def refuse_if_crowded(self, rows: int) -> None:
        if sum(work.left for work in self.under_way) + rows > PARALLEL * self.max_rows:
            raise Overloaded("too many rows of other requests are being scored")


async def score_many(
    context: Context,
    now: Snapshot,
    arm: Arm | None,
    rows: Sequence[bytes],
    *,
    request_id: bytes,
    unit: bytes,
    timeout: bytes,
    arrived: int,
    asker: Asker,
    units: Sequence[bytes] = (),
) -> Many:
    """Score rows as `Decode` makes them. `arm` None: the experiment's split, by each row's of `units`, else by `unit`, else
    by the request's id. Headers as in `scoring.Score`: b"" where one was not sent.

    Raises RequestRefused: of too many rows or a malformed header, and its Overloaded, with what it had scored logged.
    """
    ts_us = time_ns() // 1000
    request_id = sane_id(context, request_id, ts_us)
    work = _Work(context, now, rows, units or [unit] * len(rows), ts_us, request_id, arrived, asker)
    try:
        if len(rows) > context.max_rows:
            raise BodyTooLarge.of_rows(context.max_rows)
        if len(unit) > MAX_UNIT_BYTES or not unit.isascii():
            raise RequestRefused(ODD_UNIT)
        shares = [(arm, range(len(rows)))] if arm is not None else _split(now, work.units, request_id)
        context.refuse_if_crowded(len(rows))
        work.admit(timeout, shares)
        context.under_way.add(work)
        for chosen, places in shares:
            await work.score(chosen, places)
    except Overloaded as shed:
        context.cells[SHED_CELLS[type(shed)]] += work.left
        raise
    finally:
        context.under_way.discard(work)
    return work.done()


def sane_id(context: Context, request_id: bytes, ts_us: int) -> bytes:
    """The request's own id if it may be logged and sent back, else a new one."""
    sane = request_id and SANE_ID.fullmatch(request_id) is not None
    return request_id if sane else context.new_id(ts_us)


def _split(now: Snapshot, units: Sequence[bytes], request_id: bytes) -> Shares:
    places: dict[str, list[int]] = {arm.name: [] for arm in now.arms}
    for place, unit in enumerate(units):
        places[now.points[now.point_of(unit or request_id)].name].append(place)
    return [(arm, places[arm.name]) for arm in now.arms if places[arm.name]]


class _Work:
    """One request under way. `left`: its rows that no model was asked about yet."""

    def __init__(
        self,
        context: Context,
        now: Snapshot,
        rows: Sequence[bytes],
        units: Sequence[bytes],
        ts_us: int,
        request_id: bytes,
        arrived: int,
        asker: Asker,
    ) -> None:
        self.left = len(rows)
        self.row_us = 0.0  # predicted
        self.units = units
        self._context = context
        self._now = now
        self._rows = rows
        self._ts_us = ts_us
        self._request_id = request_id
        self._arrived = arrived
        self._asker = asker
        self._decoded = perf_counter_ns()
        self._began = 0  # the first call of a model
        self._parse_us = (self._decoded - arrived) // 1000
        self._expires = 0
        self._log_patience_ns = STARVED_NS
        self._scores: list[Scores] = [math.nan] * len(rows)
        self._arms = [now.champion] * len(rows)
        self._failed: list[int] = []

    def admit(self, timeout: bytes, shares: Shares) -> None:
        """Set the deadline. Raises RequestRefused where it is malformed, else Overloaded where it can't be met."""
        wanted = [(arm.lane, len(places)) for arm, places in shares]
        others_us = sum(work.left * work.row_us for work in self._context.under_way)
        ours_us = ROW_US * self.left
        self._expires = self._context.admission.admit_many(timeout, self._arrived, wanted, others_us + ours_us)
        self.row_us = ROW_US + sum(lane.wait_us(rows) for lane, rows in wanted) / max(1, self.left)

    async def score(self, arm: Arm, places: Sequence[int]) -> None:
        failed = await self._ask(arm, places)
        if failed and arm.fallback is not None:
            self._context.cells[page.FALLBACKS] += len(failed)
            failed = await self._ask(arm.fallback, failed)
        self._failed += failed

    def done(self) -> Many:
        began = self._began or self._decoded
        return Many(
            scores=self._scores,
            arms=self._arms,
            failed=sorted(self._failed),
            request_id=self._request_id,
            parse_us=self._parse_us,
            queue_us=(began - self._decoded) // 1000,
            score_us=(perf_counter_ns() - began) // 1000,
        )

    async def _ask(self, arm: Arm, places: Sequence[int]) -> list[int]:
        """The places where the arm failed."""
        if arm.lane.reason == "busy":
            return await self._ask_by_parts(arm, places)
        if arm.lane.wait_us(len(places)) + ROW_US * len(places) <= SLICE_US:
            return self._ask_for(arm, places, math.inf)[1]
        return await self._ask_by_slices(arm, places)

    async def _ask_by_slices(self, arm: Arm, places: Sequence[int]) -> list[int]:
        failed: list[int] = []
        while places:
            async with self._context.turn:
                self._refuse_if_in_vain()
                count, worse = self._ask_for(arm, places, perf_counter_ns() + 1000 * SLICE_US)
                places = places[count:]
                failed += worse
                await asyncio.sleep(0)  # the loop's turn, before the next slice of anyone
            await self._let_the_log_catch_up()
        return failed

    def _ask_for(self, arm: Arm, places: Sequence[int], until: float) -> tuple[int, list[int]]:
        """Calls of the model, on the loop, until then, at least one: how many places it got to, and where it failed."""
        lane, rows = arm.lane, self._rows
        step = lane.rows_within(SLICE_US)
        failed: list[int] = []
        for at in range(0, len(places), step):
            part = places[at : at + step]
            began = perf_counter_ns()
            self._began = self._began or began
            queue_us = (began - self._decoded) // 1000
            scores, score_us = lane.score_part([rows[place] for place in part], queue_us)
            for place, value in zip(part, scores, strict=True):
                if not self._settle(arm, place, value, queue_us, score_us, len(part)):
                    failed.append(place)
            if perf_counter_ns() > until:
                return at + len(part), failed
        return len(places), failed

    async def _ask_by_parts(self, arm: Arm, places: Sequence[int]) -> list[int]:
        failed: list[int] = []
        while places:
            room = await self._room_in(arm)
            self._refuse_if_in_vain()
            await self._ask_together(arm, places[:room], failed)
            places = places[room:]
            await self._let_the_log_catch_up()
        return failed

    async def _ask_together(self, arm: Arm, places: Sequence[int], failed: list[int]) -> None:
        """Through the lane's queue. A row is logged when its score is there, even if nobody awaits this any more."""
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[None] = loop.create_future()
        waiting = len(places)
        unscored = 0

        def settler(place: int) -> Callable[[Scored | None], None]:
            def settle(scored: Scored | None) -> None:
                nonlocal waiting, unscored
                waiting -= 1
                if scored is None:
                    unscored += 1
                elif not self._settle(arm, place, *scored):
                    failed.append(place)
                if not waiting and not settled.done():
                    settled.set_result(None)

            return settle

        self._began = self._began or perf_counter_ns()
        for place in places:
            arm.lane.submit(self._rows[place], settler(place), expires=self._expires, asker=self._asker)
        await settled
        if unscored:
            self._refuse_if_in_vain()
            raise DeadlinePassed("this request was not answered by its deadline")

    async def _room_in(self, arm: Arm) -> int:
        """How many rows the lane takes of us now, at least one. Raises Overloaded where others leave none for long."""
        starved = perf_counter_ns() + STARVED_NS
        while (room := arm.lane.room) < 1:
            self._refuse_if_in_vain()
            if perf_counter_ns() > starved:
                raise Overloaded("too many rows of other requests are waiting for this model")
            await asyncio.sleep(ROOM_S)
        return room

    def _settle(self, arm: Arm, place: int, value: Scores, queue_us: int, score_us: int, rows: int) -> bool:
        """Log and count a row that a model was asked about; whether it is answered."""
        finite = arm.finite(value)
        row, unit, cells = self._rows[place], self.units[place], self._context.cells
        arm.put(
            arm.tag, self._ts_us, self._request_id, place, unit, row, value, 200 if finite else 500,
            self._parse_us, queue_us, score_us, rows,
        )  # fmt: skip
        self._scores[place] = value
        self._arms[place] = arm
        if finite or arm.fallback is None:
            self.left -= 1
        if not finite:
            cells[arm.errors_cell] += 1
            return False
        cells[arm.rows_cell] += 1
        if self._now.shadows:
            self._now.offer_to_shadows(self._ts_us, self._request_id, unit, row, place)
        return True

    def _refuse_if_in_vain(self) -> None:
        if self._asker.disconnected:
            raise AskerGone("nobody waits for the answer any more")
        if 0 < self._expires < perf_counter_ns():
            raise DeadlinePassed("this request was not answered by its deadline")

    async def _let_the_log_catch_up(self) -> None:
        """As long as the patience lasts: a disk that hangs must not keep answers back, and the log counts what it drops."""
        while self._context.log.crowded and self._log_patience_ns > 0:
            began = perf_counter_ns()
            await asyncio.sleep(ROOM_S)
            self._log_patience_ns -= perf_counter_ns() - began
