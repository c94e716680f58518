"""A view's table: what was known of each entity, and from when on, as a feature store's join takes it.

One row for each entity and instant: the entity (text), `event_time` (UTC, to the microsecond), then the features in the
view's order - numbers as float64, categories as text, booleans - with what is missing as null. Made of the repository's
own tables and events, whole or not at all: the file is replaced by a rename.

Of a view with events there is a row for each entity that is known by then at every instant of the grid that `every_days`
and `anchor` lay, from the first event on to the first instant with none after it; the table's columns are as they were
known at that instant.
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training.data import read_frame
from training.errors import DataRefused
from training.feature_repo import Repository, View
from training.features import Kind
from training.transforms import DAY_US, compute, microseconds

TIME = "event_time"
MOST_ROWS = 50_000_000


def make(repository: Repository, view: View) -> pd.DataFrame:
    """The view's table, written and returned. Raises DataRefused, naming the file and the column."""
    table = _known(repository, view) if view.table else None
    frame = table if not view.events else _computed(repository, view, table)
    assert frame is not None, "a view has a table or events"
    frame = frame[[view.entity, TIME, *view.kinds]].sort_values([view.entity, TIME], kind="stable", ignore_index=True)
    _replace(repository.table_of(view), frame)
    return frame


def read(repository: Repository, view: View) -> pd.DataFrame:
    """Raises DataRefused where `make` has not been."""
    path = repository.table_of(view)
    if not path.exists():
        raise DataRefused(f"{path}: is not there yet: `coppice features apply {repository.folder}`")
    return pd.read_parquet(path)


def entity_text(column: pd.Series[Any], where: str) -> pd.Series[Any]:
    """Names of entities as text, whole numbers without a decimal point. Raises DataRefused, saying how many are none."""
    missing = int(column.isna().sum())
    if missing:
        raise DataRefused(f"{where}: {missing} rows have no entity")
    if pd.api.types.is_float_dtype(column):
        if not (column == column.round()).all():
            raise DataRefused(f"{where}: an entity is named by text or a whole number")
        column = column.astype("int64")
    return column.astype(str).astype(object)


def instants(column: pd.Series[Any], where: str) -> pd.Series[Any]:
    """UTC, to the microsecond; what has no time zone is taken for UTC. Raises DataRefused, with an example."""
    if pd.api.types.is_numeric_dtype(column):
        raise DataRefused(f"{where}: must hold instants, such as 2024-04-01T12:00:00Z, and holds numbers")
    parsed = pd.to_datetime(column, utc=True, errors="coerce", format=None if _is_time(column) else "ISO8601")
    odd = parsed.isna()
    if odd.any():
        raise DataRefused(
            f"{where}: {int(odd.sum())} rows have no instant, such as 2024-04-01T12:00:00Z; one has {column[odd].iloc[0]!r}"
        )
    return parsed.dt.as_unit("us")


def typed(column: pd.Series[Any], kind: Kind, where: str) -> pd.Series[Any]:
    """A feature's values in its kind. Raises DataRefused."""
    if kind == "number":
        if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            if column.notna().any():
                raise DataRefused(f"{where}: is declared a number and is none")
            return pd.Series(np.nan, index=column.index)
        return column.astype("float64")
    values = column.astype(object).where(column.notna(), None)
    wanted: type | tuple[type, ...] = (bool, np.bool_) if kind == "boolean" else str
    if not values.dropna().map(lambda value: isinstance(value, wanted)).all():
        raise DataRefused(f"{where}: is declared a {kind}, and some value is none")
    return values.map(lambda value: value if value is None else bool(value)) if kind == "boolean" else values


