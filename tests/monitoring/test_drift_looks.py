"""`coppice drift` on a real lake: which windows there are, what is told and remembered of each, and the exit codes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from cases import MIXED, mixed_rows, publish_routes, train_mixed

from compile import build_bundle, open_predictor
from compile.bundle import publish
from monitoring import checks
from monitoring.compaction import compact
from monitoring.drift_cli import drift
from monitoring.drift_looks import open_subject
from monitoring.drift_page import picture
from monitoring.drift_windows import Served, Window
from monitoring.engine import open_engine
from monitoring.errors import DriftFound, LakeRefused, MonitoringError, TooLittleData
from monitoring.evidently_report import report
from monitoring.sides import Side
from serving import page
from serving.traffic import Tag, TrafficLog
from training.features import decode_matrix

DAY_US = 86_400_000_000
HOUR_US = DAY_US // 24
BEGIN_US = round(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
CALM, MOVED, FEW = 900, 700, 40  # rows of three days; the second day's are older people


@dataclass(frozen=True)
class Watched:
    """A store whose model has a reference, and a lake of three days of its answers."""

    store: Path
    lake: Path
    digest: str

    def look(self, folder: Path, **options: Any) -> None:
        places = {"store": self.store, "lake": self.lake, "out": folder / "drift", "checks": folder / "checks"}
        drift("mixed", **({"reports": "none"} | places | options))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("watched")
    model = train_mixed("xgboost", trees=5)
    rows = mixed_rows(3_000, 7)
    draft = build_bundle(model, MIXED, rows[:100], folder / "draft", name="mixed", version="1", cross_check=False)
    predictor = open_predictor(draft)
    frame = pd.DataFrame(decode_matrix(MIXED, rows)).assign(prediction=predictor.score(rows)[:, 0])
    frame.to_parquet(folder / "reference.parquet")
    built = build_bundle(
        model, MIXED, rows[:100], folder / "built", name="mixed", version="1", cross_check=False,
        reference=folder / "reference.parquet",
    )  # fmt: skip
    digest = publish(built, folder / "store")
    publish_routes(folder / "store", {"champion": digest}, {"champion": 100})
    moved = mixed_rows(MOVED, 12)
    moved[:, 0] = np.minimum(moved[:, 0] + 15, 150)
    days = [mixed_rows(CALM, 11), moved, mixed_rows(FEW, 13)]
    serve(folder / "traffic", [(BEGIN_US + n * DAY_US, day, predictor.score(day)[:, 0]) for n, day in enumerate(days)])
    compact(folder / "traffic", folder / "lake")
    return Watched(folder / "store", folder / "lake", digest)


def serve(traffic: Path, days: list[tuple[int, np.ndarray, np.ndarray]]) -> None:
    """A server's log of answers, each day's spread over twelve hours; beside them others that do not count."""
    (traffic / "pages").mkdir(parents=True)
    shared = page.Page.create(traffic / "pages" / "s.page", 1)
    slot = shared.slot(0)
    slot.begin(2**22 + 1)
    log = TrafficLog(traffic, server="s", worker=0, slot=slot, block_rows=512, max_blocks=1000)

    def tag(version: str, role: str) -> int:
        made = Tag(model="mixed", version=version, arm="a", generation=1, role=role, schema=MIXED.fingerprint)  # type: ignore[arg-type]
        return log.register(made)

    served, others = tag("1", "served"), (tag("1", "shadow"), tag("2", "served"))

    def put(which: int, at: int, row: np.ndarray, score: float, status: int) -> None:
        log.put(which, at, b"r", 0, b"", row.tobytes(), score, status, 1, 1, 1, 1)

    for begin, rows, scores in days:
        times = begin + np.arange(len(rows)) * (DAY_US // 2 // len(rows))
        for at, row, score in zip(times.tolist(), rows, scores.tolist(), strict=True):
            put(served, at, row, score, 200)
        for which, status in ((others[0], 200), (others[1], 200), (served, 500)):
            for _ in range(50):
                put(which, begin + 5, np.full(MIXED.width, 9e9), 0.99, status)
    assert log.close(10)
    shared.retire(0)


def found(folder: Path) -> list[checks.Check]:
    return checks.read(folder / "checks", "drift", "mixed")


def test_each_day_is_judged_told_and_remembered(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DriftFound, match="1 windows drifted, the last: 2026-03-02") as exit_:
        watched.look(tmp_path, every="day")
    assert exit_.value.exit_code == 1
    seen = found(tmp_path)
    assert [check.verdict for check in seen] == ["no drift", "drift", "too little data"]
    assert [check.found["window_rows"] for check in seen] == [CALM, MOVED, FEW]
    assert [(check.since_us, check.until_us) for check in seen] == [
        (BEGIN_US + n * DAY_US, BEGIN_US + (n + 1) * DAY_US) for n in range(3)
    ]
    columns = {column["name"]: column for column in seen[1].found["columns"]}
    assert {name for name, column in columns.items() if column["drifted"]} == {"prediction", "age"}
    assert sum(column["weight"] or 0 for column in columns.values()) == pytest.approx(1)
    summary = json.loads((tmp_path / "drift" / "2026-03-02" / "summary.json").read_text())
    assert {name: summary[name] for name in seen[1].found} == seen[1].found
    assert (summary["verdict"], summary["label"], summary["model"]) == ("drift", "2026-03-02", "mixed")
    printed = capsys.readouterr().out
    for words in ("2026-03-01", "900 rows  no drift", "700 rows  drift", "40 rows  too few to judge"):
        assert words in printed
    assert not list(tmp_path.rglob("report.html"))
    told = ElementTree.parse(tmp_path / "drift" / "drift.svg").getroot()
    titles = [element.text or "" for element in told.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("2026-03-02: age drifted; ") for title in titles)
    assert not any(title.startswith("2026-03-03") for title in titles)


def test_a_window_looked_at_again_is_one_window(watched: Watched, tmp_path: Path) -> None:
    for _ in range(2):
        watched.look(tmp_path, every="day", until="2026-03-01T17:00")  # in the first day, which is looked at whole
    assert len(found(tmp_path)) == 2
    assert [check.found["window_rows"] for check in checks.latest(found(tmp_path))] == [CALM]


def test_windows_of_hours_and_of_rows_hold_every_row_once(watched: Watched, tmp_path: Path) -> None:
    served = Served(open_engine(watched.lake), open_subject(watched.store, "mixed").manifest)
    hours = served.windows("hour")
    assert len(hours) == 36
    assert sum(window.rows for window in hours) == CALM + MOVED + FEW
    rows = served.windows("250")
    assert [window.rows for window in rows] == [250] * 6  # the last 140 wait for others
    assert all(first.until_us <= second.since_us for first, second in pairwise(rows))
    for window in (*hours, *rows):
        assert served.read(window).rows == window.rows
    with pytest.raises(DriftFound, match=r"3 windows drifted, the last: 2026-03-01T10-00-00.*, 2026-03-02T01-"):
        watched.look(tmp_path, every="250")
    verdicts = [check.verdict for check in found(tmp_path)]
    assert verdicts[:3] == ["no drift"] * 3
    assert verdicts[3:] == ["drift"] * 3
    with pytest.raises(MonitoringError, match="--every: 'week'"):
        watched.look(tmp_path, every="week")


def test_of_a_window_of_many_rows_a_sample_is_read(watched: Watched) -> None:
    served = Served(open_engine(watched.lake), open_subject(watched.store, "mixed").manifest)
    everything = served.windows(None)[0]
    side = served.read(everything, most=100)
    assert side.rows == 100
    assert side.of_rows == CALM + MOVED + FEW
    later = side.columns["age"] > 90  # of the second day alone
    assert 0 < later.sum() < 60
    many = Window("many", everything.since_us, everything.until_us, 2 * everything.rows)
    read = served.read(many, most=everything.rows)  # a little more than one row in two
    assert 0.4 < read.rows / everything.rows < 0.6


def test_one_window_has_a_report_of_evidentlys_which_a_workspace_takes_in(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    span = {"since": "2026-03-01T00:00", "until": "2026-03-03T00:00+01:00"}
    with pytest.raises(DriftFound, match="the prediction drifted"):
        watched.look(tmp_path, **span, reports=None, workspace=tmp_path / "workspace")
    assert "<html" in (tmp_path / "drift" / "report.html").read_text()[:2000].lower()
    summary = json.loads((tmp_path / "drift" / "summary.json").read_text())
    shown = {column["name"]: column for column in summary["evidently"]["columns"]}
    assert set(shown) == {"prediction", *MIXED.names}
    assert "asserstein" in shown["age"]["method"]
    assert "ensen" in shown["plan"]["method"]
    assert shown["age"]["figure"] > shown["balance"]["figure"]
    assert summary["evidently"]["without"] == []
    assert len(list((tmp_path / "workspace").glob("*/snapshots/*.json"))) == 1
    assert "DRIFT  p " in capsys.readouterr().out
    assert len(found(tmp_path)) == 1


@pytest.mark.parametrize("rows", [300, 1500])
def test_a_column_that_evidently_can_not_compare_is_left_out_and_told(rows: int) -> None:
    def side(count: int, seed: int) -> Side:
        matrix = mixed_rows(count, seed)
        named = dict(zip(MIXED.names, matrix.T, strict=True))
        return Side({"prediction": np.linspace(0, 1, count)} | named, count)

    known, now = side(2000, 1), side(rows, 2)
    now.columns["age"][:] = np.resize([1e308, -1e308], rows)  # on which its figures overflow
    now.columns["balance"][:] = np.nan
    now.columns["plan"][:] = np.nan
    now.columns["visits"][:] = np.inf
    made = report(MIXED, known, now, model="m", version="1")
    assert made.without == ("age", "balance", "visits")
    assert [shown.name for shown in made.columns] == ["prediction", "plan", "region", "autopay"]
    by_p = {shown.name: shown.method for shown in made.columns}["prediction"] == "ks"
    assert by_p == (rows < 1000)


def test_what_can_not_be_looked_at_is_said(watched: Watched, tmp_path: Path, release: Any) -> None:
    with pytest.raises(TooLittleData, match="no window holds enough rows") as exit_:
        watched.look(tmp_path, since="2027-01-01", every="day")
    assert exit_.value.exit_code == 2
    with pytest.raises(TooLittleData):
        watched.look(tmp_path, since="2026-03-03")
    with pytest.raises(TooLittleData):
        watched.look(tmp_path, last="2d")
    for options, words in (
        ({"last": "2 weeks"}, "--last: '2 weeks'"),
        ({"last": "2d", "since": "2026-03-01"}, "--last"),
        ({"since": "noon"}, "--since: 'noon'"),
        ({"reports": "some"}, "--reports: 'some'"),
        ({"arm": "nobody"}, "no arm 'nobody'"),
        ({"store": release.store}, r"holds no reference\.parquet"),
    ):
        with pytest.raises(MonitoringError, match=words):
            watched.look(tmp_path, **options)
    with pytest.raises(LakeRefused, match="holds no traffic"):
        watched.look(tmp_path, lake=tmp_path / "nowhere")


def test_the_last_days_are_those_before_until(watched: Watched, tmp_path: Path) -> None:
    watched.look(tmp_path, last="12h", until="2026-03-01T12:00")
    (check,) = found(tmp_path)
    assert (check.since_us, check.until_us) == (BEGIN_US, BEGIN_US + 12 * HOUR_US)
    assert check.found["window_rows"] == CALM


def test_features_are_weighed_by_what_the_model_looks_at(watched: Watched) -> None:
    weights = open_subject(watched.store, "mixed").weights
    assert weights is not None
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["age"] > 0.2  # of the label's three, see `train_mixed`
    assert max(weights["balance"], weights["visits"], weights["autopay"]) < 0.1


def test_a_model_that_can_not_run_here_is_watched_with_all_features_alike(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Machine code alone, built on another host: this one does not run it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "there"))
    rows = mixed_rows(500, 7)
    pd.DataFrame(decode_matrix(MIXED, rows)).assign(prediction=0.5).to_parquet(tmp_path / "reference.parquet")
    built = build_bundle(
        train_mixed("xgboost", trees=2), MIXED, rows[:50], tmp_path / "built", name="mixed", version="1",
        cross_check=False, backends=("native",), reference=tmp_path / "reference.parquet",
    )  # fmt: skip
    digest = publish(built, tmp_path / "store")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "here"))
    with pytest.raises(DriftFound, match="the prediction drifted"):
        watched.look(tmp_path, store=tmp_path / "store", bundle=digest)
    assert "every feature counts alike" in capsys.readouterr().err
    columns = found(tmp_path)[0].found["columns"]
    assert {column["weight"] for column in columns} == {None, 1 / 6}


def test_a_picture_of_no_window_and_of_a_hostile_name_is_well_formed() -> None:
    ElementTree.fromstring(picture('<&> of "nothing"', []))
    ElementTree.fromstring(picture("x", [("<b>", None)]))
    assert "500 windows: 0 drifted, 0 did not, 500 with too few rows; the last 400" in picture("x", [("b", None)] * 500)
