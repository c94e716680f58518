"""Keys: what signs bundles and what they are verified by, as PEM files, two for each name in one folder.

    NAME.key     the private half: PKCS 8, mode 0600. Needed where bundles are signed, and nowhere else
    NAME.pub     the public half. Every `*.pub` in a trusted folder is trusted

Keys are elliptic, of a curve that OpenSSF model-signing knows. A key is called by its fingerprint: the sha256 of its
public PEM file, which `sha256sum` prints too, and which that library writes into signatures. Naming a key takes the
standard library alone, so that workers can; making one takes `cryptography` (the extra `trust`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from compile.errors import KeyRefused

PRIVATE, PUBLIC = ".key", ".pub"
CURVES = ("secp256r1", "secp384r1", "secp521r1")
MAX_KEY_BYTES = 1 << 16
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PEM = re.compile(rb"\s*-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*")


def key_folder() -> Path:
    """Where this user's keys are: `$XDG_CONFIG_HOME/coppice/keys`. Raises KeyRefused."""
    return home("XDG_CONFIG_HOME", "~/.config") / "coppice" / "keys"


def public_keys(where: Path) -> dict[str, Path]:
    """Fingerprint -> file, of the file, or of each `*.pub` in the folder; {} where there is none. Raises KeyRefused."""
    files = sorted(where.glob("*.pub")) if where.is_dir() else [where] if where.is_file() else []
    return {fingerprint(file): file for file in files}


def fingerprint(file: Path) -> str:
    """sha256 of the key's PEM text in its one canonical form, 64 hex digits. Raises KeyRefused."""
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_KEY_BYTES)
        found = PEM.fullmatch(text)
        body = base64.b64decode(b"".join(found[1].split()), validate=True) if found else b""
    except (OSError, binascii.Error) as broken:
        raise KeyRefused(f"{file}: {broken}") from None
    if not body:
        raise KeyRefused(f"{file}: is not a public key in PEM (-----BEGIN PUBLIC KEY-----)")
    encoded = base64.b64encode(body).decode()
    lines = [encoded[i : i + 64] for i in range(0, len(encoded), 64)]
    pem = "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""])
    return hashlib.sha256(pem.encode()).hexdigest()


def home(variable: str, default: str) -> Path:
    """The folder that the variable names, or the default in the user's home. Raises KeyRefused where there is neither."""
    where = os.environ.get(variable) or os.path.expanduser(default)
    if where.startswith("~"):
        raise KeyRefused(f"{variable}: must be set, since this user has no home folder")
    return Path(where)


def new_key(folder: Path, name: str) -> str:
    """Make NAME.key (mode 0600, secret) and NAME.pub in the folder; the fingerprint. Never overwrites: KeyRefused."""
    if not NAME.fullmatch(name):
        raise KeyRefused(f"{name!r}: a key's name is letters, digits, '.', '_' or '-'")
    ec, forms = _crypto()
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    _make_folder(folder)
    _create(folder / (name + PRIVATE), secret, 0o600)  # first: it alone decides which of two makers wins
    _create(folder / (name + PUBLIC), _pem(key.public_key()), 0o644)
    return fingerprint(folder / (name + PUBLIC))


def add_key(folder: Path, file: Path) -> str:
    """Trust another's public key from now on: copied into the folder under its own name; the fingerprint. Idempotent."""
    name = fingerprint(file)
    _, forms = _crypto()
    try:
        key = forms.load_pem_public_key(file.read_bytes())
        curve, public = key.curve.name, _pem(key)
    except Exception as broken:  # the library raises whatever its parsers do
        raise KeyRefused(f"{file}: is not an elliptic public key: {first_line(broken)}") from None
    if curve not in CURVES:
        raise KeyRefused(f"{file}: is of the curve {curve}; model-signing knows {', '.join(CURVES)}")
    if hashlib.sha256(public).hexdigest() != name:
        raise KeyRefused(f"{file}: is not in the usual form; `openssl ec -pubin -pubout` rewrites it")
    if name not in public_keys(folder):
        _make_folder(folder)
        _create(folder / f"{file.stem}{PUBLIC}", public, 0o644)
    return name


def private_key(name: str) -> Path:
    """The file of a private key that is given by its path, or by its name in this user's folder. Raises KeyRefused."""
    for file in (Path(name), key_folder() / (name + PRIVATE)):
        if file.is_file():
            return file
    raise KeyRefused(f"{name}: is neither the file of a private key nor the name of one in {key_folder()}")


def public_half(key: Path) -> bytes:
    """The public PEM of a private key's file. Raises KeyRefused."""
    _, forms = _crypto()
    try:
        with key.open("rb") as opened:
            secret = opened.read(MAX_KEY_BYTES)
        return _pem(forms.load_pem_private_key(secret, None).public_key())
    except Exception as broken:  # the library raises whatever its parsers do
        raise KeyRefused(f"{key}: is not a private key that can sign: {first_line(broken)}") from None


def without(absent: ModuleNotFoundError) -> KeyRefused:
    """What to tell of a package that is not installed."""
    return KeyRefused(f"signatures need the package {absent.name!r}: pip install 'coppice[trust]'")


def first_line(failure: Exception) -> str:
    """The failure in one line of at most 200 characters."""
    return (str(failure).strip() or type(failure).__name__).splitlines()[0][:200]


def _pem(public: Any) -> bytes:
    _, forms = _crypto()
    return bytes(public.public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo))


def _crypto() -> tuple[Any, Any]:
    """(elliptic curves, serialization) of cryptography."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ModuleNotFoundError as absent:
        raise without(absent) from None
    return ec, serialization


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as failure:
        raise KeyRefused(f"{folder}: {failure.strerror}") from None


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise KeyRefused(f"{path}: exists already; a key is never overwritten") from None
    except OSError as failure:
        raise KeyRefused(f"{path}: {failure.strerror}") from None
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)
