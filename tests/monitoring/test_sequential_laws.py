"""What every sequence promises, whatever the numbers: evidence adds, intervals nest, p and interval agree, bets don't pay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from monitoring.evidence import Evidence, Interval, Moments, NotEstimable, moments
from monitoring.mixtures import log_beta_mixture, log_beta_mixture_above, log_normal, log_normal_above
from monitoring.planning import Design, days_for, foresee, proportions, units_for, welch
from monitoring.sequential import (
    Assigned,
    Counts,
    Side,
    always_valid_p,
    bernoulli,
    boundaries,
    bounded_difference,
    bounded_mean,
    chi_square,
    crossing,
    difference,
    discordant,
    e_bh,
    holm,
    log_difference,
    log_excess,
    log_mismatch,
    mean_log_e,
    paired,
    rate_ratio,
    share_of_alpha,
    winsorised,
)
from monitoring.sequential_bounded import log_bernstein
from monitoring.sequential_means import critical
from monitoring.sequential_worlds import Phase, always, binary
from monitoring.srm import log_dirichlet

ALPHAS = st.floats(0.001, 0.4)
SIDES = st.sampled_from(["two", "lower", "upper"])


def arms(champion: Moments, challenger: Moments, phase: str = "1") -> Evidence:
    return Evidence({((phase,), "a"): champion, ((phase,), "b"): challenger})


def events(n: int, k: int) -> Moments:
    return Moments(n, k, k, k)


def units(seed: int, count: int = 400) -> list[tuple[tuple[str, ...], str, float, float]]:
    """(stratum, arm, outcome, covariate) of units whose level depends on the stratum."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        stratum, arm, score = str(rng.integers(3)), "ab"[rng.integers(2)], rng.normal()
        rows.append(((stratum,), arm, float(rng.normal(5 + int(stratum) + score)), float(score)))
    return rows


def evidence_of(rows: list[tuple[tuple[str, ...], str, float, float]]) -> Evidence:
    return sum((Evidence({(at, arm): moments([x], [y])}) for at, arm, x, y in rows), Evidence())


def compare(evidence: Evidence, **options: bool) -> Interval:
    found = difference(evidence, "a", "b", kind="mean", alpha=0.05, n_star=500, **options)  # type: ignore[arg-type]
    assert isinstance(found, Interval)
    return found


@given(seed=st.integers(0, 10_000), data=st.data())
def test_order_and_sharding_of_the_evidence_can_not_matter(seed: int, data: st.DataObject) -> None:
    rows = units(seed, 160)
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    shards = evidence_of(shuffled[cut:]) + evidence_of(shuffled[:cut])
    for options in ({}, {"relative": True}, {"adjusted": True}):
        whole, parts = compare(evidence_of(rows), **options), compare(shards, **options)
        for name in ("estimate", "lower", "upper", "p", "se"):
            assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-11, abs=1e-12)
        assert parts.units == whole.units == len(rows)


@given(size=st.floats(1, 1e9), n_star=st.floats(10, 1e8), alphas=st.tuples(ALPHAS, ALPHAS), side=SIDES)
def test_confidence_sequences_nest_in_alpha(
    size: float, n_star: float, alphas: tuple[float, float], side: Side
) -> None:
    low, high = sorted(alphas)
    wide, narrow = (float(critical(size, alpha=alpha, n_star=n_star, side=side)) for alpha in (low, high))
    assert narrow <= wide * (1 + 1e-9)


