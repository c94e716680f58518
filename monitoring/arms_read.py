"""What each arm answered, with what became of it, read from the lake: one arm at a time, and no more columns than are used.

Ten million rows of a day fit into two gigabytes so: names that all rows of an arm share stay in the lake, and features do,
where no segment is asked for; their share off known ground is told by a sample (`monitoring.ground`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compile.bundle import Manifest
from monitoring import queries
from monitoring.cohorts import ROLES, Rows, Who, matrix, read_rows
from monitoring.engine import Engine
from monitoring.errors import TooLittleData
from monitoring.ground import Walked
from monitoring.versions import Version

WALKED = 100_000  # rows of a version, for its ground


@dataclass(frozen=True)
class Read:
    """`left_out`: rows by the reason."""

    arms: dict[Who, Rows]
    left_out: dict[str, int]


@dataclass(frozen=True)
class Span:
    """since_us <= ts_us < until_us; None: no end."""

    since_us: int | None
    until_us: int | None

    @property
    def bounds(self) -> dict[str, int | None]:
        return {"since_us": self.since_us, "until_us": self.until_us}


def held(engine: Engine, model: str, span: Span) -> dict[Who, int]:
    """Rows by who answered them, whatever the role. Raises TooLittleData where there is none in the span."""
    first, last = queries.span(engine, model)
    counted = queries.counts(engine, model, last - first + 1, **span.bounds).to_pylist()
    if not counted:
        raise TooLittleData(f"{model}: no row between --since and --until; widen them, or run coppice compact")
    found: dict[Who, int] = {}
    for row in counted:
        who = Who(row["version"], row["arm"], row["role"])
        found[who] = found.get(who, 0) + row["rows"]
    return dict(sorted(found.items()))


def read_arms(
    engine: Engine, model: str, there: Mapping[Who, int], known: Mapping[str, Version], span: Span, *, features: bool
) -> Read:
    """The arms that answer or shadow, of the versions that are known."""
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
            read = read_rows(
                engine.ask(_question(engine, model, who, version.manifest, span, features)), version.manifest
            )
            if len(read.ts_us):
                arms[who] = read
            if len(read.ts_us) < rows:
                reason = f"version {who.version}: another schema than its bundle's"
                left_out[reason] = left_out.get(reason, 0) + rows - len(read.ts_us)
    return Read(arms, left_out)


def walk(engine: Engine, model: str, known: Mapping[str, Version], span: Span) -> dict[str, Walked]:
    """A sample of each version's answers, where its bundle says what it was trained on."""
    import pyarrow.compute as pc

    found = {}
    for name, version in known.items():
        ground = version.ground()
        if ground is None:
            continue
        columns = ("ts_us", "features", "schema")
        rows, _ = queries.sample(engine, model, WALKED, version=name, columns=columns, **span.bounds)
        rows = rows.filter(pc.field("schema") == version.manifest.schema.fingerprint).sort_by("ts_us")
        found[name] = Walked(ground, rows["ts_us"].to_numpy(), matrix(rows["features"], version.manifest.schema.width))
    return found


def _question(engine: Engine, model: str, who: Who, manifest: Manifest, span: Span, features: bool) -> Any:
    """COLUMNS of `monitoring.cohorts`, in any order."""
    rows = engine.rows(model, **span.bounds)
    mine = (rows.version == who.version) & (rows.arm == who.arm) & (rows.role == who.role)
    rows = rows.filter(mine & (rows["schema"] == manifest.schema.fingerprint))
    wanted = ["ts_us", "row", "status", "score"]
    wanted += ["scores"] if len(manifest.outputs) > 1 else []
    wanted += ["features"] if features else []
    told = queries.counting(engine, since_us=span.since_us)
    told = told.select("value_number", "value_text", told_id="request_id", told_row="row")
    joined = rows.left_join(told, [rows.request_id == told.told_id, rows.row == told.told_row])
    return joined.select(*wanted, "value_number", "value_text")
