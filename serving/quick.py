"""The usual scoring request in one call of C (quick.h): laid out here at each flip, called by `serving.protocol`.

What C can't or won't judge goes through `serving.scoring` as if C had not been asked; the two are held equal by
tests/serving/test_quick.py. A path is C's where the body names no unit and the schema's names are plain ASCII; an arm, where
its model has one output and one call of the kernel scores it on the loop: at once where that takes at most `HELD_US`, and
where a batch pays, together with the rows that arrive within one iteration of the loop.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from serving import page, quick_layout
from serving.admission import Admission
from serving.answers import Answer, Wording
from serving.heads import NAMED, UNUSUAL
from serving.lanes import Lane, NativeLane
from serving.live import Arm, Snapshot
from serving.pending import Pending
from serving.quick_layout import CHOICES, WAITS, QuickUnavailable, address, array_of, text
from serving.quick_shadows import ring_of
from serving.scoring import id_mark
from serving.shadows import ShadowLane
from serving.traffic import TrafficLog

HELD_US = 100.0  # of a call: the kernel keeps the GIL here, and beyond this other threads should have it
REFUSAL_US = (
    15.0  # a refusal's cost, by way of Python: a row scored for less is answered, since to refuse it helps nobody
)
ROOM = 1 << 16
LONGEST_ANSWER = -ROOM  # what C says that is lower is a batch in which the request waits
OURS = frozenset({b"content-type", b"x-request-id", b"x-unit"})
PLACEHOLDER = re.compile(rb"%[bd]")
Asked = tuple[Snapshot, bool]
"""What a path answers from, and whether the experiment's split decides."""
Again = Callable[[bytes, bytes, bytes, bytes, Pending], Answer | None]
"""(path, body, request id, unit, reply): the answer by way of Python, or None and `reply` gets it."""


class Batch:
    """The rows of one lane that wait for each other, until the loop's iteration ends or there are as many as a call takes."""

    def __init__(self, number: int, lane: Lane, native: NativeLane) -> None:
        self.lane = lane
        self.askers: list[tuple[Pending, bytes]] = []
        self._rows = (quick_layout.Waiting * native.most)()
        self.layout = quick_layout.Batch(number=number, most=native.most, rows=address(self._rows))

    def first_decoded(self) -> int:
        return int(self._rows[0].decoded)

    def asked(self, place: int) -> tuple[int, bytes, bytes]:
        """(which endpoint, request id, unit)"""
        row = self._rows[place]
        start = address(row)
        request_id = ctypes.string_at(start + quick_layout.Waiting.id.offset, row.id_length)
        return row.asked, request_id, ctypes.string_at(start + quick_layout.Waiting.unit.offset, row.unit_length)