@given(k=st.integers(0, 300), n=st.integers(1, 300), alphas=st.tuples(ALPHAS, ALPHAS))
def test_exact_sequences_nest_in_alpha_too(k: int, n: int, alphas: tuple[float, float]) -> None:
    assume(k <= n)
    low, high = sorted(alphas)
    for make in (
        lambda alpha: bernoulli(k, n, alpha=alpha, n_star=100),
        lambda alpha: bounded_mean(Moments(n, k, 3.0 * k, 9.0 * k), low=0, high=3, alpha=alpha),
        lambda alpha: rate_ratio([Counts(k, n - k, 0.3)], alpha=alpha),
    ):
        wide, narrow = make(low), make(high)
        assert isinstance(wide, Interval)
        assert isinstance(narrow, Interval)
        slack = 1e-7 * max(1.0, narrow.estimate if math.isfinite(narrow.estimate) else 1.0)
        assert wide.lower <= narrow.lower + slack
        assert narrow.upper <= wide.upper + slack * max(1.0, narrow.upper if math.isfinite(narrow.upper) else 1.0)
        assert narrow.lower <= narrow.estimate <= narrow.upper


@given(seed=st.integers(0, 2_000), alpha=st.floats(0.001, 0.4), side=SIDES, null=st.floats(-0.5, 0.5))
def test_p_is_below_alpha_just_where_the_interval_leaves_the_null_out(
    seed: int, alpha: float, side: Side, null: float
) -> None:
    evidence = evidence_of(units(seed, 120))
    found = difference(evidence, "a", "b", kind="mean", alpha=alpha, n_star=300, side=side, null=null)
    assert isinstance(found, Interval)
    assume(min(abs(found.lower - null), abs(found.upper - null)) > 1e-9)
    assert (found.p < alpha) == (not found.lower < null < found.upper)


def test_one_side_is_surer_of_its_side_than_two() -> None:
    sizes = np.geomspace(1, 1e8, 50)
    assert np.all(critical(sizes, alpha=0.05, n_star=1e4, side="lower") < critical(sizes, alpha=0.05, n_star=1e4))


@given(seed=st.integers(0, 1_000))
def test_swapping_the_arms_turns_the_sign(seed: int) -> None:
    rows = units(seed, 120)
    there = compare(evidence_of(rows))
    back = compare(evidence_of([(at, "ba"["ab".index(arm)], x, y) for at, arm, x, y in rows]))
    assert (back.estimate, back.lower, back.upper) == pytest.approx((-there.estimate, -there.upper, -there.lower))
    assert back.p == pytest.approx(there.p)


def test_many_experiments_at_once_are_read_as_one_is() -> None:
    world = binary([Phase(4, 400, 0.5, 0.1), Phase(4, 2_000, 0.3, 0.2, 0.06)], 30, np.random.default_rng(3))
    alarms = always(world, kind="proportion", alpha=0.05, n_star=4_000)
    assert 0 < alarms.mean() < 1
    for run, look in itertools.product(range(30), range(8)):
        cells = {
            ((str(phase),), name): Moments(*(int(part[run, look, phase]) for part in arm[:4]))
            for phase in (0, 1)
            for name, arm in (("a", world.champion), ("b", world.challenger))
        }
        found = difference(Evidence(cells), "a", "b", kind="proportion", alpha=0.05, n_star=4_000)
        assert alarms[run, look] == (isinstance(found, Interval) and found.p < 0.05)


def test_a_covariate_takes_its_share_of_the_variance_out_and_moves_nothing() -> None:
    """x = 1 + y + noise, y the champion's score: theta is the slope of least squares, se falls by its correlation."""
    rng = np.random.default_rng(5)
    y, arm = rng.normal(size=20_000), rng.integers(0, 2, 20_000).astype(bool)
    x = 1 + 2 * y + rng.normal(size=20_000) + 0.1 * arm
    evidence = arms(moments(x[~arm], y[~arm]), moments(x[arm], y[arm]))
    plain, adjusted = compare(evidence), compare(evidence, adjusted=True)
    design = np.column_stack([np.ones(20_000), arm, y])
    slopes = np.linalg.lstsq(design, x, rcond=None)[0]
    assert adjusted.estimate == pytest.approx(slopes[1], abs=1e-9)
    assert adjusted.se / plain.se == pytest.approx(math.sqrt(1 / 5), rel=0.02)
    shifted = arms(moments(x[~arm], y[~arm] + 1e3), moments(x[arm], y[arm] + 1e3))
    assert compare(shifted, adjusted=True).estimate == pytest.approx(adjusted.estimate, abs=1e-7)
    none = arms(moments(x[~arm]), moments(x[arm]))
    assert compare(none, adjusted=True) == compare(none)
    lift = compare(evidence, adjusted=True, relative=True)
    assert lift.estimate == pytest.approx(adjusted.estimate / (x[~arm].mean()), rel=1e-9)


