"""Alarms on an error stream: as soon, as seldom and where they should be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from monitoring import detectors
from monitoring.detectors import alarms, errors_beyond

SEEDS = 15


def stream(seed: int, before: float, after: float, rows: int = 5_000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.r_[rng.random(rows) < before, rng.random(rows) < after].astype(np.float64)


@pytest.mark.parametrize(
    ("detector", "delay", "slow_delay", "missed"), [("adwin", 311, 3_063, 6), ("page_hinkley", 485, 2_027, 1)]
)
def test_delays_are_those_measured_of_river(detector: str, delay: int, slow_delay: int, missed: int) -> None:
    for after, expected, misses in ((0.2, delay, 0), (0.13, slow_delay, missed)):
        found = []
        for seed in range(SEEDS):
            own = [alarm for alarm in alarms(stream(seed, 0.1, after)) if alarm.detector == detector]
            assert all(alarm.at >= 5_000 for alarm in own)  # no false alarm in 5,000 rows
            found += own[:1]
        assert SEEDS - len(found) == misses
        assert np.median([alarm.at - 4_999 for alarm in found]) == pytest.approx(expected, abs=32)
        assert all(alarm.worse for alarm in found)


def test_an_alarm_says_where_the_change_is() -> None:
    off = [alarms(stream(seed, 0.1, 0.3))[0].since - 5_000 for seed in range(SEEDS)]
    assert np.median(np.abs(off)) < 60
    first = alarms(stream(0, 0.1, 0.3))[0]
    assert first.before == pytest.approx(0.1, abs=0.03)
    assert first.after == pytest.approx(0.3, abs=0.1)


def test_an_improvement_is_no_worsening() -> None:
    found = alarms(stream(1, 0.3, 0.1))
    assert {alarm.detector for alarm in found} == {"adwin"}
    assert not found[0].worse


def test_a_regressions_stream_is_of_errors_beyond_the_ordinary() -> None:
    rng = np.random.default_rng(2)
    error = np.abs(np.r_[rng.normal(0, 7, 4_000), rng.normal(0, 12, 4_000)])
    watched = errors_beyond(error)
    assert watched[:4_000].mean() == pytest.approx(0.1, abs=0.03)
    found = alarms(watched)
    assert found
    assert found[0].worse
    assert abs(found[0].since - 4_000) < 200
    assert not alarms(watched[:4_000])
    assert not len(errors_beyond(np.array([])))


def test_a_long_stream_is_thinned_and_the_place_kept(
    monkeypatch: pytest.MonkeyPatch, size: Callable[[int, int], int]
) -> None:
    monkeypatch.setattr(detectors, "LONGEST", size(20_000, 200_000))
    rows = size(40_003, 400_003)
    found = [alarm for alarm in alarms(stream(3, 0.1, 0.3, rows)) if alarm.detector == "adwin"]
    assert found[0].at >= rows - 5
    assert abs(found[0].since - rows) < 200


@pytest.mark.parametrize("rows", [0, 1, 5, 40])
def test_few_rows_are_no_alarm(rows: int) -> None:
    assert not alarms(np.tile([0.0, 1.0], rows)[:rows])
