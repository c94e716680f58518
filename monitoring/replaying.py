"""A plan played through on made-up units before anyone is exposed: how often it is wrong, how often it finds what there is to
find, and how long it takes. What is played are the very functions that decide: verdict, ramp and end.

Units come evenly over a day, in the shares of the present step; each arm's outcomes are drawn with the arm's mean, and known
when the label window is over. Of a proportion, or of something rare, a unit's outcome is 1 with the champion's rate, plus the
effect; of a mean it is normal, cut to the plan's cap. Guardrails are drawn alike in both arms: none is violated but by chance.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from monitoring.acting import Phase, act
from monitoring.errors import MonitoringError
from monitoring.evidence import Evidence, Moments
from monitoring.plan import CHAMPION, Metric, Plan
from monitoring.verdict import HOUR_US, Seen, judge

Rng = np.random.Generator
Cell = tuple[tuple[str, ...], str]
GUARDED_RATE = 0.001  # of a guarded event
GUARDED = (20.0, 5.0)  # mean and standard deviation of a guarded mean


@dataclass(frozen=True)
class Supposed:
    """`daily` units in the whole split. `effect` is added to the challengers' mean; `sd` is of a mean alone."""

    daily: float
    champion: float
    effect: float = 0.0
    sd: float = 1.0
    every_hours: float = 24.0


@dataclass(frozen=True)
class Replayed:
    """By run: how it ended, after how many units of the compared arms, and days."""

    ends: tuple[str, ...]
    units: tuple[int, ...]
    days: tuple[float, ...]

    def share(self, *states: str) -> float:
        counted = Counter(self.ends)
        return sum(counted[state] for state in states) / len(self.ends)


def replay(
    plan: Plan, supposed: Supposed, runs: int, *, seed: int = 0, progress: Callable[[], None] = lambda: None
) -> Replayed:
    """Raises MonitoringError for a world that the metric can't have."""
    _check(plan, supposed)
    found = []
    for run in range(runs):
        found.append(_Run(plan, supposed, np.random.default_rng([seed, run])).end())
        progress()
    ends, units, days = zip(*found, strict=True)
    return Replayed(ends, units, days)


@dataclass
class _Run:
    plan: Plan
    supposed: Supposed
    rng: Rng
    phases: list[Phase] = field(default_factory=list)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    assigned: dict[str, dict[str, int]] = field(default_factory=dict)
    known: dict[str, dict[Cell, Moments]] = field(default_factory=dict)
    waiting: deque[tuple[float, str, Cell, Moments]] = field(default_factory=deque)

    def end(self) -> tuple[str, int, float]:
        self._step(self.plan.ramp[0].share, 0)
        hours, last = 0.0, 24 * self.plan.max_days + self.plan.label_window_hours + 2 * self.supposed.every_hours
        while hours < last:
            hours += self.supposed.every_hours
            self._units(hours)
            now_us = round(hours * HOUR_US)
            seen = self._seen(now_us)
            verdict = judge(self.plan, seen, now_us)
            action = act(self.plan, self.phases, seen, verdict, now_us, approved=True)
            if action.verb == "ramp" and action.percent is not None:
                self._step(action.percent / 100, now_us)
            elif action.verb != "wait":
                return verdict.state, self._count(), hours / 24
        return "running", self._count(), hours / 24

    def _step(self, share: float, now_us: int) -> None:
        name = f"step {len(self.phases) + 1}"
        self.phases.append(Phase(name, now_us))
        self.shares[name] = dict.fromkeys((CHAMPION, *self.plan.challengers), share)
        self.assigned[name] = dict.fromkeys(self.shares[name], 0)

    def _units(self, hours: float) -> None:
        """Those of the stretch that ends now, and the outcomes that are known by now."""
        phase = self.phases[-1].name
        for arm, share in self.shares[phase].items():
            n = int(self.rng.poisson(self.supposed.daily * share * self.supposed.every_hours / 24))
            self.assigned[phase][arm] += n
            for metric, mean, sd, wait in self._drawn(arm):
                drawn = self._moments(metric, n, mean, sd)
                self.waiting.append((hours + wait, metric.name, ((phase,), arm), drawn))
        left: deque[tuple[float, str, Cell, Moments]] = deque()
        for ready, name, cell, sums in self.waiting:
            if ready > hours:
                left.append((ready, name, cell, sums))
                continue
            cells = self.known.setdefault(name, {})
            cells[cell] = cells.get(cell, Moments()) + sums
        self.waiting = left

    def _drawn(self, arm: str) -> list[tuple[Metric, float, float, float]]:
        """(metric, mean, sd, hours until it is known)."""
        effect = 0.0 if arm == CHAMPION else self.supposed.effect
        asked = (self.plan.metric, self.supposed.champion + effect, self.supposed.sd, self.plan.label_window_hours)
        guarded = [guardrail.metric for guardrail in self.plan.guardrails]
        return [asked, *((one, *_guarded(one), 0.0) for one in guarded)]

    def _moments(self, metric: Metric, n: int, mean: float, sd: float) -> Moments:
        if metric.kind != "mean":
            events = int(self.rng.binomial(n, mean))
            return Moments(n, events, events, events)
        values = self.rng.normal(mean, sd, n)
        if metric.cap is not None:
            values = values.clip(-metric.cap, metric.cap)
        return Moments(n, int(np.count_nonzero(values)), float(values.sum()), float((values * values).sum()))

    def _seen(self, now_us: int) -> Seen:
        metrics = {name: Evidence(dict(cells)) for name, cells in self.known.items()}
        return Seen(self.shares, self.assigned, metrics, 0, last_us=now_us)

    def _count(self) -> int:
        return sum(sum(units.values()) for units in self.assigned.values())


def _guarded(metric: Metric) -> tuple[float, float]:
    mean, sd = (GUARDED_RATE, 0.0) if metric.kind != "mean" else GUARDED
    return (mean, sd) if metric.cap is None else (min(mean, metric.cap / 2), min(sd, metric.cap / 4))


def _check(plan: Plan, supposed: Supposed) -> None:
    if not (supposed.daily > 0 and supposed.every_hours > 0 and supposed.sd > 0):
        raise MonitoringError("--daily, --every and --sd: must be above zero")
    for rate in (supposed.champion, supposed.champion + supposed.effect):
        if plan.metric.kind != "mean" and not 0 <= rate <= 1:
            raise MonitoringError(f"--champion and --effect: {plan.metric.name} is a rate, and would be {rate:g}")
