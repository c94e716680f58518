"""The traffic log: every scored row, handed over in constant time and written by a thread of its own.

One row per scored row, in the format of `serving.segments`, which explains `role`; `features` is the encoded row, `score`
NaN and `status` 500 where the model failed, infinite and 500 where its score is; a model of several outputs has `scores`
besides. Times are µs since 1970 (`ts_us`) or µs (`*_us`).

`TrafficLog.put` numbers the row (`seq`, from 1 in each writer) and counts it on the shared page before it stores it, so
that at any moment

    rows numbered = logged + dropped + lost

where dropped is counted (the queue of blocks was full, or the disk refused a block) and lost is what a crash left
unwritten: the difference. Nothing here blocks a request or raises into one.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic

from serving import page
from serving.appending import Appending
from serving.arena import Arena
from serving.blocks import RECORD, Block, Rows, arrow, encode_block
from serving.segments import COLUMNS, MAGIC, SCORES, Facts, Segment, Tag, frame, read_segment, split_payload

__all__ = ["COLUMNS", "SCORES", "Facts", "Segment", "Tag", "TrafficLog", "read_segment", "split_payload"]

logger = logging.getLogger("coppice")


class TrafficLog:
    """One worker's log. `put`, `register` and `tick` belong to one thread; the disk belongs to the log's own thread."""

    def __init__(
        self,
        folder: Path,
        *,
        server: str,
        worker: int,
        slot: page.Slot,
        block_rows: int = 512,
        max_blocks: int = 16,
        flush_s: float = 1.0,
        rotate_bytes: int = 64 << 20,
        rotate_s: float = 300.0,
    ) -> None:
        self.writer = f"{server}-{worker}-{secrets.token_hex(4)}"
        self._cells = slot.cells
        self._block_rows = block_rows
        self._max_blocks = max_blocks
        self._flush_s = flush_s
        self._block = Block(block_rows)
        self._arena: Arena | None = None
        self.renew_arena: Callable[[], None] = _no_arena  # of who has one: asks for the next
        self._tags: list[Tag] = []
        self._tag_numbers: dict[Tag, int] = {}
        self._queue: SimpleQueue[Rows | None] = SimpleQueue()
        arrow()
        slot.begin_writer(self.writer)
        appending = Appending(
            folder, self.writer, suffix=".seg", magic=MAGIC, rotate_bytes=rotate_bytes, rotate_s=rotate_s
        )
        file = _SegmentFile(appending, slot.cells)
        self._thread = Thread(target=self._write, args=(file,), name="traffic", daemon=True)
        self._thread.start()

    def register(self, tag: Tag) -> int:
        """The number under which `put` takes rows of this tag."""
        if tag not in self._tag_numbers:
            self._tags.append(tag)
            self._tag_numbers[tag] = len(self._tags) - 1
        return self._tag_numbers[tag]

    def put(
        self,
        tag: int,
        ts_us: int,
        request_id: bytes,
        row: int,
        unit: bytes,
        features: bytes,
        score: float,
        status: int,
        parse_us: int,
        queue_us: int,
        score_us: int,
        batch_rows: int,
    ) -> None:
        """Constant time: 0.7 µs (`python -m serving.bench traffic`). `features` is 8 * width bytes of float64."""
        block = self._block
        seq = self._cells[page.WRITER_SEQ] + 1
        self._cells[page.WRITER_SEQ] = seq
        self._cells[page.ROWS] += 1
        RECORD.pack_into(
            block.records, block.count * RECORD.size,
            ts_us, seq, score, tag, row, status, parse_us, queue_us, score_us, batch_rows,
        )  # fmt: skip
        block.ids.append(request_id)
        block.units.append(unit)
        block.features.append(features)
        block.count += 1
        if block.count == self._block_rows:
            self._next_block()

    def put_of(self, outputs: int) -> Callable[..., None]:
        """`put`, or for a model of several outputs the same of a tuple of scores."""
        return self.put if outputs == 1 else self._put_several

    def _put_several(
        self,
        tag: int,
        ts_us: int,
        request_id: bytes,
        row: int,
        unit: bytes,
        features: bytes,
        scores: tuple[float, ...],
        *rest: int,
    ) -> None:
        self._block.scores[self._block.count] = scores
        self.put(tag, ts_us, request_id, row, unit, features, scores[0], *rest)

    def arena(self, row_bytes: int) -> Arena:
        """A fresh block for rows that C writes and numbers. Loop thread, as `put`.

        Both blocks are handed over together, so that what a crash costs is the newest rows and no others.
        """
        if self._arena is not None and self._arena.count:
            self._hand_over(self._arena)
        self._arena = Arena(self._block_rows, row_bytes)
        self._give_block()
        return self._arena

    def tick(self) -> None:
        """Called a few times a second: hands over what has waited for `flush_s`, so that a quiet log is not stale."""
        due = monotonic() - self._flush_s
        if any(block is not None and block.count and block.born <= due for block in (self._block, self._arena)):
            self._next_block()

    @property
    def crowded(self) -> bool:
        """The thread is behind by half of what it may be: who has many rows more to put should wait."""
        return 2 * self._queue.qsize() >= self._max_blocks

    def close(self, deadline_s: float) -> bool:
        """Write, sync and seal what was put; whether that was done by the deadline. The last call."""
        for block in (self._block, self._arena):
            if block is not None and block.count:
                self._queue.put(block)
        self._queue.put(None)
        self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def _next_block(self) -> None:
        self._give_block()
        if self._arena is not None and self._arena.count:
            self.renew_arena()

    def _give_block(self) -> None:
        if self._block.count:
            block, self._block = self._block, Block(self._block_rows)
            self._hand_over(block)

    def _hand_over(self, block: Rows) -> None:
        if self._queue.qsize() >= self._max_blocks:
            self._cells[page.ROWS_DROPPED_FULL] += block.count
            self._cells[page.WRITER_DROPPED_FULL] += block.count
            return
        self._queue.put(block)

    def _write(self, file: _SegmentFile) -> None:
        while True:
            try:
                block = self._queue.get(timeout=0.5)
            except Empty:
                file.keep_up()
                continue
            if block is None:
                file.seal()
                return
            try:
                payload = encode_block(block, self._tags, self.writer)
            except Exception:  # this thread must outlive any one block: its rows are dropped, counted and told
                logger.exception("traffic log could not encode %d rows", block.count)
                file.drop(block.count)
            else:
                file.append(payload, block.count)
            file.keep_up()


class _SegmentFile:
    """The segment being appended to. A disk that refuses drops and counts; the next block tries again."""

    SYNC_S = 1.0

    def __init__(self, file: Appending, cells: memoryview) -> None:
        self._file = file
        self._cells = cells
        self._synced = 0.0
        self._unsynced = False

    def append(self, payload: bytes, rows: int) -> None:
        file, before = self._file, self._file.written
        if not file.is_open:
            self._synced = monotonic()
        try:
            file.append(frame(payload))
        except OSError as refused:
            logger.error("traffic log dropped %d rows: %s: %s", rows, file.path, refused.strerror)
            self.drop(rows)
            return
        finally:
            self._cells[page.BYTES] += file.written - before
        self._unsynced = True
        self._cells[page.WRITER_LOGGED] += rows
        self._cells[page.ROWS_LOGGED] += rows
        self._cells[page.BLOCKS] += 1

    def drop(self, rows: int) -> None:
        self._cells[page.ROWS_DROPPED_DISK] += rows
        self._cells[page.WRITER_DROPPED_DISK] += rows

    def keep_up(self) -> None:
        """Sync about once a second, and rotate by size and age."""
        if self._file.is_due:
            self.seal()
        elif self._unsynced and monotonic() - self._synced >= self.SYNC_S:
            self._sync()

    def seal(self) -> None:
        """From then on the file is complete, power cut or not."""
        if not self._file.is_open:
            return
        self._sync()
        try:
            self._file.seal()
        except OSError as refused:
            logger.error(
                "traffic log could not seal %s: %s; compaction will salvage it", self._file.path, refused.strerror
            )

    def _sync(self) -> None:
        try:
            self._file.sync()
        except OSError as refused:
            logger.error("traffic log could not sync %s: %s", self._file.path, refused.strerror)
        self._unsynced = False
        self._synced = monotonic()
        self._cells[page.FSYNCS] += 1


def _no_arena() -> None:
    raise AssertionError("nobody asked for an arena")
