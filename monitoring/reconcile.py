"""The books of the traffic log: served = logged + dropped + lost, proved writer by writer.

The left side is what workers counted on the shared page, which outlives them; the right side is what is really there, row
by row: in the lake, in the segments not yet compacted, and in the lake's note of what it deleted for its age. So a row that
was acknowledged and is gone shows, and so does one that is there twice. `lost` is above 0 only after a crash: rows numbered
and neither written nor counted as dropped. Rows of a writer that is alive and has not flushed yet are `pending`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from monitoring.lake import models, rows_dataset, rows_parts
from monitoring.lake_files import LakeFiles, open_files
from monitoring.merging import ranges_of, retired_rows
from monitoring.segments import live_writers, open_segments, rows_of, sealed_segments, writer_of
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


def reconcile(traffic: Path, lake: str | Path) -> Books:
    """Read-only. Safe beside a running server: what it has not flushed counts as pending."""
    alive = live_writers(traffic)
    waiting = _waiting(traffic)
    files = open_files(lake)
    kept, retired = _kept(files), retired_rows(files)
    writers, faults = [], []
    for path in sorted((traffic / "pages").glob("*.page")):
        shared = Page.open(path, readonly=True)
        # counters first: a row that a live server adds after this is in no one's way
        counted = sum(int(slot.cells[ROWS]) for slot in shared.slots())
        accounts = _accounts(path, shared)
        for facts in accounts.values():
            writer = str(facts["writer"])
            found = [*kept.get(writer, []), *waiting.get(writer, [])]
            book = _book(facts, found, retired.get(writer, []), alive=writer in alive)
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
    for segment in [*sealed_segments(traffic), *open_segments(traffic)]:
        try:
            table, _, _ = rows_of(segment)
        except FileNotFoundError:  # sealed or compacted since it was listed
            continue
        if table is not None:
            found.setdefault(writer_of(segment), []).append(table.column("seq").to_numpy())
    return found


def _kept(files: LakeFiles) -> dict[str, list[npt.NDArray[np.int64]]]:
    """Seqs by writer in the lake, as often as it holds them."""
    found: dict[str, list[npt.NDArray[np.int64]]] = {}
    for model in models(files):
        for batch in rows_dataset(files, rows_parts(files, model)).to_batches(columns=["writer", "seq"]):
            coded = batch.column("writer").dictionary_encode()
            seqs, numbers = batch.column("seq").to_numpy(), coded.indices.to_numpy(zero_copy_only=False)
            for number, writer in enumerate(coded.dictionary.to_pylist()):
                found.setdefault(writer, []).append(seqs[numbers == number])
    return found


def _book(
    facts: dict[str, str | int],
    found: list[npt.NDArray[np.int64]],
    retired: list[tuple[int, int]],
    *,
    alive: bool,
) -> WriterBook:
    writer, served, dropped = str(facts["writer"]), int(facts["seq"]), int(facts["dropped"])
    seqs = np.concatenate([np.empty(0, np.int64), *found])
    gone = [np.arange(first, last + 1) for first, last in retired]
    present = np.unique(np.concatenate([seqs, *gone])) if gone else np.unique(seqs)
    duplicates = len(seqs) - len(np.unique(seqs))
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
        duplicates=duplicates,
        acknowledged=int(facts["logged"]),
        ranges=tuple(ranges_of(missing))[:MAX_RANGES],
    )
