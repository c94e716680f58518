"""The shared page, format 2: one small mmap per server run, one single-writer slot per worker.

    <traffic>/pages/<server>.page            the page; stays after the server stopped, for `coppice reconcile`
    <traffic>/pages/<server>.writers.jsonl   the last facts of each log writer that ended, a line each

From it come `/metrics`, the readiness quorum, the two-phase flip and the counts that survive a killed worker.

Layout: little-endian int64 cells. A header of 8 cells: magic, workers, creation time in µs, rest 0. Then the board of the
sync process (`serving.board`), then a slot of `SLOT_CELLS` for each worker: facts, counters, histograms, the writer's name
and why a release was not loaded as text, and up to `SERIES` labelled series of (label text, rows, errors). A cell is
written by one thread of one process alone and read by anyone: an aligned 8-byte store is not torn on the machines we run
on. Counters go on over restarts of the worker in their slot; the writer's facts start again with each writer, and
`Page.retire` saves them before a successor begins. The file is allocated when it is made: a disk that fills up later can't
fail a store into it.

Format 1 (magic COPPICE1) had no board and slots of 1024 cells; `open` reads it, for the books of servers that stopped.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from bisect import bisect_left
from pathlib import Path
from time import time_ns
from typing import NamedTuple

from serving.board import CELLS as BOARD_CELLS
from serving.board import Board

MAGIC = b"COPPICE2"
HEADER_CELLS = 8
SLOT_CELLS = 2560
FORMATS = {b"COPPICE1": (0, 1024), MAGIC: (BOARD_CELLS, SLOT_CELLS)}  # cells of the board, and of a slot

# states
EMPTY, STARTING, READY, DRAINING, STOPPED = range(5)

# facts
# LOADED: number of the newest release that is ready to be served; SERVING: of the one that is; FAILED: of the last that
# could not be loaded
STATE, PID, HEARTBEAT_US, LOADED, SERVING, STARTS, FAILED, OPEN_BUNDLES = range(8)
WRITER_SEQ, WRITER_LOGGED, WRITER_DROPPED_FULL, WRITER_DROPPED_DISK = range(8, 12)

# counters
REQUESTS_2XX, REQUESTS_4XX, REQUESTS_5XX, REQUESTS_SHED = range(16, 20)
FALLBACKS, SHADOW_SHED, DISPATCH_INLINE, DISPATCH_TICK, DISPATCH_BUSY, BATCHES = range(20, 26)
SHED_QUEUE_FULL, SHED_DEADLINE, SHED_LOOP_LAG, SHED_GONE = range(26, 30)
ROWS, ROWS_LOGGED, ROWS_DROPPED_FULL, ROWS_DROPPED_DISK, BLOCKS, BYTES, FSYNCS = range(32, 39)
ADMIN_DONE, ADMIN_REFUSED = range(40, 42)
SHED_RATE, KEYS_MISSING, KEYS_WRONG, OVERRIDES, UNSEEN, UNSEEN_UNWRITTEN = range(48, 54)
OUTCOMES_RECEIVED, OUTCOMES_WRITTEN, OUTCOMES_REFUSED = range(56, 59)

# histograms: 16 buckets, one for more, then the sum
EDGES_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
EDGES_US = tuple(round(edge * 1e6) for edge in EDGES_S)
EDGES_ROWS = tuple(2**n for n in range(16))
HISTOGRAM_CELLS = len(EDGES_S) + 2
REQUEST_SECONDS, QUEUE_SECONDS, BATCH_ROWS = (64 + HISTOGRAM_CELLS * n for n in range(3))

WRITER_NAME = 256
WRITER_NAME_BYTES = 192
FAILURE = 288
FAILURE_BYTES = 768
SERIES_AT = 512
SERIES = 128
SERIES_CELLS = 16  # 14 of label text, rows, errors
LABEL_BYTES = 14 * 8


class SeriesCount(NamedTuple):
    """One arm's counters, as a reader sees them."""

    label: str
    rows: int
    errors: int