class Quick:
    """One worker's. `answer(address, data, length, since)` is the C call; loop thread only."""

    def __init__(
        self, log: TrafficLog, slot: page.Slot, admission: Admission, again: Again, *, max_body_bytes: int
    ) -> None:
        """Raises QuickUnavailable."""
        self._again = again
        self._library = quick_layout.library()
        self._log = log
        self._keep: list[Any] = []  # what the door points to for good
        self._laid: list[Any] = []  # what it points to in this release
        self._asked: list[Asked] = []
        self._offered: list[tuple[ShadowLane, ...]] = []  # by what was asked: the shadows whose rows are not C's
        self._paths: list[bytes] = []
        self._batches: list[Batch] = []
        self._arena = log.arena(0)
        self.shadowed = False
        self.lateness = admission.lateness
        self.out: Any = ctypes.create_string_buffer(ROOM)  # a slice of it is bytes
        self.headers: list[tuple[bytes, bytes]] = []
        self._door = _door(slot, admission, log, self._keep)
        self._door.max_body = max_body_bytes
        self._door.out, self._door.room = address(self.out), ROOM
        self.address = address(self._door)
        self.answer = self._library.coppice_quick
        log.renew_arena = self.renew
        self.renew()

    @classmethod
    def of(
        cls, log: TrafficLog, slot: page.Slot, admission: Admission, again: Again, *, max_body_bytes: int
    ) -> Quick | None:
        try:
            return cls(log, slot, admission, again, max_body_bytes=max_body_bytes)
        except QuickUnavailable:
            return None

    def flip(self, paths: Mapping[bytes, Asked]) -> None:
        """Answer from these snapshots from now on."""
        for batch in self._batches:
            self._flush(batch)
        self._batches = []
        keep: list[Any] = []
        mine = {name: asked for name, asked in paths.items() if asked[0].quick is not None}
        laid = [self._endpoint(name, snapshot, split, keep) for name, (snapshot, split) in mine.items()]
        self._door.endpoints, self._door.endpoint_count = array_of(quick_layout.Endpoint, laid, keep), len(laid)
        self._laid, self._asked, self._paths = keep, list(mine.values()), list(mine)
        self._offered = [tuple(s for s in snapshot.shadows if s.ring is None) for snapshot, _ in self._asked]
        self.shadowed = any(self._offered)
        widest = max((8 * rows.width for rows in (snapshot.quick for snapshot, _ in self._asked) if rows), default=0)
        if widest > self._arena.row_bytes:
            self._door.row_bytes = widest
            self.renew()

    def renew(self) -> None:
        """The log takes the rows; C gets a fresh block."""
        self._arena = self._log.arena(self._door.row_bytes)
        self._door.rows = address(self._arena.layout)

    def begin_answers_with(self, content: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Status line and the server's headers; again whenever uvicorn's once-a-second tick replaced those."""
        self.headers = headers
        self._preamble = ctypes.create_string_buffer(content, len(content))
        self._door.preamble = quick_layout.Text(address(self._preamble), len(content))

    def after_answer(self, length: int) -> None:
        """What C leaves to do: dear shadows see the row; where `length` < 0, the others have rows to score, or a full block
        goes to the log."""
        door = self._door
        shadows = self._offered[door.asked]
        if shadows:
            snapshot, _ = self._asked[door.asked]
            request_id = ctypes.string_at(self.address + quick_layout.Door.id.offset, door.id_length)
            unit = ctypes.string_at(self.address + quick_layout.Door.unit.offset, door.unit_length)
            row = ctypes.string_at(door.row, 8 * snapshot.champion.manifest.schema.width)
            for shadow in shadows:
                shadow.offer(door.ts_us, request_id, unit, row)
        if length < 0:
            if door.has_seen:
                door.has_seen = 0
                self._begin_shadows(self._asked[door.asked][0])
            self._renew_if_full()

    def _begin_shadows(self, snapshot: Snapshot) -> None:
        for shadow in snapshot.shadows:
            if shadow.ring is not None:
                shadow.ring.begin()

    def _score_seen(self, ring: int) -> int:
        """Of the shadow laid out there: how many rows were scored."""
        scored = int(self._library.coppice_quick_shadow(self.address, ring))
        self._renew_if_full()
        return scored

    def _renew_if_full(self) -> None:
        if not self._library.coppice_quick_has_room(self.address):
            self.renew()

    def wait(self, told: int, pending: Pending, data: bytes) -> None:
        """`pending` is answered with its batch, before the loop looks at its sockets again."""
        batch = self._batches[told - WAITS]
        batch.askers.append((pending, data))
        if len(batch.askers) == 1:
            asyncio.get_running_loop().call_soon(self._flush, batch)
        elif len(batch.askers) == batch.layout.most:
            self._flush(batch)

    def _flush(self, batch: Batch) -> None:
        askers, batch.askers = batch.askers, []
        if not askers:
            return
        layout = address(batch.layout)
        self._library.coppice_quick_score(self.address, layout)
        try:
            for place, (pending, data) in enumerate(askers):
                self._answer_one(batch, place, pending, data)
        finally:  # the next row to wait must have the place that its asker has
            self._library.coppice_quick_empty(layout)
        waited_us = (batch.layout.began - batch.first_decoded()) // 1000
        batch.lane.count(len(askers), waited_us, batch.layout.score_us)

    def _answer_one(self, batch: Batch, place: int, pending: Pending, data: bytes) -> None:
        length = self._library.coppice_quick_finish(self.address, address(batch.layout), place)
        if not length:
            self._ask_again(batch, place, pending, data)
            return
        content = self.out[: abs(length)]
        if length < 0 or self.shadowed:
            self.after_answer(length)
        pending.laid_out(content)

    def _ask_again(self, batch: Batch, place: int, pending: Pending, data: bytes) -> None:
        """Python, of a row whose score can't be told: it knows what becomes of such."""
        asked, request_id, unit = batch.asked(place)
        answer = self._again(self._paths[asked], data.partition(b"\r\n\r\n")[2], request_id, unit, pending)
        if answer is not None:
            pending(answer)

    def _endpoint(self, name: bytes, snapshot: Snapshot, split: bool, keep: list[Any]) -> quick_layout.Endpoint:
        rows = snapshot.quick
        assert rows is not None, "only such paths are laid out"
        points = np.zeros(1, dtype=np.uint16)
        if split:
            names = [arm.name for arm in snapshot.arms]
            points = np.concatenate(
                [np.full(slot.hi - slot.lo, names.index(slot.arm), dtype=np.uint16) for slot in snapshot.routes.slots]
            )
        rings = [ring_of(shadow, rows.width, self._score_seen, held_us=HELD_US) for shadow in snapshot.shadows]
        laid_rings = [address(ring.layout) for ring in rings if ring is not None]
        keep += [rows, snapshot, points, rings]
        salt = bytes.fromhex(snapshot.routes.salt)
        laid = quick_layout.Endpoint(
            name=text(name, keep),
            split=split,
            arms=array_of(quick_layout.Arm, [self._arm(arm, keep) for arm in snapshot.arms], keep),
            points=points.ctypes.data,
            features=rows.features,
            width=rows.width,
            order=rows.order,
            shadows=array_of(ctypes.c_void_p, laid_rings, keep),
            shadow_count=len(laid_rings),
        )
        self._library.coppice_salt(salt, len(salt), address(laid) + quick_layout.Endpoint.salted.offset)
        return laid

    def _arm(self, arm: Arm, keep: list[Any]) -> quick_layout.Arm:
        """Without a call where the arm is not C's: its requests go through Python."""
        native, words, cost = arm.lane.native, arm.words, arm.lane.cost
        if native is None or words is None or arm.lane.reason == "busy":
            return quick_layout.Arm()
        if arm.inline and cost.fixed_us + cost.row_us > HELD_US:
            return quick_layout.Arm()
        batch = None if arm.inline else self._batch(arm.lane, native)
        keep += [native, batch]
        laid = quick_layout.Arm(
            run=native.function,
            plan=native.handle,
            row=native.rows,
            score=native.scores,
            queue=0 if batch is None else address(batch.layout),
            cheap=batch is None and cost.fixed_us + cost.row_us <= REFUSAL_US,
            tag=arm.tag,
            rows_cell=arm.rows_cell,
            choice=CHOICES.index(words.choice),
            threshold=words.threshold,
        )
        _word(laid, words, keep)
        return laid

    def _batch(self, lane: Lane, native: NativeLane) -> Batch:
        """One for all arms of the lane: they share its buffer."""
        found = next((batch for batch in self._batches if batch.lane is lane), None)
        if found is None:
            found = Batch(len(self._batches), lane, native)
            self._batches.append(found)
        return found


def _door(slot: page.Slot, admission: Admission, log: TrafficLog, keep: list[Any]) -> quick_layout.Door:
    others = sorted((set(NAMED) - OURS) | UNUSUAL)
    powers = quick_layout.powers_of_ten()
    cells = (ctypes.c_int64 * 0).from_buffer(slot.cells)
    keep += [powers, cells, admission.lateness]
    door = quick_layout.Door(
        others=array_of(quick_layout.Text, [text(name, keep) for name in others], keep),
        other_count=len(others),
        cells=address(cells),
        seq_cell=page.WRITER_SEQ,
        rows_cell=page.ROWS,
        ok_cell=page.REQUESTS_2XX,
        inline_cell=page.DISPATCH_INLINE,
        seconds_cell=page.REQUEST_SECONDS,
        shadow_shed_cell=page.SHADOW_SHED,
        edges=array_of(ctypes.c_int64, page.EDGES_US, keep),
        edge_count=len(page.EDGES_US),
        lateness=address(admission.lateness),
        preamble=text(b"", keep),
        mark=text(id_mark(log.writer), keep),
        powers=address(powers),
        random=int.from_bytes(os.urandom(8), "little") | 1,
    )
    door.format, door.release = quick_layout.functions()
    return door


def _word(laid: quick_layout.Arm, words: Wording, keep: list[Any]) -> None:
    for n, piece in enumerate(_between(words.head)):
        laid.head[n] = text(piece, keep)
    for body, template in enumerate(words.bodies):
        for n, piece in enumerate(_between(template)):
            laid.bodies[body][n] = text(piece, keep)


def _between(template: bytes) -> list[bytes]:
    """What stands around a template's placeholders.

    >>> _between(b"100%% %b of %d.")
    [b'100% ', b' of ', b'.']
    """
    marked = template.replace(b"%%", b"\0")
    return [piece.replace(b"\0", b"%") for piece in PLACEHOLDER.split(marked)]
