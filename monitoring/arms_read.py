"""What each arm answered, with what became of it, read from the lake: one arm at a time, and no more columns than are used.

Ten million rows of a day fit into two gigabytes so: joins are of a stretch of time each, names that all rows of an arm share
stay in the lake, and so do features where no segment is asked for (their share off known ground is told by a sample); and
the engine is let go before anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from compile.bundle import Manifest
from monitoring import queries
from monitoring.cohorts import ROLES, Rows, Who, in_a_row, matrix, read_rows
from monitoring.engine import Engine, open_engine
from monitoring.errors import TooLittleData
from monitoring.ground import Walked
from monitoring.versions import Version, versions

AT_ONCE = 2_500_000  # rows of one join
WALKED = 100_000  # rows of a version, for its ground


@dataclass(frozen=True)
class Read:
    """`left_out`: rows by the reason; `known` and `walked` by version."""

    arms: dict[Who, Rows]
    left_out: dict[str, int]
    known: dict[str, Version]
    walked: dict[str, Walked]


@dataclass(frozen=True)
class Bounds:
    """since_us <= ts_us < until_us; None: no end."""

    since_us: int | None
    until_us: int | None

    @property
    def ends(self) -> dict[str, int | None]:
        return {"since_us": self.since_us, "until_us": self.until_us}


def read_all(lake: str, engine: str, store: Path, model: str, bounds: Bounds, *, features: bool) -> Read:
    """The arms that answer or shadow, of the versions whose bundles the store holds. Raises TooLittleData where the lake
    holds no row in these bounds."""
    opened = open_engine(lake, engine)
    there = _held(opened, model, bounds)
    known = versions(store, model, {who.version for who in there})
    walked = _walk(opened, model, known, bounds)
    arms, left_out = _arms(opened, model, there, known, bounds, features=features)
    return Read(arms, left_out, known, walked)


def _held(engine: Engine, model: str, bounds: Bounds) -> dict[Who, int]:
    """Rows by who answered them, whatever the role."""
    first, last = queries.span(engine, model)
    counted = queries.counts(engine, model, last - first + 1, **bounds.ends).to_pylist()
    if not counted:
        raise TooLittleData(f"{model}: no row between --since and --until; widen them, or run coppice compact")
    found: dict[Who, int] = {}
    for row in counted:
        who = Who(row["version"], row["arm"], row["role"])
        found[who] = found.get(who, 0) + row["rows"]
    return dict(sorted(found.items()))


def _arms(
    engine: Engine,
    model: str,
    there: Mapping[Who, int],
    known: Mapping[str, Version],
    bounds: Bounds,
    *,
    features: bool,
) -> tuple[dict[Who, Rows], dict[str, int]]:
    arms: dict[Who, Rows] = {}
    left_out: dict[str, int] = {}
    for who, rows in there.items():
        version = known.get(who.version)
        if who.role not in ROLES:
            left_out[f"role {who.role}"] = left_out.get(f"role {who.role}", 0) + rows
        elif version is None:
            reason = f"version {who.version}: no bundle of it in the release store"
            left_out[reason] = left_out.get(reason, 0) + rows
        else:
            read = _read(engine, model, who, rows, version.manifest, bounds, features=features)
            if len(read.ts_us):
                arms[who] = read
            if len(read.ts_us) < rows:
                reason = f"version {who.version}: another schema than its bundle's"
                left_out[reason] = left_out.get(reason, 0) + rows - len(read.ts_us)
    return arms, left_out


def _read(
    engine: Engine, model: str, who: Who, rows: int, manifest: Manifest, bounds: Bounds, *, features: bool
) -> Rows:
    """In parts of about AT_ONCE rows, each a stretch of time: what a join holds in memory grows with its rows."""
    first, last = queries.span(engine, model)
    first = first if bounds.since_us is None else max(first, bounds.since_us)
    last = last + 1 if bounds.until_us is None else min(last + 1, bounds.until_us)
    parts = -(-rows // AT_ONCE)
    edges = [first + (last - first) * k // parts for k in range(parts + 1)]
    return in_a_row(
        [
            read_rows(engine.ask(_question(engine, model, who, manifest, Bounds(since, until), features)), manifest)
            for since, until in pairwise(edges)
        ]
    )


def _walk(engine: Engine, model: str, known: Mapping[str, Version], bounds: Bounds) -> dict[str, Walked]:
    """A sample of each version's answers, where its bundle says what it was trained on."""
    import pyarrow.compute as pc

    found = {}
    for name, version in known.items():
        ground = version.ground()
        if ground is None:
            continue
        columns = ("ts_us", "features", "schema")
        rows, _ = queries.sample(engine, model, WALKED, version=name, columns=columns, **bounds.ends)
        rows = rows.filter(pc.field("schema") == version.manifest.schema.fingerprint).sort_by("ts_us")
        found[name] = Walked(ground, rows["ts_us"].to_numpy(), matrix(rows["features"], version.manifest.schema.width))
    return found


def _question(engine: Engine, model: str, who: Who, manifest: Manifest, bounds: Bounds, features: bool) -> Any:
    """COLUMNS of `monitoring.cohorts`, in any order."""
    rows = engine.rows(model, **bounds.ends)
    mine = (rows.version == who.version) & (rows.arm == who.arm) & (rows.role == who.role)
    rows = rows.filter(mine & (rows["schema"] == manifest.schema.fingerprint))
    wanted = ["ts_us", "row", "status", "score"]
    wanted += ["scores"] if len(manifest.outputs) > 1 else []
    wanted += ["features"] if features else []
    told = queries.counting(engine, since_us=bounds.since_us)
    told = told.select("value_number", "value_text", told_id="request_id", told_row="row")
    joined = rows.left_join(told, [rows.request_id == told.told_id, rows.row == told.told_row])
    return joined.select(*wanted, "value_number", "value_text")