def test_the_relative_lift_covers_as_often_as_it_says() -> None:
    """The delta method's standard error is the spread of the estimate, adjusted or not, over strata."""
    rng = np.random.default_rng(6)
    for adjusted in (False, True):
        lifts, errors = [], []
        for _ in range(300):
            parts = Evidence()
            for at, level in (("1", 3.0), ("2", 5.0)):
                y = rng.normal(size=200)
                x = level + y + rng.normal(size=200)
                parts += arms(moments(x[:140], y[:140]), moments(1.1 * x[140:], y[140:]), at)
            found = compare(parts, relative=True, adjusted=adjusted)
            lifts.append(found.estimate)
            errors.append(found.se)
        assert float(np.mean(lifts)) == pytest.approx(0.1, abs=0.01)
        assert float(np.std(lifts)) == pytest.approx(float(np.mean(errors)), rel=0.15)


def test_weights_by_a_strata_s_own_variance_would_find_effects_that_are_none() -> None:
    """Why strata are weighed by their sizes: of few events, a stratum with fewer looks surer than it is."""
    rng = np.random.default_rng(7)
    ours, theirs = [], []
    for _ in range(400):
        n0, n1 = np.full(40, 900), np.full(40, 100)
        k0, k1 = rng.binomial(n0, 0.03), rng.binomial(n1, 0.03)
        held = (k0 > 0) & (k1 > 0)
        p0, p1 = k0 / n0, k1 / n1
        variance = p0 * (1 - p0) / n0 + p1 * (1 - p1) / n1
        weight = np.where(held, 1 / np.where(held, variance, 1), 0)
        theirs.append((weight @ (p1 - p0)) / math.sqrt(weight.sum()))
        evidence = Evidence()
        for hour in range(40):
            evidence += arms(events(900, int(k0[hour])), events(100, int(k1[hour])), str(hour))
        found = difference(evidence, "a", "b", kind="proportion", alpha=0.05, n_star=10_000)
        assert isinstance(found, Interval)
        ours.append(found.estimate / found.se)
    assert abs(float(np.mean(ours))) < 3 / math.sqrt(400) + 0.05
    assert float(np.std(ours)) == pytest.approx(1, abs=0.12)
    assert abs(float(np.mean(theirs))) > 0.5


@pytest.mark.parametrize(
    ("evidence", "kind", "reason"),
    [
        (Evidence(), "mean", "a: no units with an outcome yet"),
        (arms(events(60, 30), Moments()), "proportion", "b: no units with an outcome yet"),
        (arms(events(50, 30), events(50, 30)), "proportion", "a: 20 units without the event; at least 25 are needed"),
        (arms(events(900, 100), events(20, 3)), "proportion", "b: 3 events among 20 units; at least 25 are needed"),
        (arms(moments([2.0] * 50), moments([2.0] * 50)), "mean", "no variance within the arms"),
        (arms(moments([0.1] * 60), moments([1e9 + 0.1] * 60)), "mean", "no variance within the arms"),
        (
            arms(events(60, 30), Moments()) + arms(Moments(), events(60, 30), "2"),
            "proportion",
            "no stratum has two units of each arm",
        ),
    ],
)
def test_what_can_not_be_estimated_says_why(evidence: Evidence, kind: str, reason: str) -> None:
    found = difference(evidence, "a", "b", kind=kind, alpha=0.05, n_star=100)  # type: ignore[arg-type]
    assert found == NotEstimable(reason)


