"""What became of what was scored: outcomes, written before they are acknowledged, and read back for monitoring.

    <folder>/open/<writer>-<n>.out     while its worker appends
    <folder>/sealed/<writer>-<n>.out   after it was synced and renamed; never changes

    file    = magic "COPPOUT1"  block*               blocks as in `serving.segments`: length, CRC32, payload
    payload = {"writer": "...", "records": [[ts_us, received_us, request_id, row, value, seq], ...]}        JSON

`value` is a number, true or false, or a label. `row` is the row's place in its request, 0 for a request of one. `ts_us` is
when it happened, in µs since 1970, by its sender; `received_us` when it came. `seq` counts from 1 in each writer; a writer's
name is `<server>-<worker>-<boot>`, unique for each start and its traffic log's too, so that the page says whether it is alive.
<folder> is `<traffic>/outcomes`.

A sender that got no answer sends again, so an outcome may be there twice; where a (request_id, row) has several, the last
to be received counts, and of those received at once the one of the highest seq. `latest` does so.

A block is on disk, by fsync, before any of its outcomes is acknowledged: neither kill -9 nor a power cut loses one that
was. All that waits while one block is synced goes into the next. A torn tail loses itself only: nobody was told that it
was written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

import msgspec

from serving import page
from serving.appending import Appending
from serving.errors import NotWritten
from serving.segments import Segment, frame

logger = logging.getLogger("coppice")

MAGIC = b"COPPOUT1"
MOST_WAITING = 100_000  # outcomes that are not on disk yet; the next are refused
MOST_IN_BLOCK = 20_000

Value = float | bool | str


class Given(NamedTuple):
    """An outcome as its sender gave it."""

    ts_us: int
    received_us: int
    request_id: str
    row: int
    value: Value


class Outcome(msgspec.Struct, frozen=True):
    """An outcome as it was written."""

    ts_us: int
    received_us: int
    request_id: str
    row: int
    value: Value
    seq: int
    writer: str


class _Record(msgspec.Struct, frozen=True, array_like=True):
    ts_us: int
    received_us: int
    request_id: str
    row: int
    value: Value
    seq: int


class _Block(msgspec.Struct, frozen=True):
    writer: str
    records: list[_Record]


class _Waiting(NamedTuple):
    given: Sequence[Given]
    written: asyncio.Future[None]


def read_outcomes(folder: Path) -> Iterator[Outcome]:
    """Every whole outcome, of dead and living writers alike, in no order over files. Raises ValueError, naming the file,
    where one is of another format. It may be called while writers append: what they append later is not in it."""
    unsealed = {path.name: _still(path) for path in sorted((folder / "open").glob("*.out"))}
    sealed = sorted((folder / "sealed").glob("*.out"))  # listed afterwards: what was sealed meanwhile is among these
    for path in sealed:
        unsealed.pop(path.name, None)
        yield from _still(path)
    for outcomes in unsealed.values():
        yield from outcomes


def read_file(path: Path) -> tuple[list[Outcome], int]:
    """(every whole outcome of one file, bytes that are torn or spoiled). Raises ValueError, naming it, for another format."""
    file = Segment(path, magics=(MAGIC,))
    outcomes: list[Outcome] = []
    for payload in file.payloads():
        block = msgspec.json.decode(payload, type=_Block)
        outcomes += [
            Outcome(told.ts_us, told.received_us, told.request_id, told.row, told.value, told.seq, block.writer)
            for told in block.records
        ]
    return outcomes, file.bad_bytes


def _still(path: Path) -> list[Outcome]:
    try:
        return read_file(path)[0]
    except FileNotFoundError:
        return []  # sealed, or taken to the lake, since it was listed


def latest(outcomes: Iterable[Outcome]) -> dict[tuple[str, int], Outcome]:
    """By (request_id, row): the one that counts."""
    found: dict[tuple[str, int], Outcome] = {}
    for outcome in outcomes:
        key = (outcome.request_id, outcome.row)
        before = found.get(key)
        if before is None or (before.received_us, before.seq) <= (outcome.received_us, outcome.seq):
            found[key] = outcome
    return found


class OutcomeLog:
    """One worker's. All methods belong to the event loop's thread; the disk belongs to the log's own."""

    def __init__(
        self,
        folder: Path,
        writer: str,
        *,
        slot: page.Slot,
        loop: asyncio.AbstractEventLoop,
        rotate_bytes: int = 64 << 20,
        rotate_s: float = 300.0,
    ) -> None:
        self.writer = writer
        self._cells = slot.cells
        self._loop = loop
        self._waiting = 0
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        file = _File(
            Appending(folder, self.writer, suffix=".out", magic=MAGIC, rotate_bytes=rotate_bytes, rotate_s=rotate_s)
        )
        self._thread = Thread(target=self._write, args=(file,), name="outcomes", daemon=True)
        self._thread.start()

    async def write(self, given: Sequence[Given]) -> None:
        """Returns when they are on disk. Raises NotWritten where they are not, and may be sent again: all or none."""
        self._cells[page.OUTCOMES_RECEIVED] += len(given)
        if self._waiting + len(given) > MOST_WAITING:
            self._cells[page.OUTCOMES_REFUSED] += len(given)
            raise NotWritten("too many outcomes wait to be written")
        written: asyncio.Future[None] = self._loop.create_future()
        self._waiting += len(given)
        self._queue.put(_Waiting(given, written))
        await asyncio.shield(written)  # a sender that leaves does not keep it from being written and counted

    def close(self, deadline_s: float) -> bool:
        """Write, sync and seal what was given; whether that was done by the deadline. The last call."""
        self._queue.put(None)
        self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def _write(self, file: _File) -> None:
        seq = 0
        while True:
            group, ended = self._next_group()
            records: list[_Record] = []
            for waiting in group:
                records += [_Record(*given, seq + n) for n, given in enumerate(waiting.given, start=1 + len(records))]
            refused = ""
            if records:
                seq += len(records)
                refused = file.append(msgspec.json.encode(_Block(self.writer, records)))
            self._tell(group, refused)
            file.keep_up()
            if ended:
                file.seal()
                return

    def _next_group(self) -> tuple[list[_Waiting], bool]:
        """What waits, once something does or half a second has passed; and whether it is the last."""
        group: list[_Waiting] = []
        count = 0
        try:
            while count < MOST_IN_BLOCK:
                waiting = self._queue.get(timeout=0.5) if not group else self._queue.get_nowait()
                if waiting is None:
                    return group, True
                group.append(waiting)
                count += len(waiting.given)
        except Empty:
            pass
        return group, False

    def _tell(self, group: list[_Waiting], refused: str) -> None:
        try:
            if group:
                self._loop.call_soon_threadsafe(self._settle, group, refused)
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.warning("%d senders of outcomes left before they were told", len(group))

    def _settle(self, group: list[_Waiting], refused: str) -> None:
        for given, written in group:
            self._waiting -= len(given)
            self._cells[page.OUTCOMES_REFUSED if refused else page.OUTCOMES_WRITTEN] += len(given)
            if refused:
                written.set_exception(NotWritten(f"the outcomes could not be written: {refused}"))
                written.exception()  # looked at, even if its sender has left
            else:
                written.set_result(None)


