"""How the rate of arrivals goes over a run: stages, each constant, a slope or a wave; and the instants that follow from it.

A stage's level is a multiple of the run's rate, its length a share of the run's time, so that one shape serves any rate.
Instants are drawn by inverting the expected count up to each moment: every whole count for even arrivals, a count that
grows by exponential steps for Poisson ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

STEP_S = 0.001  # of the search for the next instant, where the rate is no constant


@dataclass(frozen=True)
class Stage:
    """From `begin_s` to `end_s`: requests a second from `low` to `high` in a straight line, and a wave of one period."""

    begin_s: float
    end_s: float
    low: float
    high: float
    wave: float = 0.0  # of the level, up and down
    judged: bool = True

    def rate(self, at_s: float) -> float:
        through = (at_s - self.begin_s) / (self.end_s - self.begin_s)
        level = self.low + (self.high - self.low) * through
        return level * (1 - self.wave * math.cos(2 * math.pi * through))

    def expected(self, at_s: float) -> float:
        """Arrivals from its beginning to `at_s`: the integral of `rate`."""
        span, u = self.end_s - self.begin_s, (at_s - self.begin_s) / (self.end_s - self.begin_s)
        turn = 2 * math.pi * u
        slope = self.high - self.low
        straight = self.low * u + slope * u * u / 2
        waved = self.low * math.sin(turn) / (2 * math.pi)
        waved += slope * (u * math.sin(turn) / (2 * math.pi) + (math.cos(turn) - 1) / (4 * math.pi**2))
        return span * (straight - self.wave * waved)

    def reaches(self, count: float) -> float:
        """When so many are expected to have arrived since its beginning; `count` is at most what the stage brings."""
        if self.low == self.high and not self.wave:
            return self.begin_s + count / self.low
        low, high = self.begin_s, self.end_s
        while high - low > STEP_S / 1000:
            middle = (low + high) / 2
            low, high = (middle, high) if self.expected(middle) < count else (low, middle)
        return high


@dataclass(frozen=True)
class Shape:
    """The stages, one after the other from 0 s on."""

    stages: tuple[Stage, ...]

    @property
    def seconds(self) -> float:
        return self.stages[-1].end_s

    @property
    def arrivals(self) -> float:
        """Expected in all."""
        return sum(stage.expected(stage.end_s) for stage in self.stages)

    def rate(self, at_s: float) -> float:
        return next((stage.rate(at_s) for stage in self.stages if at_s < stage.end_s), 0.0)

    def instants(self, poisson: random.Random | None) -> Iterator[float]:
        """When each request is due, in s from the beginning, ascending; even where `poisson` draws nothing.

        >>> shape = Shape((Stage(0, 1, 4, 4), Stage(1, 2, 2, 2)))
        >>> list(shape.instants(None))
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.5]
        """
        count, before = poisson.expovariate(1) if poisson else 0.0, 0.0
        for stage in self.stages:
            brought = stage.expected(stage.end_s)
            while count < before + brought - 1e-9:
                yield stage.reaches(max(0.0, count - before))
                count += poisson.expovariate(1) if poisson else 1.0
            before += brought
