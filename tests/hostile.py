"""Bundles as an attacker would make them. Run as a module it opens thousands of them: a crash is seen by who started it.

python -m hostile BUNDLE FILE SEED COUNT
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compile import open_predictor
from compile.errors import BundleRefused
from compile.runtime import Predictor

ROOT = Path(__file__).parent.parent
MEMORY_BYTES = 6 << 30  # of address space; what asks for more fails
EDGES = (0, 1, 2, 7, 8, 255, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFFE)


def copy(bundle: Path, folder: Path) -> Path:
    """A copy that may be spoiled, under the same name."""
    return Path(shutil.copytree(bundle, folder / bundle.name))


def forge(
    bundle: Path,
    folder: Path,
    files: dict[str, bytes] | None = None,
    change: Callable[[dict[str, Any]], Any] = lambda manifest: manifest,
    spell: Callable[[bytes], bytes] = lambda encoded: encoded,
) -> Path:
    """The bundle with other files, manifest or spelling of it, under a digest and hashes that are right again."""
    manifest = msgspec.json.decode((bundle / "manifest.json").read_bytes())
    for name, data in (files or {}).items():
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    encoded = spell(msgspec.json.encode(change(manifest), order="sorted"))
    forged = folder / hashlib.sha256(encoded).hexdigest()
    forged.mkdir(exist_ok=True)
    for file in bundle.iterdir():
        if file.name not in (files or {}) and not (forged / file.name).exists():
            os.link(file, forged / file.name)
    (forged / "manifest.json").unlink()
    for name, data in {**(files or {}), "manifest.json": encoded}.items():
        (forged / name).write_bytes(data)
    return forged


def spoiled(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four of: a flipped bit, a word set to an edge, a cut, a repeat."""
    spoiling = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        kind, at = rng.integers(0, 8), int(rng.integers(0, len(spoiling)))
        if kind < 3:
            spoiling[at] ^= 1 << int(rng.integers(8))
        elif kind < 6:
            aligned = at // 4 * 4 if rng.random() < 0.7 else min(at, 60) // 4 * 4
            spoiling[aligned : aligned + 4] = int(rng.choice(EDGES)).to_bytes(4, "little")
        elif kind == 6:
            del spoiling[max(1, at) :]
        else:
            spoiling[at:at] = spoiling[at : at + int(rng.integers(1, 64))]
    return bytes(spoiling)


def opened_or_refused(bundle: Path, backend: str) -> Predictor | BundleRefused:
    try:
        return open_predictor(bundle, backend)
    except BundleRefused as refused:
        return refused


def main(bundle: Path, file: str, seed: int, count: int) -> None:
    """Anything but a bundle that opens and scores, or BundleRefused, ends this with a traceback, or by a signal."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    rng = np.random.default_rng(seed)
    data = (bundle / file).read_bytes()
    backends = {"model.flat": ["treelite"], "model.onnx": ["onnx"]}.get(file, ["treelite", "onnx"])
    opened = 0
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            forged = forge(bundle, Path(folder), {file: spoiled(data, rng)})
            for backend in backends:
                predictor = opened_or_refused(forged, backend)
                if isinstance(predictor, BundleRefused):
                    assert str(forged) in str(predictor), (number, predictor)
                    break
                predictor.score(predictor.probe_rows)
            else:
                opened += 1
    print(f"{opened} opened, {count - opened} refused")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
