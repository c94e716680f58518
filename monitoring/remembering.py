"""What `coppice performance` adds to the checks: a line for each window of each arm, and none where nothing is new.

    kind      performance
    verdict   the window's: open, not estimable, level, fine, drop
    found     the `Window` of `monitoring.performance`, and "arm", "role", "metric", "level", "every", and its "alarms"

A window that is not over is left out; one whose labels are still awaited is told, since it has an estimate, and told again
when they are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from monitoring.checks import Check, append, latest, read
from monitoring.performance import NOT_OVER, Arm, Performance, Window


def remember(folder: Path, found: Performance) -> int:
    """How many were new."""
    before = {
        (check.version, check.found.get("arm"), check.found.get("role"), check.since_us, check.until_us): check.found
        for check in latest(read(folder, "performance", found.model))
    }
    added = 0
    for arm in found.arms:
        for window in arm.windows:
            told = _told(arm, window, found)
            key = (arm.version, arm.arm, arm.role, window.since_us, window.until_us)
            if window.reason != NOT_OVER and before.get(key) != told:
                append(folder, _check(arm, window, found, told))
                added += 1
    return added


def _told(arm: Arm, window: Window, found: Performance) -> dict[str, Any]:
    whose = {"arm": arm.arm, "role": arm.role, "metric": arm.metric, "level": arm.level, "every": found.every}
    alarms = [alarm for alarm in arm.alarms if window.since_us <= alarm.at_us < window.until_us]
    plain = msgspec.json.encode({**whose, **msgspec.structs.asdict(window), "alarms": alarms})
    told: dict[str, Any] = msgspec.json.decode(plain)
    return told


def _check(arm: Arm, window: Window, found: Performance, told: dict[str, Any]) -> Check:
    return Check(
        kind="performance",
        model=found.model,
        version=arm.version,
        since_us=window.since_us,
        until_us=window.until_us,
        verdict=window.verdict,
        reason=window.reason,
        found=told,
    )
