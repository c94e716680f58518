"""The martingales under every sequence here: bets on an effect, mixed over how large it might be.

Each function returns the logarithm of an e-value: a quantity whose mean is at most 1 where there is no effect, however often
it is looked at, so that it passes 1/alpha with probability at most alpha (Ville's inequality). Howard, Ramdas, McAuliffe
and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences" (arXiv 1810.08240), here HRMS.

`s` is the sum of deviations from the null, `v` its intrinsic time (its variance so far), `rho` tells at which v the bound is
tightest. All arguments may be arrays; they broadcast.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
NEWTON_STEPS = 60
LOOSEST = 0.3  # tuned to yet larger levels, one-sided intervals would not nest


def rho_for(v: float, alpha: float, *, sides: int = 2) -> float:
    """The rho with the narrowest normal-mixture bound at intrinsic time `v` (arXiv 2103.06476v7 eq. 161).

    v / (2 log(1/alpha) + log(1 + 2 log(1/alpha))); one-sided, the same with twice the alpha.
    """
    return v / tightness(alpha, sides=sides)


def tightness(alpha: float, *, sides: int = 2) -> float:
    """v / rho where the bound is tightest; of a level above LOOSEST, at that. Raises ValueError unless 0 < alpha < 1.

    >>> round(tightness(0.05), 3)
    7.936
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: must be between 0 and 1, got {alpha}")
    doubled = -2 * math.log(min(alpha * (3 - sides), LOOSEST))
    return doubled + math.log1p(doubled)


def log_normal(s: Any, v: Any, rho: Any) -> Floats:
    """HRMS, two-sided normal mixture: for |s| large."""
    s, v, rho = (np.asarray(value, np.float64) for value in (s, v, rho))
    return np.asarray(0.5 * np.log(rho / (v + rho)) + s**2 / (2 * (v + rho)))


def log_normal_above(s: Any, v: Any, rho: Any) -> Floats:
    """HRMS, one-sided normal mixture: for s large."""
    s, v, rho = (np.asarray(value, np.float64) for value in (s, v, rho))
    w = s / np.sqrt(v + rho)
    return np.asarray(0.5 * np.log(4 * rho / (v + rho)) + w**2 / 2 + special.log_ndtr(w))


def normal_bound(v: Any, rho: Any, alpha: float) -> Floats:
    """|s| passes it, ever, with probability at most `alpha`."""
    v, rho = np.asarray(v, np.float64), np.asarray(rho, np.float64)
    return np.asarray(np.sqrt((v + rho) * (np.log1p(v / rho) - 2 * math.log(alpha))))


def normal_bound_above(v: Any, rho: Any, alpha: float) -> Floats:
    """s passes it, ever, with probability at most `alpha`; the exact root of `log_normal_above`.

    Newton's method on w^2/2 + log Phi(w), which is convex and increasing, from the right of the root.
    """
    v, rho = np.asarray(v, np.float64), np.asarray(rho, np.float64)
    wanted = -math.log(alpha) - 0.5 * np.log(4 * rho / (v + rho))
    w = np.sqrt(2 * np.maximum(wanted, 0)) + 1
    for _ in range(NEWTON_STEPS):
        log_phi = special.log_ndtr(w)
        hazard = np.exp(-(w**2) / 2 - log_phi) / math.sqrt(2 * math.pi)
        w = w - (w**2 / 2 + log_phi - wanted) / (w + hazard)
    return np.asarray(w * np.sqrt(v + rho))


def log_beta_binomial(s: Any, v: Any, *, rho: float, g: float, h: float) -> Floats:
    """HRMS, two-sided beta-binomial mixture, for steps between -g and h."""
    s, v = np.asarray(s, np.float64), np.asarray(v, np.float64)
    r, both = max(rho - g * h, 1e-3 * g * h), g + h
    grown = special.betaln((r + v - g * s) / (g * both), (r + v + h * s) / (h * both))
    started = special.betaln(r / (g * both), r / (h * both))
    paid = v / (g * h) * math.log(both)
    paid = paid - (v + h * s) / (h * both) * math.log(g) - (v - g * s) / (g * both) * math.log(h)
    return np.asarray(paid + grown - started)


def log_beta_mixture(hits: Any, misses: Any, share: Any, strength: float) -> Floats:
    """Beta(strength share, strength (1 - share)) bets on the chance of a hit, against it being `share` (0 < share < 1).

    log of B(a + hits, b + misses) / B(a, b) / share^hits / (1 - share)^misses: HRMS, beta-binomial, for coins.
    """
    hits, misses, share = (np.asarray(value, np.float64) for value in (hits, misses, share))
    a, b = strength * share, strength * (1 - share)
    mixed = special.betaln(a + hits, b + misses) - special.betaln(a, b)
    return np.asarray(mixed - hits * np.log(share) - misses * np.log1p(-share))


def log_beta_mixture_above(hits: Any, misses: Any, share: Any, strength: float) -> Floats:
    """As `log_beta_mixture`, with bets on chances above `share` alone: against every chance at or below it.

    The prior is cut off below `share`: each bet left loses on average under any smaller chance. Never below -700.
    """
    hits, misses, share = (np.asarray(value, np.float64) for value in (hits, misses, share))
    a, b = strength * share, strength * (1 - share)
    kept = special.betaincc(a + hits, b + misses, share)
    with np.errstate(divide="ignore"):
        cut = np.log(kept) - np.log(special.betaincc(a, b, share))
    return np.asarray(np.maximum(log_beta_mixture(hits, misses, share, strength) + cut, -700.0))
