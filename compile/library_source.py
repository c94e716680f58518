"""C source for a Treelite checkpoint: tl2cgen writes the trees, `compile.library_tree` makes them exact, the rest is ours.

Of what tl2cgen writes only the trees are used. Its header reads some numbers as missing, and its main function adds base
scores last and, with several targets, to the wrong one: here every sum starts from its base score, and leaves are added one
by one in the order of training. Each tree is held against the checkpoint's by its number of splits and leaves.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compile.errors import ModelRefused
from compile.forest import ZERO_SNAP
from compile.library_compiler import run_all
from compile.library_tree import CType, GeneratedTree

ABI = 1
MAX_WIDTH = 16_384  # a row is cast on the stack
MAX_DEPTH = 1_000  # tl2cgen and gcc recurse once a level
LEAVES_PER_UNIT = 2_000  # gcc -O1 takes about 0.7 s for these
SCRATCH_BYTES = 65_536

C_TYPES: dict[str, CType] = {"float32": "float", "float64": "double"}

CHECKPOINT, REFUSED = "model.treelite", "refused.txt"
GENERATE = """
import pathlib, sys, tl2cgen, treelite
checkpoint, trees, refused = sys.argv[1:]
model = treelite.Model.deserialize(checkpoint)
try:
    tl2cgen.generate_c_code(model, ".", {"parallel_comp": int(trees)})
except tl2cgen.TL2cgenError as failed:
    pathlib.Path(refused).write_text(str(failed).strip().splitlines()[-1][:200], encoding="utf-8")
"""

PREAMBLE = """\
#include <stdint.h>
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define TREE static __attribute__((noinline)) void
#define EXPORT __attribute__((visibility("default")))
typedef {value} value;

/* A category is a code cut to a whole number: LightGBM cuts towards zero, to XGBoost a negative one is none. */
static inline int member(value x, const uint64_t *words, uint32_t count) {{
    if (!(x {lowest} && x < (value)64 * count)) return 0;
    const uint32_t code = (uint32_t)(int32_t)x;
    return words[code / 64] >> code % 64 & 1;
}}
"""

UNIT = """
void {name}(const value *rows, uint32_t count, value *sums) {{
{calls}
}}
"""

CALL = "    for (uint32_t r = 0; r < count; r++) tree_{number}(rows + r * {width}, sums + r * {groups});"

MAIN = """
EXPORT const uint32_t {entry}_shape[4] = {{{abi}, {width}, {groups}, sizeof(value)}};

