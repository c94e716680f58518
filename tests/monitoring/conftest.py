"""The engines that a lake is asked by: one suite of tests holds for all of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from monitoring.engine import Engine, open_engine


@pytest.fixture(scope="module", params=["duckdb", "spark"])
def opener(request: pytest.FixtureRequest) -> Iterator[Callable[[str | Path], Engine]]:
    if request.param == "duckdb":
        yield open_engine
        return
    if shutil.which("java") is None:
        pytest.skip("needs Java: apt-get install openjdk-17-jre-headless")
    yield lambda lake: open_engine(lake, "local[2]")
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    assert session is not None
    session.stop()
