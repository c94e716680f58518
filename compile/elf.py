"""What a shared object is made for, offers and needs, read from its ELF sections without loading it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64"}  # as platform.machine() names them
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")
SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
DYNAMIC = struct.Struct("<qQ")

SHARED = 3
DYNAMIC_SECTION, NO_BITS_SECTION, SYMBOL_SECTION = 6, 8, 11
NEEDED = 1
RUN_WHEN_OPENED = (12, 13, 25, 26, 32)  # DT_INIT, DT_FINI and their arrays


@dataclass(frozen=True, slots=True)
class SharedObject:
    """`machine` is "" where it is none of those known here."""

    machine: str
    exports: tuple[str, ...]
    needs: tuple[str, ...]  # other libraries, by name
    runs_when_opened: bool


def inspect(data: bytes) -> SharedObject:
    """Raises ValueError where `data` is not a whole 64-bit little-endian shared object."""
    try:
        return _inspect(data)
    except struct.error:
        raise ValueError("is not a whole ELF file") from None


def _inspect(data: bytes) -> SharedObject:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("is not a 64-bit little-endian ELF file")
    _, kind, machine, _, _, segments_at, sections_at, _, _, _, segments, _, sections, _ = HEADER.unpack_from(data)
    if kind != SHARED:
        raise ValueError("is not a shared object")
    for number in range(segments):
        _, _, at, _, _, size, _, _ = SEGMENT.unpack_from(data, segments_at + number * SEGMENT.size)
        if at + size > len(data):
            raise ValueError("is cut short")
    table = [SECTION.unpack_from(data, sections_at + number * SECTION.size) for number in range(sections)]
    exports, needs, tags = [], [], []
    for _, kind, _, _, at, size, link, _, _, _ in table:
        if kind in (DYNAMIC_SECTION, SYMBOL_SECTION):
            if at + size > len(data) or link >= len(table):
                raise ValueError("is cut short")
            content, names = data[at : at + size], data[table[link][4] : table[link][4] + table[link][5]]
            if kind == SYMBOL_SECTION:
                exports += list(_exports(content, names))
                continue
            found = list(_dynamic(content))
            tags += [tag for tag, _ in found]
            needs += [_name(names, value) for tag, value in found if tag == NEEDED]
    return SharedObject(
        MACHINES.get(machine, ""), tuple(sorted(exports)), tuple(needs), any(tag in RUN_WHEN_OPENED for tag in tags)
    )


def _exports(content: bytes, names: bytes) -> Iterator[str]:
    for name, info, other, section, _, _ in SYMBOL.iter_unpack(content):
        if section and info >> 4 in (1, 2) and other & 3 == 0:  # defined, global or weak, of default visibility
            yield _name(names, name)


def _dynamic(content: bytes) -> Iterator[tuple[int, int]]:
    for tag, value in DYNAMIC.iter_unpack(content):
        if not tag:
            return
        yield tag, value


def _name(names: bytes, at: int) -> str:
    return names[at : names.find(b"\0", at)].decode("ascii", errors="replace")
