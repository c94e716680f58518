"""The generator of the knee, held to a server whose times are known; and the curve, from arrivals that are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cases import Release
from locusts import slow_server
from running import Running

from loadtests import knee, open_arrivals
from loadtests.open_arrivals import Arrivals


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_arrivals.build(tmp_path_factory.mktemp("program"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"x": 1}\n\n{"x": 2}\n', encoding="ascii")
    return path


def test_even_arrivals_are_even_and_take_what_the_server_takes(program: Path, rows: Path, tmp_path: Path) -> None:
    with slow_server(tmp_path, 0.02) as port:
        run = open_arrivals.run(program, port, "/predict", rows, [(100, 1), (200, 1)], connections=50, seed=0)
    expected = np.concatenate([np.arange(100) / 100, 1 + np.arange(200) / 200])
    np.testing.assert_allclose(run.due_s, expected, atol=1e-6)
    assert (run.took_ms >= 20).all()
    assert np.isfinite(run.took_ms).all()
    assert (run.sent_late_ms >= 0).all()
    assert 0 < run.cpu < 1


def test_a_stall_is_in_the_times_of_all_that_fell_due_in_it(program: Path, rows: Path, tmp_path: Path) -> None:
    """100 of 200/s; the k-th of them waits 500 - 5 k ms."""
    with slow_server(tmp_path, 0.001, stall_at_s=0.5, stall_s=0.5) as port:
        run = open_arrivals.run(program, port, "/", rows, [(200, 2)], connections=200, seed=0)
    assert (run.took_ms > 250).sum() >= 45
    assert run.took_ms.max() >= 450


def test_whom_nobody_answers_in_time_is_given_up_and_counted(program: Path, rows: Path, tmp_path: Path) -> None:
    """One connection to a server that takes 50 ms does 20/s of 100/s, each after half a second's wait at most."""
    with slow_server(tmp_path, 0.05) as port:
        run = open_arrivals.run(program, port, "/", rows, [(100, 2)], connections=1, seed=0, patience_s=0.5)
    assert len(run.took_ms) == 200
    answered = np.isfinite(run.took_ms)
    assert 5 < answered.sum() <= 61  # of 2 s and the drain of one
    assert np.isnan(run.sent_late_ms[~answered]).all()
    assert np.nanmax(run.sent_late_ms) <= 501
    assert run.ms(95) == float("inf")


def test_the_real_server_answers_all_and_the_answers_are_scores(
    program: Path, release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    server = serve(release.store)
    body = {"age": 40, "balance": 1.5, "plan": "basic", "region": "east", "autopay": True, "visits": 2}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(body) + "\n", encoding="ascii")
    run = open_arrivals.run(program, server.port, "/predict/ab", rows, [(300, 1)], connections=30)
    assert np.isfinite(run.took_ms).all()
    assert f"coppice_traffic_rows_total {len(run.took_ms)}.0" in server.ask("/metrics")[2].decode()
    rows.write_text('{"age": "old"}\n', encoding="ascii")  # 422: not an answer that counts
    refused = open_arrivals.run(program, server.port, "/predict/ab", rows, [(100, 0.5)], connections=30)
    assert len(refused.took_ms) > 20
    assert np.isinf(refused.took_ms).all()


def test_a_program_that_cannot_run_says_why(program: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="connect: Connection refused"):
        open_arrivals.run(program, 1, "/", rows, [(10, 1)], connections=1)
    with pytest.raises(SystemExit, match="nowhere"):
        open_arrivals.run(program, 1, "/", tmp_path / "nowhere", [(10, 1)], connections=1)


def arrivals(due_s: np.ndarray, took_ms: np.ndarray) -> Arrivals:
    return Arrivals(due_s, took_ms, np.zeros(len(due_s)), 0.5)


def point(asked: float, p95_ms: float, answered: float | None = None) -> knee.Point:
    answered = asked if answered is None else answered
    return knee.Point(asked, answered, min(1.0, answered / asked), p95_ms, p95_ms, p95_ms, 0.5)


def test_the_knee_is_before_the_first_rate_that_does_not_hold() -> None:
    points = [point(100, 1), point(900, 50), point(1000, 150), point(1100, 20), point(3000, float("inf"), 1000)]
    curve = knee.Curve(1, points, [])
    assert curve.knee == points[1]
    assert curve.peak == 1100
    assert [kept for _, kept in knee.verdicts_of(curve)] == [False, True]
    text, met = knee.page([curve], 4)
    assert not met
    assert "never" in text


def test_recovery_is_counted_from_the_spikes_end_to_the_last_late_slice(tmp_path: Path) -> None:
    due = np.arange(0, 10, 0.005)
    took = np.where((due >= 3) & (due < 5.72), 400.0, 5.0)
    took[(due >= 4) & (due < 4.5)] = np.inf
    slices = knee.slices_of(arrivals(due, took), 5, 10)
    curve = knee.Curve(2, [point(100, 1)], slices)
    assert curve.recovery_s == pytest.approx(0.8)
    assert slices[0][0] == pytest.approx(-1)
    never = knee.Curve(2, [point(100, 1)], [(at, float("inf")) for at, _ in slices])
    assert never.recovery_s == float("inf")
    knee.plot([curve, never], tmp_path / "knee.png")
    assert (tmp_path / "knee.png").stat().st_size > 1000


def test_a_points_times_are_of_all_that_was_due_after_the_warm_part() -> None:
    due = np.arange(0, 4, 0.01)
    took = np.where(due < 1, 900.0, 5.0)
    took[(due >= 2) & (due < 2.3)] = np.inf
    told = knee.point_of(arrivals(due, took), 100, 1, 4)
    assert (told.p50_ms, told.p95_ms) == (5, float("inf"))
    assert told.in_time == pytest.approx(0.9)
    assert told.answered == pytest.approx((270 + 90) / 3, rel=0.05)
