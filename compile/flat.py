"""The flat form of a forest: what `compile/kernel.c` walks. Data, not code, and checked index by index when opened.

    header   magic "COPPFLT1"; uint32: bytes per value (4 XGBoost, 8 LightGBM), width, copies (7), zero snap, trees, real
             trees, nodes, category sets, bitset words, 0; float64: base margin, sigmoid
    roots    uint32[trees]   the root of each tree, in walking order: groups of 8 trees of like depth
    place    uint32[trees]   each tree's place in the order of training, in which leaves are added
    nodes    {value threshold, uint32 slot, uint32 left}[nodes], padded to 8 bytes
    sets     {uint32 first word, words, nan goes right, members go right}[sets]
    words    uint32[words]   bitsets over category codes

A node's right child follows its left one. A leaf is its own left child, holds its value as threshold, and reads the slot
3 * width, which is -infinity. Other slots are feature + width * copy: copy 0 keeps NaN (goes right), copy 1 has -infinity
for it (goes left), copy 2 has zero. A categorical node has the slot's top bit set and its set's number as threshold.
Trees beyond the real ones are single leaves that fill the last group and are not added. Little-endian throughout.
"""

from __future__ import annotations

import struct
from collections import deque

import numpy as np

from compile.errors import ModelRefused
from compile.forest import NAN_RIGHT, Forest, Tree

MAGIC = b"COPPFLT1"
LANES = 8
CATEGORICAL = 0x8000_0000
HEADER = struct.Struct("<8s10Idd")


def flatten(forest: Forest) -> bytes:
    """The bytes of `model.flat`; the same forest gives the same bytes."""
    layout = _Layout(forest)
    order = sorted(range(len(forest.trees)), key=lambda number: (forest.trees[number].depth(), number))
    roots = [layout.add_tree(forest.trees[number]) for number in order]
    padding = -len(order) % LANES
    roots += [layout.add_leaf(0.0) for _ in range(padding)]
    place = [*order, *range(len(order), len(order) + padding)]
    return layout.pack(roots, place)


class _Layout:
    def __init__(self, forest: Forest) -> None:
        self._forest = forest
        self._slots: list[int] = []
        self._lefts: list[int] = []
        self._thresholds: list[float] = []
        self._sets: list[tuple[int, int, int, int]] = []
        self._words: list[int] = []

    def add_leaf(self, value: float) -> int:
        self._reserve(1)
        self._put_leaf(len(self._lefts) - 1, value)
        return len(self._lefts) - 1

    def add_tree(self, tree: Tree) -> int:
        """Breadth first, so that children follow their parent and siblings stand side by side."""
        root = self._reserve(1)
        waiting = deque([(0, root)])
        while waiting:
            node, place = waiting.popleft()
            if tree.left[node] < 0:
                self._put_leaf(place, float(tree.threshold[node]))
                continue
            left = self._reserve(2)
            self._lefts[place] = left
            if node in tree.members:
                self._slots[place] = int(tree.feature[node]) | CATEGORICAL
                self._thresholds[place] = self._add_set(tree.members[node], int(tree.nan[node]))
            else:
                self._slots[place] = int(tree.feature[node]) + self._forest.width * int(tree.nan[node])
                self._thresholds[place] = float(tree.threshold[node])
            waiting.append((int(tree.left[node]), left))
            waiting.append((int(tree.right[node]), left + 1))
        return root

    def pack(self, roots: list[int], place: list[int]) -> bytes:
        forest = self._forest
        value = np.dtype(forest.dtype).newbyteorder("<")
        nodes = np.zeros(len(self._lefts), dtype=[("threshold", value), ("slot", "<u4"), ("left", "<u4")])
        nodes["threshold"], nodes["slot"], nodes["left"] = self._thresholds, self._slots, self._lefts
        header = HEADER.pack(
            MAGIC, value.itemsize, forest.width, 7, int(forest.zero_snap), len(roots), len(forest.trees), len(nodes),
            len(self._sets), len(self._words), 0, forest.base, forest.sigmoid,
        )  # fmt: skip
        body = header + np.array([roots, place], dtype="<u4").tobytes() + nodes.tobytes()
        body += b"\0" * (-len(body) % 8)
        return body + np.array(self._sets, dtype="<u4").tobytes() + np.array(self._words, dtype="<u4").tobytes()

    def _reserve(self, count: int) -> int:
        first = len(self._lefts)
        self._slots += [0] * count
        self._lefts += [0] * count
        self._thresholds += [0.0] * count
        return first

    def _put_leaf(self, place: int, value: float) -> None:
        self._slots[place] = 3 * self._forest.width
        self._lefts[place] = place
        self._thresholds[place] = value

    def _add_set(self, members: tuple[int, ...], nan: int) -> float:
        words = [0] * (max(members, default=0) // 32 + 1)
        for member in members:
            words[member // 32] |= 1 << member % 32
        self._sets.append((len(self._words), len(words), int(nan == NAN_RIGHT), int(self._forest.members_go_right)))
        self._words += words
        if len(self._sets) >= 1 << 24:
            raise ModelRefused("categories: more than 16 million categorical splits")
        return float(len(self._sets) - 1)
