"""Each test keeps its level, agrees with another way to compute it, and the family of them is Holm's closed procedure."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monitoring.family import (
    LEVEL_PART,
    Member,
    adjusted,
    categories_differ,
    new_category,
    numbers_differ,
    shares_differ,
)

values = st.floats(0, 1, allow_nan=False)


def members(ps: list[float], weights: list[float]) -> list[Member]:
    return [Member(f"c{n}", "values", p, 1.0, w) for n, (p, w) in enumerate(zip(ps, weights, strict=True))]


@given(st.lists(st.tuples(values, st.floats(0.01, 10)), min_size=1, max_size=6))
def test_the_family_is_the_closed_procedure_of_weighted_bonferroni_tests(drawn: list[tuple[float, float]]) -> None:
    ps, weights = [list(each) for each in zip(*drawn, strict=True)]
    found = adjusted(members(ps, weights))
    places = range(len(ps))
    sets = [s for size in range(1, len(ps) + 1) for s in combinations(places, size)]
    for place in places:
        closed = max(
            min(1.0, *(ps[j] * sum(weights[k] for k in chosen) / weights[j] for j in chosen))
            for chosen in sets
            if place in chosen
        )
        assert found[place] == pytest.approx(closed, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("ties", [False, True])
def test_numbers_are_compared_by_ranks_and_by_distribution_functions(ties: bool) -> None:
    rng = np.random.default_rng(3)
    known, now = rng.normal(size=900), rng.normal(0.1, 1.1, 300)
    if ties:
        known, now = np.round(known), np.round(now)
    p, distance = numbers_differ(known, now)
    ranks = stats.mannwhitneyu(known, now, method="asymptotic", use_continuity=False).pvalue
    shape = stats.ks_2samp(known, now, method="asymp")
    assert distance == pytest.approx(shape.statistic)
    assert p == pytest.approx(min(ranks / LEVEL_PART, shape.pvalue / (1 - LEVEL_PART)), rel=0.05)


def test_categories_are_compared_by_chi_square() -> None:
    known, now = np.array([400, 300, 0, 200, 100]), np.array([60, 70, 0, 30, 40])
    p, moved = categories_differ(known, now)
    oracle = stats.chi2_contingency(np.stack([known, now])[:, [0, 1, 3, 4]], correction=False)
    assert p == pytest.approx(oracle.pvalue)
    assert moved == pytest.approx(0.15)  # 10 points too few of the first, 5 of the fourth


@given(st.integers(0, 12), st.integers(0, 12), st.integers(12, 20), st.integers(12, 20))
def test_two_shares_are_compared_exactly(known: int, now: int, known_rows: int, now_rows: int) -> None:
    hits, rows = known + now, known_rows + now_rows

    def chance(k: int) -> float:
        return comb(hits, k) * comb(rows - hits, now_rows - k) / comb(rows, now_rows)

    possible = range(max(0, now_rows - (rows - hits)), min(hits, now_rows) + 1)
    less, more = (sum(chance(k) for k in possible if side(k)) for side in (lambda k: k <= now, lambda k: k >= now))
    p, moved = shares_differ(known, known_rows, now, now_rows)
    assert p == pytest.approx(min(1, 2 * min(less, more)))
    assert moved == pytest.approx(abs(known / known_rows - now / now_rows))


def test_a_new_category_is_seen_and_rare_ones_that_a_sample_lacks_are_not() -> None:
    known = np.array([2500, 2500, 0])
    p, share, which = new_category(known, np.array([495, 495, 10]))
    assert (share, which) == (0.01, 2)
    assert p < 1e-6
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 3001)
    shares /= shares.sum()
    found = [
        new_category(*(np.bincount(rng.choice(3000, rows, p=shares), minlength=3000) for rows in (2000, 1000)))
        for _ in range(50)
    ]
    assert all(which >= 0 for _, _, which in found)  # every window has categories that its reference lacks
    assert min(p for p, _, _ in found) > 0.05 / 50


@pytest.mark.parametrize("kind", ["normal", "ties", "rare", "categories", "gaps", "new"])
def test_each_test_keeps_its_level(kind: str, size: Callable[[int, int], int]) -> None:
    rng = np.random.default_rng(5)
    tail = 1 / np.arange(1, 41) ** 2

    def p() -> float:
        if kind == "gaps":
            return shares_differ(int(rng.binomial(2000, 0.01)), 2000, int(rng.binomial(200, 0.01)), 200)[0]
        if kind in ("categories", "new"):
            counts = [np.bincount(rng.choice(40, n, p=tail / tail.sum()), minlength=40) for n in (2000, 200)]
            return categories_differ(*counts)[0] if kind == "categories" else new_category(*counts)[0]
        both = rng.normal(size=2200)
        if kind == "ties":
            both = np.floor(both)
        if kind == "rare":
            both = np.where(both > 2.5, both, 0)
        return numbers_differ(both[:2000], both[2000:])[0]

    runs = size(1500, 20_000)
    found = np.array([p() for _ in range(runs)])
    for level in (0.05, 0.01):
        assert (found <= level).mean() <= level + 3 * (level * (1 - level) / runs) ** 0.5
