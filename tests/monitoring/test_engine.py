"""Every engine answers alike, whatever the lake is made of: DuckDB and Spark, a folder and S3, parts and merged files."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from s3 import bucket_server

from monitoring import queries
from monitoring.compaction import compact, put_outcomes
from monitoring.engine import Engine, open_engine
from monitoring.errors import LakeRefused, MonitoringError
from monitoring.lake import HOUR_US, outcomes_table
from monitoring.lake_files import open_files
from monitoring.merging import tidy
from serving import page
from serving.outcomes import Outcome
from serving.traffic import Tag, TrafficLog

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # py4j's
ROWS = 3000
T0 = 400_000 * HOUR_US

Opener = Callable[[str | Path], Engine]


def traffic(folder: Path) -> Path:
    """Two writers' segments over four hours: three arms, shadows, failures, NaN."""
    rng = np.random.default_rng(3)
    (folder / "pages").mkdir(parents=True)
    shared = page.Page.create(folder / "pages" / "s.page", 2)
    for worker in range(2):
        slot = shared.slot(worker)
        slot.begin(2**22 + 1)
        log = TrafficLog(folder, server="s", worker=worker, slot=slot, block_rows=50, max_blocks=1000)
        tags = [log.register(tag(arm, role)) for arm, role in ARMS]
        for n in range(ROWS // 2):
            which = int(rng.integers(len(tags)))
            failed = rng.random() < 0.02
            log.put(
                tags[which],
                T0 + n * 4 * HOUR_US // (ROWS // 2) + worker,
                b"r%d-%d" % (worker, n // 2),
                n % 2,
                b"u%d" % (n % 7),
                rng.normal(size=3).tobytes(),
                math.nan if failed else float(rng.random()),
                500 if failed else 200,
                *(int(us) for us in rng.integers(1, 900, 3)),
                int(rng.integers(1, 9)),
            )
        assert log.close(20)
        shared.retire(worker)
    return folder


ARMS = [("champion", "served"), ("challenger", "served"), ("candidate", "shadow"), ("champion", "fallback")]


def tag(arm: str, role: str) -> Tag:
    version = {"champion": "1"}.get(arm, "2")
    return Tag(model="m", version=version, arm=arm, generation=1, role=role, schema="s")  # type: ignore[arg-type]


def told(number: int, value: float | bool | str, received: int, seq: int) -> Outcome:
    return Outcome(T0 + number, T0 + received, f"r{number % 2}-{number // 2}", number % 2, value, seq, "w")


OUTCOMES = [
    *(told(n, float(n % 3 == 0), n, n) for n in range(600)),
    *(told(n, "late", 24 * HOUR_US, n + 10_000) for n in range(0, 60, 2)),  # corrected a day later
    *(told(n, False, 24 * HOUR_US, n + 9_000) for n in range(0, 30, 2)),  # at once with these, of a lower seq
    *(told(n, 1.0, n, n + 20_000) for n in range(100)),  # sent twice
]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    compact(traffic(folder / "traffic"), folder / "lake")
    put_outcomes(open_files(folder / "lake"), "import", outcomes_table(OUTCOMES))
    return folder / "lake"


def plain(lake: Path) -> pa.Table:
    """The oracle reads every file by itself."""
    return pa.concat_tables([pa.parquet.ParquetFile(path).read() for path in sorted(lake.glob("model=m/**/*.parquet"))])


def test_the_rows_of_a_time_are_those_of_the_files(opener: Opener, lake: Path) -> None:
    engine = opener(lake)
    whole = plain(lake)
    for since, until in ((None, None), (T0 + HOUR_US, T0 + 3 * HOUR_US), (T0 + 5000, None), (T0 - 9, T0)):
        asked = engine.ask(engine.rows("m", since_us=since, until_us=until))
        expected = whole.filter((pc.field("ts_us") >= (since or 0)) & (pc.field("ts_us") < (until or 1 << 60)))
        keys = [("writer", "ascending"), ("seq", "ascending")]
        got, wanted = asked.sort_by(keys), expected.sort_by(keys)
        assert (
            got.select(["writer", "seq", "features", "arm"]).to_pylist()
            == wanted.select(["writer", "seq", "features", "arm"]).to_pylist()
        )


def test_the_outcome_that_counts_is_the_last_to_be_received(opener: Opener, lake: Path) -> None:
    got = queries.labelled(opener(lake), "m", roles=("served", "fallback", "shadow"))
    assert got.num_rows == ROWS
    assert got.column_names == [*queries.ROWS_COLUMNS, *queries.OUTCOME_COLUMNS]
    newest: dict[tuple[str, int], Outcome] = {}
    for outcome in sorted(OUTCOMES, key=lambda told: (told.received_us, told.seq)):
        newest[outcome.request_id, outcome.row] = outcome
    for row in got.to_pylist():
        counts = newest.get((row["request_id"], row["row"]))
        if counts is None:
            assert row["value_number"] is row["value_text"] is row["received_us"] is None
        elif isinstance(counts.value, str):
            assert (row["value_text"], row["value_number"]) == (counts.value, None)
        else:
            assert (row["value_number"], row["value_text"]) == (float(counts.value), None)
    assert Counter(got.column("value_text").to_pylist())["late"] == 30


def test_operations_are_what_the_rows_say(opener: Opener, lake: Path) -> None:
    got = queries.operations(opener(lake), "m", HOUR_US).to_pylist()
    rows = [row for row in plain(lake).to_pylist() if row["role"] != "shadow"]
    assert [(found["begin_us"], found["arm"]) for found in got] == sorted(
        {(row["ts_us"] // HOUR_US * HOUR_US, row["arm"]) for row in rows}
    )
    for found in got:
        mine = [
            row for row in rows if (row["ts_us"] // HOUR_US * HOUR_US, row["arm"]) == (found["begin_us"], found["arm"])
        ]
        own = [row for row in mine if row["role"] != "fallback"]
        assert found["rows"] == len(own)
        assert found["requests"] == sum(row["row"] == 0 for row in own)
        assert found["errors"] == sum(row["status"] != 200 for row in own)
        assert found["fallbacks"] == len(mine) - len(own)
        whole = [row["parse_us"] + row["queue_us"] + row["score_us"] for row in mine]
        for name, q in queries.QUANTILES.items():
            assert found[name] == pytest.approx(np.quantile(whole, q), abs=1e-9)
        assert found["max_us"] == max(whole)


def test_the_histogram_of_scores_counts_every_row_that_was_scored(opener: Opener, lake: Path) -> None:
    got = queries.score_histogram(opener(lake), "m", (0.1, 0.9), 8).to_pylist()
    rows = [row for row in plain(lake).to_pylist() if row["role"] == "served" and row["status"] == 200]
    expected = Counter((row["arm"], min(max(math.floor((row["score"] - 0.1) / 0.8 * 8), 0), 7)) for row in rows)
    assert {(found["arm"], found["bin"]): found["rows"] for found in got} == expected


def test_a_sample_is_the_same_for_every_engine(opener: Opener, lake: Path) -> None:
    got, whole = queries.sample(opener(lake), "m", 300)
    everything, same = queries.sample(opener(lake), "m", 10_000)
    assert whole == same == everything.num_rows == sum(row["role"] == "served" for row in plain(lake).to_pylist())
    assert 200 < got.num_rows < 400
    twin, _ = queries.sample(open_engine(lake), "m", 300)
    assert got.column("request_id").to_pylist() == twin.column("request_id").to_pylist()


def test_a_merged_hour_is_read_once(opener: Opener, lake: Path, tmp_path: Path) -> None:
    copy = tmp_path / "lake"
    shutil.copytree(lake, copy)
    before = queries.operations(opener(lake), "m", HOUR_US)
    done = tidy(copy, grace_s=1e9)
    assert (done.merged, done.into) == (8, 4)
    assert len(list(copy.glob("model=m/**/*.parquet"))) == 12
    assert queries.operations(opener(copy), "m", HOUR_US).equals(before)
    assert tidy(copy, grace_s=-1).replaced == 8
    assert len(list(copy.glob("model=m/**/*.parquet"))) == 4
    assert queries.operations(opener(copy), "m", HOUR_US).equals(before)


def test_a_flipped_bit_is_told_by_the_files_name(opener: Opener, lake: Path, tmp_path: Path) -> None:
    copy = tmp_path / "lake"
    shutil.copytree(lake, copy)
    part = sorted(copy.glob("model=m/**/*.parquet"))[2]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    engine = opener(copy)
    with pytest.raises(LakeRefused, match=part.name):
        engine.ask(engine.rows("m"))


def test_a_lake_without_outcomes_has_no_labels(opener: Opener, lake: Path, tmp_path: Path) -> None:
    copy = tmp_path / "lake"
    shutil.copytree(lake, copy)
    shutil.rmtree(copy / "_outcomes")
    got = queries.labelled(opener(copy), "m")
    assert got.column("received_us").null_count == got.num_rows > 0
    with pytest.raises(LakeRefused, match="it has: m"):
        opener(copy).rows("other")


def test_in_s3_the_lake_is_the_same(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket_server(tmp_path, monkeypatch) as bucket:
        address = f"{bucket.address}/lake"
        assert compact(traffic(tmp_path / "traffic"), address).rows == ROWS
        put_outcomes(open_files(address), "import", outcomes_table(OUTCOMES))
        there, here = open_engine(address), open_engine(lake)
        assert queries.operations(there, "m", HOUR_US).equals(queries.operations(here, "m", HOUR_US))
        assert queries.labelled(there, "m").num_rows == queries.labelled(here, "m").num_rows
        assert tidy(address, grace_s=-1).merged == 8
        assert tidy(address, grace_s=-1).replaced == 8
        again = open_engine(address)
        assert queries.operations(again, "m", HOUR_US).equals(queries.operations(here, "m", HOUR_US))
        bucket.stop()
        with pytest.raises(LakeRefused, match="s3://"):
            open_files(address).paths()


def test_an_address_that_is_none_is_told(lake: Path) -> None:
    with pytest.raises(LakeRefused, match="a folder, or s3://BUCKET"):
        open_engine("ftp://somewhere/lake")
    with pytest.raises(MonitoringError, match="neither duckdb nor a Spark"):
        open_engine(lake, "nonsense://x")
