"""Figures and verdicts of the gate, from requests whose times are known."""

from __future__ import annotations

import numpy as np
import pytest

from loadtests import gate
from loadtests.profiles import Bounds
from loadtests.shapes import Shape, Stage

IDLE = {"cpu": 0.1, "stolen": 0.0}
BOUNDS = Bounds(p95_ms=100, p99_ms=200, achieved=0.98, failures=0.0)


def flat(seconds: float, rate: float = 100) -> Shape:
    return Shape((Stage(0, seconds, rate, rate),))


def book_of(due_s: np.ndarray, took_ms: np.ndarray) -> gate.Book:
    book = gate.Book()
    for due, took in zip(due_s.tolist(), took_ms.tolist(), strict=True):
        book.answered(due, took)
    return book


def test_quantiles_are_of_what_was_due_after_the_warm_part() -> None:
    due = np.arange(0, 10, 0.01)
    took = np.where(due < 2, 900.0, np.arange(len(due)) % 100 + 1.0)
    figures = gate.measured(book_of(due, took), flat(10), 2.0, BOUNDS, IDLE)
    assert (figures["p50_ms"], figures["p95_ms"], figures["p99_ms"], figures["max_ms"]) == (50, 95, 99, 100)
    assert figures["rate"] == pytest.approx(100, rel=0.01)
    assert figures["requests"] == 1000
    assert gate.verdict(figures, BOUNDS) == []


def test_a_server_that_falls_behind_misses_its_share_however_patient_the_client() -> None:
    """It answers 50/s of 100/s: of 10 s, the second half's are answered later than the run lasts."""
    due = np.arange(0, 10, 0.01)
    ended = np.arange(len(due)) / 50
    figures = gate.measured(book_of(due, 1e3 * (ended - due)), flat(10), 0, BOUNDS, IDLE)
    assert figures["rate"] == pytest.approx(50 * (10 + gate.GRACE_S) / 10, rel=0.01)
    assert any("achieved" in told for told in gate.verdict(figures, BOUNDS))


def test_one_failure_breaks_a_bound_of_none_and_one_in_a_thousand_does_not_break_a_share_of_that() -> None:
    due = np.arange(0, 10, 0.01)
    book = book_of(due[1:], np.full(len(due) - 1, 5.0))
    book.failed(0.0, "/predict answered 503")
    figures = gate.measured(book, flat(10), 0, BOUNDS, IDLE)
    (broken,) = gate.verdict(figures, BOUNDS)
    assert broken == "1 of 1000 requests failed: 1 x /predict answered 503"
    assert gate.verdict(figures, Bounds(failures=0.001)) == []


def test_what_was_never_sent_is_a_failure() -> None:
    book = book_of(np.arange(0, 9, 0.01), np.full(900, 5.0))
    book.left_out(np.arange(9, 10, 0.01).tolist())
    figures = gate.measured(book, flat(10), 0, BOUNDS, IDLE)
    assert (figures["requests"], figures["failures"], figures["not_sent"]) == (1000, 100, 100)
    assert len(gate.verdict(figures, BOUNDS)) == 2  # failed, and the rate missed


def test_nothing_answered_holds_nothing() -> None:
    figures = gate.measured(gate.Book(), flat(10), 0, BOUNDS, IDLE)
    broken = gate.verdict(figures, BOUNDS)
    assert "0 of 0 requests failed" in broken[0]
    assert any("p95 nan" in told for told in broken)


def test_a_spike_is_not_judged_but_how_soon_it_is_over() -> None:
    shape = Shape((Stage(0, 4, 100, 100), Stage(4, 6, 100, 100, judged=False), Stage(6, 10, 100, 100)))
    due = np.arange(0, 10, 0.01)
    took = np.where((due >= 4) & (due < 7.2), 500.0, 5.0)
    bounds = Bounds(p95_ms=100, achieved=0.9, recovery_s=2)
    figures = gate.measured(book_of(due, took), shape, 0, bounds, IDLE)
    assert figures["recovery_s"] == pytest.approx(1.25)
    assert figures["p95_ms"] == 5
    assert [stage["judged"] for stage in figures["stages"]] == [True, False, True]
    assert gate.verdict(figures, bounds) == []
    strict = Bounds(p95_ms=100, recovery_s=1)
    (broken,) = gate.verdict(gate.measured(book_of(due, took), shape, 0, strict, IDLE), strict)
    assert "after 1.25 s" in broken


def test_the_knee_is_the_last_stage_up_to_which_all_held() -> None:
    shape = Shape(tuple(Stage(n, n + 1, 100 * (n + 1), 100 * (n + 1)) for n in range(4)))
    due = np.array(list(shape.instants(None)))
    took = np.where(due < 2, 5.0, 300.0)
    took[due >= 3] = 5.0  # whatever the fastest says after a slower one broke
    bounds = Bounds(p95_ms=100, knee=200)
    figures = gate.measured(book_of(due, took), shape, 0, bounds, IDLE)
    assert gate.knee(figures, bounds) == pytest.approx(200, rel=0.01)
    assert gate.verdict(figures, bounds) == []
    (broken,) = gate.verdict(figures, Bounds(p95_ms=100, knee=300))
    assert "held up to 200/s, 300/s wanted" in broken


@pytest.mark.parametrize(
    ("generator", "late_ms", "words"),
    [({"cpu": 0.97, "stolen": 0.0}, 1.0, "97% of a core"), (IDLE, 50.0, "50 ms late by itself"), (IDLE, 1.0, "")],
)
def test_a_generator_at_its_limit_says_so(generator: dict[str, float], late_ms: float, words: str) -> None:
    book = book_of(np.arange(0, 1, 0.01), np.full(100, 5.0))
    book.own_late_ms.extend([late_ms] * 100)
    figures = gate.measured(book, flat(1), 0, BOUNDS, generator)
    assert words in gate.limit(figures)
    assert bool(gate.limit(figures)) == bool(words)
    assert words in gate.page("x", figures, gate.verdict(figures, BOUNDS), BOUNDS)
