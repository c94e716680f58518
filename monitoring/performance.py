"""How good each arm was over time, from rows joined with their outcomes: what `performance.json` holds.

    {"model": ..., "every": "day", "label_window_us": ..., "now_us": ..., "verdict": ..., "reason": ...,
     "left_out": {why: rows},
     "arms": [{"version", "arm", "role", "task", "metric", "level": {"value", "low", "high"} or null, "level_from", "strange",
               "windows": [Window, ...], "alarms": [Raised, ...]}, ...]}

A window's counts add up: rows = failed + not_finite + open + closed, and of the closed ones, labelled + unknown + unlabelled.
`figures` are of labelled closed rows, each with a 95 % interval or null for what is not estimable; `estimate` is of all rows
with a score, as it could be made at the window's end. Verdicts of a window, of the arm's metric against its level:

    open            rows of it wait for their label window, or more rows may come
    not estimable   fewer than 100 labelled rows, or not what the metric needs
    level           one of those that the level comes from
    fine, drop      see `monitoring.levels`

The verdict of the whole is `drop` where the newest decided window of an arm that serves now is one. Times are µs since 1970.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from compile.bundle import Manifest, Task
from monitoring import goodness, levels
from monitoring.cohorts import Every, Rows, Span, Who, windows
from monitoring.detectors import Alarm, Detector, alarms, errors_beyond
from monitoring.estimate import Estimate, Labelled, estimate
from monitoring.ground import Walked
from monitoring.segmenting import segments_of
from training.intervals import Floats, Interval, Labels

MOST_KNOWN = 50_000  # labelled rows before a window that are looked at
NOT_OVER = "the window is not over"

Verdict = Literal["open", "not estimable", "level", "fine", "drop"]


class Segment(msgspec.Struct, frozen=True):
    feature: str
    value: str
    labelled: int
    figures: dict[str, Interval]


class Window(msgspec.Struct, frozen=True, kw_only=True):
    since_us: int
    until_us: int
    rows: int
    failed: int
    not_finite: int
    open: int
    closed: int
    labelled: int
    unknown: int
    coverage: float | None  # labelled / closed
    figures: dict[str, Interval]
    estimate: Estimate
    segments: tuple[Segment, ...]
    verdict: Verdict
    reason: str


class Raised(msgspec.Struct, frozen=True, kw_only=True):
    """An alarm on the error stream of the labelled rows: raised at that row, of a change that began about `since_us`."""

    detector: Detector
    worse: bool
    at_us: int
    since_us: int
    before: float
    after: float


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    arm: str
    role: str
    task: Task
    metric: str
    level: Interval | None
    level_from: Literal["given", "first windows", "none"]
    strange: dict[str, int]
    windows: tuple[Window, ...]
    alarms: tuple[Raised, ...]


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    every: Every
    label_window_us: int
    now_us: int
    verdict: Literal["fine", "drop", "undecided"]
    reason: str
    left_out: dict[str, int]
    arms: tuple[Arm, ...]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """`metric`, `level`, `margin`: None is the default of each. `present`: (version, arm) that serve now; None: all do."""

    every: Every
    label_window_us: int
    now_us: int
    metric: str | None = None
    level: float | None = None
    margin: float | None = None
    segments: Sequence[str] = ()
    calibrate: bool = True
    present: Collection[tuple[str, str]] | None = None


def performance(
    model: str,
    arms: Mapping[Who, Rows],
    manifests: Mapping[str, Manifest],
    asked: Asked,
    *,
    walked: Mapping[str, Walked] = {},
    left_out: Mapping[str, int] = {},
) -> Performance:
    """`manifests` and `walked` are by version. Raises MonitoringError for a metric or segment that a model does not have."""
    told = tuple(_arm(who, rows, manifests[who.version], asked, walked) for who, rows in arms.items())
    verdict, reason = _overall(told, asked)
    return Performance(
        model=model,
        every=asked.every,
        label_window_us=asked.label_window_us,
        now_us=asked.now_us,
        verdict=verdict,
        reason=reason,
        left_out=dict(left_out),
        arms=told,
    )


def _arm(who: Who, rows: Rows, manifest: Manifest, asked: Asked, walked: Mapping[str, Walked]) -> Arm:
    closed = rows.closed(asked.label_window_us, asked.now_us)
    labelled = closed & ~np.isnan(rows.truth)
    metric = levels.metric_of(manifest.task, asked.metric)
    spans = windows(rows.ts_us, asked.every)
    made = [_window(rows, span, closed, labelled, manifest, asked, walked.get(who.version)) for span in spans]
    level, source, first = _level(rows, labelled, spans, made, manifest, metric, asked)
    judged = [
        msgspec.structs.replace(window, verdict=verdict, reason=reason)
        for n, window in enumerate(made)
        for verdict, reason in [_judge(window, spans[n], metric, level, asked, basis=n in first)]
    ]
    return Arm(
        version=who.version,
        arm=who.arm,
        role=who.role,
        task=manifest.task,
        metric=metric,
        level=level,
        level_from=source,
        strange=dict(rows.strange),
        windows=tuple(judged),
        alarms=tuple(_alarms(rows, labelled, manifest)),
    )


def _window(
    rows: Rows, span: Span, closed: Labels, labelled: Labels, manifest: Manifest, asked: Asked, walked: Walked | None
) -> Window:
    part = slice(span.first, span.last)
    usable, failed = rows.usable()[part], rows.failed[part]
    known = labelled[part]
    features = rows.features[part] if rows.features is not None else None
    shut = int(closed[part].sum())
    return Window(
        since_us=span.since_us,
        until_us=span.until_us,
        rows=span.last - span.first,
        failed=int(failed.sum()),
        not_finite=int((~usable & ~failed).sum()),
        open=int((usable & ~closed[part]).sum()),
        closed=shut,
        labelled=int(known.sum()),
        unknown=int((closed[part] & rows.unknown[part]).sum()),
        coverage=float(known.sum() / shut) if shut else None,
        figures=_figures(manifest, rows.scores[part][known], rows.truth[part][known]),
        estimate=estimate(
            manifest.task,
            manifest.threshold,
            rows.scores[part][usable],
            _known_before(rows, span, labelled, asked),
            outside=None if walked is None else walked.outside(span.since_us, span.until_us),
            calibrate=asked.calibrate,
        ),
        segments=tuple(
            Segment(
                feature, value, int(which.sum()), _figures(manifest, rows.scores[part][which], rows.truth[part][which])
            )
            for feature in asked.segments
            for value, which in segments_of(manifest.schema, feature, features, known)
        ),
        verdict="open",
        reason="",
    )


def _known_before(rows: Rows, span: Span, labelled: Labels, asked: Asked) -> Labelled:
    """What was labelled and closed when the window ended, of rows before it."""
    end = int(np.searchsorted(rows.ts_us, min(span.since_us, span.until_us - asked.label_window_us + 1), side="left"))
    known = np.flatnonzero(labelled[:end])[-MOST_KNOWN:]
    return Labelled(rows.ts_us[known], rows.scores[known], rows.truth[known])


def _figures(manifest: Manifest, scores: Floats, truth: Floats) -> dict[str, Interval]:
    if manifest.task == "binary":
        return goodness.binary(scores[:, 0], truth == 1, manifest.threshold)
    if manifest.task == "multiclass":
        return goodness.multiclass(scores, truth.astype(np.intp))
    return goodness.regression(scores[:, 0], truth)


def _level(
    rows: Rows,
    labelled: Labels,
    spans: Sequence[Span],
    made: Sequence[Window],
    manifest: Manifest,
    metric: str,
    asked: Asked,
) -> tuple[Interval | None, Literal["given", "first windows", "none"], range]:
    """(the level, where it comes from, which windows it is)."""
    if asked.level is not None:
        return Interval(asked.level, asked.level, asked.level), "given", range(0)
    for n, window in enumerate(made):
        if window.open or not spans[n].whole:
            break
        if sum(earlier.labelled for earlier in made[: n + 1]) >= levels.BASELINE_ROWS:
            part = slice(0, spans[n].last)
            which = labelled[part]
            figure = _figures(manifest, rows.scores[part][which], rows.truth[part][which])[metric]
            if levels.estimable(figure):
                return figure, "first windows", range(n + 1)
    return None, "none", range(0)


def _judge(
    window: Window, span: Span, metric: str, level: Interval | None, asked: Asked, *, basis: bool
) -> tuple[Verdict, str]:
    if not span.whole or window.until_us > asked.now_us:
        return "open", NOT_OVER
    if window.open:
        return "open", f"{window.open:,} of {window.rows:,} rows wait for their label window"
    figure = window.figures[metric]
    if basis:
        return "level", f"{metric} {figure}: one of the windows that the level comes from"
    if window.labelled < levels.LEAST_LABELLED:
        return "not estimable", f"{window.labelled:,} labelled rows; {levels.LEAST_LABELLED} are needed"
    if not levels.estimable(figure):
        return "not estimable", f"{metric} is not estimable from these {window.labelled:,} labelled rows"
    if level is None:
        return "not estimable", f"{metric} {figure}; no level yet: {levels.BASELINE_ROWS:,} labelled rows make one"
    told = f"{metric} {figure}, the level {level.value:.4f}"
    return ("drop", told) if levels.fell(metric, figure, level, asked.margin) else ("fine", told)


def _overall(arms: Sequence[Arm], asked: Asked) -> tuple[Literal["fine", "drop", "undecided"], str]:
    serving = [
        arm
        for arm in arms
        if arm.role == "served" and (asked.present is None or (arm.version, arm.arm) in asked.present)
    ]
    newest = [
        (arm, decided[-1])
        for arm in serving
        if (decided := [window for window in arm.windows if window.verdict in ("level", "fine", "drop")])
    ]
    told = [f"version {arm.version}, {arm.arm}: {window.reason}" for arm, window in newest if window.verdict == "drop"]
    if told:
        return "drop", "; ".join(told)
    if newest:
        return "fine", "; ".join(f"version {arm.version}, {arm.arm}: {window.reason}" for arm, window in newest)
    return "undecided", "no window of an arm that serves now has enough labelled rows whose label window has passed"


def _alarms(rows: Rows, labelled: Labels, manifest: Manifest) -> list[Raised]:
    where = np.flatnonzero(labelled)
    scores, truth = rows.scores[where], rows.truth[where]
    if manifest.task == "binary":
        stream = ((scores[:, 0] > manifest.threshold) != (truth == 1)).astype(np.float64)
    elif manifest.task == "multiclass":
        stream = (scores.argmax(axis=1) != truth).astype(np.float64)
    else:
        stream = errors_beyond(np.abs(scores[:, 0] - truth))
    return [_raised(alarm, rows, int(where[alarm.at]), int(where[alarm.since])) for alarm in alarms(stream)]


def _raised(alarm: Alarm, rows: Rows, at: int, since: int) -> Raised:
    return Raised(
        detector=alarm.detector,
        worse=alarm.worse,
        at_us=int(rows.ts_us[at]),
        since_us=int(rows.ts_us[since]),
        before=alarm.before,
        after=alarm.after,
    )
