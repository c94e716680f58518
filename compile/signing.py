"""Signatures of bundles, in the format and by the library of OpenSSF model-signing, with elliptic keys and offline.

`model.sig` is a Sigstore bundle (JSON) that holds one DSSE envelope: an in-toto statement of the sha256 of every other
file of the folder, signed with ECDSA. `model_signing verify key` of that project accepts it. Here a signature must also be
spelled as `sign` spells it, byte for byte, and must state every file, since the library lets a signature exempt some:
so of a signed bundle no byte can change, in no file.

The signer's fingerprint (`compile.keys`) stands in the signature as a hint. The library takes a second and fifty
megabytes to import, so it is imported when called; workers never call. Run as a module, this verifies bundles and writes
down for the workers what it found (`compile.trust`): python -m compile.signing KEYS BUNDLE...
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from compile import bundle, keys, plain_files, trust
from compile.errors import BundleRefused, CompileError


class _Hint(msgspec.Struct, forbid_unknown_fields=True):
    hint: str


class _Material(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    public_key: _Hint
    tlog_entries: tuple[()]


class _Signed(msgspec.Struct, forbid_unknown_fields=True):
    sig: bytes
    keyid: str


class _Envelope(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    payload: bytes
    payload_type: str
    signatures: tuple[_Signed]


class _SignatureFile(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """The only members there are, in the order in which they are written."""

    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    algorithm: str
    digest: str


class _Predicate(msgspec.Struct):
    resources: tuple[_Resource, ...]


class _Statement(msgspec.Struct):
    predicate: _Predicate


def sign(path: Path, key: Path) -> str:
    """Sign the bundle, `measured.json` included, in place of a signature it had; the key's fingerprint.

    What this key has signed as it is stays untouched. Raises BundleRefused or KeyRefused.
    """
    bundle.read(path)
    with tempfile.TemporaryDirectory() as scratch:
        public, written = Path(scratch) / "key.pub", Path(scratch) / bundle.SIGNATURE
        public.write_bytes(keys.public_half(key))
        ours = {keys.fingerprint(public): public}
        if not _is_signed(path, ours):
            library, _ = _library()
            hashing = library.hashing.Config().set_ignored_paths(paths=[bundle.SIGNATURE], ignore_git_paths=False)
            config = library.signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(hashing)
            config.sign(path, written)
            decoded = msgspec.json.decode(written.read_bytes(), type=_SignatureFile)
            bundle.place_signature(path, msgspec.json.encode(decoded))
        return check(path, ours)


def verify(path: Path, trusted: Mapping[str, Path]) -> str:
    """Check the whole bundle, and write down that it and its libraries are signed; the fingerprint of the key that did.

    `trusted` are the keys, by fingerprint. Raises BundleRefused, naming the file, or KeyRefused.
    """
    fingerprint = check(path, trusted)
    for name, entry in bundle.read(path).files.items():
        if name.endswith(".so"):
            trust.record_signed("library", entry.sha256, fingerprint)
    trust.record_signed("bundle", path.name, fingerprint)
    return fingerprint


def check(path: Path, trusted: Mapping[str, Path]) -> str:
    """As `verify`, and nothing is written down."""
    manifest = bundle.read(path)
    hashes = {name: entry.sha256 for name, entry in manifest.files.items()} | {bundle.MANIFEST: path.name}
    measured = plain_files.read_optional(path / bundle.MEASURED, bundle.MAX_SIDE_BYTES)
    if measured is not None:
        hashes[bundle.MEASURED] = hashlib.sha256(measured).hexdigest()
    file = path / bundle.SIGNATURE
    signed, decoded = _decoded(path)
    hint = decoded.verification_material.public_key.hint
    if hint not in trusted:
        raise BundleRefused(
            f"{file}: is by the key {hint[:64]}, which is not trusted; trusted are {', '.join(sorted(trusted)) or 'none'}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / bundle.SIGNATURE
        copy.write_bytes(signed)  # the very bytes that are compared below
        library, invalid_signature = _library()
        try:
            library.verifying.Config().use_elliptic_key_verifier(public_key=trusted[hint]).verify(path, copy)
        except Exception as invalid:  # the library raises whatever its parsers do
            if not isinstance(invalid, invalid_signature):
                _refuse_differing(path, hashes, decoded)
            raise BundleRefused(f"{file}: is not a signature by the key {hint}: {keys.first_line(invalid)}") from None
    _refuse_differing(path, hashes, decoded)
    return hint


def signer(path: Path) -> str | None:
    """The fingerprint that the signature claims, unverified; None where there is none that can be read."""
    try:
        return _decoded(path)[1].verification_material.public_key.hint
    except BundleRefused:
        return None


def _decoded(path: Path) -> tuple[bytes, _SignatureFile]:
    file = path / bundle.SIGNATURE
    signed = bundle.signature(path)
    if signed is None:
        raise BundleRefused(f"{file}: is missing: the bundle is not signed; `coppice sign {path} --key KEY` signs it")
    try:
        decoded = msgspec.json.decode(signed, type=_SignatureFile)
    except (msgspec.MsgspecError, ValueError, RecursionError) as malformed:
        raise BundleRefused(f"{file}: {malformed}") from None
    envelope = decoded.dsse_envelope
    if msgspec.json.encode(decoded) != signed or envelope.signatures[0].keyid:
        raise BundleRefused(f"{file}: is not written as `coppice sign` writes it")
    return signed, decoded


def _refuse_differing(path: Path, hashes: dict[str, str], decoded: _SignatureFile) -> None:
    """The library's own comparison believes the signer's exemptions, and names no file."""
    try:
        statement = msgspec.json.decode(decoded.dsse_envelope.payload, type=_Statement)
    except (msgspec.MsgspecError, ValueError, RecursionError) as malformed:
        raise BundleRefused(f"{path / bundle.SIGNATURE}: {malformed}") from None
    stated = {resource.name: resource.digest for resource in statement.predicate.resources}
    if len(stated) != len(statement.predicate.resources):
        raise BundleRefused(f"{path / bundle.SIGNATURE}: states a file twice")
    algorithms = {resource.algorithm for resource in statement.predicate.resources}
    for name in sorted(stated.keys() | hashes.keys()):
        if name not in hashes:
            raise BundleRefused(f"{path / name[:80]}: is missing, and was signed")
        if name not in stated:
            raise BundleRefused(f"{path / name}: is not part of what was signed")
        if stated[name] != hashes[name] or algorithms != {"sha256"}:
            raise BundleRefused(f"{path / name}: its content is not what was signed")


def _is_signed(path: Path, trusted: Mapping[str, Path]) -> bool:
    try:
        check(path, trusted)
    except BundleRefused:
        return False
    return True


def _library() -> tuple[Any, type[Exception]]:
    """model_signing, and what it raises where the signature itself is wrong."""
    try:
        import model_signing
        from cryptography.exceptions import InvalidSignature
    except ModuleNotFoundError as absent:
        raise keys.without(absent) from None
    return model_signing, InvalidSignature


def main(keys_at: str, *paths: str) -> int:
    try:
        trusted = trust.Trust(Path(keys_at)).fingerprints()
        for path in paths:
            verify(Path(path), trusted)
    except CompileError as refused:
        print(refused, file=sys.stderr)
        return refused.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
