"""Who answers questions about the lake: DuckDB in this process, or Spark at an address. The questions are Ibis expressions.

    open_engine("var/lake")                                DuckDB
    open_engine("s3://bucket/lake", "spark://host:7077")   Spark; also local[2], yarn, or sc://host:15002 (Spark Connect)

Both read the files that `monitoring.lake` says are visible, with their checksums, under the same schema, so that one suite
of tests holds for both. DuckDB is given a pyarrow dataset, which it scans as a stream, asking for the columns it needs.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import ibis
import pyarrow as pa

from monitoring.errors import LakeRefused, MonitoringError
from monitoring.lake import (
    OUTCOMES_SCHEMA,
    PARTITIONS,
    SCHEMA,
    outcomes_dataset,
    outcomes_parts,
    refused,
    rows_dataset,
    rows_parts,
)
from monitoring.lake_files import LakeFiles, check_footers, open_files

MEMORY = "1GB"  # of DuckDB's own; what a question needs beyond it goes to the folder of temporary files
SPARK = re.compile(r"(local(\[[\d*]+\])?|yarn|(spark|k8s|sc)://.+)$")
ADDRESSES = "local[2], spark://HOST:PORT, yarn, k8s://HOST:PORT, or sc://HOST:PORT"


class Engine(Protocol):
    """`files` is the lake. Tables are Ibis's, bound to the engine: to ask is `ask(expression)`."""

    files: LakeFiles

    def rows(self, model: str, *, since_us: int | None = None, until_us: int | None = None) -> Any:
        """The model's rows with since <= ts_us < until, whatever their role: SCHEMA's columns. Raises LakeRefused where
        the lake has none of the model at all."""
        ...

    def outcomes(self, *, since_us: int | None = None) -> Any:
        """Every outcome received then or later, as often as it came: OUTCOMES_SCHEMA's columns."""
        ...

    def ask(self, question: Any) -> pa.Table:
        """Raises LakeRefused, naming the file, where one is spoiled."""
        ...


def open_engine(lake: str | Path, engine: str = "duckdb") -> Engine:
    """Raises MonitoringError for an engine that is not there."""
    files = open_files(lake)
    if engine == "duckdb":
        return _DuckDB(files)
    if not SPARK.match(engine):
        raise MonitoringError(f"--engine: {engine!r} is neither duckdb nor a Spark to be reached: {ADDRESSES}")
    return _Spark(files, engine)


class _DuckDB:
    def __init__(self, files: LakeFiles) -> None:
        self.files = files
        self._connection = ibis.duckdb.connect(
            threads=len(os.sched_getaffinity(0)), memory_limit=MEMORY, temp_directory=tempfile.gettempdir()
        )
        self._names = _names()
        self._read: list[str] = []

    def rows(self, model: str, *, since_us: int | None = None, until_us: int | None = None) -> Any:
        paths = rows_parts(self.files, model, since_us=since_us, until_us=until_us)
        table = self._table(rows_dataset(self.files, paths), paths)
        return _within(table, since_us, until_us).select(*SCHEMA.names)

    def outcomes(self, *, since_us: int | None = None) -> Any:
        paths = outcomes_parts(self.files, since_us=since_us)
        return self._table(outcomes_dataset(self.files, paths), paths)

    def ask(self, question: Any) -> pa.Table:
        with _told(self.files, self._read):
            return question.to_pyarrow()

    def _table(self, dataset: Any, paths: Sequence[str]) -> Any:
        name = next(self._names)
        self._connection.con.register(name, dataset)
        self._read += paths
        return self._connection.table(name)


class _Spark:
    def __init__(self, files: LakeFiles, address: str) -> None:
        try:
            from pyspark.sql import SparkSession
        except ImportError:
            raise MonitoringError('--engine: Spark needs the extra "spark": pip install "coppice[spark]"') from None
        self.files = files
        asked = SparkSession.builder.appName("coppice")
        if address.startswith("sc://"):
            asked = asked.remote(address)
        else:
            asked = asked.master(address).config("spark.ui.enabled", "false")
            asked = asked.config("spark.ui.showConsoleProgress", "false")
            if address.startswith("local"):
                asked = asked.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
                asked = asked.config("spark.sql.shuffle.partitions", "4")
        try:
            self._session = asked.config("spark.hadoop.parquet.page.verify-checksum.enabled", "true").getOrCreate()
            self._session.conf.set("spark.sql.session.timeZone", "UTC")
        except Exception as absent:  # Java's, py4j's and gRPC's have no base of their own
            raise MonitoringError(f"--engine {address}: Spark does not start there: {_line(absent)}") from None
        self._connection = ibis.pyspark.connect(self._session)
        self._names = _names()
        self._read: list[str] = []

    def rows(self, model: str, *, since_us: int | None = None, until_us: int | None = None) -> Any:
        paths = rows_parts(self.files, model, since_us=since_us, until_us=until_us)
        table = self._table(pa.unify_schemas([SCHEMA, PARTITIONS]), paths)
        return _within(table, since_us, until_us).select(*SCHEMA.names)

    def outcomes(self, *, since_us: int | None = None) -> Any:
        return self._table(OUTCOMES_SCHEMA, outcomes_parts(self.files, since_us=since_us))

    def ask(self, question: Any) -> pa.Table:
        with _told(self.files, self._read):
            return question.to_pyarrow()

    def _table(self, schema: pa.Schema, paths: Sequence[str]) -> Any:
        from pyspark.sql.pandas.types import from_arrow_schema

        root = self.files.name.replace("s3://", "s3a://")
        root = root if "://" in root else Path(root).absolute().as_uri()
        kinds = from_arrow_schema(schema)
        check_footers(self.files, paths)
        if paths:
            reader = self._session.read.schema(kinds).option("basePath", root)
            frame = reader.parquet(*(f"{root}/{path}" for path in paths))
        else:
            frame = self._session.createDataFrame([], kinds)
        name = next(self._names)
        frame.createOrReplaceTempView(name)
        self._read += paths
        return self._connection.table(name)


def _within(table: Any, since_us: int | None, until_us: int | None) -> Any:
    if since_us is not None:
        table = table.filter(table.ts_us >= since_us)
    if until_us is not None:
        table = table.filter(table.ts_us < until_us)
    return table


@contextmanager
def _told(files: LakeFiles, paths: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except LakeRefused:
        raise
    except Exception as why:  # the engines' own errors, which have no base in common
        raise refused(files, paths, RuntimeError(_line(why))) from why


def _line(why: BaseException) -> str:
    return (str(why).strip() or type(why).__name__).splitlines()[0]


def _names() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"lake_{number}"
