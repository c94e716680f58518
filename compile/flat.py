"""The flat form of a forest, format 2: what `compile/kernel.c` walks. Data, not code, and checked index by index when opened.

    header   magic "COPPFLT2"; uint32: bytes per value (4 XGBoost, 8 others), width, copies, rules, trees, real trees, nodes,
             category sets, bitset words, outputs, leaf width (0: leaves are single values), leaf vectors
    base     float64[outputs]  what each output's sum starts from
    roots    uint32[trees]     the root of each tree, in walking order: groups of 8 trees of like depth
    place    uint32[trees]     each tree's place in the order of training, in which leaves are added
    output   uint32[trees]     the first output that the tree at each place adds to
    nodes    {value threshold, uint32 slot, uint32 left}[nodes], padded to 8 bytes
    vectors  value[leaf vectors][leaf width], padded to 8 bytes
    sets     {uint32 first word, words, nan goes right, members go right}[sets]
    words    uint32[words]     bitsets over category codes

A node's right child follows its left one. A leaf is its own left child, holds as threshold its value (or its vector's
number), and reads the slot after the last copy, which is -infinity. Other slots are feature + width * n, where n counts the
copies of the row that the mask `copies` has below the copy meant:

    bit 0   as it is; NaN goes right     bit 3   NaN for NaN and zero, which go right
    bit 1   -infinity for NaN: left      bit 4   -infinity for NaN and zero: left
    bit 2   zero for NaN

Rules: bit 0 snaps |x| <= 1e-35 to zero, bit 1 rounds inputs to float32, bit 2 cuts categories to whole numbers before asking
whether they are negative, bit 3 takes only whole numbers for categories. A categorical node has the slot's top bit set and
its set's number as threshold. Trees beyond the real ones are single leaves that fill the last group and are not added.
Little-endian throughout.
"""

from __future__ import annotations

import struct
from collections import deque

import numpy as np

from compile.errors import ModelRefused
from compile.forest import NAN_RIGHT, Forest, Members, Tree

MAGIC = b"COPPFLT2"
LANES = 8
CATEGORICAL = 0x8000_0000
HEADER = struct.Struct("<8s12I")
SNAP, ROUND, INT_CATEGORIES, EXACT_CATEGORIES = 1, 2, 4, 8
MOST_EXACT = {4: 1 << 24, 8: 1 << 53}  # whole numbers that a threshold holds exactly, by its bytes


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
        used = sorted({NAN_RIGHT, *(int(nan) for tree in forest.trees for nan in np.unique(tree.nan[tree.left >= 0]))})
        self._copy = {nan: number for number, nan in enumerate(used)}
        self._slots: list[int] = []
        self._lefts: list[int] = []
        self._thresholds: list[float] = []
        self._sets: list[tuple[int, int, int, int]] = []
        self._words: list[int] = []
        self._vectors: list[np.ndarray] = []

    def add_leaf(self, value: float) -> int:
        self._reserve(1)
        self._put_leaf(len(self._lefts) - 1, value)
        return len(self._lefts) - 1

    def add_tree(self, tree: Tree) -> int:
        """Breadth first, so that children follow their parent and siblings stand side by side."""
        first_vector = sum(map(len, self._vectors))
        if tree.vectors is not None:
            self._vectors.append(tree.vectors)
        features, thresholds, lefts, rights, nans = (
            column.tolist() for column in (tree.feature, tree.threshold, tree.left, tree.right, tree.nan)
        )
        root = self._reserve(1)
        waiting = deque([(0, root)])
        while waiting:
            node, place = waiting.popleft()
            if lefts[node] < 0:
                self._put_leaf(place, thresholds[node] + (first_vector if tree.vectors is not None else 0))
                continue
            left = self._reserve(2)
            self._lefts[place] = left
            if node in tree.members:
                self._slots[place] = features[node] | CATEGORICAL
                self._thresholds[place] = self._add_set(tree.members[node], nans[node])
            else:
                self._slots[place] = features[node] + self._forest.width * self._copy[nans[node]]
                self._thresholds[place] = thresholds[node]
            waiting.append((lefts[node], left))
            waiting.append((rights[node], left + 1))
        return root

    def pack(self, roots: list[int], place: list[int]) -> bytes:
        forest = self._forest
        value = np.dtype(forest.dtype).newbyteorder("<")
        vectors = np.concatenate(self._vectors).astype(value) if self._vectors else np.zeros((0, 0), value)
        if max(len(self._sets), len(vectors)) >= MOST_EXACT[value.itemsize]:
            raise ModelRefused("forest: more category sets or leaf vectors than a threshold can number")
        nodes = np.zeros(len(self._lefts), dtype=[("threshold", value), ("slot", "<u4"), ("left", "<u4")])
        nodes["threshold"], nodes["slot"], nodes["left"] = self._thresholds, self._slots, self._lefts
        header = HEADER.pack(
            MAGIC, value.itemsize, forest.width, sum(1 << nan for nan in self._copy), _rules(forest), len(roots),
            len(forest.trees), len(nodes), len(self._sets), len(self._words), forest.outputs, vectors.shape[1], len(vectors),
        )  # fmt: skip
        outputs = [tree.output for tree in forest.trees] + [0] * (len(roots) - len(forest.trees))
        body = header + np.array(forest.base, dtype="<f8").tobytes()
        body += np.array([roots, place, outputs], dtype="<u4").tobytes()
        body = _padded(body + nodes.tobytes())
        body = _padded(body + vectors.tobytes())
        return body + np.array(self._sets, dtype="<u4").tobytes() + np.array(self._words, dtype="<u4").tobytes()

    def _reserve(self, count: int) -> int:
        first = len(self._lefts)
        self._slots += [0] * count
        self._lefts += [0] * count
        self._thresholds += [0.0] * count
        return first

    def _put_leaf(self, place: int, value: float) -> None:
        self._slots[place] = len(self._copy) * self._forest.width
        self._lefts[place] = place
        self._thresholds[place] = value

    def _add_set(self, members: Members, nan: int) -> float:
        words = [0] * (max(members.categories, default=0) // 32 + 1)
        for member in members.categories:
            words[member // 32] |= 1 << member % 32
        self._sets.append((len(self._words), len(words), int(nan == NAN_RIGHT), int(members.go_right)))
        self._words += words
        return float(len(self._sets) - 1)


def _rules(forest: Forest) -> int:
    rules = SNAP * forest.zero_snap | ROUND * forest.rounds_inputs
    return rules | {"truncated": 0, "int": INT_CATEGORIES, "exact": EXACT_CATEGORIES}[forest.category_rule]


def _padded(body: bytes) -> bytes:
    return body + b"\0" * (-len(body) % 8)
