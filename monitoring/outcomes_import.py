"""Outcomes from a file - labels that a warehouse exports - into the lake: CSV, Parquet or a JSON object a line.

The columns are those of `POST /feedback` (`serving.given`): request_id and value, and where there are any, row and ts. Each
row passes the very check that the server makes. All rows are imported, or none. A file is known again by its content: to
import it twice changes nothing. What it says counts as received now, so it corrects what was told before.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from time import time_ns
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from monitoring.compaction import put_outcomes
from monitoring.errors import OutcomesRefused
from monitoring.lake import OUTCOMES, outcomes_table
from monitoring.lake_files import open_files
from serving.errors import RequestRefused
from serving.given import read_given
from serving.outcomes import Outcome

FIELDS = ("request_id", "value", "row", "ts")


def import_outcomes(path: Path, lake: str | Path) -> int | None:
    """How many were imported; None where this file was before. Raises OutcomesRefused, naming the row and the field."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    except OSError as refused:
        raise OutcomesRefused(f"{path}: {refused.strerror}") from None
    files, name = open_files(lake), f"import-{digest}"
    with files.alone():
        if any(name in found for found in _imported(files)):
            return None
        received_us = time_ns() // 1000
        outcomes = [_outcome(path, number, told, received_us, name) for number, told in enumerate(_rows(path), start=1)]
        if not outcomes:
            raise OutcomesRefused(f"{path}: holds no outcome")
        put_outcomes(files, name, outcomes_table(outcomes))
    return len(outcomes)


def _imported(files: Any) -> Iterator[str]:
    """The names of parts, and of those that were merged since, which their rows still carry as the writer."""
    for path in files.paths(OUTCOMES):
        if "/merged-" not in path:
            yield path
        elif path.endswith(".parquet"):
            with files.filesystem.open_input_file(path) as file:
                yield from set(pq.read_table(file, columns=["writer"]).column("writer").to_pylist())


def _outcome(path: Path, number: int, told: dict[str, Any], received_us: int, writer: str) -> Outcome:
    unknown = [name for name in told if name not in FIELDS]
    if unknown:
        raise OutcomesRefused(f"{path}: column {unknown[0]!r} is not one of {', '.join(FIELDS)}")
    given = {name: value for name, value in told.items() if value is not None}
    try:
        read = read_given(json.dumps(given, default=str, allow_nan=False).encode(), received_us)
    except RequestRefused as refused:
        raise OutcomesRefused(f"{path}: row {number}: {refused}") from None
    except ValueError:
        raise OutcomesRefused(f"{path}: row {number}: value: not a finite number") from None
    return Outcome(*read, number, writer)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    kinds = {".csv": _csv, ".parquet": _parquet, ".jsonl": _lines, ".ndjson": _lines}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise OutcomesRefused(f"{path}: must be .csv, .parquet, .jsonl or .ndjson")
    try:
        yield from kind(path)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, pa.ArrowException) as spoiled:
        raise OutcomesRefused(f"{path}: {spoiled}") from None


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        for told in rows:
            if None in told or None in told.values():
                raise OutcomesRefused(f"{path}: line {rows.line_num}: has not the header's number of fields")
            yield {name: _typed(name, text) for name, text in told.items()}


def _typed(name: str, text: str) -> Any:
    """A CSV's cell: what reads as a number, or as true or false, is one; an empty cell is none.

    >>> _typed("value", "1.5"), _typed("value", "true"), _typed("value", "yes"), _typed("request_id", "7"), _typed("row", "")
    (1.5, True, 'yes', '7', None)
    """
    if text == "":
        return None
    if name == "request_id":
        return text
    if name == "value" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if name == "row" else float(text)
    except ValueError:
        return text


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for told in batch.to_pylist():
                yield {
                    name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in told.items()
                }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                told = json.loads(line)
                if not isinstance(told, dict):
                    raise OutcomesRefused(f"{path}: line {number}: must be a JSON object")
                yield told
