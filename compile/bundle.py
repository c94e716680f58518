"""The bundle, format 1: a write-once folder that holds a proven model, named by the digest of its content.

    <digest>/
      manifest.json       canonical JSON of `Manifest`; its sha256 is the digest, and it names the sha256 of every file
      model.onnx          ai.onnx.ml v5 TreeEnsemble (`compile.onnx_export`)
      model.flat          the Treelite form laid out for our kernel (`compile.flat`)
      model.treelite      Treelite's own checkpoint of the same model
      probe.npz           `rows` (n, width) float64 and the native library's `margins` and `scores`, (n, 1) float64
      reference.parquet   optional: a training sample with predictions, what drift is measured against
      model_card.md       optional
      measured.json       what was measured on the machine that built it; outside the digest, so that the same inputs
                          give the same digest

Whoever opens a bundle calls `read` first: it refuses a folder whose name, manifest or files differ by one byte, that
lacks a file, or that holds another, and names the file. Bundles are data: nothing in them is executed.

A release store holds bundles under `bundles/<digest>`; they appear there whole, by a rename, and never change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from compile.errors import BundleRefused
from training.features import FeatureSchema, InputRefused

FORMAT = 1
MANIFEST = "manifest.json"
MEASURED = "measured.json"
PROBE = "probe.npz"
REFERENCE = "reference.parquet"
CARD = "model_card.md"

BackendName = Literal["treelite", "onnx"]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    bytes: int


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a backend compared with the native library: rows by kind, and how far apart margins and probabilities were."""

    rows: dict[str, int]
    bad_rows: int
    max_margin_difference: float
    max_score_difference: float


class Backend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file: str
    parity: Parity


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """score = 1 / (1 + exp(-sigmoid * margin)), in float64."""

    kind: Literal["logistic"]
    sigmoid: float


class Native(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model that this bundle answers as."""

    library: str
    version: str
    objective: str
    trees: int
    base_margin: str  # hexadecimal, exact


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: int
    model: str
    version: str
    task: Literal["binary"]
    outputs: tuple[str, ...]
    classes: tuple[str, str]  # negative first
    threshold: float  # the positive class is predicted above it
    schema: FeatureSchema
    link: Link
    native: Native
    backends: dict[str, Backend]
    cross_checks: dict[str, str]
    toolchain: dict[str, str]
    lineage: dict[str, str]
    files: dict[str, FileEntry]


class Measured(msgspec.Struct, frozen=True):
    """µs of one call, by backend and rows in the call; and the fastest backend for one row."""

    chosen: str
    us: dict[str, dict[str, float]]
    machine: str = ""


def read(path: Path) -> Manifest:
    """The verified manifest of the bundle at `path`. Raises BundleRefused, naming the file."""
    manifest_path = path / MANIFEST
    try:
        encoded = manifest_path.read_bytes()
    except OSError as missing:
        raise BundleRefused(f"{manifest_path}: {missing.strerror}; is this a bundle?") from None
    if hashlib.sha256(encoded).hexdigest() != path.name:
        raise BundleRefused(f"{manifest_path}: does not have the digest that the folder is named by")
    try:
        manifest = msgspec.json.decode(encoded, type=Manifest)
    except (msgspec.MsgspecError, InputRefused) as malformed:
        raise BundleRefused(f"{manifest_path}: {malformed}") from None
    if manifest.format != FORMAT:
        raise BundleRefused(f"{manifest_path}: format {manifest.format}; this version reads {FORMAT}")
    _verify_files(path, manifest)
    return manifest


def measured(path: Path) -> Measured | None:
    """What was measured at the build; None where there is no such file or it can't be read: it decides speed alone."""
    try:
        return msgspec.json.decode((path / MEASURED).read_bytes(), type=Measured)
    except (OSError, msgspec.MsgspecError):
        return None


def write(out: Path, manifest: Manifest, files: dict[str, bytes], measured: Measured | None) -> Path:
    """Write a bundle under `out`, named by its digest; `manifest.files` is filled in here. Idempotent."""
    out.mkdir(parents=True, exist_ok=True)
    entries = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())}
    encoded = msgspec.json.encode(msgspec.structs.replace(manifest, files=entries), order="sorted")
    final = out / hashlib.sha256(encoded).hexdigest()
    contents = {**files, MANIFEST: encoded}
    if measured is not None:
        contents[MEASURED] = msgspec.json.encode(measured, order="sorted")
    draft = Path(tempfile.mkdtemp(dir=out, prefix=".draft-"))
    try:
        for name, data in contents.items():
            _write_synced(draft / name, data)
        _move_into_place(draft, final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final


def publish(path: Path, store: Path) -> str:
    """Copy the bundle into the release store; its digest. Verified before and after; idempotent."""
    read(path)
    final = locate(store, path.name)
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=final.parent, prefix=".draft-"))
        try:
            for source in path.iterdir():
                _write_synced(draft / source.name, source.read_bytes())
            _move_into_place(draft, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    read(final)
    return path.name


def locate(store: Path, digest: str) -> Path:
    """Where the store keeps the bundle of that digest, whether or not it is there."""
    return store / "bundles" / digest


def _verify_files(path: Path, manifest: Manifest) -> None:
    allowed = {*manifest.files, MANIFEST, MEASURED}
    for present in sorted(path.iterdir()):
        if present.name not in allowed:
            raise BundleRefused(f"{present}: is not part of the bundle")
        if present.is_symlink() or not present.is_file():
            raise BundleRefused(f"{present}: is not a plain file")
    for name, entry in manifest.files.items():
        file = path / name
        if "/" in name or not file.is_file():
            raise BundleRefused(f"{file}: is missing")
        size = file.stat().st_size
        if size != entry.bytes:
            raise BundleRefused(f"{file}: has {size} bytes, not {entry.bytes}")
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != entry.sha256:
                raise BundleRefused(f"{file}: its content is not what the manifest says")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _move_into_place(draft: Path, final: Path) -> None:
    """A rename on to a folder that is not empty fails: then another wrote the same content first, which is as good."""
    draft.chmod(0o755)
    try:
        draft.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    handle = os.open(final.parent, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
