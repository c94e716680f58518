"""API keys, known here by their sha256 alone: who a key belongs to, and what it may.

A setting holds hashes, separated by commas, or names a file of lines, blank ones and `#` comments aside:

    SHA256 NAME [rate=REQUESTS_A_SECOND] [burst=REQUESTS] [override]

A file is read again when it changed, so that keys are rotated without a restart; while it can't be read nobody is let in.
A line that is none of these lets nobody in and is told in the log by its number: it may hold a key. `rate` is of all
workers together (`serving.guard`); `override` lets the key name the arm that answers (`serving.overrides`).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

logger = logging.getLogger("coppice")

HASH = re.compile(r"[0-9a-f]{64}")
MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class Key:
    digest: str
    name: str
    rate: float = 0.0  # requests a second; 0: no limit
    burst: float = 0.0  # requests at once after a pause; 0: a second's worth
    override: bool = False


class Keys:
    """Who may, by the setting of that name. `look_s`: how long a change of the file may go unseen."""

    def __init__(self, given: str, setting: str, look_s: float = 0.0) -> None:
        self.version = 0  # counts the times that the file was read
        self._setting = setting
        self._look_s = look_s
        self._looked = -math.inf
        self._seen: tuple[int, int, int] | None = None
        self._known: Mapping[str, Key] = {}
        hashes = [part.strip() for part in given.split(",")]
        self._path: Path | None = Path(given)
        if all(HASH.fullmatch(part) for part in hashes):
            self._path = None
            self._known = {part: Key(part, part[:8]) for part in hashes}

    def who(self, key: bytes) -> Key | None:
        """The key's entry, or None. It takes as long whichever key matches, or none."""
        self.look()
        offered = hashlib.sha256(key).hexdigest()
        found = None
        for digest, known in self._known.items():
            if hmac.compare_digest(digest, offered):
                found = known
        return found

    def look(self) -> None:
        """Read the file if it changed, and if the last look was long enough ago."""
        if self._path is None or monotonic() - self._looked < self._look_s:
            return
        self._looked = monotonic()
        try:
            found = self._path.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen != self._seen:
                self._known = self._parsed(self._path.read_text(encoding="utf-8"))
                self._seen = seen
                self.version += 1
        except (OSError, UnicodeDecodeError) as failure:
            why = failure.strerror if isinstance(failure, OSError) else "not UTF-8"
            if self._seen is not None or not self.version:
                # not its name: that may be a key, set where a file's name belongs
                logger.error(
                    "%s: neither hashes nor a file that can be read (%s); nobody is let in", self._setting, why
                )
            self._known, self._seen = {}, None
            self.version += 1

    def _parsed(self, text: str) -> dict[str, Key]:
        known = {}
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            key = _key(words)
            if key is not None:
                known[key.digest] = key
            else:
                logger.error(
                    "%s: line %d of %s is no `SHA256 NAME`; make one by: printf %%s KEY | sha256sum",
                    self._setting, number, self._path,
                )  # fmt: skip
        return known


def _key(words: list[str]) -> Key | None:
    digest, *rest = words
    if not HASH.fullmatch(digest):
        return None
    names = [word for word in rest if "=" not in word and word != "override"]
    numbers = {}
    for word in rest:
        name, equals, value = word.partition("=")
        if equals:
            number = _positive(value)
            if name not in ("rate", "burst") or name in numbers or number is None:
                return None
            numbers[name] = number
    return Key(digest, " ".join(names)[:MAX_NAME] or digest[:8], override="override" in rest, **numbers)


def _positive(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None
