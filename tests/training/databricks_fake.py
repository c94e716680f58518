"""A stand-in for Databricks: what Coppice uses of FeatureEngineeringClient 0.18 and of Spark, over pandas.

Written from the client's source and documentation; its checks and the words of its errors are the client's. It proves that
Coppice makes these calls as they are documented, and nothing about a real workspace. As in Spark, instants come back
without a zone, in that of the session; as in Delta, a merge takes nothing away.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pandas as pd

ZONE = "America/New_York"
DELETE = re.compile(
    r"DELETE FROM (\S+) AS t WHERE NOT EXISTS \(SELECT 1 FROM (\w+) AS w WHERE w\.`(\w+)` = t\.`\3` AND w\.`(\w+)` = t\.`\4`\)"
)


class Frame:
    """A Spark DataFrame. `rows`: instants in UTC."""

    def __init__(self, spark: Spark, rows: pd.DataFrame) -> None:
        self.spark, self.rows = spark, rows

    @property
    def columns(self) -> list[str]:
        return list(self.rows.columns)

    def toPandas(self) -> pd.DataFrame:  # Spark's name
        there = self.rows.sample(frac=1, random_state=1)  # Spark promises no order
        instants = [name for name in there if isinstance(there[name].dtype, pd.DatetimeTZDtype)]
        return there.assign(**{name: there[name].dt.tz_convert(ZONE).dt.tz_localize(None) for name in instants})

    def createOrReplaceTempView(self, name: str) -> None:
        self.spark.temporary[name] = self.rows


class Spark:
    def __init__(self) -> None:
        self.tables: dict[str, pd.DataFrame] = {}
        self.temporary: dict[str, pd.DataFrame] = {}

    def createDataFrame(self, rows: pd.DataFrame) -> Frame:
        rows = rows.reset_index(drop=True)
        instants = [name for name in rows if isinstance(rows[name].dtype, pd.DatetimeTZDtype)]
        return Frame(self, rows.assign(**{name: rows[name].dt.as_unit("us") for name in instants}))

    def sql(self, text: str) -> None:
        asked = DELETE.fullmatch(text)
        assert asked is not None, text
        name, written, *keys = asked.groups()
        kept = self.temporary[written].set_index(keys).index
        table = self.tables[name]
        self.tables[name] = table[table.set_index(keys).index.isin(kept)].reset_index(drop=True)


class FeatureLookup:
    def __init__(
        self,
        table_name: str,
        lookup_key: str | list[str],
        *,
        feature_names: str | list[str] | None = None,
        timestamp_lookup_key: str | None = None,
        lookback_window: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise TypeError(f"FeatureLookup got unexpected keyword argument(s): {list(kwargs.keys())}")
        if lookback_window is not None and not timestamp_lookup_key:
            raise ValueError(
                f"Unexpected lookback_window value: {lookback_window}, lookback windows can only be applied ..."
            )
        self.table_name, self.timestamp_lookup_key, self.lookback_window = (
            table_name,
            timestamp_lookup_key,
            lookback_window,
        )
        self.lookup_key = [lookup_key] if isinstance(lookup_key, str) else lookup_key
        self.feature_names = [feature_names] if isinstance(feature_names, str) else feature_names or []


class TrainingSet:
    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def load_df(self) -> Frame:
        return self._frame


class Client:
    def __init__(self, spark: Spark) -> None:
        self._spark = spark
        self._keys: dict[str, list[str]] = {}

    def create_table(
        self, *, name: str, primary_keys: list[str], df: Frame, timeseries_column: str | None = None, **kwargs: Any
    ) -> None:
        assert not kwargs, kwargs
        self._validate_is_uc_table_name(name)
        if timeseries_column is not None and timeseries_column not in primary_keys:
            raise ValueError(
                f"Timeseries column '{timeseries_column}' is not in primary_keys. Timeseries columns must be primary keys."
            )
        if name in self._spark.tables:
            raise ValueError(f"Data table {name} already exists. Use a different name.")
        for column in primary_keys:
            if column not in df.columns:
                raise ValueError(f"The provided DataFrame or schema must contain all specified primary keys. {column}")
        self._spark.tables[name] = df.rows
        self._keys[name] = primary_keys

    def get_table(self, *, name: str) -> object:
        self._validate_is_uc_table_name(name)
        if name not in self._spark.tables:
            raise ValueError(f"Feature table '{name}' does not exist.")
        return object()

    def write_table(self, *, name: str, df: Frame, mode: str = "merge") -> None:
        if mode != "merge":
            raise ValueError(f"Unsupported mode '{mode}'. 'merge' is the only supported mode.")
        self.get_table(name=name)
        before, keys = self._spark.tables[name], self._keys[name]
        missing = sorted(set(before.columns) - set(df.columns))
        if missing:
            raise ValueError(
                "Feature table has a timestamp column. When calling write_table the provided DataFrame must contain all "
                f"the feature columns. Could not find column(s) '{missing}'."
            )
        merged = pd.concat([before, df.rows]).drop_duplicates(keys, keep="last", ignore_index=True)
        self._spark.tables[name] = merged

    def create_training_set(
        self, *, df: Frame, feature_lookups: list[FeatureLookup], label: None, exclude_columns: list[str] | None = None
    ) -> TrainingSet:
        if not isinstance(feature_lookups, list):
            raise TypeError("'feature_lookups' must be a list.")
        assert label is None
        joined = df.rows
        for lookup in feature_lookups:
            self.get_table(name=lookup.table_name)
            joined = self._joined(joined, lookup)
        return TrainingSet(Frame(self._spark, joined.drop(columns=exclude_columns or [])))

    def _joined(self, rows: pd.DataFrame, lookup: FeatureLookup) -> pd.DataFrame:
        (key,), time = lookup.lookup_key, lookup.timestamp_lookup_key
        assert time is not None
        table = self._spark.tables[lookup.table_name]
        unknown = [name for name in lookup.feature_names if name not in table.columns]
        if unknown:
            raise ValueError(f"Unable to find feature '{unknown[0]}' from feature table '{lookup.table_name}'")
        return pd.merge_asof(
            rows.sort_values(time, kind="stable"),
            table[[key, time, *lookup.feature_names]].sort_values(time, kind="stable"),
            on=time,
            by=key,
            tolerance=lookup.lookback_window,
        )

    def _validate_is_uc_table_name(self, name: str) -> None:
        if len(name.split(".")) != 3:
            raise ValueError("FeatureEngineeringClient only supports feature tables in Unity Catalog.")
