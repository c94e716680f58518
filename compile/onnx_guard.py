"""An ONNX file is a program in general: ours is one tree ensemble, and little else is let through to ONNX Runtime.

It would read files that a tensor names as its data, run loops that need not end, and parse sub-graphs and functions by code
that has had its share of faults. So the protobuf is walked first, and every field must be one that `compile.onnx_export`
can write: an allow-list at each level, whatever protobuf would make of the rest. A conversion by skl2onnx may have several
nodes of the standard's two domains and constants beside them; loops, functions and other files it may not have either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

OPERATORS = {(b"ai.onnx.ml", b"TreeEnsemble")}
DOMAINS = (b"", b"ai.onnx.ml")  # of a conversion's nodes

# The fields that may be there, by their numbers in onnx.proto.
TENSOR = frozenset({1, 2, 4, 5, 7, 8, 9, 10, 11})  # not 13 and 14: data in another file
ATTRIBUTE = frozenset({1, 2, 3, 4, 5, 7, 8, 9, 20})  # not 6 and 11: graphs
NODE = frozenset({1, 2, 3, 4, 5, 7})
GRAPH = frozenset({1, 2, 11, 12})  # not 5 and 15: initialisers
CONVERTED_GRAPH = GRAPH | {5, 10, 13}  # not 15: sparse initialisers
MODEL = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14})  # not 20 and 25: training, functions
MESSAGES = {
    (MODEL, 7),
    (GRAPH, 1),
    (CONVERTED_GRAPH, 1),
    (CONVERTED_GRAPH, 5),
    (NODE, 5),
    (ATTRIBUTE, 5),
    (NODE, 4),
    (NODE, 7),
}  # and names: always with a length

VARINT, EIGHT, LENGTH, FOUR = 0, 1, 2, 5
# an attribute's integers and floats come one by one, a million in a large model: skipped by the run, 50 times faster
RUN = re.compile(rb"(?:\x40[\x80-\xff]{0,9}[\x00-\x7f])+|(?:\x3d.{4})+", re.DOTALL)


def refuse_programs(data: bytes, *, converted: bool = False) -> None:
    """Raises ValueError for a file that holds anything but one node of a known operator; `converted`: but standard nodes."""
    nodes = list(_nodes(memoryview(data), CONVERTED_GRAPH if converted else GRAPH))
    if converted and nodes and all(domain in DOMAINS for domain, _ in nodes):
        return
    if len(nodes) != 1 or nodes[0] not in OPERATORS:
        shown = ", ".join(repr(operator)[1:] for _, operator in nodes[:4]) or "nothing"
        raise ValueError(f"computes {shown[:80]}, not one tree ensemble")


def _nodes(data: memoryview, graph_fields: frozenset[int]) -> Iterator[tuple[bytes, bytes]]:
    """(domain, operator) of every node, the whole file being walked."""
    for number, graph in _walk(data, MODEL):
        if number == 7:
            for part, inner in _walk(graph, graph_fields):
                if part == 1:
                    yield _operator(inner)
                elif part == 5:
                    _check_tensor(inner)


def _check_tensor(tensor: memoryview) -> None:
    for _ in _walk(tensor, TENSOR):
        pass


def _operator(node: memoryview) -> tuple[bytes, bytes]:
    found: dict[int, bytes] = {}
    for number, value in _walk(node, NODE):
        if number in (4, 7):
            if number in found:
                raise ValueError("a node names its operator twice")
            found[number] = bytes(value)
        elif number == 5:
            for part, inner in _walk(value, ATTRIBUTE):
                if part == 5:
                    _check_tensor(inner)
    return found.get(7, b""), found.get(4, b"")


def _walk(data: memoryview, fields: frozenset[int]) -> Iterator[tuple[int, memoryview]]:
    """The message's fields that hold bytes, in order; the others are checked and passed by."""
    at, end = 0, len(data)
    while at < end:
        run = RUN.match(data, at) if fields is ATTRIBUTE else None
        if run is not None:
            at = run.end()
            continue
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number not in fields or ((fields, number) in MESSAGES and wire != LENGTH):
            raise ValueError(f"field {number} has no place in an ensemble of trees")
        if wire == VARINT:
            _, at = _varint(data, at)
        elif wire in (EIGHT, FOUR):
            at += 8 if wire == EIGHT else 4
        elif wire == LENGTH:
            length, at = _varint(data, at)
            if length > end - at:
                raise ValueError("ends within a field")
            yield number, data[at : at + length]
            at += length
        else:
            raise ValueError("is not a protobuf of this kind")
    if at > end:
        raise ValueError("ends within a field")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("ends within a number")
