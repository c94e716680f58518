"""The books of the traffic log: served = logged + dropped + lost, proved writer by writer.

The left side is what workers counted on the shared page, which outlives them; the right side is what is really there, in
the lake and in the segments not yet compacted, row by row. So a row that was acknowledged and is gone shows, and so does
one that is there twice. `lost` is above 0 only after a crash: rows numbered and neither written nor counted as dropped.
Rows of a writer that is alive and has not flushed yet are `pending`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from monitoring import lake as lakes
from serving.page import ROWS, Page, writer_facts, writers_record

MAX_RANGES = 20


@dataclass(frozen=True)
class WriterBook:
    """One log writer's account. `ranges`: seqs that are nowhere, inclusive; at most MAX_RANGES of them."""

    writer: str
    served: int
    logged: int
    dropped: int
    lost: int
    pending: int
    duplicates: int
    acknowledged: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def faults(self) -> list[str]:
        found = []
        if self.duplicates:
            found.append(f"{self.writer}: {self.duplicates} rows are there twice")
        if self.logged < self.acknowledged:
            found.append(f"{self.writer}: {self.acknowledged - self.logged} acknowledged rows are nowhere")
        if self.logged + self.dropped > self.served:
            found.append(f"{self.writer}: more rows are logged and dropped than were served")
        return found


@dataclass(frozen=True)
class Books:
    writers: tuple[WriterBook, ...]
    faults: tuple[str, ...]

    def total(self, name: str) -> int:
        return sum(getattr(writer, name) for writer in self.writers)


def reconcile(traffic: Path, lake: Path) -> Books:
    """Read-only. Safe beside a running server: what it has not flushed counts as pending."""
    alive = lakes.live_writers(traffic)
    waiting = _waiting(traffic)
    writers, faults = [], []
    for path in sorted((traffic / "pages").glob("*.page")):
        shared = Page.open(path, readonly=True)
        # counters first: a row that a live server adds after this is in no one's way
        counted = sum(int(slot.cells[ROWS]) for slot in shared.slots())
        accounts = _accounts(path, shared)
        for facts in accounts.values():
            book = _book(facts, lake, waiting, alive=str(facts["writer"]) in alive)
            writers.append(book)
            faults += book.faults
        numbered = sum(int(facts["seq"]) for facts in accounts.values())
        if counted != numbered and not alive:
            faults.append(f"{path.name}: workers counted {counted} rows, their log writers numbered {numbered}")
    return Books(tuple(writers), tuple(faults))


def _accounts(path: Path, shared: Page) -> dict[str, dict[str, str | int]]:
    """The facts of every writer of a server: those retired, and those in the slots."""
    accounts = {}
    record = writers_record(path)
    if record.exists():
        for line in record.read_text(encoding="utf-8").splitlines():
            facts = json.loads(line)
            accounts[facts["writer"]] = facts
    for slot in shared.slots():
        if slot.writer:
            accounts.setdefault(slot.writer, writer_facts(slot))
    return accounts


def _waiting(traffic: Path) -> dict[str, list[npt.NDArray[np.int64]]]:
    """Seqs by writer in segments that are not in the lake yet."""
    found: dict[str, list[npt.NDArray[np.int64]]] = {}
    for segment in [*lakes.sealed_segments(traffic), *lakes.open_segments(traffic)]:
        try:
            table, _, _ = lakes.rows_of(segment)
        except FileNotFoundError:  # sealed or compacted since it was listed
            continue
        if table is not None:
            found.setdefault(lakes.writer_of(segment), []).append(table.column("seq").to_numpy())
    return found


def _book(
    facts: dict[str, str | int], lake: Path, waiting: dict[str, list[npt.NDArray[np.int64]]], *, alive: bool
) -> WriterBook:
    writer, served, dropped = str(facts["writer"]), int(facts["seq"]), int(facts["dropped"])
    in_lake: pa.ChunkedArray = lakes.seqs(lake, writer)
    seqs = np.concatenate([in_lake.to_numpy(), *waiting.get(writer, [])]).astype(np.int64)
    present = np.unique(seqs)
    if alive and len(present):
        served = max(served, int(present[-1]))
    missing = np.setdiff1d(np.arange(1, served + 1), present, assume_unique=True)
    unwritten = len(missing) - dropped
    return WriterBook(
        writer=writer,
        served=served,
        logged=len(present),
        dropped=dropped,
        lost=0 if alive else unwritten,
        pending=unwritten if alive else 0,
        duplicates=len(seqs) - len(present),
        acknowledged=int(facts["logged"]),
        ranges=_ranges(missing),
    )


def _ranges(seqs: npt.NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    if not len(seqs):
        return ()
    breaks = np.flatnonzero(np.diff(seqs) > 1)
    first = seqs[np.concatenate([[0], breaks + 1])]
    last = seqs[np.concatenate([breaks, [len(seqs) - 1]])]
    return tuple(zip(first.tolist(), last.tolist(), strict=True))[:MAX_RANGES]
