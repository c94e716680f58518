"""A feature repository: a folder whose `features.toml` says which views there are, of which tables and events. Validated.

store = "feast"                     who keeps the features: feast, or databricks
project = "coppice"
online = "sqlite"                   Feast's online store: sqlite (in the folder), or redis://host:port/db
schema = "catalog.schema"           of Databricks: where in Unity Catalog a view's table is

[[views]]
name = "churn"                      what a recipe's [lookup] and a server look up
entity = "customer_id"              the column that names whose features they are
table = "customers.parquet"         CSV or Parquet, from this folder; its rows are what became known of an entity, and ...
time = "event_time"                 ... when: a column of the table and of the events, or ...
since = "2000-01-01T00:00:00Z"      ... one instant for the whole table, where it has no such column
ttl_days = 0.0                      a value older than this counts as missing; 0: never
events = "events.parquet"           optional: a row for each event, with the entity, the time, and whatever else
every_days = 7.0                    with events: the transformations are computed at instants so far apart, ...
anchor = "2024-04-01T00:00:00Z"     ... one of which is this one

[[views.features]]                  columns of the table
name = "plan"
kind = "category"                   number, category or boolean

[[views.transforms]]                features made of the events: `training.transforms`
name = "logins_30d"
compute = "count"
where = { kind = "login" }
window_days = 30.0

What is made of it lies in `data/`: a table a view, and the store's own files.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from training.errors import RecipeRefused
from training.features import Kind
from training.transforms import Transform, refuse_impossible

FILE = "features.toml"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
SCHEMA = re.compile(r"[A-Za-z0-9_]+\.[A-Za-z0-9_]+")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    kind: Kind


class View(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`kinds`: the features in their order, columns of the table first."""

    name: str
    entity: str
    table: str = ""
    time: str = ""
    since: datetime | None = None
    ttl_days: float = 0.0
    events: str = ""
    every_days: float = 1.0
    anchor: datetime = EPOCH
    features: tuple[Column, ...] = ()
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        where = f"views.{self.name}"
        if not NAME.fullmatch(self.name):
            raise RecipeRefused(f"{where}: a view's name must be letters, digits and _, and at most 64 of them")
        if not self.entity:
            raise RecipeRefused(f"{where}: entity: name the column that says whose features these are")
        if bool(self.table) != bool(self.features) or bool(self.events) != bool(self.transforms):
            raise RecipeRefused(f"{where}: a table needs features and the reverse; so do events and transforms")
        if not self.kinds:
            raise RecipeRefused(f"{where}: has neither features nor transforms")
        if self.events and not self.time:
            raise RecipeRefused(f"{where}: time: name the column that says when an event was")
        if self.table and not self.time and self.since is None:
            raise RecipeRefused(f"{where}: name the `time` column, or say `since` when the table's values are known")
        if not (0 <= self.ttl_days < 1e5 and 0.001 <= self.every_days < 1e5):
            raise RecipeRefused(f"{where}: ttl_days must be 0 or more, every_days 0.001 or more")
        if any(instant is not None and instant.tzinfo is None for instant in (self.since, self.anchor)):
            raise RecipeRefused(f"{where}: since and anchor need a time zone; end them with Z for UTC")
        refuse_impossible(self.transforms, where)
        names = [column.name for column in self.features] + [made.name for made in self.transforms]
        for name in names:
            if names.count(name) > 1 or name in (self.entity, self.time, "event_time"):
                raise RecipeRefused(f"{where}: {name}: stands for two things")

    @property
    def kinds(self) -> dict[str, Kind]:
        made: dict[str, Kind] = {transform.name: "number" for transform in self.transforms if not transform.hidden}
        return {column.name: column.kind for column in self.features} | made


class Declared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    views: tuple[View, ...]
    store: Literal["feast", "databricks"] = "feast"
    project: str = "coppice"
    online: str = "sqlite"
    schema: str = ""

    def __post_init__(self) -> None:
        if not self.views:
            raise RecipeRefused("views: there is none")
        names = [view.name for view in self.views]
        for name in names:
            if names.count(name) > 1:
                raise RecipeRefused(f"views.{name}: is declared twice")
        if not NAME.fullmatch(self.project):
            raise RecipeRefused("project: must be letters, digits and _")
        if (self.store == "databricks") != bool(SCHEMA.fullmatch(self.schema)):
            raise RecipeRefused("schema: a store in Databricks needs catalog.schema, and no other takes one")
        if self.online != "sqlite" and self.store != "feast":
            raise RecipeRefused(
                "online: is of Feast; views for servers are put where `coppice features materialize` is told"
            )
        if self.online != "sqlite" and not self.online.startswith(("redis://", "rediss://")):
            raise RecipeRefused(f"online: {self.online!r} is neither sqlite nor redis://host:port/db")


@dataclass(frozen=True)
class Repository:
    folder: Path
    declared: Declared

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def table_of(self, view: View) -> Path:
        """What the view's features are read from: made by `training.feature_tables`."""
        return self.data / f"{view.name}.parquet"

    def view(self, name: str) -> View:
        """Raises RecipeRefused, saying which there are. The only one, where the name is empty."""
        views = {view.name: view for view in self.declared.views}
        if not name and len(views) == 1:
            return next(iter(views.values()))
        if name not in views:
            raise RecipeRefused(f"{self.folder / FILE}: has no view {name!r}; it has {', '.join(views)}")
        return views[name]


def load(folder: Path) -> Repository:
    """Raises RecipeRefused, naming the file and the key."""
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeRefused(f"{path}: there is no such file; `coppice features init {folder}` makes one") from None
    except (OSError, UnicodeDecodeError) as unreadable:
        raise RecipeRefused(f"{path}: {unreadable}") from None
    return Repository(folder, parse(text, str(path)))


def parse(text: str, where: str) -> Declared:
    """Raises RecipeRefused, naming the key."""
    try:
        return msgspec.convert(tomllib.loads(text), Declared)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecipeRefused) as wrong:
        raise RecipeRefused(f"{where}: {wrong}") from None