def test_nothing_is_relative_to_a_mean_that_may_be_zero() -> None:
    rng = np.random.default_rng(8)
    evidence = arms(moments(rng.normal(0, 1, 100)), moments(rng.normal(1, 1, 100)))
    found = difference(evidence, "a", "b", kind="mean", alpha=0.05, n_star=100, relative=True)
    assert isinstance(found, NotEstimable)
    assert "can't be told from zero" in found.reason


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Moments(1, 1, math.nan, 1.0),
        lambda: Moments(1, 1, math.inf, 1.0),
        lambda: Moments(1, 2, 1.0, 1.0),
        lambda: Moments(-1),
        lambda: moments([1.0, 2.0], [1.0]),
        lambda: winsorised([1.0], math.nan),
        lambda: difference(
            arms(moments([2.0] * 50), moments([1.0] * 50)), "a", "b", kind="proportion", alpha=0.05, n_star=9
        ),
        lambda: compare_with(alpha=0.0),
        lambda: compare_with(alpha=1.0),
        lambda: compare_with(alpha=math.nan),
        lambda: compare_with(n_star=0.0),
        lambda: compare_with(n_star=math.nan),
        lambda: Counts(-1, 0, 0.5),
        lambda: Counts(1, 1, 1.0),
        lambda: Counts(1, 1, 0.5) + Counts(1, 1, 0.1),
        lambda: log_excess([Counts(1, 1, 0.5)], margin=-1.0),
        lambda: log_difference([Counts(1, 1, 0.5)], ratio=math.nan),
        lambda: rate_ratio([Counts(1, 1, 0.5)], alpha=2.0),
        lambda: bernoulli(2, 1, alpha=0.05, n_star=10),
        lambda: bernoulli(1, 2, alpha=0.05, n_star=-1),
        lambda: bounded_mean(moments([2.0]), low=0, high=1, alpha=0.05),
        lambda: bounded_mean(moments([0.5]), low=1, high=0, alpha=0.05),
        lambda: boundaries([0.5, 0.4], alpha=0.05),
        lambda: boundaries([], alpha=0.05),
        lambda: boundaries([0.5, 1.2], alpha=0.05),
        lambda: boundaries([0.5, math.nan], alpha=0.05),
        lambda: boundaries([1.0], alpha=0.05, spending="linear"),  # type: ignore[arg-type]
        lambda: crossing([0.5, 1.0], [2.0]),
        lambda: Assigned({"c": 1}, {"a": 1, "b": 1}),
        lambda: Assigned({"a": 1}, {"a": 0.0}),
        lambda: Assigned({"a": -1}, {"a": 1.0}),
        lambda: holm({"a": math.nan}),
        lambda: e_bh({"a": math.nan}, 0.05),
        lambda: share_of_alpha(0.05, 0),
        lambda: mean_log_e([]),
        lambda: always_valid_p(math.nan),
        lambda: Design(effect=0.0, sd=1.0, sd_challenger=1.0),
        lambda: proportions(0.0, 0.1),
        lambda: units_for(proportions(0.1, 0.2), power=1.0),
        lambda: units_for(Design(effect=1e-9, sd=1.0, sd_challenger=1.0, looks=2)),
        lambda: days_for(10, [(-1, 5)]),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^[\w, -]+: "):
        wrong()


def compare_with(alpha: float = 0.05, n_star: float = 100.0) -> object:
    evidence = arms(moments(np.arange(1.0, 60)), moments(np.arange(1.0, 60)))
    return difference(evidence, "a", "b", kind="mean", alpha=alpha, n_star=n_star)


