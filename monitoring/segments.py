"""What the traffic folder holds for the lake: segments that are finished, their rows, and who may still append.

Sealed segments are finished; open ones are when their writer is dead: the page no longer names it, or its process is gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from monitoring.errors import LakeRefused
from monitoring.lake import NUMBERS, SCHEMA, SHARED, outcomes_table
from serving.outcomes import read_file
from serving.page import Page
from serving.traffic import SCORES, Segment, Tag, split_payload


def finished(folder: Path, suffix: str, alive: set[str]) -> Iterator[tuple[Path, bool]]:
    """(file, whether it is salvaged from a dead writer). `alive` was asked before this lists what is open."""
    yield from ((path, False) for path in sorted((folder / "sealed").glob(f"*{suffix}")))
    # A live writer may have sealed its file between the two looks; it then has the same name in sealed/ for the next run.
    opened = sorted((folder / "open").glob(f"*{suffix}"))
    yield from ((path, True) for path in opened if writer_of(path) not in alive)


def open_segments(traffic: Path) -> list[Path]:
    return sorted((traffic / "open").glob("*.seg"))


def sealed_segments(traffic: Path) -> list[Path]:
    return sorted((traffic / "sealed").glob("*.seg"))


def writer_of(segment: Path) -> str:
    return segment.stem.rpartition("-")[0]


def live_writers(traffic: Path) -> set[str]:
    """Writers that may still append: named by a slot whose process exists on this host."""
    alive = set()
    for path in sorted((traffic / "pages").glob("*.page")):
        for slot in Page.open(path, readonly=True).slots():
            if slot.writer and _exists(slot.pid):
                alive.add(slot.writer)
    return alive


def rows_of(segment: Path) -> tuple[pa.Table | None, int, bool]:
    """(every readable row or None, unreadable bytes, whether those are a torn tail and nothing else).

    The rows have the columns of SCHEMA, and `model`. One without a unit of its own has its request id for one.
    """
    found = Segment(segment)
    blocks: list[pa.Table] = []
    numbers: dict[tuple[Tag, str], int] = {}  # of each tag and writer in the segment
    tags = []
    try:
        for payload in found.payloads():
            facts, stream = split_payload(payload)
            block = pyarrow.ipc.open_stream(stream).read_all()
            here = np.array([numbers.setdefault((tag, facts.writer), len(numbers)) for tag in facts.tags])
            tags.append(here[block.column("tag").to_numpy()])
            if SCORES[0] not in block.column_names:
                block = block.append_column(SCORES[0], pa.nulls(len(block), NUMBERS))
            blocks.append(block)
    except ValueError as spoiled:
        raise LakeRefused(str(spoiled)) from None
    torn_tail = len(found.bad_blocks) <= 1 and _ends_torn(found)
    # in one piece: in blocks of hundreds, to write them takes twice as long
    rows = (
        _spelled_out(pa.concat_tables(blocks).combine_chunks(), np.concatenate(tags), list(numbers)) if blocks else None
    )
    return rows, found.bad_bytes, torn_tail


def outcomes_of(file: Path) -> tuple[pa.Table, int]:
    """(every whole outcome, with the columns of OUTCOMES_SCHEMA; bytes that are torn or spoiled)."""
    try:
        outcomes, bad_bytes = read_file(file)
    except ValueError as spoiled:
        raise LakeRefused(str(spoiled)) from None
    return outcomes_table(outcomes), bad_bytes


def _spelled_out(
    rows: pa.Table, tags: np.ndarray[tuple[int], np.dtype[np.int64]], told: list[tuple[Tag, str]]
) -> pa.Table:
    numbers = pa.array(tags)
    for name in SHARED:
        kind = pa.int64() if name == "generation" else pa.string()
        rows = rows.append_column(name, pa.array([getattr(tag, name) for tag, _ in told], kind).take(numbers))
    rows = rows.append_column("writer", pa.array([writer for _, writer in told], pa.string()).take(numbers))
    unit = pc.if_else(pc.equal(rows.column("unit"), ""), rows.column("request_id"), rows.column("unit"))
    rows = rows.set_column(rows.column_names.index("unit"), "unit", unit)
    return rows.select([*SCHEMA.names, "model"])


def _ends_torn(segment: Segment) -> bool:
    if not segment.bad_blocks:
        return True
    return segment.bad_blocks[-1] + segment.bad_bytes == segment.path.stat().st_size


def _exists(pid: int) -> bool:
    """Whether it may still write: one that has ended, and whose parent has not asked for its status yet, may not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][:1] != "Z"
    except OSError:  # gone meanwhile, or a system without /proc
        return not Path("/proc/self/stat").exists()
