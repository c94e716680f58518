"""The page counts over restarts, keeps what a killed writer had counted, and its text is Prometheus'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from serving import page
from serving.metrics import render


def test_what_one_maps_another_reads(tmp_path: Path) -> None:
    made = page.Page.create(tmp_path / "a.page", 2)
    read = page.Page.open(tmp_path / "a.page", readonly=True)
    made.slot(1).cells[page.REQUESTS_2XX] += 7
    assert [slot.cells[page.REQUESTS_2XX] for slot in read.slots()] == [0, 7]
    with pytest.raises(FileExistsError):
        page.Page.create(tmp_path / "a.page", 2)
    with pytest.raises(IndexError):
        read.slot(2)
    (tmp_path / "b.page").write_bytes(b"\0" * 20_000)
    with pytest.raises(ValueError, match=r"b\.page"):
        page.Page.open(tmp_path / "b.page")


def test_retiring_saves_the_writers_facts_once(tmp_path: Path) -> None:
    made = page.Page.create(tmp_path / "a.page", 1)
    slot = made.slot(0)
    slot.begin(123)
    slot.begin_writer("s-0-é")
    slot.cells[page.WRITER_SEQ], slot.cells[page.WRITER_LOGGED], slot.cells[page.WRITER_DROPPED_FULL] = 10, 7, 2
    made.retire(0)
    made.retire(0)
    (line,) = page.writers_record(made.path).read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"writer": "s-0-é", "pid": 123, "seq": 10, "logged": 7, "dropped": 2}


@given(st.lists(st.integers(0, 10_000_000), max_size=50))
def test_histograms_put_each_value_in_its_bucket(tmp_path_factory: pytest.TempPathFactory, values: list[int]) -> None:
    made = page.Page.create(tmp_path_factory.mktemp("page") / "a.page", 1)
    slot = made.slot(0)
    for value in values:
        slot.observe(page.REQUEST_SECONDS, value)
    families = {family.name: family for family in text_string_to_metric_families(render(made).decode())}
    samples = families["coppice_request_seconds"].samples
    buckets = {float(sample.labels["le"]): sample.value for sample in samples if sample.name.endswith("_bucket")}
    for edge, count in buckets.items():
        assert count == sum(value <= round(edge * 1e6) if edge != float("inf") else True for value in values)
    total = next(sample.value for sample in samples if sample.name.endswith("_sum"))
    assert total == pytest.approx(sum(values) / 1e6)


def test_series_beyond_the_limit_share_the_last_one(tmp_path: Path) -> None:
    slot = page.Page.create(tmp_path / "a.page", 1).slot(0)
    cells = [slot.series(f"m/{n}/champion") for n in range(page.SERIES + 5)]
    assert len(set(cells)) == page.SERIES
    assert slot.series("m/3/champion") == cells[3]
    assert slot.series_counts()[-1].label == "other"


def test_a_page_of_format_1_is_read_for_its_books(tmp_path: Path) -> None:
    cells = [0] * (8 + 2 * 1024)
    cells[:2] = [int.from_bytes(b"COPPICE1", "little"), 2]
    cells[8 + 1024 + page.ROWS] = 7
    cells[8 + 512 + 14] = 3
    encoded = bytearray(b"".join(cell.to_bytes(8, "little") for cell in cells))
    encoded[8 * (8 + 512) : 8 * (8 + 512) + 5] = b"m/1/a"
    (tmp_path / "old.page").write_bytes(encoded)
    old = page.Page.open(tmp_path / "old.page", readonly=True)
    assert [slot.cells[page.ROWS] for slot in old.slots()] == [0, 7]
    assert old.slot(0).series_counts() == [("m/1/a", 3, 0)]
    with pytest.raises(ValueError, match=r"old\.page"):
        _ = old.board


def test_a_label_that_is_cut_is_found_again(tmp_path: Path) -> None:
    slot = page.Page.create(tmp_path / "a.page", 1).slot(0)
    label = "é" * 100
    assert slot.series(label) == slot.series(label)
