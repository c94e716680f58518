"""Has performance dropped? A window beside the level that it is held against.

The level is a number that was given, or what the arm's first closed windows showed, as many as have 1,000 labelled rows
together. A window fell below it where the difference is beyond chance - the 99 % one-sided bound of the difference, made
from both intervals (MOVER: Zou and Donner 2008), is on the wrong side of 0 - and beyond what matters: `margin`, 0.02 of a
figure that should be high, a tenth of the level of a loss. Of windows in which nothing changed, at most one in a hundred
falls, and hardly any where they are large, for then the margin decides.
"""

from __future__ import annotations

from statistics import NormalDist

from monitoring.errors import MonitoringError
from monitoring.goodness import BINARY, MULTICLASS, REGRESSION, Z
from monitoring.trust import LOSSES
from training.intervals import Interval

BASELINE_ROWS = 1_000
LEAST_LABELLED = 100
MARGIN = 0.02
LOSS_MARGIN = 0.1
ONE_SIDED = NormalDist().inv_cdf(0.99) / Z

JUDGED = {  # by task: what may be held against a level; the first by default. Without an interval nothing can
    "binary": tuple(name for name in BINARY if name != "calibration_error"),
    "multiclass": MULTICLASS,
    "regression": tuple(name for name in REGRESSION if name != "bias"),
}


def metric_of(task: str, asked: str | None) -> str:
    """Raises MonitoringError for a metric that the task does not have."""
    if asked is None:
        return JUDGED[task][0]
    if asked not in JUDGED[task]:
        raise MonitoringError(f"--metric: {asked!r} is not a metric of a {task} model; {', '.join(JUDGED[task])} are")
    return asked


def fell(metric: str, now: Interval, level: Interval, margin: float | None = None) -> bool:
    """`now` and `level` are estimable: each has a value and an interval."""
    assert now.value is not None
    assert level.value is not None
    assert now.low is not None
    assert now.high is not None
    assert level.low is not None
    assert level.high is not None
    if metric in LOSSES:
        worse = now.value - level.value
        reach = ((now.value - now.low) ** 2 + (level.high - level.value) ** 2) ** 0.5
        least = (LOSS_MARGIN if margin is None else margin) * abs(level.value)
    else:
        worse = level.value - now.value
        reach = ((now.high - now.value) ** 2 + (level.value - level.low) ** 2) ** 0.5
        least = MARGIN if margin is None else margin
    return bool(worse > max(ONE_SIDED * reach, least))


def estimable(figure: Interval) -> bool:
    return figure.value is not None and figure.low is not None and figure.high is not None
