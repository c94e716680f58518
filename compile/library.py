"""A model as a native library: Treelite's checkpoint to C (`compile.library_source`) to a shared object for this machine.

The library answers margins, bit for bit the native library's, where `base` is the float32 margin that XGBoost starts from
(Treelite's own may be an ulp beside it). What a checkpoint does not tell is the caller's to refuse: LightGBM's
zero_as_missing, XGBoost's `missing`. A library holds one function, named by its own source:

    void coppice_<16 hex digits>(const double *rows, uint32_t count, double *margins)

`rows` are (count, width) float64 with NaN for missing; `margins` are (count, groups) float64. It casts a row once to what
the model compares, keeps its scratch on the stack, and writes to nothing else: any number of threads may call it at once.
Beside it stands `coppice_<...>_shape`, uint32[4]: ABI, width, groups, bytes per value.

It needs no other library, not even libc, and runs nothing when it is opened. The same checkpoint, compiler and machine type
give the same bytes. It is code: who may open one is decided by `compile.trust`; `compile.library_engine` opens it.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compile import elf
from compile.errors import CompilerFailed
from compile.library_compiler import build_folder, find_compiler, run_all
from compile.library_source import Source, write_source

TIMEOUT_S = 600.0
MARCH = {"x86_64": ("-march=x86-64",), "aarch64": ("-march=armv8-a",)}  # whatever the compiler's own default is
COMPILE = (
    "-O1", "-std=c99", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-ffreestanding", "-fno-stack-protector",
)  # fmt: skip
LINK = (
    "-shared", "-nostdlib", "-s", "-Wl,-Bsymbolic", "-Wl,-z,defs", "-Wl,-z,noexecstack", "-Wl,--build-id=none",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Library:
    """A compiled model. A margin starts from its group's `base`; an averaged model's answer is margin / divisor."""

    data: bytes
    sha256: str
    entry: str
    width: int
    groups: int
    threshold: Literal["float32", "float64"]
    base: tuple[float, ...]
    divisors: tuple[int, ...]  # 1 where nothing is averaged
    machine: str
    compiler: str
    flags: tuple[str, ...]


def build_library(
    checkpoint: bytes,
    *,
    zero_snap: bool,
    base: Sequence[float] | None = None,
    compiler: str = "gcc",
    timeout_s: float = TIMEOUT_S,
    progress: Callable[[str], None] = lambda _: None,
) -> Library:
    """The shared object of a Treelite checkpoint, for the machine it is built on.

    `zero_snap` and `base` are `write_source`'s. Raises ModelRefused for what can't be said exactly and CompilerFailed where
    the compiler is missing, fails, or is not done in `timeout_s`; nothing is left behind then.
    """
    deadline = time.monotonic() + timeout_s
    program, version = find_compiler(compiler)
    flags = (*COMPILE, *MARCH.get(platform.machine(), ()))
    with build_folder() as folder:
        source = write_source(checkpoint, folder, zero_snap=zero_snap, base=base, deadline=deadline)
        progress(f"wrote {len(source.units)} C units, {sum(map(len, source.units)) / 1024:.0f} KiB")
        data = _compile(source, program, flags, folder, deadline, progress)
    return Library(
        data, hashlib.sha256(data).hexdigest(), source.entry, source.width, source.groups, source.threshold, source.base,
        source.divisors, _checked(data, source.entry), version, (*flags, *LINK),
    )  # fmt: skip


def _compile(
    source: Source, program: str, flags: Sequence[str], folder: Path, deadline: float, progress: Callable[[str], None]
) -> bytes:
    """Names are relative to the folder, so that no path gets into the output."""
    names = [f"unit_{number}" for number in range(len(source.units))]
    for name, text in zip(names, source.units, strict=True):
        (folder / f"{name}.c").write_text(text, encoding="ascii")
    calls = [(name, [program, *flags, "-c", f"{name}.c", "-o", f"{name}.o"]) for name in names]
    run_all(calls, folder, deadline=deadline, done=lambda done: progress(f"compiled {done} of {len(names)} units"))
    link = [program, *LINK, "-o", "model.so", *(f"{name}.o" for name in names)]
    run_all([("link", link)], folder, deadline=deadline, done=lambda _: None)
    return (folder / "model.so").read_bytes()


def _checked(data: bytes, entry: str) -> str:
    """The machine that it is for, once it is seen to be what the docstring above promises."""
    made = elf.inspect(data)
    if made.exports != (entry, f"{entry}_shape") or made.needs or made.runs_when_opened:
        raise CompilerFailed(f"the compiler made something else than was asked for: {made}")
    return made.machine
