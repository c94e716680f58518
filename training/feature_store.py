"""A feature store behind one small protocol, and what we make with any of them: training sets and materialised views.

    apply       -> tables made of the repository's sources, views made known to the store
    training set   labels with the features that were known at each label's instant, and no later
    materialise -> the store's online side brought up to an instant, and read back into a view that servers look up

A store's join may leave out rows without a word: Feast leaves out those that are older than the entity's first feature, and
all but one of those that share entity and instant. So a store is asked for each pair of entity and instant once, its answer
is joined to the labels again, and the labels for which nothing was known are counted and named, never dropped in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import pandas as pd

from training import feature_repo, feature_tables
from training import view as views
from training.data import Dataset, from_frame, read_frame
from training.errors import DataRefused, RecipeRefused, StoreRefused
from training.feature_repo import Repository, View
from training.feature_tables import TIME
from training.recipe import Recipe
from training.view import REDIS, Facts, ViewFile, ViewRefused


class FeatureStore(Protocol):
    """What Coppice asks of a feature store. An entity is text; instants are UTC."""

    def apply(self, views: Sequence[View]) -> None:
        """Make the views known, as they are declared; those known before are replaced."""

    def as_of(self, view: View, pairs: pd.DataFrame) -> pd.DataFrame:
        """`pairs` (the entity, `event_time`), each with the features known at that instant; maybe fewer, in any order."""

    def latest(
        self, view: View, entities: Sequence[str], as_of: datetime
    ) -> Iterator[tuple[str, Mapping[str, object]]]:
        """The newest features, by entity, from the store's online side once that is brought up to `as_of`. An entity of
        which nothing is known by then is left out."""


@dataclass(frozen=True)
class TrainingSet:
    """`frame`: the labels that something was known for, with the features; `unknown`: how many others, `example` one."""

    frame: pd.DataFrame
    unknown: int
    example: str


def opened(repository: Repository) -> FeatureStore:
    """The store that the repository declares."""
    if repository.declared.store == "databricks":
        from training.databricks_store import DatabricksStore

        return DatabricksStore.connected(repository)
    from training.feast_store import FeastStore

    return FeastStore(repository)


def training_set(store: FeatureStore, view: View, labels: pd.DataFrame, time: str, where: str) -> TrainingSet:
    """Each label with what was known at its instant, in the labels' order. Raises DataRefused, naming the column."""
    for name in (view.entity, time):
        if name not in labels.columns:
            raise DataRefused(f"{where}: has no column {name!r}; it has {', '.join(map(str, labels.columns))}")
    twice = [name for name in view.kinds if name in labels.columns]
    if twice:
        raise DataRefused(f"{where}: {twice[0]}: comes from the view {view.name}; the labels must not have it")
    keys = pd.DataFrame(
        {
            view.entity: feature_tables.entity_text(labels[view.entity], f"{where}: {view.entity}"),
            TIME: feature_tables.instants(labels[time], f"{where}: {time}"),
        }
    )
    found = store.as_of(view, keys.drop_duplicates())
    features = _typed(view, found)
    if features.duplicated([view.entity, TIME]).any():
        raise StoreRefused(f"{view.name}: the store answered twice for the same entity and instant")
    joined = keys.merge(features.assign(_known=True), on=[view.entity, TIME], how="left")
    joined.index = labels.index
    known = joined["_known"].notna() & joined[list(view.kinds)].notna().any(axis=1)
    rest = labels.drop(columns=[view.entity, time])
    frame = pd.concat([joined[list(view.kinds)], rest], axis=1)[known]
    unknown = keys[~known.to_numpy()]
    example = "" if unknown.empty else f"{unknown[view.entity].iloc[0]!r} at {unknown[TIME].iloc[0].isoformat()}"
    return TrainingSet(_typed_features(view, frame), len(unknown), example)


def dataset(
    recipe: Recipe, labels: Path, target: str, positive: str | None, progress: Callable[[str], None]
) -> Dataset:
    """The training set of a labels file; what had to be left out of it is told. Raises DataRefused where all was.

    The labels' instant, or entity, stays beside the features where the recipe splits by it.
    """
    data, lookup = recipe.data, recipe.lookup
    assert lookup is not None, "a recipe that names a feature repository has one"
    repository = feature_repo.load(Path(data.features))
    view = repository.view(lookup.view)
    if lookup.entity != view.entity:
        raise RecipeRefused(f"lookup.entity: the view {view.name} is by {view.entity!r}, not by {lookup.entity!r}")
    table = feature_tables.read(repository, view)
    frame = read_frame(labels, as_is=[view.entity, data.time])
    made = training_set(opened(repository), view, frame, data.time, str(labels))
    source = f"{labels.name} with view {view.name} ({len(table):,} rows)"
    if made.unknown:
        told = (
            f"left out {made.unknown:,} of {len(frame):,} labels: view {view.name} knew nothing of the entity at that "
            f"instant, such as {made.example}"
        )
        if made.frame.empty:
            raise DataRefused(f"{labels}: {told}")
        progress(told)
        source = f"{source}; {made.unknown:,} of {len(frame):,} labels left out"
    digest = hashlib.sha256(labels.read_bytes() + repository.table_of(view).read_bytes()).hexdigest()
    by = recipe.split.column
    rows = made.frame.assign(**{by: frame[by]}) if by in (data.time, view.entity) else made.frame
    return from_frame(rows, target, positive=positive, task=recipe.task, source=source, digest=digest)


def materialize(store: FeatureStore, repository: Repository, view: View, as_of: datetime, address: str) -> Facts:
    """Fill the view at that address - a folder, or Redis - with what is known at `as_of`; whole, or not at all.

    Raises ViewRefused where the view there is of a later instant: going back would mix two times in the online store.
    """
    present = present_facts(address, view.name)
    stamp = as_of.isoformat(timespec="microseconds")
    if present is not None and datetime.fromisoformat(present.as_of) > as_of:
        raise ViewRefused(
            f"{view.name}: the view in {address} is of {present.as_of}, later than {stamp}; remove it first"
        )
    table = feature_tables.read(repository, view)
    known = table[table[TIME] <= pd.Timestamp(as_of)]
    entities = sorted(known[view.entity].unique())
    if not entities:
        begins = table[TIME].min()
        raise DataRefused(
            f"{view.name}: nothing was known of any {view.entity} by {stamp}; the table begins at {begins}"
        )
    facts = Facts(view.name, view.entity, view.kinds, stamp, len(entities))
    rows = ((name, views.spell(view.kinds, values)) for name, values in store.latest(view, entities, as_of))
    if address.startswith(REDIS):
        from training import view_redis

        return view_redis.write(address, facts, rows)
    return views.write(Path(address), facts, rows)


def present_facts(address: str, view: str) -> Facts | None:
    """Of the view that is there now; None where none is."""
    if address.startswith(REDIS):
        from training import view_redis

        return view_redis.present(address, view)
    path = views.path_of(Path(address), view)
    if not path.exists():
        return None
    found = ViewFile(path)
    found.close()
    return found.facts


def _typed(view: View, found: pd.DataFrame) -> pd.DataFrame:
    keys = found[[view.entity, TIME]].assign(**{TIME: pd.to_datetime(found[TIME], utc=True).dt.as_unit("us")})
    return pd.concat([keys, found[list(view.kinds)]], axis=1)


def _typed_features(view: View, frame: pd.DataFrame) -> pd.DataFrame:
    typed = {name: feature_tables.typed(frame[name], kind, name) for name, kind in view.kinds.items()}
    return frame.assign(**typed)
