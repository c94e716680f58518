"""What the servers of this machine counted, from the pages that they leave beside the traffic log; of all models.

This is where requests that were shed, and rows that the log dropped, are known: they never reach the lake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitoring.errors import MonitoringError
from serving import page

ANSWERS = {
    "2xx": page.REQUESTS_2XX, "4xx": page.REQUESTS_4XX, "5xx": page.REQUESTS_5XX, "shed": page.REQUESTS_SHED,
}  # fmt: skip
SHED = {
    "queue full": page.SHED_QUEUE_FULL,
    "deadline": page.SHED_DEADLINE,
    "loop lag": page.SHED_LOOP_LAG,
    "client gone": page.SHED_GONE,
    "shadow": page.SHADOW_SHED,
    "rate": page.SHED_RATE,
}
DROPPED = {"queue full": page.ROWS_DROPPED_FULL, "disk": page.ROWS_DROPPED_DISK}


@dataclass(frozen=True)
class Pages:
    """Sums over all runs of servers."""

    runs: int
    answers: Mapping[str, int]
    shed: Mapping[str, int]
    dropped: Mapping[str, int]
    rows: int
    logged: int

    def figures(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "answers": dict(self.answers),
            "shed": dict(self.shed),
            "dropped": dict(self.dropped),
            "rows": self.rows,
            "logged": self.logged,
        }


def read_pages(traffic: Path) -> Pages | None:
    """None where no server has logged. Raises MonitoringError, naming the file."""
    try:
        found = [page.Page.open(path, readonly=True) for path in sorted((traffic / "pages").glob("*.page"))]
    except (OSError, ValueError) as refused:
        raise MonitoringError(f"--traffic: {refused}") from None
    if not found:
        return None
    slots = [slot for each in found for slot in each.slots()]

    def total(cell: int) -> int:
        return sum(int(slot.cells[cell]) for slot in slots)

    return Pages(
        runs=len(found),
        answers={name: total(cell) for name, cell in ANSWERS.items()},
        shed={name: total(cell) for name, cell in SHED.items()},
        dropped={name: total(cell) for name, cell in DROPPED.items()},
        rows=total(page.ROWS),
        logged=total(page.ROWS_LOGGED),
    )
