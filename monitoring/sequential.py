"""Tests that may be looked at after every unit: numbers in, numbers out. The public face of the modules beside it.

    what is compared                              by                                      exact   phases
    means, common proportions, revenue            difference (CUPED, relative lift)       no      weighed, never pooled
    rare events, errors, guardrails               log_excess, rate_ratio                  yes     multiplied
    one arm's rate; a mean between known limits   bernoulli, bounded_mean                 yes     one at a time
    a shadow and its champion, on the same rows   paired, discordant with rate_ratio      no, yes none needed
    planned looks, known number of units          boundaries                              yes     one at a time
    the shares of the arms                        log_mismatch                            yes     multiplied
    several challengers, many segments            holm, share_of_alpha, e_bh              yes

Nothing here remembers: each call is a function of the sums so far, and an interval is not cut with those before it, since a
truth that drifts would leave nothing. `docs/sequential.md` tells when to use which, and what each does when looked at often.
"""

from __future__ import annotations

import math

from monitoring.evidence import Evidence, Interval, Moments, NotEstimable, Stratum, moments, winsorised
from monitoring.sequential_bounded import bernoulli, bounded_difference, bounded_mean
from monitoring.sequential_counts import Counts, discordant, log_difference, log_excess, rate_ratio
from monitoring.sequential_groups import boundaries, crossing
from monitoring.sequential_means import MIN_EVENTS, Kind, Side, difference, paired, sequence
from monitoring.several import e_bh, holm, mean_log_e, share_of_alpha
from monitoring.srm import Assigned, chi_square, log_mismatch

__all__ = [
    "MIN_EVENTS",
    "Assigned",
    "Counts",
    "Evidence",
    "Interval",
    "Kind",
    "Moments",
    "NotEstimable",
    "Side",
    "Stratum",
    "always_valid_p",
    "bernoulli",
    "boundaries",
    "bounded_difference",
    "bounded_mean",
    "chi_square",
    "crossing",
    "difference",
    "discordant",
    "e_bh",
    "holm",
    "log_difference",
    "log_excess",
    "log_mismatch",
    "mean_log_e",
    "moments",
    "paired",
    "rate_ratio",
    "sequence",
    "share_of_alpha",
    "winsorised",
]


def always_valid_p(log_e: float) -> float:
    """min(1, 1/e): at most alpha, at any time, with probability at most alpha where there is nothing to find.

    >>> round(always_valid_p(math.log(20)), 9), always_valid_p(-3.0)
    (0.05, 1.0)
    """
    if math.isnan(log_e):
        raise ValueError("log e: is not a number")
    return math.exp(-max(log_e, 0.0))
