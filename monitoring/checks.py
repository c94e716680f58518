"""What checks found, a line each, never edited: the memory that the dashboard, alerts and `coppice watch` read.

    <checks>/<kind>.jsonl        kinds are KINDS; UTF-8, one JSON object a line, in the order in which they were made

    {"kind": "drift", "model": "churn", "version": "3", "at_us": ..., "since_us": ..., "until_us": ...,
     "verdict": "drift", "reason": "the prediction drifted", "found": {...}}

Times are µs since 1970. `since_us` <= ts_us < `until_us` is the window that was looked at; `found` holds the kind's own
figures, told where the kind is made. A line is one write to a file opened for appending, under a lock: checks may be made from
several places at once. A torn last line, of a check killed while it wrote, is left out when read, and closed off before the
next is written. The same window may be looked at again: `latest` keeps the newest look at each.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import time_ns
from typing import Any

from monitoring.errors import MonitoringError

KINDS = ("drift", "performance", "operations", "alerts", "watch", "decisions")


@dataclass(frozen=True)
class Check:
    """One look at one window. `verdict` is a word of the kind's own; `found` must be fit for JSON."""

    kind: str
    model: str
    version: str
    since_us: int
    until_us: int
    verdict: str
    reason: str
    found: dict[str, Any] = field(default_factory=dict)
    at_us: int = field(default_factory=lambda: time_ns() // 1000)


def append(folder: Path, check: Check) -> None:
    """On disk when it returns."""
    if check.kind not in KINDS:
        raise MonitoringError(f"a check of kind {check.kind!r}; there are {', '.join(KINDS)}")
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(check), ensure_ascii=False, allow_nan=False).encode()
    with (folder / f"{check.kind}.jsonl").open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and _last_byte(file) != b"\n"
        file.write((b"\n" if torn else b"") + line + b"\n")
        os.fsync(file.fileno())


def read(folder: Path, kind: str, model: str | None = None) -> list[Check]:
    """Every check of the kind, oldest first; none where nothing was checked yet."""
    try:
        lines = (folder / f"{kind}.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = [check for line in lines if (check := _check(line)) is not None]
    return [check for check in found if model in (None, check.model)]


def latest(checks: Iterable[Check]) -> list[Check]:
    """The newest look at each window of each version - of each arm and role of it, where checks tell those apart - in the
    order of windows."""
    newest = {
        (check.model, check.version, *map(check.found.get, ("arm", "role")), check.since_us, check.until_us): check
        for check in checks
    }
    return sorted(newest.values(), key=lambda check: (check.since_us, check.until_us, check.version))


def _check(line: bytes) -> Check | None:
    try:
        return Check(**json.loads(line))
    except (ValueError, TypeError):  # a torn line
        return None


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    last: bytes = file.read(1)
    return last
