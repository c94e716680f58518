"""Made-up experiments, many at a time, to see how often a test that is looked at after every batch is wrong.

A `World` is the running sums of both arms with axes (run, look, stratum), as the evidence of that many experiments would have
been at each look. The tests are read off it by the same array functions that `sequential` calls with one experiment's sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from monitoring.evidence import Sums
from monitoring.mixtures import Floats, log_beta_mixture
from monitoring.sequential_groups import boundaries
from monitoring.sequential_means import Contrast, Kind, Side, belted, contrast, log_evidence, ready

Rng = np.random.Generator
Outcomes = tuple[Any, Any, Any]  # of each cell: events, sum, sum of squares


@dataclass(frozen=True)
class Phase:
    """`looks` batches of `units` (both arms), the challenger getting `share`. `rates` one a look, or one for all."""

    looks: int
    units: int
    share: float
    rates: float | Sequence[float]
    lift: float = 0.0  # added to the challenger's rate


@dataclass(frozen=True)
class World:
    champion: Sums
    challenger: Sums
    shares: tuple[float, ...]
    units: Floats  # of both arms together, by look

    @property
    def pooled(self) -> World:
        """As if there were no phases: what must not be done."""
        one = [Sums(*(part.sum(axis=-1, keepdims=True) for part in arm)) for arm in (self.champion, self.challenger)]
        return World(one[0], one[1], (0.5,), self.units)


def binary(phases: Sequence[Phase], runs: int, rng: Rng) -> World:
    """Each unit has the event or not."""

    def outcomes(n: Any, rates: Floats) -> Outcomes:
        events = rng.binomial(n, rates)
        return events, events, events

    return _world(phases, runs, rng, outcomes)


def revenue(phases: Sequence[Phase], runs: int, rng: Rng, *, sigma: float, cap: float) -> World:
    """Who has the event pays: log-normal with a heavy tail, cut to `cap`."""

    def outcomes(n: Any, rates: Floats) -> Outcomes:
        payers = rng.binomial(n, rates)
        paid = np.minimum(rng.lognormal(0.0, sigma, int(payers.sum())), cap)
        owner = np.repeat(np.arange(payers.size), payers.ravel())
        total = np.bincount(owner, paid, payers.size).reshape(payers.shape)
        return payers, total, np.bincount(owner, paid**2, payers.size).reshape(payers.shape)

    return _world(phases, runs, rng, outcomes)


def delayed(phase: Phase, runs: int, rng: Rng, *, window: int, known: float, slow: float, closed: bool) -> World:
    """Outcomes come up to `window` batches later, the challenger's more slowly (`slow` 1 is as fast), and 1 - `known` never.

    `closed`: a unit counts when its window is over, by its time of assignment. Else each event counts when it comes, and units
    without one count as non-events from the beginning, which makes the slower arm look worse.
    """
    sides = []
    given = rng.binomial(phase.units, phase.share, (runs, phase.looks))
    for assigned, speed in ((phase.units - given, 1.0), (given, slow)):
        n = rng.binomial(assigned, known)
        weights = speed ** np.arange(window + 1) * np.ones(window + 1)
        events = rng.multinomial(rng.binomial(n, phase.rates), weights / weights.sum())
        if closed:
            seen, units = events.sum(axis=-1)[:, :-window], n[:, :-window]
            pad = np.zeros((runs, window), np.int64)
            seen, units = np.concatenate([pad, seen], axis=1), np.concatenate([pad, units], axis=1)
        else:
            units, seen = n, np.zeros_like(n)
            for late in range(window + 1):
                seen[:, late:] += events[:, : phase.looks - late, late]
        sides.append(_running(units[..., None], seen[..., None], seen[..., None], seen[..., None]))
    return World(sides[0], sides[1], (phase.share,), phase.units * np.arange(1.0, phase.looks + 1))


def _world(
    phases: Sequence[Phase],
    runs: int,
    rng: Rng,
    outcomes: Callable[[Any, Floats], Outcomes],
) -> World:
    looks = sum(phase.looks for phase in phases)
    parts = [[np.zeros((runs, looks, len(phases))) for _ in range(4)] for _ in range(2)]
    batch, start = np.zeros(looks), 0
    for stratum, phase in enumerate(phases):
        during = slice(start, start + phase.looks)
        given = rng.binomial(phase.units, phase.share, (runs, phase.looks))
        rates = np.broadcast_to(np.asarray(phase.rates, np.float64), (phase.looks,))
        for arm, n, lift in ((0, phase.units - given, 0.0), (1, given, phase.lift)):
            for part, values in zip(parts[arm], (n, *outcomes(n, rates + lift)), strict=True):
                part[:, during, stratum] = values
        batch[during], start = phase.units, start + phase.looks
    return World(_running(*parts[0]), _running(*parts[1]), tuple(phase.share for phase in phases), np.cumsum(batch))


def _running(n: Any, nonzero: Any, total: Any, squares: Any) -> Sums:
    sums = [np.cumsum(part, axis=1, dtype=np.float64) for part in (n, nonzero, total, squares)]
    nothing = np.zeros_like(sums[0])
    return Sums(*sums, *([nothing] * 3))


def always(
    world: World, *, kind: Kind, alpha: float, n_star: float, side: Side = "two", gated: bool = True, belt: bool = True
) -> Any:
    """Where the confidence sequence leaves zero out, by (run, look)."""
    found = contrast(world.champion, world.challenger)
    found = belted(found) if belt else found
    passed = log_evidence(_z(found), np.maximum(found.size, 1e-9), alpha=alpha, n_star=n_star, side=side)
    alarm = (found.variance > 0) & (passed > -math.log(alpha))
    return alarm & ready(world.champion, world.challenger, kind) if gated else alarm


def gate(world: World, events: int) -> Any:
    """Whether each arm has that many events and non-events."""
    least = [np.minimum(arm.nonzero, arm.n - arm.nonzero).sum(axis=-1) for arm in (world.champion, world.challenger)]
    return np.minimum(*least) >= events


def counts(world: World, *, alpha: float, strength: float) -> Any:
    """Where the count e-process passes, phases multiplied."""
    each = log_beta_mixture(world.challenger.nonzero, world.champion.nonzero, np.array(world.shares), strength)
    return each.sum(axis=-1) > -math.log(alpha)


def naive(world: World, *, alpha: float) -> Any:
    """Where a test meant for one look would be called significant."""
    return np.abs(_z(contrast(world.champion, world.challenger))) > -special.ndtri(alpha / 2)


def groups(world: World, *, alpha: float) -> Any:
    """O'Brien-Fleming by Lan and DeMets, all looks planned."""
    bounds = boundaries(list(world.units / world.units[-1]), alpha=alpha)
    return np.abs(_z(contrast(world.champion, world.challenger))) > np.array(bounds)


def ever(alarms: Any) -> float:
    """The share of runs that were alarmed at any look."""
    return float(np.any(alarms, axis=1).mean())


def first_units(alarms: Any, units: Floats) -> Floats:
    """By run, the units at its first alarm; infinite where there was none."""
    return np.where(np.any(alarms, axis=1), units[np.argmax(alarms, axis=1)], np.inf)


def median(values: Floats) -> float:
    """The upper one, which may be infinite."""
    return float(np.sort(values)[len(values) // 2])


def _z(found: Contrast) -> Floats:
    spread = np.where(found.variance > 0, found.variance, 1.0)
    return np.where(found.variance > 0, found.difference / np.sqrt(spread), 0.0)
