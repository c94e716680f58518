"""Each hour of the lake summed up once, for who looks at long stretches of time: format 1, its reader and its writer.

    <cache>/<lake>/<model>/<YYYY-MM-DD>.json     <lake>: 16 hex digits, the blake2b of the lake's address

A file is the CRC32 of what follows it, 8 hex digits and a line end, then one JSON object:

    {"format": 1, "lake": "var/lake", "model": "churn", "date": "2026-01-31", "edges": [0.0, 1.0],
     "hours": {"07": {"parts": "<32 hex digits>", "stretches": [`Stretch`, ...]}, ...}}

`parts` is the blake2b of the names of the hour's visible parts: the parts of a lake never change, so while the names are the
same the sums are right, and when a late part comes or parts are merged the hour is summed up again. `edges` bound the
histogram of scores. A file that is absent, spoiled or of another format costs a look at the lake and nothing else: all of it
may be deleted at any time. Files appear whole, by a rename; several may write, since all write the same.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
from ibis import _

from monitoring import latency_buckets
from monitoring.engine import Engine
from monitoring.errors import MonitoringError
from monitoring.lake import HOUR_US, visible
from monitoring.lake_files import LakeFiles

FORMAT = 1
BINS = 40

Edges = tuple[float, float]
Pairs = tuple[tuple[int, int], ...]
Days = dict[str, "Day"]


class Stretch(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What one arm did in one stretch of time; in JSON a list, in this order.

    rows, requests, errors: of the arm's own rows, shadows' where it is one; fallbacks, overrides: rows of that role.
    timed_us, batch_rows: sums over all rows, fallbacks among them; max_us, last_us: the slowest row's time, the newest's ts_us.
    latency: (bucket, rows) by `latency_buckets`; scores: (bin of `BINS`, rows) of the arm's own answers that did not fail.
    """

    begin_us: int
    arm: str
    version: str
    shadow: bool
    rows: int
    requests: int
    errors: int
    fallbacks: int
    overrides: int
    timed_us: int
    batch_rows: int
    max_us: int
    last_us: int
    latency: Pairs
    scores: Pairs


class Hour(msgspec.Struct, frozen=True):
    parts: str
    stretches: tuple[Stretch, ...]


class Day(msgspec.Struct, frozen=True):
    lake: str
    model: str
    date: str
    edges: Edges
    hours: dict[str, Hour]
    format: int = FORMAT


def sum_up(
    engine: Engine, model: str, bucket_us: int, edges: Edges, *, since_us: int, until_us: int
) -> tuple[Stretch, ...]:
    """Asked of the lake: by time, arm, version. Its counts are those of `queries.operations` and `score_histogram`."""
    rows = engine.rows(model, since_us=since_us, until_us=until_us)
    whole = rows.parse_us.cast("int64") + rows.queue_us.cast("int64") + rows.score_us.cast("int64")
    rows = rows.mutate(
        begin_us=(rows.ts_us / bucket_us).floor().cast("int64") * bucket_us,
        shadow=rows.role == "shadow",
        whole_us=whole,
        place=latency_buckets.place(whole),
    )
    who = ("begin_us", "arm", "version", "shadow")
    own = rows.role != "fallback"
    counted = rows.group_by(*who, "place").agg(
        timed=rows.count(),
        rows=own.sum().cast("int64"),
        requests=(own & (rows.row == 0)).sum().cast("int64"),
        errors=(own & (rows.status != 200)).sum().cast("int64"),
        fallbacks=(rows.role == "fallback").sum().cast("int64"),
        overrides=(rows.role == "override").sum().cast("int64"),
        timed_us=rows.whole_us.sum().cast("int64"),
        batch_rows=rows.batch_rows.cast("int64").sum().cast("int64"),
        max_us=rows.whole_us.max().cast("int64"),
        last_us=rows.ts_us.max(),
    )
    told = rows.filter(rows.role.isin(["served", "shadow"]) & (rows.status == 200))
    told = told.filter(~(told.score.isnan() | told.score.isinf()))
    place = ((told.score - edges[0]) / (edges[1] - edges[0]) * BINS).clip(0, BINS - 1).floor().cast("int64")
    scored = told.mutate(bin=place).group_by(*who, "bin").agg(rows=_.count())
    scores: dict[Any, list[tuple[int, int]]] = {}
    for row in engine.ask(scored.order_by(*who, "bin")).to_pylist():
        scores.setdefault(tuple(row[name] for name in who), []).append((row["bin"], row["rows"]))
    found = engine.ask(counted.order_by(*who, "place")).to_pylist()
    by = groupby(found, key=lambda row: tuple(row[name] for name in who))
    return tuple(_stretch(key, list(group), tuple(scores.get(key, ()))) for key, group in by)


