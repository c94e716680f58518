"""The sequential tests answer as the published ones do: cases with the exact figures of other people's code and tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from monitoring.evidence import Evidence, Interval, Moments, NotEstimable, moments
from monitoring.mixtures import (
    log_beta_binomial,
    log_normal,
    log_normal_above,
    normal_bound,
    normal_bound_above,
    rho_for,
)
from monitoring.planning import fixed_units, foresee, proportions, units_for, welch
from monitoring.sequential import (
    Assigned,
    Counts,
    always_valid_p,
    bernoulli,
    boundaries,
    chi_square,
    crossing,
    difference,
    log_difference,
    sequence,
)
from monitoring.sequential_means import contrast, critical, lifted

# GrowthBook, packages/stats/tests/frequentist/test_tests.py
GROWTHBOOK_A = (1396.87, 52377.9767)
GROWTHBOOK_B = Moments(3461, 3461, 2422.7, 134698.29)
FIFTHS = [0.2, 0.4, 0.6, 0.8, 1.0]


def two_arms(champion: Moments, challenger: Moments, phase: str = "1") -> Evidence:
    return Evidence({((phase,), "champion"): champion, ((phase,), "challenger"): challenger})


def events(n: int, k: int) -> Moments:
    return Moments(n, k, k, k)


def test_normal_mixtures_are_those_of_confseq() -> None:
    """confseq, test/uniform_boundaries_unittest.cpp: v_opt = v = 100, alpha = 0.05, s = 10."""
    rho = rho_for(100, 0.05)
    assert rho == pytest.approx(12.60056, abs=1e-5)
    assert float(log_normal(10, 100, rho)) == pytest.approx(-0.6510052, abs=1e-5)
    assert float(normal_bound(100, rho, 0.05)) == pytest.approx(30.35209, abs=1e-5)
    above = rho_for(100, 0.05, sides=1)
    assert float(log_normal_above(10, 100, above)) == pytest.approx(-0.06502391, abs=1e-5)
    assert float(normal_bound_above(100, above, 0.05)) == pytest.approx(27.66071, abs=1e-5)


def test_the_beta_binomial_mixture_is_that_of_confseq() -> None:
    """The same file, g = 0.2, h = 0.8."""
    rho = rho_for(100, 0.05)
    assert float(log_beta_binomial(10, 100, rho=rho, g=0.2, h=0.8)) == pytest.approx(-0.6941012, abs=1e-5)
    bound = optimize.brentq(lambda s: float(log_beta_binomial(s, 100, rho=rho, g=0.2, h=0.8)) - math.log(20), 0, 100)
    assert bound == pytest.approx(31.4308, abs=1e-4)


@pytest.mark.parametrize(
    ("k", "n", "n_star", "low", "high"),
    [(700, 1000, 100, 0.651629, 0.745949), (100, 200, 1, 0.328923, 0.671076), (0, 1, 50, 0, 1)],
)
def test_the_interval_of_a_rate_is_that_of_confseq(k: int, n: int, n_star: float, low: float, high: float) -> None:
    found = bernoulli(k, n, alpha=0.05, n_star=n_star)
    assert isinstance(found, Interval)
    assert (found.lower, found.upper) == pytest.approx((low, high), abs=2e-5)


def test_welchs_interval_is_that_of_growthbook_and_of_scipy() -> None:
    champion = Moments(3407, 3407, *GROWTHBOOK_A)
    found = welch(champion, GROWTHBOOK_B, alpha=0.05)
    assert isinstance(found, Interval)
    assert (found.estimate, found.lower, found.upper, found.p) == pytest.approx(
        (0.29, 0.04538, 0.53462, 0.02016), abs=1e-5
    )
    rng = np.random.default_rng(0)
    a, b = rng.exponential(1.0, 60), rng.exponential(1.4, 45)
    theirs = stats.ttest_ind(b, a, equal_var=False)
    ours = welch(moments(a), moments(b), alpha=0.1)
    assert isinstance(ours, Interval)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    limits = theirs.confidence_interval(0.9)
    assert (ours.lower, ours.upper) == pytest.approx((limits.low, limits.high), rel=1e-9)


def test_the_relative_sequence_is_that_of_growthbook() -> None:
    """Sequential, n_A = 3000, N* = 1000. It counts time in units; we in those of an even split, 0.5 % fewer."""
    evidence = two_arms(Moments(3000, 3000, *GROWTHBOOK_A), GROWTHBOOK_B)
    found = lifted(contrast(evidence.sums("champion"), evidence.sums("challenger")))
    theirs = sequence(float(found.difference), math.sqrt(found.variance), 6461, units=6461, alpha=0.05, n_star=1000)
    assert (theirs.estimate, theirs.lower, theirs.upper, theirs.se, theirs.p) == pytest.approx(
        (0.50336, -0.55844, 1.56516, 0.33341, 1.0), abs=1e-5
    )
    ours = difference(evidence, "champion", "challenger", kind="mean", alpha=0.05, n_star=1000, relative=True)
    assert isinstance(ours, Interval)
    assert (ours.estimate, ours.p) == (theirs.estimate, theirs.p)
    assert theirs.se < ours.se < 1.03 * theirs.se  # and ours takes the larger of two standard errors


def test_group_bounds_are_those_of_lan_and_demets() -> None:
    """Five equal looks, two-sided 5 %; R's ldbounds and the tables of Jennison and Turnbull."""
    assert boundaries(FIFTHS, alpha=0.05) == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=2e-3)
    pocock = boundaries(FIFTHS, alpha=0.05, spending="pocock")
    assert pocock == pytest.approx([2.438, 2.427, 2.410, 2.397, 2.386], abs=2e-3)


