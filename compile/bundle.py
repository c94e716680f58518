"""The bundle, format 2: a write-once folder that holds a proven model, named by the digest of its content.

    <digest>/
      manifest.json       canonical JSON of `Manifest`; its sha256 is the digest, and it names the sha256 of every file
      model.onnx          ai.onnx.ml v5 TreeEnsemble (`compile.onnx_export`)
      model.flat          the forest laid out for our kernel (`compile.flat`): the backend `treelite`
      model.treelite      Treelite's checkpoint of the same forest, where Treelite can say it
      model-<sha256>.so   optional: the checkpoint compiled to native code: the backend `native`
      converted.onnx      optional, and alone: a model that only skl2onnx converts: the backend `skl2onnx`
      probe.npz           awkward rows and what the trained model answered to them (`compile.probe`)
      reference.parquet   optional: rows of the training data with predictions, what drift is measured against
      model_card.md       optional; with the pictures that it shows, *.png
      measured.json       what was measured on the machine that built it; outside the digest, so that the same inputs
                          give the same digest
      model.sig           optional: the signature over every other file, `measured.json` too (`compile.signing`)

Whoever opens a bundle calls `read` first: it refuses a folder whose name, manifest or files differ by one byte, that
lacks a file, or that holds another, and names the file. What is used is then taken through `load`, which hashes the very
bytes that it returns. Nothing is believed before it is bounded: names are plain, sizes limited, files plain files
opened without following links (`compile.plain_files`). Bundles are data: nothing in them is executed, but for a native
library, and that only where `compile.trust` allows it.

A release store holds bundles under `bundles/<digest>`; they appear there whole, by a rename, and never change.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from compile import plain_files
from compile.errors import BundleRefused
from compile.links import Link
from compile.program import Program
from training.features import FeatureSchema, InputRefused
from training.view import Lookup

FORMAT = 2
MANIFEST = "manifest.json"
MEASURED = "measured.json"
PROBE = "probe.npz"
REFERENCE = "reference.parquet"
CARD = "model_card.md"
SIGNATURE = "model.sig"

MAX_MANIFEST_BYTES = 8 << 20
MAX_SIDE_BYTES = 1 << 20  # of measured.json and of the signature, which no digest bounds
MAX_FILE_BYTES = 1 << 30
MAX_FILES = 64
DIGEST = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

BackendName = Literal["treelite", "onnx", "native", "skl2onnx"]
Task = Literal["binary", "multiclass", "multilabel", "regression", "ranking", "outlier"]
Promise = Literal["bits", "1e-6"]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    bytes: int


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a backend compared with the trained model: rows by kind, and how far apart margins and scores were.

    Differences are scaled: |ours - theirs| / max(1, |theirs|). The margins' is null where the library has none.
    """

    promise: Promise  # of the margins; scores are within 1e-6 always
    rows: dict[str, int]
    bad_rows: int
    max_margin_difference: float | None
    max_score_difference: float


class Backend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file: str
    parity: Parity


class Native(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model that this bundle answers as. `answers_labels`: it has the predicted class for scores."""

    library: str
    version: str
    kind: str
    trees: int
    answers_labels: bool


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`margins` columns become `outputs` by the link. `program`: the transforms between the schema's row and the trees.
    `lookup`: whose features a request may name in place of giving them; a bundle without it is spelled as before it was.

    `classes`: the labels - of a binary model negative first, of a multiclass one in the order of the outputs; else none.
    """

    format: int
    model: str
    version: str
    task: Task
    outputs: tuple[str, ...]
    classes: tuple[str, ...]
    threshold: float  # binary, multilabel: the positive class, or the label, is predicted above it
    schema: FeatureSchema
    program: Program | None
    margins: int
    link: Link
    native: Native
    backends: dict[str, Backend]
    refused_backends: dict[str, str]
    cross_checks: dict[str, str]
    toolchain: dict[str, str]
    lineage: dict[str, str]
    files: dict[str, FileEntry]
    lookup: Lookup | None = None


class Measured(msgspec.Struct, frozen=True):
    """µs of one call, by backend and rows in the call; and the fastest backend for one row."""

    chosen: str
    us: dict[str, dict[str, float]]
    machine: str = ""


def read(path: Path) -> Manifest:
    """The verified manifest of the bundle at `path`. Raises BundleRefused, naming the file."""
    if not DIGEST.fullmatch(path.name):
        raise BundleRefused(f"{path}: a bundle's folder is named by its digest, 64 hex digits; is this a bundle?")
    encoded = _manifest_bytes(path)
    try:
        manifest = _decode(encoded)
    except (msgspec.MsgspecError, ValueError, RecursionError) as malformed:
        raise BundleRefused(f"{path / MANIFEST}: {malformed}") from None
    _refuse_strangers(path, manifest)
    for name, entry in manifest.files.items():
        plain_files.verify(path / name, entry.bytes, entry.sha256)
    return manifest


def load(path: Path, manifest: Manifest, name: str) -> bytes:
    """The content of one file, hashed as it was read: what is used is what the manifest says. Raises BundleRefused."""
    entry = manifest.files.get(name)
    if entry is None:
        raise BundleRefused(f"{path / name}: is not part of the bundle")
    return plain_files.read_exactly(path / name, entry.bytes, entry.sha256)


def measured(path: Path) -> Measured | None:
    """What was measured at the build; None where there is no such file or it can't be read: it decides speed alone."""
    try:
        return msgspec.json.decode(plain_files.read(path / MEASURED, MAX_SIDE_BYTES), type=Measured)
    except (BundleRefused, msgspec.MsgspecError, ValueError, RecursionError):
        return None


def signature(path: Path) -> bytes | None:
    """The signature's bytes, unverified; None where the bundle is not signed. Raises BundleRefused for what is no file."""
    return plain_files.read_optional(path / SIGNATURE, MAX_SIDE_BYTES)


def write(out: Path, manifest: Manifest, files: dict[str, bytes], measured: Measured | None) -> Path:
    """Write a bundle under `out`, named by its digest; `manifest.files` is filled in here. Idempotent."""
    entries = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())}
    encoded = msgspec.json.encode(msgspec.structs.replace(manifest, files=entries), order="sorted")
    final = out / hashlib.sha256(encoded).hexdigest()
    contents = {**files, MANIFEST: encoded}
    if measured is not None:
        contents[MEASURED] = msgspec.json.encode(measured, order="sorted")
    _write_folder(final, contents)
    return final


