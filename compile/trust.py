"""Whom this host trusts, and what it remembers of that: read by workers, so the standard library alone.

`COPPICE_TRUST` is `hashed` (a bundle must have the digest that the routes name) or `signed` (and a signature by a trusted
key); `signed:PATH` where the trusted keys are not in `~/.config/coppice/keys` (`compile.keys`).

Signatures are verified by the parent (`admit`), which loads what that takes in a process of its own. What it found it
writes down for the workers, and a worker under `signed` opens what is written down (`require`), and nothing else. So is
each native library that was built here (`record_built`) or came in a signed bundle: `may_execute` allows no other.

    $XDG_STATE_HOME/coppice/trust/      (~/.local/state/coppice/trust)
      host.key                          32 random bytes, mode 0600: this host's, and no other's
      bundle-<digest>                   "<fingerprint>\\n<mac>\\n": verified, signed by that key
      library-<sha256>                  the same, of a native library in such a bundle
      built-<sha256>                    "here\\n<mac>\\n": a native library that this host built

The mac is HMAC-SHA256 by the host key over name and first line: who can write bundles, or copies a record from another
host, can't make one. A record that is torn, or signed by a key that is trusted no longer, is as good as none.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compile import keys
from compile.errors import BundleRefused, KeyRefused

ADMIT_S = 300.0
Kind = Literal["bundle", "library", "built"]


@dataclass(frozen=True, slots=True)
class Trust:
    """What a bundle must show. `keys_at` is None under `hashed`, else the trusted keys' folder or file."""

    keys_at: Path | None = None

    @classmethod
    def of(cls, text: str) -> Trust:
        """The value of COPPICE_TRUST. Raises KeyRefused."""
        word, _, where = text.partition(":")
        if word not in ("hashed", "signed") or (word == "hashed" and where):
            raise KeyRefused(f"COPPICE_TRUST: must be hashed, signed or signed:PATH, got {text!r}")
        return cls() if word == "hashed" else cls(Path(where) if where else keys.key_folder())

    def fingerprints(self) -> dict[str, Path]:
        """The trusted keys, by fingerprint; read anew at each call. Raises KeyRefused where there is none."""
        found = keys.public_keys(self.keys_at) if self.keys_at is not None else {}
        if self.keys_at is not None and not found:
            raise KeyRefused(
                f"{self.keys_at}: holds no public key (*.pub) to trust; `coppice keys trust FILE` adds one, "
                "`coppice keys new NAME` makes one"
            )
        return found

    def require(self, path: Path) -> None:
        """Under `signed`: this host has verified the bundle of that digest. Raises BundleRefused. Cheap: for workers."""
        if self.keys_at is not None and _recorded("bundle", path.name) not in self.fingerprints():
            raise BundleRefused(
                f"{path / 'model.sig'}: is not verified on this host; `coppice verify {path} --trust signed` tells why"
            )

    def admit(self, paths: Sequence[Path]) -> None:
        """Under `signed`: verify the bundles' signatures and write that down, so that workers open them. For the parent.

        In a process of its own: what verifies is 50 MB of libraries, which no worker should inherit. Raises
        BundleRefused, naming the file, or KeyRefused.
        """
        if self.keys_at is None:
            return
        self.fingerprints()  # there are keys: refused here, by the class that it deserves
        call: list[str | Path] = [sys.executable, "-P", "-m", "compile.signing", self.keys_at, *paths]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            ran = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=ADMIT_S, check=False)
        except subprocess.TimeoutExpired:
            raise BundleRefused(f"{paths[0]}: its signature was not verified within {ADMIT_S:g} s") from None
        if ran.returncode:
            raise BundleRefused((ran.stderr.strip() or f"verification ended with {ran.returncode}").splitlines()[-1])


def state_folder() -> Path:
    return keys.home("XDG_STATE_HOME", "~/.local/state") / "coppice" / "trust"


def record_built(sha256: str) -> None:
    """This host built the native library of that hash; `may_execute` allows it from now on. Idempotent."""
    _record("built", sha256, "here")


def record_signed(kind: Literal["bundle", "library"], sha256: str, key: str) -> None:
    """This host verified that the key of that fingerprint signed it. Only `compile.signing` may say so. Idempotent."""
    _record(kind, sha256, key)


def may_execute(path: Path, sha256: str, trust: Trust | None = None) -> None:
    """Raises BundleRefused unless the library was built on this host or came in a bundle that it verified as signed.

    `sha256` is of the bytes that will run: hash them as they are read (`bundle.load`), then open those
    (`compile.library_engine`), not the path again. With no trust given, the default folder's keys decide whether the
    signer is still trusted.
    """
    trusted = keys.public_keys((trust.keys_at if trust else None) or keys.key_folder())
    if _recorded("built", sha256) == "here" or _recorded("library", sha256) in trusted:
        return
    raise BundleRefused(
        f"{path}: is a native library that was neither built on this host nor signed by a key that it trusts; "
        f"`coppice verify {path.parent} --trust signed` admits a signed one"
    )


def _record(kind: Kind, sha256: str, by: str) -> None:
    folder = state_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(folder / f"{kind}-{sha256}", f"{by}\n{_mac(_host_key(folder), kind, sha256, by)}\n".encode())
    except OSError as failure:
        raise KeyRefused(
            f"{folder}: {failure.strerror}; what this host trusts is kept there (XDG_STATE_HOME)"
        ) from None


def _recorded(kind: Kind, sha256: str) -> str | None:
    """Who vouches for it; None where nobody does, or the record is not this host's."""
    folder = state_folder()
    with suppress(OSError, ValueError):
        by, mac, _ = (folder / f"{kind}-{sha256}").read_text(encoding="ascii").split("\n")
        if hmac.compare_digest(mac, _mac(_read_host_key(folder), kind, sha256, by)):
            return by
    return None


def _mac(key: bytes, kind: Kind, sha256: str, by: str) -> str:
    return hmac.new(key, f"{kind}-{sha256}\n{by}".encode(), hashlib.sha256).hexdigest()


def _host_key(folder: Path) -> bytes:
    """The host's key, made where there is none. Of two that make it at once, one wins and both use that."""
    if not (folder / "host.key").exists():
        _write(folder / "host.key", secrets.token_bytes(32), exclusive=True)
    return _read_host_key(folder)


def _read_host_key(folder: Path) -> bytes:
    """Raises KeyRefused for a key that another could have read or written."""
    path = folder / "host.key"
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        key = os.read(handle, 64)
    finally:
        os.close(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077 or len(key) != 32:
        raise KeyRefused(f"{path}: must be 32 bytes, this user's, of mode 0600; remove it and what is beside it")
    return key


def _write(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    """Whole or not at all, mode 0600; exclusive: what is there already stays."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        if exclusive:
            with suppress(FileExistsError):
                os.link(draft, path)
        else:
            os.replace(draft, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)