def test_two_sided_spending_is_not_one_sides_at_the_full_level() -> None:
    """The trap: 2 (1 - Phi(z / sqrt t)) at alpha / 2 spends less at first than is thought, its first bound is 4.383."""
    trapped = 2 * stats.norm.sf(stats.norm.isf(0.025) / math.sqrt(0.2))
    assert stats.norm.isf(trapped / 2) == pytest.approx(4.383, abs=2e-3)
    assert boundaries(FIFTHS, alpha=0.05)[0] > 4.87


@pytest.mark.parametrize(("looks", "error"), [(1, 0.0500), (2, 0.0831), (5, 0.1417), (10, 0.1934), (20, 0.2479)])
def test_peeking_at_a_fixed_test_errs_as_often_as_is_known(looks: int, error: float) -> None:
    """Armitage, McPherson and Rowe (1969), table 2: |z| > 1.96 at each of K equal looks."""
    spaced = [look / looks for look in range(1, looks + 1)]
    assert sum(crossing(spaced, [1.959964] * looks)) == pytest.approx(error, abs=1e-4)


def test_two_looks_cross_as_a_bivariate_normal_says() -> None:
    fractions, bounds, drift = [0.3, 1.0], [2.2, 1.9], 1.1
    rho = math.sqrt(0.3)
    inside = stats.multivariate_normal([drift * rho, drift], [[1, rho], [rho, 1]]).cdf(bounds, lower_limit=[-2.2, -1.9])
    found = crossing(fractions, bounds, drift=drift)
    assert 1 - sum(found) == pytest.approx(float(inside), abs=1e-6)
    assert found[0] == pytest.approx(stats.norm.sf(2.2 - drift * rho) + stats.norm.cdf(-2.2 - drift * rho), abs=1e-12)


def test_the_chi_square_of_the_shares_is_scipys() -> None:
    """GrowthBook's case, 1000 and 1200 of an even split."""
    phase = Assigned({"a": 1000, "b": 1200}, {"a": 1, "b": 1})
    assert chi_square(phase) == pytest.approx(2.007865612426481e-05, rel=1e-12)
    three = Assigned({"a": 510, "b": 310, "c": 180}, {"a": 0.5, "b": 0.3, "c": 0.2})
    assert chi_square(three) == pytest.approx(stats.chisquare([510, 310, 180], [500, 300, 200]).pvalue, rel=1e-12)


def test_twenty_errors_against_five() -> None:
    """The count e-process with a flat prior at an even split."""
    log_e = log_difference([Counts(champion=5, challenger=20, share=0.5)], strength=2)
    assert log_e == pytest.approx(3.190086, abs=1e-6)
    assert always_valid_p(log_e) == pytest.approx(0.041168, abs=1e-6)