def hours_of(files: LakeFiles, model: str) -> dict[tuple[str, str], str]:
    """(date, hour) of what the lake holds of the model, and the name of its visible parts."""
    paths = [path for path in files.paths(f"model={model}") if path.count("/") == 3]
    found = {}
    for folder, within in groupby(paths, key=lambda path: path.rpartition("/")[0]):
        parts = visible(files, list(within))
        if parts:
            date, hour = folder.split("/")[1:]
            named = hashlib.blake2b("\n".join(sorted(parts)).encode(), digest_size=16).hexdigest()
            found[date.removeprefix("date="), hour.removeprefix("hour=")] = named
    return found


def hour_us(date: str, hour: str) -> int:
    """
    >>> hour_us("1970-01-02", "01")
    90000000000
    """
    from datetime import UTC, datetime

    begin = datetime.fromisoformat(date).replace(tzinfo=UTC)
    return round(begin.timestamp()) * 1_000_000 + int(hour) * HOUR_US


def stale(days: Mapping[str, Day], there: Mapping[tuple[str, str], str], edges: Edges) -> list[tuple[str, list[str]]]:
    """(date, hours to be summed up), the newest first."""
    wanted: dict[str, list[str]] = {}
    for (date, hour), parts in there.items():
        day = days.get(date)
        known = day.hours.get(hour) if day and day.edges == edges else None
        if known is None or known.parts != parts:
            wanted.setdefault(date, []).append(hour)
    return [(date, sorted(wanted[date])) for date in sorted(wanted, reverse=True)]


def without(days: Mapping[str, Day], there: Mapping[tuple[str, str], str]) -> Days:
    """The days of which the lake no longer has every hour, with those that it has."""
    found = {}
    for date, day in days.items():
        kept = {hour: known for hour, known in day.hours.items() if (date, hour) in there}
        if len(kept) < len(day.hours):
            found[date] = msgspec.structs.replace(day, hours=kept)
    return found


def summed(
    engine: Engine, model: str, day: Day | None, date: str, hours: Sequence[str], there: Mapping[str, str], edges: Edges
) -> Day:
    """The day with these hours summed up anew. `there`: the names of its parts, by hour, as they were before the lake is
    asked: what comes meanwhile makes the hour stale again, and is not missed."""
    kept = dict(day.hours) if day and day.edges == edges else {}
    begin, end = hour_us(date, hours[0]), hour_us(date, hours[-1]) + HOUR_US
    found = sum_up(engine, model, HOUR_US, edges, since_us=begin, until_us=end)
    for hour in hours:
        own = tuple(stretch for stretch in found if stretch.begin_us == hour_us(date, hour))
        kept[hour] = Hour(there[hour], own)
    return Day(engine.files.name, model, date, edges, dict(sorted(kept.items())))


def folder_of(cache: Path, lake: str, model: str) -> Path:
    return cache / hashlib.blake2b(lake.encode(), digest_size=8).hexdigest() / model


def read_days(cache: Path, lake: str, model: str) -> Days:
    """Those that can be read, by date."""
    found = {}
    for path in sorted(folder_of(cache, lake, model).glob("[0-9]*.json")):
        day = _decode(path)
        if day is not None and (day.lake, day.model, f"{day.date}.json") == (lake, model, path.name):
            found[day.date] = day
    return found


def write_day(cache: Path, day: Day) -> None:
    """Raises MonitoringError, naming the file."""
    path = folder_of(cache, day.lake, day.model) / f"{day.date}.json"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    text = msgspec.json.encode(day)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(b"%08x\n" % zlib.crc32(text) + text)
        draft.replace(path)
    except OSError as refused:
        raise MonitoringError(f"{path}: {refused.strerror}") from None


def forget_day(cache: Path, day: Day) -> None:
    (folder_of(cache, day.lake, day.model) / f"{day.date}.json").unlink(missing_ok=True)


def _decode(path: Path) -> Day | None:
    try:
        mark, end, text = path.read_bytes().partition(b"\n")
        if not end or mark != b"%08x" % zlib.crc32(text):
            return None
        day = msgspec.json.decode(text, type=Day)
    except (OSError, msgspec.MsgspecError):
        return None
    return day if day.format == FORMAT else None


def _stretch(key: tuple[Any, ...], places: Sequence[Mapping[str, Any]], scores: Pairs) -> Stretch:
    begin_us, arm, version, shadow = key
    sums = ("rows", "requests", "errors", "fallbacks", "overrides", "timed_us", "batch_rows")
    return Stretch(
        begin_us=begin_us,
        arm=arm,
        version=version,
        shadow=shadow,
        max_us=max(row["max_us"] for row in places),
        last_us=max(row["last_us"] for row in places),
        latency=tuple((row["place"], row["timed"]) for row in places),
        scores=scores,
        **{name: sum(row[name] for row in places) for name in sums},
    )