class Slot:
    """One worker's part of the page. `cells` is for the hot path: `cells[REQUESTS_2XX] += 1`."""

    def __init__(self, cells: memoryview) -> None:
        self.cells = cells
        self._text = cells.cast("B")

    @property
    def state(self) -> int:
        return int(self.cells[STATE])

    @state.setter
    def state(self, state: int) -> None:
        self.cells[STATE] = state

    @property
    def pid(self) -> int:
        return int(self.cells[PID])

    @property
    def heartbeat_us(self) -> int:
        return int(self.cells[HEARTBEAT_US])

    @heartbeat_us.setter
    def heartbeat_us(self, us: int) -> None:
        self.cells[HEARTBEAT_US] = us

    @property
    def loaded(self) -> int:
        return int(self.cells[LOADED])

    @loaded.setter
    def loaded(self, number: int) -> None:
        self.cells[LOADED] = number

    @property
    def serving(self) -> int:
        return int(self.cells[SERVING])

    @serving.setter
    def serving(self, number: int) -> None:
        self.cells[SERVING] = number

    @property
    def failed(self) -> int:
        return int(self.cells[FAILED])

    @property
    def failure(self) -> str:
        """Why the release `failed` was not loaded."""
        return self._read_text(FAILURE, FAILURE_BYTES)

    def fail(self, number: int, why: str) -> None:
        self._write_text(FAILURE, FAILURE_BYTES, why)
        self.cells[FAILED] = number

    @property
    def writer(self) -> str:
        """The log writer that the facts are of; empty when there is none."""
        return self._read_text(WRITER_NAME, WRITER_NAME_BYTES)

    def begin(self, pid: int) -> None:
        """A worker takes the slot: it is starting."""
        self.cells[STATE] = STARTING
        self.cells[PID] = pid
        self.cells[HEARTBEAT_US] = time_ns() // 1000
        for fact in (LOADED, SERVING, FAILED, OPEN_BUNDLES):
            self.cells[fact] = 0
        self.cells[STARTS] += 1

    def vacate(self) -> None:
        """Its process has ended: for the supervisor."""
        for fact in (STATE, LOADED, SERVING, FAILED, OPEN_BUNDLES):
            self.cells[fact] = 0

    def begin_writer(self, name: str) -> None:
        """A log writer takes the facts. The facts of the one before must have been retired."""
        for fact in (WRITER_SEQ, WRITER_LOGGED, WRITER_DROPPED_FULL, WRITER_DROPPED_DISK):
            self.cells[fact] = 0
        self._write_text(WRITER_NAME, WRITER_NAME_BYTES, name)

    def end_writer(self) -> None:
        self._write_text(WRITER_NAME, WRITER_NAME_BYTES, "")

    def observe(self, histogram: int, us: int) -> None:
        """0.2 µs; a quantile read from it is right to a bucket."""
        self.cells[histogram + bisect_left(EDGES_US, us)] += 1
        self.cells[histogram + HISTOGRAM_CELLS - 1] += us

    def observe_rows(self, rows: int) -> None:
        self.cells[BATCH_ROWS + bisect_left(EDGES_ROWS, rows)] += 1
        self.cells[BATCH_ROWS + HISTOGRAM_CELLS - 1] += rows

    def series(self, label: str) -> int:
        """The cell of the rows under `label` (LABEL_BYTES of UTF-8 at most); the next one is of its errors.

        The last series is shared by all labels beyond the limit.
        """
        label = label.encode()[:LABEL_BYTES].decode(errors="ignore")
        for n in range(SERIES):
            at = SERIES_AT + SERIES_CELLS * n
            present = self._read_text(at, LABEL_BYTES)
            if not present:
                self._write_text(at, LABEL_BYTES, label if n < SERIES - 1 else "other")
            if not present or present == label or n == SERIES - 1:
                return at + SERIES_CELLS - 2
        raise AssertionError("the last series takes whatever comes")

    def series_counts(self) -> list[SeriesCount]:
        counts = []
        for n in range((len(self.cells) - SERIES_AT) // SERIES_CELLS):
            at = SERIES_AT + SERIES_CELLS * n
            label = self._read_text(at, LABEL_BYTES)
            if not label:
                break
            rows, errors = self.cells[at + SERIES_CELLS - 2], self.cells[at + SERIES_CELLS - 1]
            counts.append(SeriesCount(label, int(rows), int(errors)))
        return counts

    def _read_text(self, cell: int, limit: int) -> str:
        return bytes(self._text[8 * cell : 8 * cell + limit]).rstrip(b"\0").decode(errors="replace")

    def _write_text(self, cell: int, limit: int, text: str) -> None:
        encoded = text.encode()[:limit].decode(errors="ignore").encode()
        self._text[8 * cell : 8 * cell + limit] = encoded.ljust(limit, b"\0")


class Page:
    """The mapped file. Keep it referenced as long as a slot of it is in use."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self._cells = memoryview(mapped).cast("q")
        self._board_cells, self._slot_cells = FORMATS[mapped[:8]]
        self.workers = int(self._cells[1])

    @classmethod
    def create(cls, path: Path, workers: int) -> Page:
        """A fresh page. Raises FileExistsError: a page belongs to one server run."""
        size = 8 * (HEADER_CELLS + BOARD_CELLS + SLOT_CELLS * workers)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.posix_fallocate(handle, 0, size)
            os.pwrite(handle, struct.pack("<8sqq", MAGIC, workers, time_ns() // 1000), 0)
            return cls(path, mmap.mmap(handle, size))
        finally:
            os.close(handle)

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False) -> Page:
        """Raises ValueError, naming the file, where it is not a page."""
        handle = os.open(path, os.O_RDONLY if readonly else os.O_RDWR)
        try:
            size = os.fstat(handle).st_size
            board_cells, slot_cells = FORMATS.get(os.pread(handle, 8, 0), (0, 0))
            if not slot_cells or size < 8 * (HEADER_CELLS + board_cells + slot_cells):
                raise ValueError(f"{path}: not a page of this version")
            access = mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE
            return cls(path, mmap.mmap(handle, size, access=access))
        finally:
            os.close(handle)

    @property
    def board(self) -> Board:
        if not self._board_cells:
            raise ValueError(f"{self.path}: is of a format that has no board")
        return Board(self._cells[HEADER_CELLS : HEADER_CELLS + self._board_cells])

    def slot(self, index: int) -> Slot:
        if not 0 <= index < self.workers:
            raise IndexError(f"{self.path}: has {self.workers} slots, not one {index}")
        begin = HEADER_CELLS + self._board_cells + self._slot_cells * index
        return Slot(self._cells[begin : begin + self._slot_cells])

    def slots(self) -> list[Slot]:
        return [self.slot(index) for index in range(self.workers)]

    def retire(self, index: int) -> None:
        """Save the facts of the slot's writer, whose process has ended, to the writers' record. Idempotent."""
        slot = self.slot(index)
        if not slot.writer:
            return
        line = json.dumps(writer_facts(slot)) + "\n"
        handle = os.open(writers_record(self.path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        slot.end_writer()


def writers_record(page_path: Path) -> Path:
    return page_path.with_suffix(".writers.jsonl")


def writer_facts(slot: Slot) -> dict[str, str | int]:
    """The present writer: rows it numbered, wrote, and dropped."""
    cells = slot.cells
    return {
        "writer": slot.writer,
        "pid": slot.pid,
        "seq": int(cells[WRITER_SEQ]),
        "logged": int(cells[WRITER_LOGGED]),
        "dropped": int(cells[WRITER_DROPPED_FULL] + cells[WRITER_DROPPED_DISK]),
    }