/* rows: count * {width} float64; margins: count * {groups} float64. Any number of threads: its scratch is on the stack. */
EXPORT void {entry}(const double *rows, uint32_t count, double *margins) {{
    static const value base[{groups}] = {{{base}}};
    value row[{block} * {width}], sums[{block} * {groups}];
    while (count) {{
        const uint32_t block = count < {block} ? count : {block};
        for (uint32_t i = 0; i < block * {width}; i++) row[i] = (value)({cast});
        for (uint32_t i = 0; i < block * {groups}; i++) sums[i] = base[i % {groups}];
{calls}
        for (uint32_t i = 0; i < block * {groups}; i++) margins[i] = sums[i];
        rows += block * {width};
        margins += block * {groups};
        count -= block;
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Source:
    """C99 for one shared library; the same model gives the same text. `entry` is the one function to call, named by it."""

    units: tuple[str, ...]  # the last holds the entry
    entry: str
    width: int
    groups: int
    threshold: Literal["float32", "float64"]
    base: tuple[float, ...]
    divisors: tuple[int, ...]


def write_source(
    checkpoint: bytes, folder: Path, *, zero_snap: bool, base: Sequence[float] | None = None, deadline: float
) -> Source:
    """The C of a Treelite checkpoint. Raises ModelRefused, saying why, for what this can't say exactly.

    tl2cgen runs in a process of its own, in the empty `folder`, until time.monotonic()'s `deadline`.

    `zero_snap`: read |x| <= 1e-35 as zero, as LightGBM does. `base`: the margins that the sums start from, one a group,
    where they are known better than by the checkpoint, which holds them in float64.
    """
    model = _model(checkpoint)
    header = model.get_header_accessor()
    threshold = _threshold_type(model)
    width, groups = int(header.get_field("num_feature")[0]), _groups(header)
    if not 0 < width <= MAX_WIDTH:
        raise ModelRefused(f"width: {width} features; a native library takes 1 to {MAX_WIDTH}")
    deepest = int(max(model.get_tree_depth(), default=0))
    if deepest > MAX_DEPTH:
        raise ModelRefused(f"depth: a tree of {deepest} levels; a native library takes {MAX_DEPTH}")
    divisors = _divisors(header, groups)
    starts = _base(header, divisors, base)
    texts = _generated(checkpoint, model.num_tree, folder, deadline)
    parts = [GeneratedTree(text, C_TYPES[threshold], number) for number, text in enumerate(texts)]
    for number, tree in enumerate(parts):
        _compare(model, number, tree)
        if tree.width > width or tree.groups > groups:
            raise ModelRefused(f"tree {number}: splits on a feature, or adds to a group, that the model has not")
    return _assemble(parts, width, groups, threshold, starts, divisors, zero_snap)


def _assemble(
    trees: list[GeneratedTree],
    width: int,
    groups: int,
    threshold: Literal["float32", "float64"],
    base: tuple[float, ...],
    divisors: tuple[int, ...],
    zero_snap: bool,
) -> Source:
    c_type = C_TYPES[threshold]
    preamble = PREAMBLE.format(value=c_type, lowest=">= 0" if c_type == "float" else "> -1")
    units = []
    for number, unit in enumerate(_units(trees)):
        bodies = "\n".join(f"TREE tree_{n}(const value *data, value *result) {{\n{tree.body}\n}}" for n, tree in unit)
        sets = "".join(
            f"static const uint64_t {name}[] = {{{words}}};\n" for _, tree in unit for name, words in tree.sets
        )
        calls = "\n".join(CALL.format(number=n, width=width, groups=groups) for n, _ in unit)
        units.append(preamble + sets + bodies + UNIT.format(name=f"unit_{number}", calls=calls))
    names = [f"unit_{number}" for number in range(len(units))]
    value_bytes = np.dtype(threshold).itemsize
    main = preamble + "".join(f"void {name}(const value *, uint32_t, value *);\n" for name in names)
    main += MAIN.format(
        entry="{entry}", abi=ABI, width=width, groups=groups,
        block=max(1, min(64, SCRATCH_BYTES // (width * value_bytes))),
        base=", ".join(start.hex() for start in base),
        cast=f"__builtin_fabs(rows[i]) <= {ZERO_SNAP.hex()} ? 0.0 : rows[i]" if zero_snap else "rows[i]",
        calls="\n".join(f"        {name}(row, block, sums);" for name in names),
    )  # fmt: skip
    digest = hashlib.sha256("\0".join([*units, main]).encode()).hexdigest()
    entry = f"coppice_{digest[:16]}"
    return Source((*units, main.replace("{entry}", entry)), entry, width, groups, threshold, base, divisors)


def _units(trees: list[GeneratedTree]) -> Iterator[list[tuple[int, GeneratedTree]]]:
    """Trees in order, cut where a unit has enough leaves: gcc's time grows faster than a function's length."""
    unit: list[tuple[int, GeneratedTree]] = []
    leaves = 0
    for number, tree in enumerate(trees):
        unit.append((number, tree))
        leaves += tree.leaves
        if leaves >= LEAVES_PER_UNIT:
            yield unit
            unit, leaves = [], 0
    if unit:
        yield unit


def _compare(model: Any, number: int, tree: GeneratedTree) -> None:
    accessor = model.get_tree_accessor(number)
    is_leaf = np.asarray(accessor.get_field("cleft")) == -1
    leaves, splits = int(is_leaf.sum()), int((~is_leaf).sum())
    values = max(1, len(accessor.get_field("leaf_vector")) // leaves)
    if (tree.splits, tree.leaves) != (splits, leaves * values):
        raise ModelRefused(
            f"tl2cgen: tree {number}: wrote {tree.splits} splits and {tree.leaves} leaf values, the checkpoint has "
            f"{splits} and {leaves * values}"
        )


def _model(checkpoint: bytes) -> Any:
    import treelite

    try:
        return treelite.Model.deserialize_bytes(checkpoint)
    except treelite.TreeliteError as unread:
        raise ModelRefused(f"treelite: {unread}") from None


def _generated(checkpoint: bytes, trees: int, folder: Path, deadline: float) -> Iterator[str]:
    """tl2cgen's C, a tree at a time, in order."""
    (folder / CHECKPOINT).write_bytes(checkpoint)
    command = [sys.executable, "-P", "-c", GENERATE, CHECKPOINT, str(trees), REFUSED]
    run_all([("tl2cgen", command)], folder, deadline=deadline, done=lambda _: None)
    if (folder / REFUSED).is_file():
        raise ModelRefused(f"tl2cgen: {(folder / REFUSED).read_text(encoding='utf-8')}")
    for number in range(trees):
        unit = folder / f"tu{number}.c"
        if not unit.is_file():
            raise ModelRefused(f"tl2cgen: wrote no code for tree {number} of {trees}")
        yield unit.read_text(encoding="ascii")


def _threshold_type(model: Any) -> Literal["float32", "float64"]:
    inputs, outputs = str(model.input_type), str(model.output_type)
    if inputs != outputs or inputs not in C_TYPES:
        raise ModelRefused(f"types: thresholds are {inputs} and leaves {outputs}; both must be float32 or both float64")
    return "float32" if inputs == "float32" else "float64"


def _groups(header: Any) -> int:
    classes = [int(count) for count in header.get_field("num_class")]
    if len(set(classes)) != 1:
        raise ModelRefused(f"targets: of unequal numbers of classes, {classes}")
    return len(classes) * classes[0]


def _divisors(header: Any, groups: int) -> tuple[int, ...]:
    if not int(header.get_field("average_tree_output")[0]):
        return (1,) * groups
    per_target = int(header.get_field("num_class")[0])
    counts = [0] * groups
    for target, number in zip(header.get_field("target_id"), header.get_field("class_id"), strict=True):
        for group in range(groups):
            counts[group] += target in (-1, group // per_target) and number in (-1, group % per_target)
    if 0 in counts:
        raise ModelRefused("average: a group without trees")
    return tuple(counts)


def _base(header: Any, divisors: tuple[int, ...], given: Sequence[float] | None) -> tuple[float, ...]:
    base = tuple(float(start) for start in (given if given is not None else header.get_field("base_scores")))
    if len(base) != len(divisors):
        raise ModelRefused(f"base scores: {len(base)} for {len(divisors)} groups")
    if not all(np.isfinite(base)):
        raise ModelRefused(f"base scores: not finite: {base}")
    if any(divisor != 1 for divisor in divisors) and any(base):
        raise ModelRefused("base scores: of an averaged model")
    return base
