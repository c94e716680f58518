"""A server held to a share of one core, by the kernel's CPU control group: so that a load generator with a core of its own can
send several times what the server can do. It runs for a millisecond, the least there is, and then waits its turn. Needs root.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
NAME = "coppice-bench"
QUOTA_US = 1_000  # of each period; the kernel takes no less


@contextmanager
def limited(pids: Sequence[int], share: float) -> Iterator[None]:
    """Together they have `share` of one core at most."""
    second = (GROUPS / "cgroup.controllers").exists()
    root = GROUPS if second else GROUPS / "cpu"
    group, period_us = root / NAME, round(QUOTA_US / share)
    try:
        group.mkdir(exist_ok=True)
        if second:
            _write(root / "cgroup.subtree_control", "+cpu")
            _write(group / "cpu.max", f"{QUOTA_US} {period_us}")
        else:
            _write(group / "cpu.cfs_quota_us", "-1")
            _write(group / "cpu.cfs_period_us", str(period_us))
            _write(group / "cpu.cfs_quota_us", str(QUOTA_US))
        for pid in pids:
            _write(group / "cgroup.procs", str(pid))
    except OSError as refused:
        sys.exit(f"a share of a core can't be set by the kernel's control groups ({refused}); this needs root")
    try:
        yield
    finally:
        for left in (group / "cgroup.procs").read_text(encoding="ascii").split():
            _write(root / "cgroup.procs", left)
        group.rmdir()


def _write(path: Path, value: str) -> None:
    path.write_text(value, encoding="ascii")
