"""Several challengers, several metrics: how sure each must be so that all of them together are.

Holm's procedure keeps always-valid p-values so: whenever it names someone, it would also have by their smallest values ever,
which are p-values. e-BH takes e-values under any dependence, at any stopping time (Wang and Ramdas, arXiv 2009.02824).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: whoever is below alpha may be named, with at most alpha of naming anyone wrongly.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    _check(p_values)
    adjusted, highest, left = {}, 0.0, len(p_values)
    for name, p in sorted(p_values.items(), key=lambda item: (item[1], item[0])):
        highest = max(highest, min(1.0, left * p))
        adjusted[name] = highest
        left -= 1
    return {name: adjusted[name] for name in p_values}


def share_of_alpha(alpha: float, comparisons: int) -> float:
    """Bonferroni's level for each of `comparisons` intervals that are to hold together."""
    if not (0 < alpha < 1 and comparisons >= 1):
        raise ValueError(f"alpha and comparisons: must be in (0, 1) and at least 1, got {alpha} and {comparisons}")
    return alpha / comparisons


def e_bh(log_e_values: Mapping[str, float], alpha: float) -> list[str]:
    """Discoveries among K e-values, their expected false share at most `alpha`: for dashboards of many segments.

    The k largest, k the greatest number whose k-th largest e-value is at least K / (alpha k).

    >>> e_bh({"a": 6.0, "b": 4.0, "c": 0.0}, 0.05)
    ['a', 'b']
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: must be between 0 and 1, got {alpha}")
    if any(math.isnan(value) for value in log_e_values.values()):
        raise ValueError("log e-values: one is not a number")
    ranked = sorted(log_e_values.items(), key=lambda item: (-item[1], item[0]))
    found = 0
    for k, (_, log_e) in enumerate(ranked, start=1):
        if log_e >= math.log(len(ranked) / (alpha * k)):
            found = k
    return sorted(name for name, _ in ranked[:found])


def mean_log_e(log_e_values: Sequence[float]) -> float:
    """log of the mean of e-values, which is an e-value whatever depends on what; a product would need independence."""
    if not log_e_values:
        raise ValueError("log e-values: there are none")
    top = max(log_e_values)
    if math.isinf(top):
        return top
    return top + math.log(sum(math.exp(value - top) for value in log_e_values) / len(log_e_values))


def _check(p_values: Mapping[str, float]) -> None:
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"{name}: a p-value is within 0..1, got {p}")
