"""Outcomes reach the lake from the server's log and from files; the last counts; a file counts once; a bad row is named."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monitoring.compaction import compact
from monitoring.engine import open_engine
from monitoring.errors import OutcomesRefused
from monitoring.lake import HOUR_US
from monitoring.merging import tidy
from monitoring.outcomes_import import import_outcomes
from monitoring.queries import labelled
from serving import page
from serving.outcomes import Given, OutcomeLog
from serving.traffic import Tag, TrafficLog


def serve(traffic: Path, told: list[Given], *, finish: bool = True) -> page.Page:
    """A worker that scored ten rows r0 to r9, and was told outcomes."""

    async def run() -> page.Page:
        (traffic / "pages").mkdir(parents=True)
        shared = page.Page.create(traffic / "pages" / "s.page", 1)
        slot = shared.slot(0)
        slot.begin(2**22 + 1)
        log = TrafficLog(traffic, server="s", worker=0, slot=slot)
        tag = log.register(Tag(model="m", version="1", arm="champion", generation=1, role="served", schema="s"))
        for n in range(10):
            row = np.array([float(n)]).tobytes()
            log.put(tag, 5 * HOUR_US + n, b"r%d" % n, 0, b"", row, 0.5, 200, 1, 1, 1, 1)
        outcomes = OutcomeLog(traffic / "outcomes", log.writer, slot=slot, loop=asyncio.get_running_loop())
        await outcomes.write(told)
        assert log.close(10)
        if finish:
            assert outcomes.close(10)
        return shared

    return asyncio.run(run())


def values(lake: Path) -> dict[str, object]:
    rows = labelled(open_engine(lake), "m").to_pylist()
    return {row["request_id"]: row["value_number"] if row["value_text"] is None else row["value_text"] for row in rows}


def test_what_the_server_was_told_is_in_the_lake(tmp_path: Path) -> None:
    given = [Given(1, 5 * HOUR_US + n, f"r{n}", 0, value) for n, value in enumerate([1.5, True, False, "yes"])]
    serve(tmp_path / "traffic", given)
    done = compact(tmp_path / "traffic", tmp_path / "lake")
    assert (done.rows, done.outcomes) == (10, 4)
    rest = {f"r{n}": None for n in range(4, 10)}
    assert values(tmp_path / "lake") == {"r0": 1.5, "r1": 1.0, "r2": 0.0, "r3": "yes"} | rest
    assert compact(tmp_path / "traffic", tmp_path / "lake").segments == 0


def test_a_dead_writers_open_file_is_taken_and_a_live_ones_is_not(tmp_path: Path) -> None:
    import os

    shared = serve(tmp_path / "traffic", [Given(1, 5 * HOUR_US, "r0", 0, 2.0)], finish=False)
    shared.slot(0).cells[page.PID] = os.getpid()
    assert compact(tmp_path / "traffic", tmp_path / "lake").outcomes == 0
    shared.slot(0).cells[page.PID] = 2**22 + 1
    assert compact(tmp_path / "traffic", tmp_path / "lake").outcomes == 1
    assert values(tmp_path / "lake")["r0"] == 2.0


def test_a_file_corrects_what_was_told_and_counts_once(tmp_path: Path) -> None:
    serve(tmp_path / "traffic", [Given(1, 5 * HOUR_US, "r0", 0, 1.0), Given(1, 5 * HOUR_US, "r1", 0, 1.0)])
    lake = tmp_path / "lake"
    compact(tmp_path / "traffic", lake)
    file = tmp_path / "labels.csv"
    file.write_text(
        "request_id,value,row,ts\nr0,0,,\nr2,yes,0,2026-01-31T12:00:00Z\nr3,true,,1.5e9\n", encoding="utf-8"
    )
    assert import_outcomes(file, lake) == 3
    corrected = tmp_path / "later.jsonl"
    corrected.write_text(json.dumps({"request_id": "r0", "value": 7}) + "\n", encoding="utf-8")
    assert import_outcomes(corrected, lake) == 1
    assert import_outcomes(file, lake) is None
    found = values(lake)
    assert {name: found[name] for name in ("r0", "r1", "r2", "r3")} == {"r0": 7.0, "r1": 1.0, "r2": "yes", "r3": 1.0}
    assert tidy(lake, grace_s=-1, settled_s=-1e9).into >= 1
    assert tidy(lake, grace_s=-1, settled_s=-1e9).replaced >= 2
    assert import_outcomes(file, lake) is None
    assert values(lake) == found


def test_parquet_with_times_is_the_same_as_csv(tmp_path: Path) -> None:
    serve(tmp_path / "traffic", [])
    compact(tmp_path / "traffic", tmp_path / "lake")
    when = pd.Timestamp("2026-01-31T12:00:00Z")
    frame = pd.DataFrame({"request_id": ["r0", "r1"], "value": [0.25, 1.0], "ts": [when, when]})
    frame.to_parquet(tmp_path / "labels.parquet")
    assert import_outcomes(tmp_path / "labels.parquet", tmp_path / "lake") == 2
    rows = {row["request_id"]: row for row in labelled(open_engine(tmp_path / "lake"), "m").to_pylist()}
    assert rows["r0"]["happened_us"] == round(when.timestamp() * 1e6)
    assert rows["r1"]["value_number"] == 1.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("request_id,value\nr0,1\n?? !,2\n", "row 2: request_id"),
        ("request_id,value\nr0,\n", "row 1: .*value"),
        ("request_id,value\nr0,nan\n", "row 1: value: not a finite number"),
        ("request_id,value,row\nr0,1,-1\n", "row 1: row"),
        ("request_id,value,row\nr0,1,x\n", "row 1: row"),
        ("request_id,value,ts\nr0,1,2026-01-31T12:00:00\n", "row 1: ts: needs an offset"),
        ("request_id,value,when\nr0,1,2\n", "column 'when' is not one of request_id"),
        ("request_id,value\nr0\n", "line 2: has not the header's number of fields"),
        ("request_id,value\n", "holds no outcome"),
        ("request_id,value\nr0," + "y" * 300, "a label must be at most 256 bytes"),
    ],
)
def test_one_bad_row_refuses_the_file_by_its_row_and_field(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(OutcomesRefused, match=said):
        import_outcomes(file, tmp_path / "lake")
    assert not list((tmp_path / "lake").rglob("*.parquet"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutcomesRefused, match=r"none\.csv: No such file"):
        import_outcomes(tmp_path / "none.csv", tmp_path)
    for name, content in (("a.xls", b"x"), ("a.parquet", b"no"), ("a.jsonl", b"[1]\n"), ("a.csv", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OutcomesRefused, match=name):
            import_outcomes(tmp_path / name, tmp_path / "lake")
