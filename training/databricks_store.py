"""Databricks Feature Engineering as the feature store (extra `databricks`): each view is a time series table of Unity Catalog.

Needs a Spark session that reaches Databricks: a cluster's own, or one by Databricks Connect. Tables are
`<schema>.<view>`, where the repository's `schema` is `catalog.schema`; their primary keys are the entity and `event_time`.

No account was at hand: this is held to a fake (tests/training/databricks_fake.py) that was written from the client's own
source, version 0.18, and repeats its calls, checks and errors. What it says of a real workspace is therefore what the
client's documentation says. Databricks' online stores are not used: what servers look up is our own view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

import pandas as pd

from training import feature_tables
from training.errors import StoreRefused
from training.feature_repo import Repository, View
from training.feature_tables import TIME

PLACE = "coppice_place"
WRITTEN = "coppice_written"
ASKED_AT_ONCE = 100_000  # entities of one join
Lookups = Any
"""databricks.feature_engineering.FeatureLookup"""


class Client(Protocol):
    """What is used of FeatureEngineeringClient."""

    def create_table(self, *, name: str, primary_keys: list[str], df: Any, timeseries_column: str) -> Any: ...

    def get_table(self, *, name: str) -> Any: ...

    def write_table(self, *, name: str, df: Any, mode: str) -> Any: ...

    def create_training_set(self, *, df: Any, feature_lookups: list[Any], label: None) -> Any: ...


class DatabricksStore:
    def __init__(self, repository: Repository, client: Client, spark: Any, lookups: Lookups) -> None:
        self._repository = repository
        self._client = client
        self._spark = spark
        self._lookups = lookups

    @classmethod
    def connected(cls, repository: Repository) -> DatabricksStore:
        """By the session that there is, or that Databricks Connect makes. Raises StoreRefused, saying what is missing."""
        try:
            from databricks.feature_engineering import FeatureEngineeringClient, FeatureLookup
            from pyspark.sql import SparkSession
        except ImportError as missing:
            needed = "pip install 'coppice[databricks]', where a Spark session reaches Databricks"
            raise StoreRefused(f"store: databricks: {missing}: {needed}") from None
        return cls(repository, FeatureEngineeringClient(), SparkSession.builder.getOrCreate(), FeatureLookup)

    def apply(self, views: Sequence[View]) -> None:
        """A table that is there is merged into - the client can do no other - and then freed of what is no longer in ours."""
        for view in views:
            name, rows = self._table(view), self._frame(feature_tables.read(self._repository, view))
            if not self._is_there(name):
                keys = [view.entity, TIME]
                self._try(
                    view, self._client.create_table, name=name, primary_keys=keys, df=rows, timeseries_column=TIME
                )
                continue
            self._try(view, self._client.write_table, name=name, df=rows, mode="merge")
            rows.createOrReplaceTempView(WRITTEN)
            same = f"w.`{view.entity}` = t.`{view.entity}` AND w.`{TIME}` = t.`{TIME}`"
            self._spark.sql(f"DELETE FROM {name} AS t WHERE NOT EXISTS (SELECT 1 FROM {WRITTEN} AS w WHERE {same})")

    def as_of(self, view: View, pairs: pd.DataFrame) -> pd.DataFrame:
        """By place, not by instant: Spark gives instants back in its session's zone, without saying which."""
        placed = pairs.reset_index(drop=True).assign(**{PLACE: range(len(pairs))})
        lookup = self._lookups(
            table_name=self._table(view),
            lookup_key=[view.entity],
            feature_names=list(view.kinds),
            timestamp_lookup_key=TIME,
            lookback_window=timedelta(days=view.ttl_days) if view.ttl_days else None,
        )
        made = self._try(
            view, self._client.create_training_set, df=self._frame(placed), feature_lookups=[lookup], label=None
        )
        found = made.load_df().toPandas()[[PLACE, *view.kinds]]
        return placed.merge(found, on=PLACE, how="inner").drop(columns=PLACE)

    def latest(
        self, view: View, entities: Sequence[str], as_of: datetime
    ) -> Iterator[tuple[str, Mapping[str, object]]]:
        """What a training set would have at that instant. With a ttl, an entity of missing values alone is too old."""
        for begin in range(0, len(entities), ASKED_AT_ONCE):
            part = pd.DataFrame({view.entity: entities[begin : begin + ASKED_AT_ONCE]})
            part[TIME] = pd.Series(pd.Timestamp(as_of), index=part.index).dt.tz_convert("UTC").dt.as_unit("us")
            found = self.as_of(view, part)
            for name, kind in view.kinds.items():
                found[name] = feature_tables.typed(found[name], kind, name).astype(object)
            values = found[list(view.kinds)].where(found[list(view.kinds)].notna(), None)
            for entity, row in zip(found[view.entity], values.to_dict("records"), strict=True):
                if not view.ttl_days or any(value is not None for value in row.values()):
                    yield str(entity), {str(name): value for name, value in row.items()}

    def _table(self, view: View) -> str:
        return f"{self._repository.declared.schema}.{view.name}"

    def _is_there(self, name: str) -> bool:
        try:
            self._client.get_table(name=name)
        except ValueError as unknown:
            if "does not exist" not in str(unknown):
                raise StoreRefused(f"{name}: Databricks: {unknown}") from None
            return False
        return True

    def _frame(self, frame: pd.DataFrame) -> Any:
        return self._spark.createDataFrame(frame)

    def _try(self, view: View, call: Any, **given: Any) -> Any:
        """The client refuses by ValueError."""
        try:
            return call(**given)
        except ValueError as refused:
            raise StoreRefused(f"{self._table(view)}: Databricks: {refused}") from None
