"""A shadow scores what was answered, as its bundle does, and is the first thing shed: of the rows that C answered too."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Release, mixed_body, mixed_rows
from inprocess import InProcess, route

from compile import open_predictor
from monitoring.compaction import compact
from monitoring.lake import window
from serving import page
from serving.shadows import LIMIT

Watched = Callable[..., InProcess]


@pytest.fixture
def watched(release: Release, tmp_path: Path) -> Watched:
    """A worker of the champion, with the challenger as its shadow."""

    def start(sample: float = 1.0) -> InProcess:
        store = tmp_path / "store"
        shutil.copytree(release.store, store)
        digests = release.digest("champion"), release.digest("challenger")
        route(store, "mixed", {"champion": digests[0]}, shadow=digests[1], sample=sample)
        return InProcess(store, "mixed", tmp_path / "traffic")

    return start


def request(row: np.ndarray, name: str) -> bytes:
    body = mixed_body(row)
    lines = (
        f"content-type: application/json\r\nx-request-id: {name}\r\nx-unit: of-{name}\r\ncontent-length: {len(body)}"
    )
    return f"POST /predict HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n".encode() + body


def by_role(asked: InProcess) -> dict[str, dict[str, dict[str, Any]]]:
    """The log's rows by role and request id."""
    asked.finish()
    compact(asked.traffic, asked.traffic / "lake")
    logged = window(asked.traffic / "lake", "mixed").to_pylist()
    assert (
        len({row["seq"] for row in logged})
        == len(logged)
        == asked.slot.cells[page.ROWS_LOGGED]
        == asked.slot.cells[page.ROWS]
    )
    found: dict[str, dict[str, dict[str, Any]]] = {"served": {}, "shadow": {}}
    for row in logged:
        assert row["request_id"] not in found[row["role"]], "once each"
        found[row["role"]][row["request_id"]] = row
    return found


def test_it_scores_each_answered_row_as_its_bundle_does(watched: Watched, release: Release) -> None:
    """Whether C or Python answered it; over several blocks of the log."""
    asked = watched()
    rows = mixed_rows(1500, 11)
    for start in range(0, len(rows), 100):
        sent = [[request(row, f"r{n}")] for n, row in enumerate(rows[start : start + 100], start)]
        answers = asked.raw_together(sent, quick=start % 500 != 0)
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    logged = by_role(asked)
    assert logged["served"].keys() == logged["shadow"].keys() == {f"r{n}" for n in range(len(rows))}
    expected = open_predictor(release.challenger).score(rows)[:, 0].tolist()
    for n in range(len(rows)):
        seen, scored = logged["served"][f"r{n}"], logged["shadow"][f"r{n}"]
        assert scored["score"] == expected[n]
        assert scored["version"] == "2"
        for name in ("unit", "features", "ts_us", "status", "row"):
            assert repr(scored[name]) == repr(seen[name]), name
    assert max(row["batch_rows"] for row in logged["shadow"].values()) > 1
    assert asked.slot.cells[page.SHADOW_SHED] == 0


@pytest.mark.parametrize("quick", [True, False])
def test_it_sees_the_share_that_was_asked_for(watched: Watched, quick: bool) -> None:
    asked = watched(0.25)
    rows, count = mixed_rows(50, 3), 2000
    for start in range(0, count, 50):
        asked.raw_together([[request(row, f"r{start + n}")] for n, row in enumerate(rows)], quick=quick)
    logged = by_role(asked)
    assert len(logged["served"]) == count
    assert abs(len(logged["shadow"]) - 0.25 * count) < 6 * math.sqrt(count * 0.25 * 0.75)


def test_what_it_can_not_keep_up_with_is_shed_and_counted(watched: Watched) -> None:
    """More rows within one iteration of the loop than may wait: all are answered, the rest of the shadow's are dropped."""
    asked = watched()
    count = LIMIT + 300
    rows = mixed_rows(200, 5)
    answers = asked.raw_together([[request(rows[n % 200], f"r{n}")] for n in range(count)])
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    logged = by_role(asked)
    assert len(logged["served"]) == count
    assert asked.slot.cells[page.SHADOW_SHED] == 300
    assert logged["shadow"].keys() == {f"r{n}" for n in range(LIMIT)}


def test_a_flip_takes_none_of_the_rows_that_wait_for_it(watched: Watched) -> None:
    asked = watched()
    rows = mixed_rows(40, 8)
    for n, row in enumerate(rows):
        asked.raw_together([[request(row, f"r{n}")]])
        asked.flip_again()
    assert len(by_role(asked)["shadow"]) == len(rows)
