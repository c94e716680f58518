"""`coppice performance` on a lake: what it writes, remembers and exits with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cases import MIXED, Release, mixed_rows
from joined import DAY_US

from compile import open_predictor
from monitoring import checks
from monitoring.compaction import compact, put_outcomes
from monitoring.errors import MonitoringError, PerformanceDropped, TooLittleData
from monitoring.lake_files import open_files
from monitoring.performance import Performance
from monitoring.performance_cli import performance
from monitoring.segments import outcomes_table
from monitoring.versions import present, versions
from serving import page
from serving.outcomes import Outcome
from serving.traffic import Tag, TrafficLog

T0 = 20_000 * DAY_US
A_DAY, DAYS, WORSE_FROM = 500, 6, 4


def tag_of(version: str, role: Any, schema: str) -> Tag:
    return Tag(model="mixed", version=version, arm="champion", generation=1, role=role, schema=schema)


@pytest.fixture(scope="module")
def lake(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six days of the release's champion, its labels half noise from the fifth on; outcomes late, doubled and corrected."""
    folder = tmp_path_factory.mktemp("performance")
    rows = mixed_rows(A_DAY * DAYS, 7)
    scores = open_predictor(release.champion).score(rows)[:, 0]
    rng = np.random.default_rng(8)
    day = np.arange(len(rows)) // A_DAY
    noise = (day >= WORSE_FROM) & (rng.random(len(rows)) < 0.5)
    positive = np.where(noise, rng.random(len(rows)) < 0.5, rng.random(len(rows)) < scores)
    (folder / "traffic" / "pages").mkdir(parents=True)
    shared = page.Page.create(folder / "traffic" / "pages" / "s.page", 1)
    slot = shared.slot(0)
    slot.begin(2**22 + 1)
    log = TrafficLog(folder / "traffic", server="s", worker=0, slot=slot, max_blocks=1000)
    tag = log.register(tag_of("1", "served", MIXED.fingerprint))
    others = [("1", "override", MIXED.fingerprint), ("9", "served", MIXED.fingerprint), ("1", "served", "another")]
    for count, (version, role, schema) in enumerate(others, start=1):
        other = log.register(tag_of(version, role, schema))
        for n in range(10 * count):
            log.put(other, T0 + n, b"o%d-%d" % (count, n), 0, b"", rows[n].tobytes(), 0.5, 200, 1, 1, 1, 1)
    told: list[Outcome] = []
    for n, (row, score) in enumerate(zip(rows, scores, strict=True)):
        ts_us = T0 + n * DAY_US // A_DAY
        log.put(tag, ts_us, b"r%08d" % n, 0, b"", row.tobytes(), float(score), 200, 1, 1, 1, 1)
        value = "yes" if positive[n] else "no"
        if n % 10 == 0:  # what came first was wrong
            told.append(Outcome(ts_us, ts_us + 1, f"r{n:08}", 0, "no" if positive[n] else "yes", n, "w"))
        if n % 5 < 4:
            told += [Outcome(ts_us, ts_us + 2 * DAY_US, f"r{n:08}", 0, value, n, "w")] * (1 + n % 2)
    assert log.close(20)
    shared.retire(0)
    compact(folder / "traffic", folder / "lake")
    put_outcomes(open_files(folder / "lake"), "told", outcomes_table(told))
    (folder / "truth.json").write_text(json.dumps([positive.tolist(), scores.tolist()]))
    return folder / "lake"


def run(release: Release, lake: Path, out: Path, **more: Any) -> Performance:
    given: dict[str, Any] = {"store": release.store, "lake": str(lake), "out": out, "checks": out / "checks"} | more
    try:
        performance("mixed", **given)
    finally:
        told = out / "performance.json"
        found = msgspec.json.decode(told.read_bytes(), type=Performance) if told.exists() else None
    assert found is not None
    return found


def test_a_drop_is_exit_code_1_and_all_is_written(release: Release, lake: Path, tmp_path: Path) -> None:
    with pytest.raises(PerformanceDropped, match="version 1, champion") as dropped:
        run(release, lake, tmp_path, segment=["plan"])
    assert dropped.value.exit_code == 1
    found = msgspec.json.decode((tmp_path / "performance.json").read_bytes(), type=Performance)
    (arm,) = found.arms
    assert [window.verdict for window in arm.windows] == ["level"] * 3 + ["fine", "drop", "drop"]
    positive, scores = (np.array(values) for values in json.loads((lake.parent / "truth.json").read_text()))
    known = np.arange(A_DAY) % 5 < 4
    right = (scores[:A_DAY] > 0.5) == positive[:A_DAY]
    assert arm.windows[0].figures["accuracy"].value == right[known].mean()  # corrected, doubled, each row once
    assert arm.windows[0].coverage == 0.8
    assert found.left_out == {
        "role override": 10,
        "version 9: no bundle of it in the release store": 20,
        "version 1: another schema than its bundle's": 30,
    }
    assert {part.value for part in arm.windows[0].segments} == {"basic", "plus", "premium", "(missing)"}
    told = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<svg" in told
    assert "http" not in told.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "drop" in told


def test_what_was_found_is_remembered_once(release: Release, lake: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(PerformanceDropped):
            run(release, lake, tmp_path)
    remembered = checks.read(tmp_path / "checks", "performance", "mixed")
    assert len(remembered) == DAYS
    assert [check.verdict for check in checks.latest(remembered)][-1] == "drop"
    assert remembered[0].found["estimate"]["trust"] == "unverified"
    assert remembered[0].found["arm"] == "champion"
    with pytest.raises(PerformanceDropped):
        run(release, lake, tmp_path, metric="accuracy")
    assert len(checks.read(tmp_path / "checks", "performance")) == 2 * DAYS


def test_fine_is_exit_code_0_and_too_little_2(release: Release, lake: Path, tmp_path: Path) -> None:
    calm = "2024-10-08"  # the fifth day
    assert str(np.datetime64(T0 + WORSE_FROM * DAY_US, "us"))[:10] == calm
    assert run(release, lake, tmp_path, until=calm).verdict == "fine"
    assert run(release, lake, tmp_path, every="500", until=calm).verdict == "fine"
    for more, words in (
        ({"label_window": "30000d"}, "enough labelled rows"),
        ({"since": "2031-01-01"}, "no row between"),
    ):
        with pytest.raises(TooLittleData, match=words) as short:
            run(release, lake, tmp_path, **more)
        assert short.value.exit_code == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"every": "week"}, "--every: 'week'"),
        ({"every": "5"}, "--every: '5'"),
        ({"label_window": "soon"}, "--label-window: 'soon'"),
        ({"since": "yesterday"}, "--since: 'yesterday'"),
        ({"metric": "mae"}, "--metric: 'mae' is not a metric of a binary model"),
        ({"segment": ["age"]}, "--segment: age is a number"),
        ({"segment": ["agee"]}, "--segment: the model has no feature 'agee'"),
    ],
)
def test_bad_input_is_told_by_its_name(
    more: dict[str, Any], words: str, release: Release, lake: Path, tmp_path: Path
) -> None:
    with pytest.raises(MonitoringError, match=words) as wrong:
        run(release, lake, tmp_path, **more)
    assert wrong.value.exit_code == 2


def test_versions_are_found_in_all_that_was_routed(release: Release) -> None:
    known = versions(release.store, "mixed", ["1", "2", "77"])
    assert set(known) == {"1", "2"}
    assert present(release.store, "mixed", known) == {("1", "champion"), ("2", "challenger")}
    assert known["1"].ground() is None  # this bundle has no reference
