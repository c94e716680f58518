"""Operations from the lake are those of the rows that are in it; the books' rises are told once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from monitoring import checks
from monitoring.compaction import compact
from monitoring.engine import open_engine
from monitoring.lake import HOUR_US
from monitoring.operations import LONGEST_US, Limits, books, from_lake, judge, stretches
from monitoring.operations_cli import operations
from serving import page
from serving.traffic import Tag, TrafficLog

VERB = typer.Typer()
VERB.command()(operations)
T0 = 400_000 * HOUR_US
ROWS = 400


def traffic(folder: Path, name: str = "s", *, failed: int = 0, dropped: int = 0) -> np.ndarray:
    """ROWS rows over two hours, every fourth of them the challenger's; the rows' whole times in µs."""
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    shared = page.Page.create(folder / "pages" / f"{name}.page", 1)
    slot = shared.slot(0)
    slot.begin(2**22 + 1)
    log = TrafficLog(folder, server=name, worker=0, slot=slot, block_rows=50, max_blocks=1000)
    tags = [
        log.register(Tag(model="churn", version=version, arm=arm, generation=1, role="served", schema="s"))
        for version, arm in (("1", "champion"), ("2", "challenger"))
    ]
    times = np.random.default_rng(5).integers(1, 2000, (ROWS, 3))
    for n, (parse, queue, score) in enumerate(times.tolist()):
        at, status = T0 + n * 2 * HOUR_US // ROWS, 500 if n < failed else 200
        log.put(tags[n % 4 == 3], at, b"r%d" % n, 0, b"u", b"\0" * 8, 0.5, status, parse, queue, score, 1)
    log.close(10)
    slot.cells[page.ROWS_DROPPED_DISK] = dropped
    return times.sum(axis=1)


def test_counts_and_quantiles_are_those_of_the_rows(tmp_path: Path) -> None:
    whole = traffic(tmp_path / "traffic", failed=8)
    compact(tmp_path / "traffic", tmp_path / "lake")
    engine = open_engine(tmp_path / "lake")
    hours = stretches(engine, "churn", HOUR_US, since_us=T0, until_us=T0 + 2 * HOUR_US)
    assert [(line.begin_us, line.arm, line.rows, line.errors) for line in hours] == [
        (T0, "challenger", 50, 2),
        (T0, "champion", 150, 6),
        (T0 + HOUR_US, "challenger", 50, 0),
        (T0 + HOUR_US, "champion", 150, 0),
    ]
    champion = whole[np.arange(ROWS) % 4 != 3]
    assert hours[1].p95_ms == pytest.approx(np.quantile(champion[:150], 0.95) / 1000)
    arms = stretches(engine, "churn", LONGEST_US, since_us=T0, until_us=T0 + 2 * HOUR_US)
    found = from_lake(arms, 7200)
    assert (found["rows"], found["requests"], found["errors"], found["error_rate"]) == (ROWS, ROWS, 8, 0.02)
    assert found["rate"] == pytest.approx(ROWS / 7200)
    slowest = max(np.quantile(champion, 0.99), np.quantile(whole[np.arange(ROWS) % 4 == 3], 0.99))
    assert found["p99_ms"] == pytest.approx(slowest / 1000)


def test_drops_are_told_by_the_check_after_them_alone(tmp_path: Path) -> None:
    traffic(tmp_path / "traffic", dropped=3)
    first = books(tmp_path / "traffic", tmp_path / "lake", [], whole=False)
    assert first == {"dropped": 3, "dropped_total": 3}
    before = [checks.Check("operations", "churn", "", 0, 1, "broken", "", first)]
    traffic(tmp_path / "traffic", "t", dropped=2)
    again = books(tmp_path / "traffic", tmp_path / "lake", before, whole=False)
    assert again == {"dropped": 2, "dropped_total": 5}


def test_what_is_broken_is_said() -> None:
    assert judge({"requests": 5, "rows": 9, "error_rate": 0.01}, Limits()) == ("fine", "5 requests")
    assert judge({"requests": 0}, Limits()) == ("no traffic", "nobody asked")
    found = {"rows": 9, "error_rate": 0.02, "shed_rate": 0.06, "dropped": 1, "lost": 2, "faults": ["w: rows are twice"]}
    verdict, reason = judge(found, Limits())
    assert verdict == "broken"
    for words in ("w: rows are twice", "1 rows were dropped", "2 rows were lost", "2.00% of what", "6.00% of what"):
        assert words in reason


def test_the_verb_tells_remembers_and_answers_by_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    traffic(tmp_path / "var" / "traffic", failed=3)
    compact(tmp_path / "var" / "traffic", tmp_path / "var" / "lake")
    since = ["churn", "--since", "2015-08-19T16:00", "--until", "2015-08-19T18:00"]
    ran = CliRunner().invoke(VERB, [*since, "--books"])
    assert ran.exit_code == 0, ran.output
    assert "fine: 400 requests" in ran.output
    assert "0 dropped, 0 lost" in ran.output
    ran = CliRunner().invoke(VERB, [*since, "--errors", "0.005", "--json"])
    assert ran.exit_code == 1, ran.output
    told = json.loads(ran.output)
    assert told["verdict"] == "broken"
    assert told["found"]["error_rate"] == pytest.approx(3 / 400)
    remembered = checks.read(tmp_path / "var" / "checks", "operations", "churn")
    assert [check.verdict for check in remembered] == ["fine", "broken"]
    ran = CliRunner().invoke(VERB, ["churn"])
    assert ran.exit_code == 0, ran.output
    assert "no traffic: nobody asked" in ran.output
