"""The questions that monitoring asks of the lake, as Ibis expressions: exact ones alone, so that every engine answers alike.

`since_us` and `until_us` bound ts_us, µs since 1970, as since <= ts_us < until. `served` are the rows of a request's own
arm, one a scored row (`serving.segments`); what a shadow or a fallback scored is not among them.
"""

from __future__ import annotations

from typing import Any

import ibis
import pyarrow as pa
from ibis import _

from monitoring.engine import Engine

ROWS_COLUMNS = (
    "ts_us", "request_id", "row", "unit", "version", "arm", "role", "generation", "schema", "status", "score", "scores",
    "features",
)  # fmt: skip
OUTCOME_COLUMNS = ("value_number", "value_text", "happened_us", "received_us")
QUANTILES = {"p50_us": 0.5, "p95_us": 0.95, "p99_us": 0.99}
PRIME = 2_147_483_647
GOLDEN = (
    1_327_217_885  # PRIME times the golden ratio's fraction: multiples modulo PRIME lie evenly, however few there are
)


def counting(engine: Engine, *, since_us: int | None = None) -> Any:
    """Of each (request_id, row) the outcome that counts: the last to be received, of those received at once the one of
    the highest seq (`serving.outcomes`)."""
    told = engine.outcomes(since_us=since_us).rename(happened_us="ts_us")
    newest_first = [_.received_us.desc(), _.seq.desc(), _.writer.desc()]
    place = ibis.row_number().over(ibis.window(group_by=["request_id", "row"], order_by=newest_first))
    ranked = told.mutate(place=place)
    return ranked.filter(ranked.place == 0).select("request_id", "row", *OUTCOME_COLUMNS)


def labelled(
    engine: Engine,
    model: str,
    *,
    since_us: int | None = None,
    until_us: int | None = None,
    version: str | None = None,
    roles: tuple[str, ...] = ("served",),
    columns: tuple[str, ...] = ROWS_COLUMNS,
) -> pa.Table:
    """Scored rows, each with the outcome that counts, or nulls where there is none yet: `columns` of ROWS_COLUMNS, then
    OUTCOME_COLUMNS. In no order: to sort ten million rows costs an engine more than to join them."""
    rows = engine.rows(model, since_us=since_us, until_us=until_us)
    rows = rows.filter(rows.role.isin(roles))
    if version is not None:
        rows = rows.filter(rows.version == version)
    outcomes = counting(engine, since_us=since_us).rename(told_id="request_id", told_row="row")
    joined = rows.left_join(outcomes, [rows.request_id == outcomes.told_id, rows.row == outcomes.told_row])
    return engine.ask(joined.select(*columns, *OUTCOME_COLUMNS))


def operations(
    engine: Engine, model: str, bucket_us: int, *, since_us: int | None = None, until_us: int | None = None
) -> pa.Table:
    """Of each stretch of time and arm what was served: `begin_us, arm, version, rows, requests, errors, fallbacks, overrides,
    batch_rows` (the mean), and quantiles of a row's whole time, `p50_us, p95_us, p99_us, max_us`. Shadows are left out."""
    rows = engine.rows(model, since_us=since_us, until_us=until_us)
    rows = rows.filter(rows.role != "shadow").mutate(
        begin_us=begin_of(rows.ts_us, bucket_us),
        whole_us=(rows.parse_us + rows.queue_us + rows.score_us).cast("float64"),
    )
    own = rows.role != "fallback"
    found = rows.group_by("begin_us", "arm", "version").agg(
        rows=own.sum().cast("int64"),
        requests=(own & (rows.row == 0)).sum().cast("int64"),
        errors=(own & (rows.status != 200)).sum().cast("int64"),
        fallbacks=(rows.role == "fallback").sum().cast("int64"),
        overrides=(rows.role == "override").sum().cast("int64"),
        batch_rows=rows.batch_rows.mean(),
        max_us=rows.whole_us.max(),
        **{name: rows.whole_us.quantile(q) for name, q in QUANTILES.items()},
    )
    return engine.ask(found.order_by("begin_us", "arm", "version"))


def counts(
    engine: Engine, model: str, bucket_us: int, *, since_us: int | None = None, until_us: int | None = None
) -> pa.Table:
    """How many rows of each stretch of time, arm, version and role there are: `begin_us, arm, version, role, rows`."""
    rows = engine.rows(model, since_us=since_us, until_us=until_us)
    rows = rows.mutate(begin_us=begin_of(rows.ts_us, bucket_us))
    found = rows.group_by("begin_us", "arm", "version", "role").agg(rows=rows.count())
    return engine.ask(found.order_by("begin_us", "arm", "version", "role"))


def score_histogram(
    engine: Engine,
    model: str,
    edges: tuple[float, float],
    bins: int,
    *,
    since_us: int | None = None,
    until_us: int | None = None,
) -> pa.Table:
    """How often the scores of served rows fall into each of `bins` between the edges: `arm, version, bin, rows`. A score on
    the upper edge or above is in the last, one below the lower edge in the first; failed rows are left out."""
    rows = engine.rows(model, since_us=since_us, until_us=until_us)
    rows = rows.filter((rows.role == "served") & (rows.status == 200))
    place = ((rows.score - edges[0]) / (edges[1] - edges[0]) * bins).floor().cast("int64").clip(0, bins - 1)
    rows = rows.mutate(bin=place)
    found = rows.group_by("arm", "version", "bin").agg(rows=rows.count())
    return engine.ask(found.order_by("arm", "version", "bin"))


def sample(
    engine: Engine,
    model: str,
    most: int,
    *,
    since_us: int | None = None,
    until_us: int | None = None,
    version: str | None = None,
    columns: tuple[str, ...] = ROWS_COLUMNS,
) -> tuple[pa.Table, int]:
    """(about `most` of the served rows, by time, or all where they are fewer; how many there are).

    Which ones is the same for every engine and every time: those whose seq, multiplied modulo a prime, falls below a line.
    """
    rows = engine.rows(model, since_us=since_us, until_us=until_us)
    rows = rows.filter(rows.role == "served")
    if version is not None:
        rows = rows.filter(rows.version == version)
    whole = engine.ask(rows.agg(rows=rows.count())).column("rows")[0].as_py()
    if whole > most:
        rows = some_of(rows, most / whole)
    return engine.ask(rows.order_by("ts_us", "request_id", "row").select(*columns)), whole


def some_of(rows: Any, share: float) -> Any:
    """About that share of the rows, spread over each writer's, the same ones for every engine and every time."""
    return rows.filter((rows.seq * GOLDEN) % PRIME < int(share * PRIME))


def begin_of(ts_us: Any, bucket_us: int) -> Any:
    """The beginning of the stretch of `bucket_us` that holds the time."""
    return (ts_us / bucket_us).floor().cast("int64") * bucket_us


def span(engine: Engine, model: str) -> tuple[int, int]:
    """(ts_us of the first row, of the last)."""
    rows = engine.rows(model)
    found = engine.ask(rows.agg(first=rows.ts_us.min(), last=rows.ts_us.max())).to_pylist()[0]
    return int(found["first"]), int(found["last"])
