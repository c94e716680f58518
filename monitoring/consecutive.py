"""Windows one after another: what "two windows running" is counted in.

A check that is made twice a day of the last day sees half of its rows twice; two such windows are one look at most of the
same rows. So of windows that overlap the newest counts. A daily check that starts a little earlier than yesterday's overlaps a
little: up to OVERLAP of the shorter window is none.
"""

from __future__ import annotations

from collections.abc import Sequence

from monitoring.checks import Check

OVERLAP = 0.1


def consecutive(windows: Sequence[Check]) -> list[Check]:
    """Those of `windows`, oldest first, that lie one after another; the newest is among them."""
    kept: list[Check] = []
    for window in sorted(windows, key=lambda check: (check.until_us, check.since_us), reverse=True):
        if not kept or _overlap_us(window, kept[-1]) <= OVERLAP * min(length_us(window), length_us(kept[-1])):
            kept.append(window)
    return kept[::-1]


def alike(window: Check, other: Check) -> bool:
    """About as long as each other."""
    return abs(length_us(window) - length_us(other)) <= OVERLAP * max(length_us(window), length_us(other))


def length_us(window: Check) -> int:
    return window.until_us - window.since_us


def _overlap_us(older: Check, newer: Check) -> int:
    return max(0, older.until_us - max(older.since_us, newer.since_us))