@given(n=st.integers(1, 60), share=st.floats(0.01, 0.99), strength=st.floats(0.5, 300), below=st.floats(0, 1))
def test_a_bet_on_coins_pays_nothing_on_average(n: int, share: float, strength: float, below: float) -> None:
    """Exactly 1 under the null, and no more under any chance that the one-sided bet is against."""
    hits = np.arange(n + 1)
    two = np.exp(log_beta_mixture(hits, n - hits, share, strength))
    one = np.exp(log_beta_mixture_above(hits, n - hits, share, strength))
    assert stats.binom.pmf(hits, n, share) @ two == pytest.approx(1, rel=1e-8)
    assert stats.binom.pmf(hits, n, share) @ one == pytest.approx(1, rel=1e-6)
    assert stats.binom.pmf(hits, n, share * below) @ one <= 1 + 1e-6


@given(n=st.integers(1, 9), shares=st.tuples(*[st.floats(0.05, 1)] * 3))
def test_a_bet_on_the_shares_pays_nothing_on_average(n: int, shares: tuple[float, ...]) -> None:
    whole = np.array(shares) / sum(shares)
    counts = np.array([at for at in itertools.product(range(n + 1), repeat=3) if sum(at) == n])
    e_values = np.exp(log_dirichlet(counts, whole))
    assert stats.multinomial.pmf(counts, n, whole) @ e_values == pytest.approx(1, rel=1e-8)


@given(
    values=st.lists(st.floats(0, 1), min_size=2, max_size=3),
    weights=st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
    n=st.integers(1, 6),
)
def test_a_bet_on_a_bounded_mean_pays_nothing_on_average(values: list[float], weights: list[float], n: int) -> None:
    """Over all sequences of n draws from any distribution on the given values."""
    chances = np.array(weights[: len(values)]) / sum(weights[: len(values)])
    mean = float(chances @ values)
    paid = 0.0
    for drawn in itertools.product(range(len(values)), repeat=n):
        x = np.array(values)[list(drawn)]
        paid += float(np.prod(chances[list(drawn)]) * np.exp(log_bernstein(n, x.mean(), (x**2).sum(), mean)))
    assert paid <= 1 + 1e-9


def test_a_bet_on_a_normal_mean_pays_nothing_on_average() -> None:
    s = np.linspace(-60, 60, 400_001)
    density = stats.norm.pdf(s, scale=5)
    assert np.trapezoid(density * np.exp(log_normal(s, 25, 8)), s) == pytest.approx(1, rel=1e-8)
    assert np.trapezoid(density * np.exp(log_normal_above(s, 25, 8)), s) == pytest.approx(1, rel=1e-8)


@given(
    counts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.floats(0.01, 0.99)), min_size=1, max_size=3),
    alpha=st.floats(0.005, 0.2),
)
def test_the_ratios_that_are_not_rejected_are_the_interval(counts: list[tuple[int, int, float]], alpha: float) -> None:
    phases = [Counts(*at) for at in counts]
    found = rate_ratio(phases, alpha=alpha)
    if isinstance(found, NotEstimable):
        assert "no event" in found.reason or "disagree" in found.reason
        return
    assert found.lower <= found.upper
    for edge in (found.lower, found.upper):
        if 0 < edge < math.inf:
            assert log_difference(phases, ratio=edge) == pytest.approx(-math.log(alpha), abs=1e-5)
    inside = math.sqrt(max(found.lower, 1e-6) * min(found.upper, 1e6))
    assert log_difference(phases, ratio=inside) <= -math.log(alpha) + 1e-9
    if found.p < alpha:
        assert not found.lower <= 1 <= found.upper


def test_a_guardrail_is_broken_by_more_errors_and_never_by_fewer() -> None:
    assert log_excess([]) == 0
    assert log_excess([Counts(0, 0, 0.01)]) == 0
    assert log_excess([Counts(10, 40, 0.5)]) > math.log(100)
    assert log_excess([Counts(40, 10, 0.5)]) < 0
    assert log_excess([Counts(0, 8, 0.01)]) > math.log(
        1e6
    )  # eight errors at one per cent of the traffic, none elsewhere
    assert log_excess([Counts(100, 130, 0.5)], margin=0.5) < 0 < log_excess([Counts(100, 200, 0.5)], margin=0.5)
    assert math.isfinite(log_excess([Counts(10**7, 10**3, 0.5)]))
    two = [Counts(10, 30, 0.5), Counts(300, 4, 0.01)]
    assert log_excess(two) == pytest.approx(sum(log_excess([phase]) for phase in two))


