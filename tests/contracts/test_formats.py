"""Files that older releases wrote must stay readable: each format has one, pinned here byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.ipc

from serving.outcomes import Outcome, read_outcomes
from serving.routes import read
from serving.traffic import COLUMNS, SCORES, Segment, Tag, read_segment, split_payload

HERE = Path(__file__).parent


def test_the_golden_segment_of_version_1_reads_as_it_was_written() -> None:
    assert (HERE / "golden.seg").read_bytes().startswith(b"COPPSEG1")
    payloads, bad = read_segment(HERE / "golden.seg")
    assert bad == 0
    assert len(payloads) == 2
    facts, _ = split_payload(payloads[1])
    assert facts.writer.startswith("golden-0-")
    assert facts.tags == (
        Tag(model="churn", version="3", arm="champion", generation=7, role="served", schema="ab" * 32),
        Tag(model="churn", version="4", arm="candidate", generation=7, role="shadow", schema="ab" * 32),
    )
    rows = [
        row for payload in payloads for row in pyarrow.ipc.open_stream(split_payload(payload)[1]).read_all().to_pylist()
    ]
    assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5]
    assert [tuple(row) for row in rows] == [tuple(name for name, _ in COLUMNS)] * 5
    assert rows[0]["request_id"] == "request-0"
    assert rows[1]["unit"] == "unit-1"
    assert rows[4]["features"][0] == 4.0
    assert np.isnan(rows[4]["features"][1])
    assert np.isnan(rows[3]["score"])
    assert rows[3]["status"] == 500
    assert (rows[2]["ts_us"], rows[2]["parse_us"], rows[2]["queue_us"]) == (1_700_000_000_000_002, 10, 20)
    assert (rows[2]["score_us"], rows[2]["batch_rows"], rows[2]["row"], rows[2]["tag"]) == (30, 2, 0, 1)
    assert not Segment(HERE / "golden.seg").bad_blocks


def test_the_golden_segment_of_version_2_has_scores_where_a_row_has_several() -> None:
    assert (HERE / "golden2.seg").read_bytes().startswith(b"COPPSEG2")
    payloads, bad = read_segment(HERE / "golden2.seg")
    assert bad == 0
    facts, _ = split_payload(payloads[1])
    assert facts.tags == (
        Tag(model="price", version="3", arm="champion", generation=7, role="served", schema="ab" * 32),
        Tag(model="species", version="4", arm="candidate", generation=8, role="shadow", schema="cd" * 32),
    )
    one, several = (pyarrow.ipc.open_stream(split_payload(payload)[1]).read_all() for payload in payloads)
    assert tuple(zip(one.column_names, map(str, one.schema.types), strict=True)) == tuple(
        (name, kind.replace("list<", "list<item: ")) for name, kind in COLUMNS
    )
    assert several.column_names == [*one.column_names, SCORES[0]]
    first = one.to_pylist()
    assert (first[0]["score"], first[2]["score"], first[3]["score"]) == (1.5, np.inf, -2.0)
    assert np.isnan(first[1]["score"])
    assert [row["status"] for row in first] == [200, 500, 500, 200]
    rows = several.to_pylist()
    assert [row["seq"] for row in rows] == [5, 6, 7]
    assert [row["scores"] for row in rows[:2]] == [[0.25, 0.5, 0.25], None]
    assert np.isnan(rows[2]["scores"]).tolist() == [True] * 3
    assert [row["score"] for row in rows[:2]] == [0.25, 0.0]
    assert [row["request_id"] for row in rows] == ["species-0", "price-4", "species-1"]


def test_the_golden_outcomes_read_as_they_were_written() -> None:
    assert (HERE / "outcomes" / "sealed" / "golden.out").read_bytes().startswith(b"COPPOUT1")
    writer = "golden-0-00000000"
    assert list(read_outcomes(HERE / "outcomes")) == [
        Outcome(1_700_000_000_000_000, 1_700_000_000_500_000, "request-0", 0, 1.5, 1, writer),
        Outcome(5, 6, "request-0", 1, True, 2, writer),
        Outcome(7, 8, "r:1", 0, "churned, é", 3, writer),
    ]


def test_the_golden_generation_reads_and_assigns_as_it_did() -> None:
    routed = read(HERE / "store", "churn")
    assert routed.generation == 1
    arms = "".join(routed.arm_for(b"unit-%d" % n)[3] for n in range(64))
    assert hashlib.sha256(arms.encode()).hexdigest() == ASSIGNED
    assert {slot.arm for slot in routed.slots} == {"champion", "challenger"}


ASSIGNED = "e305d91e4d3cb2a4c56c4d2eb70adbfcad38a98b5d76c70ce9d51b23d05b80c8"