def test_the_p_value_is_one_over_the_likelihood_ratio_of_an_msprt() -> None:
    """The mean of a normal likelihood ratio over effects ~ N(0, tau^2), by integration: 1/p at any z and size."""
    z, size = 3.7, 800.0
    tau = 1 / math.sqrt(rho_for(2000.0, 0.05))

    def ratio(effect: float) -> float:
        return math.exp(effect * z * math.sqrt(size) - effect**2 * size / 2) * stats.norm.pdf(effect, scale=tau)

    effects = np.linspace(-8 * tau, 8 * tau, 20_001)
    mixed = np.trapezoid([ratio(effect) for effect in effects], effects)
    found = sequence(z, 1.0, size, units=1, alpha=0.05, n_star=2000.0)
    assert found.p == pytest.approx(1 / mixed, rel=1e-8)


def test_a_ramp_on_changing_traffic_is_no_effect() -> None:
    """Simpson's paradox: 99/1 in a week at 5 %, 50/50 in one at 8 %, no difference in either."""
    ramp = two_arms(events(9900, 495), events(100, 5), "week 1") + two_arms(
        events(5000, 400), events(5000, 400), "week 2"
    )
    found = difference(ramp, "champion", "challenger", kind="proportion", alpha=0.05, n_star=20_000)
    assert isinstance(found, Interval)
    assert found.estimate == pytest.approx(0, abs=1e-15)
    assert found.p == 1
    mixed = two_arms(ramp.arm("champion"), ramp.arm("challenger"))
    pooled = contrast(mixed.sums("champion"), mixed.sums("challenger"))
    z = float(pooled.difference / np.sqrt(pooled.variance))
    assert (float(pooled.difference), z) == pytest.approx((0.0193, 4.54), abs=5e-3)
    theirs = sequence(
        float(pooled.difference), float(pooled.difference) / z, 20_000, units=20_000, alpha=0.05, n_star=20_000
    )
    assert theirs.p == pytest.approx(3.1e-4, abs=5e-6)


def test_planned_sizes_are_those_of_the_formulas() -> None:
    design = proportions(0.05, 0.06, looks=1)
    assert units_for(design, method="fixed") == pytest.approx(fixed_units(design), rel=2e-3)
    assert float(critical(1000, alpha=0.05, n_star=1000)) == pytest.approx(3.035, abs=5e-4)
    assert units_for(design) / fixed_units(design) == pytest.approx(1.92, abs=0.01)
    assert (
        0.80 <= units_for(proportions(0.05, 0.06, looks=50)) / (1.92 * fixed_units(design)) <= 0.92
    )  # arXiv 2606.18366


def test_what_is_foreseen_is_what_was_simulated_elsewhere() -> None:
    """50 looks of 800 units, 5 %: naive .316, always .016, groups .048; at 6 % always .933 (17,600), groups .988 (20,000)."""
    design = proportions(0.05, 0.06, looks=50)
    naive = foresee(design, 40_000, "naive")
    always = foresee(design, 40_000, "always", n_star=20_000)
    groups = foresee(design, 40_000, "groups")
    assert (naive.error, always.error, groups.error) == pytest.approx((0.316, 0.016, 0.048), abs=0.01)
    assert (always.power, groups.power) == pytest.approx((0.933, 0.988), abs=0.01)
    assert (always.median_units, groups.median_units) == pytest.approx((17_600, 20_000), abs=801)
    smaller = proportions(0.05, 0.055, looks=50)
    powers = [foresee(smaller, 40_000, method, n_star=20_000).power for method in ("always", "groups", "fixed")]
    assert powers == pytest.approx([0.315, 0.588, 0.610], abs=0.02)


def test_nothing_is_said_of_too_few_events() -> None:
    few = two_arms(events(1000, 24), events(1000, 60))
    found = difference(few, "champion", "challenger", kind="proportion", alpha=0.05, n_star=1000)
    assert found == NotEstimable("champion: 24 events among 1000 units; at least 25 are needed")