def test_discordant_answers_tell_which_model_is_right_more_often() -> None:
    found = rate_ratio([discordant(better=60, worse=20)], alpha=0.05)
    assert isinstance(found, Interval)
    assert found.lower > 1
    assert found.p < 0.01
    even = rate_ratio([discordant(better=20, worse=20)], alpha=0.05)
    assert isinstance(even, Interval)
    assert even.p == 1


def test_a_shadow_s_paired_losses_need_fewer_units_than_two_arms() -> None:
    rng = np.random.default_rng(9)
    hard = rng.exponential(1.0, 4_000)  # how hard each unit is, for both
    champion, challenger = hard + rng.normal(0, 0.1, 4_000), hard + rng.normal(-0.02, 0.1, 4_000)
    pairs = paired(moments(challenger - champion), alpha=0.05, n_star=4_000)
    split = difference(
        arms(moments(champion[::2]), moments(challenger[1::2])), "a", "b", kind="mean", alpha=0.05, n_star=4_000
    )
    assert isinstance(pairs, Interval)
    assert isinstance(split, Interval)
    assert pairs.upper < 0
    assert split.lower < 0 < split.upper
    assert paired(moments([0.0] * 500), alpha=0.05, n_star=100) == NotEstimable(
        "the models differ on 0 of 500 units; at least 25 are needed"
    )
    same = paired(moments([0.3] * 500), alpha=0.05, n_star=100)
    assert same == NotEstimable("the difference is the same for every unit")


def test_bounded_means_are_held_between_their_limits() -> None:
    rng = np.random.default_rng(10)
    x = rng.beta(2, 5, 3_000) * 4 - 1
    found = bounded_mean(moments(x), low=-1, high=3, alpha=0.05, null=1.0)
    assert isinstance(found, Interval)
    assert -1 <= found.lower < found.estimate < found.upper <= 3
    assert found.upper - found.lower < 9 * found.se
    assert found.p < 1e-6
    lower = bounded_mean(moments(x), low=-1, high=3, alpha=0.05, side="lower")
    assert isinstance(lower, Interval)
    assert found.lower < lower.lower < lower.upper == 3
    assert bounded_mean(Moments(), low=0, high=1, alpha=0.05) == NotEstimable("no units yet")
    zeros = bounded_mean(Moments(n=200), low=0, high=1, alpha=0.05)
    assert isinstance(zeros, Interval)
    assert zeros.lower == 0 < zeros.upper < 0.1
    gap = bounded_difference(moments(x), moments(x + 0.5), low=-1, high=4, alpha=0.05)
    assert isinstance(gap, Interval)
    assert 0 < gap.lower < 0.5 < gap.upper


@given(cuts=st.lists(st.floats(0.01, 0.99), min_size=0, max_size=6, unique=True), alpha=st.floats(0.01, 0.2))
def test_group_bounds_spend_alpha_and_no_more(cuts: list[float], alpha: float) -> None:
    fractions = [*sorted(cuts), 1.0]
    assume(all(later - earlier > 0.005 for earlier, later in itertools.pairwise(fractions)))
    for sides in (1, 2):
        bounds = boundaries(fractions, alpha=alpha, sides=sides)
        assert sum(crossing(fractions, bounds, sides=sides)) == pytest.approx(alpha, abs=1e-6)
        assert max(bounds) <= 8