class _File:
    """The file being appended to. What a disk refuses leaves no trace, and the next block tries again, in a new file where
    the present one is not to be trusted."""

    def __init__(self, file: Appending) -> None:
        self._file = file

    def append(self, payload: bytes) -> str:
        """The block, whole and synced: the empty string, or why not."""
        file = self._file
        fresh = not file.is_open
        acknowledged = 0 if fresh else file.size
        try:
            file.append(frame(payload))
            if fresh:
                file.sync_name()
            file.sync()
        except OSError as refused:
            logger.error("outcomes: %s: %s", file.path, refused.strerror)
            self._undo(acknowledged)
            return refused.strerror or "the disk refused"
        return ""

    def keep_up(self) -> None:
        """Rotate by size and age."""
        if self._file.is_due:
            self.seal()

    def seal(self) -> None:
        """Every block of it is synced already."""
        if not self._file.is_open:
            return
        try:
            self._file.seal()
        except OSError as refused:
            logger.error("outcomes: could not seal %s: %s; it is read where it is", self._file.path, refused.strerror)

    def _undo(self, acknowledged: int) -> None:
        """Back to what was acknowledged. After a refused fsync nobody knows what the file holds beyond that, so the next
        block begins another."""
        file = self._file
        if not file.is_open:
            return
        try:
            if acknowledged:
                file.cut(acknowledged)
                self.seal()
            else:
                file.discard()
        except OSError:
            logger.exception("outcomes: %s keeps a block that was not acknowledged", file.path)
            if file.is_open:
                file.close()
