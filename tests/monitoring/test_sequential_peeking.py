"""Looked at after every batch, the sequential tests are wrong no more often than they say; and what would break that does.

The worlds and readings are those of docs/sequential.md, with fewer runs (LAWS=full: 4,000). Bounds allow three standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from monitoring import sequential_proof
from monitoring.evidence import Interval
from monitoring.sequential import Assigned, Counts, log_mismatch, rate_ratio
from monitoring.sequential_proof import ALPHA, SHARE_ALPHA, Row
from monitoring.srm import log_dirichlet

Size = Callable[[int, int], int]


def at_most(alpha: float, runs: int) -> float:
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


def by_name(rows: list[Row]) -> dict[str, dict[str, float]]:
    return {row.name: row.figures for row in rows}


def test_fifty_looks_cost_what_is_known(size: Size) -> None:
    """.316 and .0505 for the fixed test, .016 for the sequence, .048 for O'Brien-Fleming; power .933, .988, .991."""
    runs = size(600, 4_000)
    found = by_name(sequential_proof.looking_often(runs, seed=11))
    known = {
        "fixed test, looked at each time": (0.316, None),
        "fixed test, one look at the end": (0.0505, 0.991),
        "confidence sequence, N* = 20,000": (0.016, 0.933),
        "O'Brien-Fleming, 50 planned looks": (0.048, 0.988),
    }
    for name, (error, power) in known.items():
        spread = math.sqrt(0.25 / runs) if error > 0.1 else math.sqrt(error * (1 - error) / runs)
        assert found[name]["error"] == pytest.approx(error, abs=3 * spread + 0.006), name
        if power is not None:
            assert found[name]["5 to 6 %"] == pytest.approx(
                power, abs=3 * math.sqrt(power * (1 - power) / runs) + 0.01
            ), name
    assert found["confidence sequence, N* = 20,000"]["median units"] == pytest.approx(17_600, abs=1_601)
    assert found["O'Brien-Fleming, 50 planned looks"]["median units"] == pytest.approx(20_000, abs=1_601)
    foreseen = by_name(sequential_proof.foreseen())
    for name, figures in foreseen.items():
        for column in ("error", "5 to 6 %", "5 to 5.5 %"):
            assert found[name][column] == pytest.approx(figures[column], abs=3 * math.sqrt(0.25 / runs)), (name, column)


def test_no_world_without_an_effect_alarms_more_than_alpha(size: Size) -> None:
    """Splits to 99/1, rates to .2 %, heavy-tailed revenue, a ramp on changing traffic, late outcomes."""
    runs = size(250, 4_000)
    for row in sequential_proof.errors(runs, seed=12):
        assert row.figures["confidence sequence"] <= at_most(ALPHA, runs), row.name
        assert row.figures["count e-process"] <= at_most(ALPHA, runs), row.name
        assert row.figures["fixed test, looked at each time"] > 2 * ALPHA, row.name


def test_what_is_said_to_break_it_does(size: Size) -> None:
    runs = size(300, 4_000)
    found = {name: figures["error"] for name, figures in by_name(sequential_proof.mistakes(runs, seed=13)).items()}
    limit = at_most(ALPHA, runs)
    assert found["the ramp, pooled over its phases"] > 0.5 > limit >= found["the ramp, each phase a stratum"]
    late = "late outcomes, counted "
    assert found[f"{late}as they come"] > 0.2 > limit >= found[f"{late}when their window is over"]
    paying = "revenue at 10 %, the "
    assert (
        found[f"{paying}arms’ own variances"] > at_most(ALPHA, runs) >= found[f"{paying}larger of both standard errors"]
    )


def test_with_few_events_the_sequence_would_be_wrong_and_the_counts_are_not(size: Size) -> None:
    runs = size(150, 4_000)
    found = by_name(sequential_proof.few_events(runs, seed=14))
    assert found["1% to the challenger"]["0 events"] > 0.2
    for name, figures in found.items():
        assert figures["25, belted"] <= at_most(ALPHA, runs), name
        assert figures["count e-process"] <= at_most(ALPHA, runs), name


def test_counts_are_sooner_for_rare_events_and_later_for_common_ones(size: Size) -> None:
    found = by_name(sequential_proof.rare_events(size(200, 4_000), seed=15))
    rare, common = found["2% to 6%, 1% to the challenger"], found["20% to 22%, 50% to the challenger"]
    assert rare["count, median units"] == pytest.approx(18_100, rel=0.2)
    assert rare["sequence, median units"] > 1.7 * rare["count, median units"]
    assert common["sequence, median units"] == pytest.approx(12_720, rel=0.2)
    assert common["count, median units"] > 1.2 * common["sequence, median units"]
    assert min(figures["count, power"] for figures in found.values()) > 0.9


def test_exact_sequences_hold_the_truth_at_every_unit(size: Size) -> None:
    runs = size(300, 4_000)
    for row in sequential_proof.exact_sequences(runs, seed=16):
        assert row.figures["error"] <= at_most(ALPHA, runs), row.name


def test_a_sound_splitter_is_not_accused_and_a_broken_one_is_found(size: Size) -> None:
    runs = size(400, 4_000)
    found = by_name(sequential_proof.mismatches(runs, seed=17))
    for name in ("meant 50%, given 50%", "meant 10%, given 10%", "meant 1%, given 1%"):
        assert found[name]["e-process, .01"] <= at_most(SHARE_ALPHA, runs), name
        assert found[name]["chi-square, p < .01"] > 0.08, name  # what looking at a chi-square after each batch does
    assert found["meant 50%, given 48%"]["its median units"] == pytest.approx(7_200, rel=0.15)
    assert found["meant 10%, given 9%"]["its median units"] == pytest.approx(10_200, rel=0.15)
    counts = np.array([[4_700, 5_300], [5_010, 4_990]])
    for pair, log_e in zip(counts, log_dirichlet(counts, [0.5, 0.5], strength=200.0), strict=True):
        phase = Assigned({"a": int(pair[0]), "b": int(pair[1])}, {"a": 1, "b": 1})
        assert log_mismatch([phase]) == pytest.approx(float(log_e))


def test_rate_ratios_cover_at_every_look_over_a_ramp(size: Size) -> None:
    """True ratio 1.5, in three phases of other shares and rates, 30 looks."""
    rng, runs, missed = np.random.default_rng(18), size(60, 1_000), 0
    for _ in range(runs):
        done: list[Counts] = []
        out = False
        for share, events in ((0.01, 400), (0.1, 300), (0.5, 100)):
            chance = share * 1.5 / (share * 1.5 + 1 - share)
            now = Counts(0, 0, share)
            for _ in range(10):
                hits = int(rng.binomial(events // 10, chance))
                now += Counts(events // 10 - hits, hits, share)
                found = rate_ratio([*done, now], alpha=0.1)
                assert isinstance(found, Interval)
                out |= not found.lower <= 1.5 <= found.upper
            done.append(now)
        missed += out
    assert missed / runs <= at_most(0.1, runs)


def test_the_page_holds_every_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n", encoding="utf-8")
    sequential_proof.write(runs=4, out=page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- measured -->\n`make prove-sequential`")
    assert text.endswith("<!-- /measured -->\nafter\n")
    assert "old" not in text
    for title in sequential_proof.TABLES:
        assert f"### {title}" in text
