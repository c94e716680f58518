"""Feast as the feature store (extra `feast`): tables in files, the online side in SQLite, or in Redis where addressed.

Its registry, SQLite file and `feature_store.yaml` lie in the repository's `data/`: `feast -c data ...` reads them.
Feast is imported here alone, takes some seconds to import, and stays out of the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from training.errors import StoreRefused
from training.feature_repo import Repository, View
from training.feature_tables import TIME
from training.features import Kind

BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)
ASKED_AT_ONCE = 1000  # entities: what Feast takes grows with them, and it holds the answer several times
NOT_FOUND = 3  # feast.protos.feast.serving.ServingService_pb2.FieldStatus


class FeastStore:
    def __init__(self, repository: Repository) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of what Feast uses are not ours to mend
            try:
                from feast import FeatureStore, RepoConfig
            except ImportError as missing:
                raise StoreRefused(f"store: feast: {missing}: pip install 'coppice[feast]'") from None
        self._repository = repository
        repository.data.mkdir(parents=True, exist_ok=True)
        config = _config(repository)
        (repository.data / "feature_store.yaml").write_text(
            json.dumps(config, indent=2), encoding="utf-8"
        )  # JSON is YAML
        self._store = FeatureStore(config=RepoConfig(**config))

    def apply(self, views: Sequence[View]) -> None:
        objects = [made for view in views for made in _objects(self._repository, view)]
        with _quiet():
            self._store.apply(list({made.name: made for made in objects}.values()))

    def as_of(self, view: View, pairs: pd.DataFrame) -> pd.DataFrame:
        asked = pairs.rename(columns={TIME: "event_timestamp"})
        with _quiet():
            answered: pd.DataFrame = self._store.get_historical_features(
                entity_df=asked, features=self._names(view)
            ).to_df()
        return answered.rename(columns={"event_timestamp": TIME})

    def latest(
        self, view: View, entities: Sequence[str], as_of: datetime
    ) -> Iterator[tuple[str, Mapping[str, object]]]:
        oldest = as_of - timedelta(days=view.ttl_days) if view.ttl_days else BEGINNING
        names = self._names(view)
        with _quiet():
            self._store.materialize(oldest, as_of, feature_views=[view.name])
        for begin in range(0, len(entities), ASKED_AT_ONCE):
            part = entities[begin : begin + ASKED_AT_ONCE]
            with _quiet():
                answer = self._store.get_online_features(names, [{view.entity: entity} for entity in part])
            yield from _rows(answer, view, part, (oldest, as_of))

    def _names(self, view: View) -> list[str]:
        """Of the features, as Feast calls them. Raises StoreRefused where it does not know the view as it is declared."""
        try:
            known = self._store.get_feature_view(view.name)
        except Exception as unknown:
            if type(unknown).__name__ != "FeatureViewNotFoundException":
                raise
            raise StoreRefused(self._not_applied(view)) from None
        if {field.name: str(field.dtype) for field in known.schema if field.name != view.entity} != {
            name: str(_types()[kind]) for name, kind in view.kinds.items()
        }:
            raise StoreRefused(self._not_applied(view))
        return [f"{view.name}:{name}" for name in view.kinds]

    def _not_applied(self, view: View) -> str:
        return f"{view.name}: Feast does not know it as declared: `coppice features apply {self._repository.folder}`"


def _config(repository: Repository) -> dict[str, Any]:
    declared, data = repository.declared, repository.data.absolute()
    online: dict[str, Any] = {"type": "sqlite", "path": str(data / "online.db")}
    if declared.online != "sqlite":
        online = {"type": "redis", "connection_string": _redis(declared.online)}
    return {
        "project": declared.project,
        "provider": "local",
        "registry": str(data / "registry.db"),
        "online_store": online,
        "offline_store": {"type": "file"},
        "entity_key_serialization_version": 3,
    }


def _redis(address: str) -> str:
    """redis://:password@host:port/db as Feast spells it: host:port,db=...,password=...,ssl=true."""
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(address)
    options = {"db": parts.path.strip("/"), "username": parts.username, "password": parts.password}
    told = [f"{name}={unquote(value)}" for name, value in options.items() if value]
    return ",".join([f"{parts.hostname}:{parts.port or 6379}", *told, *(["ssl=true"] * (parts.scheme == "rediss"))])


def _objects(repository: Repository, view: View) -> list[Any]:
    from feast import Entity, FeatureView, Field, FileSource, ValueType

    entity = Entity(name=view.entity, join_keys=[view.entity], value_type=ValueType.STRING)
    source = FileSource(name=f"{view.name}_table", path=str(repository.table_of(view).absolute()), timestamp_field=TIME)
    fields = [Field(name=name, dtype=_types()[kind]) for name, kind in view.kinds.items()]
    ttl = timedelta(days=view.ttl_days)
    return [entity, FeatureView(name=view.name, entities=[entity], ttl=ttl, schema=fields, source=source, online=True)]


def _types() -> dict[Kind, Any]:
    from feast.types import Bool, Float64, String

    return {"number": Float64, "category": String, "boolean": Bool}


def _rows(
    answer: Any, view: View, entities: Sequence[str], span: tuple[datetime, datetime]
) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Feast answers an unknown entity with nulls and says so in a status apart; what is too old it answers as if it were not.

    Raises StoreRefused where the online side is ahead of the instant that is asked for.
    """
    named = list(answer.proto.metadata.feature_names.val)
    columns = answer.to_dict()
    found = [answer.proto.results[named.index(name)] for name in view.kinds]
    for place, entity in enumerate(entities):
        if all(column.statuses[place] == NOT_FOUND for column in found):
            continue
        known = found[0].event_timestamps[place].ToDatetime(tzinfo=UTC)
        if known > span[1]:
            raise StoreRefused(
                f"{view.name}: the online store knows {entity!r} of {known.isoformat()}, later than asked for"
            )
        if known >= span[0]:
            yield entity, {name: columns[name][place] for name in view.kinds}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Feast tells its progress on stdout, where our own output goes."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