def test_units_in_an_arm_without_a_share_are_proof_enough() -> None:
    wrong = Assigned({"a": 10, "c": 1}, {"a": 0.5, "b": 0.5, "c": 0.0})
    assert log_mismatch([wrong]) == math.inf
    assert always_valid_p(log_mismatch([wrong])) == chi_square(wrong) == 0
    nobody = Assigned({}, {"a": 0.5, "b": 0.5})
    assert log_mismatch([nobody]) == pytest.approx(0, abs=1e-9)
    assert chi_square(nobody) == 1
    assert log_mismatch([Assigned({"a": 5000, "b": 5000}, {"a": 1, "b": 1})]) < 0
    phases = [Assigned({"a": 900, "b": 100}, {"a": 9, "b": 1}), Assigned({"a": 4600, "b": 5400}, {"a": 1, "b": 1})]
    assert log_mismatch(phases) > math.log(100) > log_mismatch(phases[:1])


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(p_values: list[float]) -> None:
    """Adjusted p = the largest Bonferroni p of all sets of hypotheses that hold it."""
    named = {str(at): p for at, p in enumerate(p_values)}
    for name, adjusted in holm(named).items():
        others = [p for key, p in named.items() if key != name]
        closed = max(
            min(1.0, (size + 1) * min(named[name], *some)) if some else min(1.0, named[name])
            for size in range(len(others) + 1)
            for some in itertools.combinations(others, size)
        )
        assert adjusted == pytest.approx(closed, abs=1e-12)


@given(log_e=st.lists(st.floats(-20, 20), min_size=1, max_size=8), alpha=st.floats(0.01, 0.5))
def test_e_bh_names_the_largest_set_that_vouches_for_itself(log_e: list[float], alpha: float) -> None:
    named = {str(at): value for at, value in enumerate(log_e)}
    found = e_bh(named, alpha)
    sizes = [k for k in range(len(log_e) + 1) if k == 0 or sorted(log_e)[-k] >= math.log(len(log_e) / (alpha * k))]
    assert len(found) == max(sizes)
    assert all(
        named[name] >= max([value for key, value in named.items() if key not in found], default=-99) for name in found
    )
    assert mean_log_e(log_e) == pytest.approx(math.log(np.mean(np.exp(log_e))), abs=1e-9)


def test_a_ramp_s_days_are_counted_and_too_little_traffic_is_said() -> None:
    ramp = [(2, 500), (2, 1_000), (math.inf, 5_000)]
    assert days_for(700, ramp) == pytest.approx(1.4)
    assert days_for(10_000, ramp, label_window_days=7) == pytest.approx(12.4)
    assert days_for(10_000, [(5, 100), (5, 0)]) == NotEstimable("10,000 units are needed, and 500 come")
    assert days_for(10_000, [(3, 0), (math.inf, 0)]) == NotEstimable("10,000 units are needed, and 0 come")


def test_planned_power_is_reached_on_every_side_and_split() -> None:
    for share, side, method in (
        (0.5, "two", "always"),
        (0.1, "lower", "always"),
        (0.1, "upper", "groups"),
        (0.3, "lower", "fixed"),
    ):
        design = Design(
            effect=-0.1 if side == "upper" else 0.1, sd=1.0, sd_challenger=1.3, share=share, side=side, looks=8
        )  # type: ignore[arg-type]
        needed = units_for(design, 0.9, method)  # type: ignore[arg-type]
        seen = foresee(design, needed, method)  # type: ignore[arg-type]
        assert seen.power == pytest.approx(0.9, abs=0.003)
        assert seen.error <= 0.05 + 1e-6
        assert seen.median_units is not None
        assert seen.median_units <= needed
    assert isinstance(welch(moments([1.0]), moments([1.0, 2.0]), alpha=0.05), NotEstimable)
    assert isinstance(welch(moments([1.0] * 3), moments([2.0] * 3), alpha=0.05), NotEstimable)
    assert winsorised([1.0, 9.0], 3.0) == [1.0, 3.0]
