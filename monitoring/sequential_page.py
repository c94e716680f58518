"""docs/sequential.md's measured part: `make prove-sequential` writes it between the page's marks."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import typer

from monitoring.sequential_proof import TABLES, Row

PAGE = Path("docs/sequential.md")
MARKS = ("<!-- measured -->", "<!-- /measured -->")


def write(runs: int = 4_000, out: Path = PAGE) -> None:
    """Measure, and put the tables between the page's marks."""
    before, rest = out.read_text(encoding="utf-8").split(MARKS[0])
    _, after = rest.split(MARKS[1])
    out.write_text(f"{before}{MARKS[0]}\n{page(runs)}{MARKS[1]}{after}", encoding="utf-8")
    typer.echo(f"wrote {out}")


def table(rows: list[Row]) -> list[str]:
    columns = list(rows[0].figures)
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    return [
        *lines,
        *("| " + " | ".join([row.name, *(_figure(row.figures[at]) for at in columns)]) + " |" for row in rows),
    ]


def _figure(value: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "not half"
    return f"{value:.4f}" if value <= 1 else f"{value:,.0f}"


def page(runs: int) -> str:
    """The measured part of the page."""
    began = time.perf_counter()
    parts = [(title, (made.__doc__ or "").strip(), table(made(runs))) for title, made in TABLES.items()]
    lines = [
        f"`make prove-sequential`, commit {_commit()}, {datetime.now(UTC):%Y-%m-%d}, one core of {os.cpu_count()} x "
        f"{_processor()}, Python {platform.python_version()}, {time.perf_counter() - began:.0f} s. Each share is of {runs:,} "
        f"made-up experiments: its standard error is {math.sqrt(0.05 * 0.95 / runs):.4f} about .05 and at most "
        f"{math.sqrt(0.25 / runs):.4f}.",
        "",
    ]
    for title, told, rows in parts:
        lines += [f"### {title}", "", told, "", *rows, ""]
    return "\n".join(lines)


def _commit() -> str:
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    return head.stdout.strip() or "unknown"


def _processor() -> str:
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return model[1] if model else platform.processor()


if __name__ == "__main__":
    typer.run(write)