def publish(path: Path, store: Path) -> str:
    """Copy the bundle into the release store; its digest. Verified before and after; idempotent.

    Where the store has the bundle already it stays as it is; a signature is added only if it covers what is there.
    """
    manifest = read(path)
    final = locate(store, path.name)
    beside = {name: plain_files.read_optional(path / name, MAX_SIDE_BYTES) for name in (MEASURED, SIGNATURE)}
    if not os.path.lexists(final):
        contents = {name: load(path, manifest, name) for name in manifest.files}
        contents[MANIFEST] = _manifest_bytes(path)
        _write_folder(final, contents | {name: data for name, data in beside.items() if data is not None})
    read(final)
    signed, there = beside[SIGNATURE], plain_files.read_optional(final / MEASURED, MAX_SIDE_BYTES)
    if signed is not None and there == beside[MEASURED] and signature(final) != signed:
        place_signature(final, signed)
    return path.name


def place_signature(path: Path, signed: bytes) -> None:
    """Put a signature into a bundle, whole or not at all; one that was there is replaced. Nothing else ever changes."""
    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")  # beside it: strangers inside are refused
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(signed)
                file.flush()
                os.fsync(handle)
            os.chmod(draft, 0o644)
            os.replace(draft, path / SIGNATURE)
        finally:
            Path(draft).unlink(missing_ok=True)
        _sync_folder(path)
    except OSError as failure:
        raise BundleRefused(f"{path / SIGNATURE}: can't be written: {failure.strerror}") from None


def locate(store: Path, digest: str) -> Path:
    """Where the store keeps the bundle of that digest, whether or not it is there."""
    return store / "bundles" / digest


class _Version(msgspec.Struct):
    format: int


def _manifest_bytes(path: Path) -> bytes:
    encoded = plain_files.read(path / MANIFEST, MAX_MANIFEST_BYTES)
    if hashlib.sha256(encoded).hexdigest() != path.name:
        raise BundleRefused(f"{path / MANIFEST}: does not have the digest that the folder is named by")
    return encoded


def _decode(encoded: bytes) -> Manifest:
    """Raises MsgspecError or ValueError: also for what could be read in two ways, or contradicts itself."""
    version = msgspec.json.decode(encoded, type=_Version)
    if version.format != FORMAT:
        raise ValueError(f"format {version.format}; this version reads {FORMAT}")
    manifest = msgspec.json.decode(encoded, type=Manifest)
    if msgspec.json.encode(msgspec.json.decode(encoded), order="sorted") != encoded:
        raise ValueError("is not canonical JSON (a key is there twice, or out of order, or there is white space)")
    if len(manifest.files) > MAX_FILES:
        raise ValueError(f"names {len(manifest.files)} files; {MAX_FILES} are the limit")
    for name, entry in manifest.files.items():
        if not NAME.fullmatch(name) or name in (MANIFEST, MEASURED, SIGNATURE):
            raise ValueError(f"files: {name[:80]!r} can't be a file's name in a bundle")
        if not DIGEST.fullmatch(entry.sha256):
            raise ValueError(f"files: {name}: sha256 must be 64 hex digits")
        if not 0 <= entry.bytes <= MAX_FILE_BYTES:
            raise ValueError(f"files: {name}: {entry.bytes} bytes; 0 to {MAX_FILE_BYTES} are allowed")
    for needed in (PROBE, *(backend.file for backend in manifest.backends.values())):
        if needed not in manifest.files:
            raise ValueError(f"files: lacks {needed[:80]!r}")
    if not manifest.backends:
        raise ValueError("backends: there is none")
    if manifest.lookup is not None:
        try:
            manifest.lookup.refuse_misfit(manifest.schema)
        except InputRefused as misfit:
            raise ValueError(f"lookup: {misfit}") from None
    return manifest


def _refuse_strangers(path: Path, manifest: Manifest) -> None:
    allowed = {*manifest.files, MANIFEST, MEASURED, SIGNATURE}
    for present in plain_files.listed(path, len(allowed)):
        if present not in allowed:
            raise BundleRefused(f"{path / present}: is not part of the bundle")
        plain_files.refuse_special(path / present)


def _write_folder(final: Path, contents: dict[str, bytes]) -> None:
    """All of it, or nothing. A rename on to a folder that is not empty fails: another wrote the same, which is as good."""
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=final.parent, prefix=".draft-"))
    try:
        for name, data in contents.items():
            _write_synced(draft / name, data)
        draft.chmod(0o755)
        try:
            draft.rename(final)
        except OSError:
            if not final.is_dir():
                raise
        _sync_folder(final.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
