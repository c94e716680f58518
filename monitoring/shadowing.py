"""A shadow beside the champion, on the very same rows, before it answers anyone: how often they say the same, how far apart
their scores are, and whose loss is lower once outcomes are there.

Both score each row, so there is no assignment that could go wrong, and most of the variance cancels: the paired sequence of
`monitoring.sequential` needs a fraction of an experiment's units. It can't tell what an answer does to who gets it.

Rows are those that the champion answered (role `served`, of its arm or of `control`) and the shadow scored under the same
request id, of the versions that the routes name now. A unit counts once, by the mean over its rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ibis

from compile.bundle import Manifest
from monitoring import queries
from monitoring.engine import Engine
from monitoring.errors import MonitoringError, TooLittleData
from monitoring.evidence import Interval, Moments, NotEstimable
from monitoring.plan import CHAMPION, CONTROL
from monitoring.sequential_means import paired
from monitoring.unit_metrics import LEAST, truth

Loss = Literal["log_loss", "brier", "squared"]
LOSSES: dict[str, tuple[Loss, ...]] = {"binary": ("log_loss", "brier"), "regression": ("squared",)}


@dataclass(frozen=True)
class Asked:
    """`n_star`: units at which the answer is hoped for, as in a plan; `label_window_us`: rows younger than that wait."""

    shadow: str
    loss: Loss
    label_window_us: int
    now_us: int
    alpha: float = 0.05
    n_star: float = 10_000.0


@dataclass(frozen=True)
class Compared:
    """`agree` is None but for classes. Differences are the shadow's less the champion's. `gain`: by how much the shadow's loss
    is lower, by unit."""

    rows: int
    failed: int
    agree: float | None
    mean_difference: float
    spread: float
    largest: float
    units: int
    gain: Interval | NotEstimable


def losses(manifest: Manifest) -> tuple[Loss, ...]:
    """What may be asked for; the first is the usual one. Raises MonitoringError for a task that has none."""
    if manifest.task not in LOSSES or len(manifest.outputs) != 1:
        raise MonitoringError(f"{manifest.model}: shadows are compared of {' and '.join(LOSSES)} models of one output")
    return LOSSES[manifest.task]


def compare(engine: Engine, champion: Manifest, shadow: Manifest, asked: Asked) -> Compared:
    """Raises TooLittleData where the shadow scored nothing that the champion answered."""
    rows = _pairs(engine, champion, shadow, asked)
    found = engine.ask(_scores(rows, champion, shadow)).to_pylist()[0]
    if not found["rows"]:
        raise TooLittleData(
            f"{champion.model}: no row that the champion, version {champion.version}, answered and the shadow "
            f"{asked.shadow!r}, version {shadow.version}, scored; run coppice compact"
        )
    seen = engine.ask(_gains(engine, rows, champion, asked)).to_pylist()[0]
    units = Moments(seen["n"], seen["nonzero"] or 0, seen["total"] or 0.0, seen["squares"] or 0.0)
    mean, n = found["mean"] or 0.0, found["rows"] - found["failed"]
    return Compared(
        rows=found["rows"],
        failed=found["failed"],
        agree=found["agree"] if champion.task == "binary" else None,
        mean_difference=mean,
        spread=math.sqrt(max((found["squares"] or 0.0) / n - mean * mean, 0.0)) if n else 0.0,
        largest=found["largest"] or 0.0,
        units=units.n,
        gain=paired(units, alpha=asked.alpha, n_star=asked.n_star),
    )


def told(found: Compared, asked: Asked) -> Iterator[str]:
    """For people."""
    yield f"{asked.shadow}: {found.rows:,} rows beside the champion's; it failed on {found.failed:,}"
    if found.agree is not None:
        yield f"same class: {found.agree:.2%}"
    yield f"scores: {found.mean_difference:+.4g} on average, spread {found.spread:.4g}, at most {found.largest:.4g} apart"
    if isinstance(found.gain, NotEstimable):
        yield f"{asked.loss}: no interval yet, by {found.units:,} units with an outcome: {found.gain.reason}"
        return
    gain = found.gain
    better = "better" if gain.lower > 0 else "worse" if gain.upper < 0 else "not known to be better or worse"
    yield (
        f"{asked.loss}: {gain.estimate:+.4g} lower, between {gain.lower:+.4g} and {gain.upper:+.4g}, by {found.units:,} units: "
        f"{better}"
    )


def _pairs(engine: Engine, champion: Manifest, shadow: Manifest, asked: Asked) -> Any:
    """Rows that both scored: `who, request_id, row, ts_us, ours, theirs`; `theirs`, the shadow's, null where it failed."""
    every = engine.rows(champion.model, until_us=asked.now_us)
    answered = (every.role == "served") & every.arm.isin((CHAMPION, CONTROL)) & (every.status == 200)
    served = every.filter(answered & (every.version == champion.version))
    served = served.select(
        "request_id", "row", "ts_us", ours="score", who=ibis.ifelse(every.unit == "", every.request_id, every.unit)
    )
    mine = (every.role == "shadow") & (every.arm == asked.shadow) & (every.version == shadow.version)
    scored = every.filter(mine)
    sound = (scored.status == 200) & ~scored.score.isnan()
    scored = scored.select(
        its_id="request_id", its_row="row", theirs=ibis.ifelse(sound, scored.score, ibis.null("float64"))
    )
    return served.join(scored, [served.request_id == scored.its_id, served.row == scored.its_row])


def _scores(rows: Any, champion: Manifest, shadow: Manifest) -> Any:
    difference = rows.theirs - rows.ours
    same = (rows.theirs > shadow.threshold) == (rows.ours > champion.threshold)
    return rows.agg(
        rows=rows.count(),
        failed=rows.theirs.isnull().cast("int64").sum().cast("int64"),
        agree=same.cast("float64").mean(),
        mean=difference.mean(),
        squares=(difference * difference).sum(),
        largest=difference.abs().max(),
    )


def _gains(engine: Engine, rows: Any, champion: Manifest, asked: Asked) -> Any:
    """Sums over units of how much lower the shadow's loss is."""
    told = queries.counting(engine).select("value_number", "value_text", told_id="request_id", told_row="row")
    closed = rows.filter(rows.ts_us + asked.label_window_us <= asked.now_us)
    joined = closed.join(told, [closed.request_id == told.told_id, closed.row == told.told_row])
    true = joined.value_number if champion.task == "regression" else truth(joined, champion)
    gain = _loss(asked.loss, joined.ours, true) - _loss(asked.loss, joined.theirs, true)
    by_unit = joined.group_by("who").agg(gain=gain.mean())
    return by_unit.agg(
        n=by_unit.gain.count(),
        nonzero=(by_unit.gain != 0).cast("int64").sum(),
        total=by_unit.gain.sum(),
        squares=(by_unit.gain * by_unit.gain).sum(),
    )


def _loss(name: Loss, score: Any, true: Any) -> Any:
    if name != "log_loss":
        return (score - true) * (score - true)
    sure = score.clip(LEAST, 1 - LEAST)
    return ibis.cases((true == 1.0, -sure.ln()), (true == 0.0, -(1.0 - sure).ln()), else_=ibis.null("float64"))
