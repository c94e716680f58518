"""The segment format: blocks of traffic rows, appended by one writer, each whole or detectably not.

    file    = magic "COPPSEG2"  block*
    block   = "BLK1"  length: uint32  crc32(length, payload): uint32  payload        little-endian
    payload = length of facts: uint32  facts: JSON  one Arrow IPC stream of one record batch, uncompressed
    facts   = {"writer": "...", "tags": [{"model", "version", "arm", "generation", "role", "schema"}, ...]}

The batch has the columns of `COLUMNS`, and after them `SCORES` where the block holds a row of a model of several outputs:
all of that row's scores, in the order of its bundle's outputs, and null for a row of a model of one; a reader takes an
absent column for nulls. `score` is then the first of them. Rows of models of one output therefore cost what they did in
version 1, magic "COPPSEG1", which has no such column and is read as well; nobody writes it any more.

What many rows share stands once, in the facts: `tag` is the row's place in the tags of its block, and the writer is the
same for all. An empty `unit` means that the request id was the unit.

Names: `<traffic>/open/<writer>-<n>.seg` while the writer appends, `<traffic>/sealed/<writer>-<n>.seg` after it was
synced and renamed; a sealed file never changes. A writer's name is `<server>-<worker>-<boot>`, unique for each start.

Every payload carries its own schema, so any block can be read alone: a torn tail, or a block that a flipped bit spoiled,
loses itself only. A reader that meets a bad block looks for the next magic after it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

MAGIC = b"COPPSEG2"
READ = (MAGIC, b"COPPSEG1")
BLOCK_MAGIC = b"BLK1"
_HEAD = struct.Struct("<4sII")
_LENGTH = struct.Struct("<I")

COLUMNS: tuple[tuple[str, str], ...] = (
    ("ts_us", "int64"),
    ("request_id", "string"),
    ("row", "int32"),
    ("unit", "string"),
    ("tag", "int32"),
    ("features", "list<double>"),
    ("score", "double"),
    ("status", "int32"),
    ("parse_us", "int32"),
    ("queue_us", "int32"),
    ("score_us", "int32"),
    ("batch_rows", "int32"),
    ("seq", "int64"),
)
SCORES = ("scores", "list<double>")


Role = Literal["served", "fallback", "override", "shadow"]
"""served: of the request's own arm, one for each request whose row was scored; fallback: the champion's, after that arm
failed on the row (status 500) under the same request id; override: of an arm that the sender named, whichever fails or
answers; shadow: scored after the answer."""


class Tag(msgspec.Struct, frozen=True, kw_only=True):
    """What many rows share."""

    model: str
    version: str
    arm: str
    generation: int
    role: Role
    schema: str


class Facts(msgspec.Struct, frozen=True):
    writer: str
    tags: tuple[Tag, ...]


def join_payload(facts: bytes, stream: bytes) -> bytes:
    return _LENGTH.pack(len(facts)) + facts + stream


def split_payload(payload: bytes) -> tuple[Facts, bytes]:
    """(the facts, the Arrow IPC stream) of a verified payload."""
    (length,) = _LENGTH.unpack_from(payload)
    end = _LENGTH.size + length
    return msgspec.json.decode(payload[_LENGTH.size : end], type=Facts), payload[end:]


def frame(payload: bytes) -> bytes:
    """The payload as a block."""
    length = _LENGTH.pack(len(payload))
    return _HEAD.pack(BLOCK_MAGIC, len(payload), zlib.crc32(payload, zlib.crc32(length))) + payload


@dataclass(slots=True)
class Segment:
    """A segment as a reader finds it. Iterate `payloads` first; then `bad_bytes` says what could not be read."""

    path: Path
    bad_bytes: int = 0
    bad_blocks: list[int] = field(default_factory=list)  # offsets
    magics: tuple[bytes, ...] = READ  # outcomes are kept in blocks as well, under their own

    def payloads(self) -> Iterator[bytes]:
        """Each whole, verified payload, in order. Raises ValueError, naming the file, where it is no segment."""
        data = self.path.read_bytes()
        self.bad_bytes, self.bad_blocks = 0, []
        if data[: len(MAGIC)] not in {magic[: len(data)] for magic in self.magics}:
            raise ValueError(f"{self.path}: not a segment of this version")
        at = len(MAGIC)
        while at < len(data):
            payload = _block_at(data, at)
            if payload is not None:
                yield payload
                at += _HEAD.size + len(payload)
                continue
            following = _next_block(data, at + 1)
            self.bad_blocks.append(at)
            self.bad_bytes += following - at
            at = following


def read_segment(path: Path) -> tuple[list[bytes], int]:
    """(the verified payloads, how many bytes are torn or spoiled)."""
    segment = Segment(path)
    return list(segment.payloads()), segment.bad_bytes


def _block_at(data: bytes, at: int) -> bytes | None:
    if len(data) - at < _HEAD.size:
        return None
    magic, length, crc = _HEAD.unpack_from(data, at)
    payload = data[at + _HEAD.size : at + _HEAD.size + length]
    if magic != BLOCK_MAGIC or len(payload) != length:
        return None
    return payload if zlib.crc32(payload, zlib.crc32(_LENGTH.pack(length))) == crc else None


def _next_block(data: bytes, at: int) -> int:
    while (at := data.find(BLOCK_MAGIC, at)) != -1:
        if _block_at(data, at) is not None:
            return at
        at += 1
    return len(data)