def _known(repository: Repository, view: View) -> pd.DataFrame:
    path = repository.folder / view.table
    frame = read_frame(path, as_is=[view.entity, view.time])
    _refuse_missing(path, frame, [view.entity, *([view.time] if view.since is None else []), *_columns(view)])
    known = pd.DataFrame({view.entity: entity_text(frame[view.entity], f"{path}: {view.entity}")})
    if view.since is None:
        known[TIME] = instants(frame[view.time], f"{path}: {view.time}")
    else:
        known[TIME] = pd.Series(pd.Timestamp(view.since), index=frame.index).dt.tz_convert("UTC").dt.as_unit("us")
    for column in view.features:
        known[column.name] = typed(frame[column.name], column.kind, f"{path}: {column.name}")
    twice = known.duplicated([view.entity, TIME])
    if twice.any():
        first = known[twice].iloc[0]
        raise DataRefused(
            f"{path}: {int(twice.sum())} rows tell another's instant anew: {first[view.entity]!r}, {first[TIME]}"
        )
    return known


def _computed(repository: Repository, view: View, table: pd.DataFrame | None) -> pd.DataFrame:
    path = repository.folder / view.events
    told_apart_by = [column for transform in view.transforms for column in transform.where]
    events = read_frame(path, as_is=[view.entity, view.time, *dict.fromkeys(told_apart_by)])
    _refuse_missing(path, events, [view.entity, view.time])
    events = events.assign(
        **{
            view.entity: entity_text(events[view.entity], f"{path}: {view.entity}"),
            view.time: instants(events[view.time], f"{path}: {view.time}"),
        }
    )
    first = events.groupby(view.entity)[view.time].min()
    if table is not None:
        first = pd.concat([first, table.groupby(view.entity)[TIME].min()]).groupby(level=0).min()
    cutoffs = _cutoffs(view, events[view.time], first, path)
    made = compute(view.transforms, events, view.entity, view.time, cutoffs.rename(columns={TIME: view.time}))
    if table is not None:
        cutoffs = _as_known(cutoffs, table, view.entity)
    return pd.concat([cutoffs, made], axis=1)


def _cutoffs(view: View, times: pd.Series[Any], first: pd.Series[Any], path: Path) -> pd.DataFrame:
    """Every entity at every instant of the grid from which on it is known."""
    step, anchor = round(view.every_days * DAY_US), microseconds(pd.Series([pd.Timestamp(view.anchor)]))[0]
    when = microseconds(times)
    begin, end = math.ceil((when.min() - anchor) / step), math.ceil((when.max() - anchor) / step)
    grid = anchor + step * np.arange(begin, end + 1)
    if len(grid) * len(first) > MOST_ROWS:
        raise DataRefused(
            f"{path}: {len(grid):,} instants of {len(first):,} entities are more than {MOST_ROWS:,} rows; "
            "raise every_days"
        )
    pairs = pd.DataFrame({view.entity: np.tile(first.index, len(grid)), TIME: np.repeat(grid, len(first))})
    known = pairs[TIME].to_numpy() >= np.tile(microseconds(first), len(grid))
    pairs = pairs[known].reset_index(drop=True)
    return pairs.assign(**{TIME: pd.to_datetime(pairs[TIME], unit="us", utc=True).dt.as_unit("us")})


def _as_known(cutoffs: pd.DataFrame, table: pd.DataFrame, entity: str) -> pd.DataFrame:
    joined = pd.merge_asof(
        cutoffs.astype({entity: object}).reset_index().sort_values(TIME, kind="stable"),
        table.astype({entity: object}).sort_values(TIME, kind="stable"),
        on=TIME,
        by=entity,
    )
    return joined.sort_values("index", ignore_index=True).drop(columns="index")


def _columns(view: View) -> list[str]:
    return [column.name for column in view.features]


def _refuse_missing(path: Path, frame: pd.DataFrame, wanted: list[str]) -> None:
    for name in wanted:
        if name not in frame.columns:
            raise DataRefused(f"{path}: has no column {name!r}; it has {', '.join(map(str, frame.columns))}")


def _is_time(column: pd.Series[Any]) -> bool:
    return bool(pd.api.types.is_datetime64_any_dtype(column))


def _replace(path: Path, frame: pd.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
    os.close(handle)
    try:
        frame.to_parquet(draft, index=False)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
