"""The notice board of the shared page: which releases this host serves, and which one it is to load next.

A release is a number and, of every model served here, a routes generation. It goes through two phases: the sync process
*offers* it; each worker loads it beside what it serves and says so in its slot; when all have, the sync process *commits*
it and every worker flips. What one worker can't load is withdrawn, and nobody flips. So at most two releases are of
interest at any time, and the board holds their texts in two places: an offer never overwrites what is committed.

    cells 0..63          facts and counters, named below; int64
    cells 64..575        what the sync process tells people, as text: JSON, shown by /readyz
    cells 576..8767      two places for releases, as text: {"number": 3, "default": "churn", "generations": {"churn": 7}}

A text is its length in bytes, its CRC32, then the bytes: a reader that meets a writer sees a wrong CRC32 and looks again
later. The sync process alone writes here - after its death its successor, which goes on with what it finds.
"""

from __future__ import annotations

import zlib
from time import time_ns
from typing import Any

import msgspec

CELLS = 8768

# facts: of the sync process; the number offered (0: none is pending), served by the host, and last given away
PID, HEARTBEAT_US, STARTS, OFFERED, COMMITTED, NUMBERED, STORE_SEEN_US = range(7)

# counters
LOOKS, LOOKS_FAILED, REFUSED, OFFERS, COMMITS, WITHDRAWN, BUNDLES_PULLED = range(16, 23)

_TEXT_AT, _TEXT_CELLS = 64, 512
_PLACES = ((576, 4096), (4672, 4096))


class BoardFull(Exception):
    """The release names more models than the board has room for; the text says how much."""


class Release(msgspec.Struct, frozen=True):
    """What the host serves, as a whole. `default`: the model of `/predict`; empty: none is."""

    number: int
    default: str
    generations: dict[str, int]


class Board:
    def __init__(self, cells: memoryview) -> None:
        self.cells = cells
        self._bytes = cells.cast("B")

    @property
    def offered(self) -> int:
        """The number of the release that is to be loaded now; 0 where none is."""
        return int(self.cells[OFFERED])

    @property
    def committed(self) -> int:
        """The number of the release that is to be served; 0 before the first."""
        return int(self.cells[COMMITTED])

    def release(self, number: int) -> Release | None:
        """The release of that number; None if it is not on the board (any more), or is being written."""
        for at, cells in _PLACES if number else ():
            text = self._read(at, cells)
            if text:
                found = msgspec.json.decode(text, type=Release)
                if found.number == number:
                    return found
        return None

    def told(self) -> dict[str, Any]:
        """What the sync process last said; empty before it said anything."""
        text = self._read(_TEXT_AT, _TEXT_CELLS)
        said: dict[str, Any] = msgspec.json.decode(text) if text else {}
        return said

    # For the sync process alone

    def begin(self, pid: int) -> None:
        self.cells[PID] = pid
        self.cells[STARTS] += 1
        self.beat()

    def beat(self) -> None:
        self.cells[HEARTBEAT_US] = time_ns() // 1000

    def offer(self, default: str, generations: dict[str, int]) -> Release:
        """Ask the workers to load this. Raises BoardFull; what was offered before is withdrawn in any case."""
        self.cells[OFFERED] = 0
        number = int(self.cells[NUMBERED]) + 1
        offered = Release(number, default, generations)
        kept = self.release(self.committed)
        place = next(place for place in _PLACES if kept is None or self._number_at(*place) != kept.number)
        self._write(*place, msgspec.json.encode(offered))
        self.cells[NUMBERED] = number
        self.cells[OFFERED] = number
        self.cells[OFFERS] += 1
        return offered

    def commit(self) -> None:
        """Every worker has loaded what is offered: they flip."""
        self.cells[COMMITTED] = self.cells[OFFERED]
        self.cells[OFFERED] = 0
        self.cells[COMMITS] += 1

    def withdraw(self) -> None:
        self.cells[OFFERED] = 0
        self.cells[WITHDRAWN] += 1

    def tell(self, said: dict[str, Any]) -> None:
        """Told to people. What does not fit must have been cut by the caller: it is not told at all."""
        encoded = msgspec.json.encode(said)
        if len(encoded) <= 8 * (_TEXT_CELLS - 2):
            self._write(_TEXT_AT, _TEXT_CELLS, encoded)

    def _number_at(self, at: int, cells: int) -> int:
        text = self._read(at, cells)
        return msgspec.json.decode(text, type=Release).number if text else 0

    def _read(self, at: int, cells: int) -> bytes:
        """b"" for what was never written, or is being written just now."""
        for _ in range(3):
            length, crc = self.cells[at], self.cells[at + 1]
            if not 0 < length <= 8 * (cells - 2):
                continue
            text = bytes(self._bytes[8 * (at + 2) : 8 * (at + 2) + length])
            if zlib.crc32(text) == crc:
                return text
        return b""

    def _write(self, at: int, cells: int, text: bytes) -> None:
        if len(text) > 8 * (cells - 2):
            raise BoardFull(f"{len(text)} bytes to say which models are served; the shared page has {8 * (cells - 2)}")
        self.cells[at] = 0
        self._bytes[8 * (at + 2) : 8 * (at + 2) + len(text)] = text
        self.cells[at + 1] = zlib.crc32(text)
        self.cells[at] = len(text)
