"""Rules against what is known: each finding is firing, fine, or unknown.

Pure: the same rules, checks and figures give the same findings. Unknown is neither: an alert that fires goes on,
and one that does not stays quiet, until something is known again. Of versions only those still looked at count: one whose
newest window ended before the newest of all began has left, and has no findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from monitoring import alert_rules as kinds
from monitoring.checks import Check, latest
from monitoring.consecutive import consecutive
from monitoring.scrapes import Figures

LOWER_IS_BETTER = ("log_loss", "brier", "mae", "rmse", "calibration_error", "loss")

State = Literal["firing", "fine", "unknown"]


@dataclass(frozen=True)
class Evidence:
    """What the rules are held against. `live`: what the servers did since they were last asked; None: none was asked, or none
    answered. `servers`: what is wrong with each that was named, "" for nothing. `traffic_us`: when rows were last seen."""

    model: str
    now_us: int
    drift: Sequence[Check] = ()
    performance: Sequence[Check] = ()
    operations: Sequence[Check] = ()
    live: Figures | None = None
    servers: Mapping[str, str] | None = None
    traffic_us: int | None = None


@dataclass(frozen=True)
class Finding:
    rule: kinds.AnyRule
    subject: str
    state: State
    reason: str
    value: float | None = None
    bound: float | None = None

    @property
    def key(self) -> str:
        return f"{self.rule.name}|{self.subject}"


class Judged(NamedTuple):
    """One window, or one while. `bad` None: nothing can be said."""

    bad: bool | None
    reason: str
    value: float | None = None
    bound: float | None = None


def findings(rules: kinds.Rules, evidence: Evidence) -> list[Finding]:
    return [finding for rule in rules.rules for finding in _of(rule, evidence)]


def _of(rule: kinds.AnyRule, evidence: Evidence) -> Iterator[Finding]:
    match rule:
        case kinds.Drift():
            yield from _windows(rule, rule.windows, evidence.drift, lambda found: _drift(rule, found))
        case kinds.Performance():
            yield from _windows(
                rule, rule.windows, _served(evidence.performance), lambda found: _performance(rule, found)
            )
        case kinds.Labels():
            yield from _windows(rule, rule.windows, _served(evidence.performance), lambda found: _labels(rule, found))
        case kinds.Server():
            for server, wrong in (evidence.servers or {}).items():
                yield Finding(
                    rule, server, "firing" if wrong else "fine", wrong or "answers, and all workers are ready"
                )
        case kinds.Stale():
            yield _stale(rule, evidence)
        case kinds.LostRows():
            yield _finding(rule, evidence.model, _worst(_lost(rule, found) for found in _operations(evidence)))
        case kinds.Latency() | kinds.ErrorRate() | kinds.ShedRate():
            yield _finding(rule, evidence.model, _rate(rule, next(iter(_operations(evidence)), {})))


def _windows(
    rule: kinds.AnyRule, running: int, checks: Sequence[Check], judge: Callable[[Check], Judged]
) -> Iterator[Finding]:
    newest_since_us = max((check.since_us for check in checks), default=0)
    for subject in sorted({_subject(check) for check in checks}):
        own = consecutive(latest(check for check in checks if _subject(check) == subject))
        if own[-1].until_us <= newest_since_us:
            continue
        judged = [one for one in map(judge, own) if one.bad is not None][-running:]
        if not judged or (len(judged) < running and all(one.bad for one in judged)):
            yield Finding(rule, subject, "unknown", f"{len(judged)} of {running} windows can be judged")
        elif all(one.bad for one in judged):
            more = f", {running} windows running" if running > 1 else ""
            yield _finding(rule, subject, judged[-1]._replace(reason=judged[-1].reason + more))
        else:
            last = judged[-1]
            calm = f"not {running} windows running: {last.reason}" if last.bad else last.reason
            yield _finding(rule, subject, last._replace(bad=False, reason=calm))


def _served(checks: Sequence[Check]) -> list[Check]:
    """What a shadow answers reaches nobody."""
    return [check for check in checks if check.found.get("role") in (None, "served")]


def _subject(check: Check) -> str:
    """A version; and the arm of it that the check is of, where it tells them apart."""
    arm = check.found.get("arm")
    return f"version {check.version}" + (f", {arm}" if arm else "")


def _finding(rule: kinds.AnyRule, subject: str, judged: Judged) -> Finding:
    state: State = "unknown" if judged.bad is None else "firing" if judged.bad else "fine"
    return Finding(rule, subject, state, judged.reason, judged.value, judged.bound)


def _drift(rule: kinds.Drift, check: Check) -> Judged:
    if check.verdict not in ("drift", "no drift"):
        return Judged(None, f"{check.verdict}: {check.reason}")
    if rule.measure == "prediction":
        drifted = check.found.get("prediction_drifted")
        said = "the prediction drifted" if drifted else "the prediction did not drift"
        return Judged(None if drifted is None else bool(drifted), said)
    if rule.measure == "weight":
        weight = _number(check.found, "importance_drifted")
        return _above(weight, rule.above, f"drifted share of importance {_told(weight)}")
    return Judged(check.verdict == "drift", check.reason or check.verdict)


def _performance(rule: kinds.Performance, check: Check) -> Judged:
    if rule.measure == "verdict":
        known = check.verdict in ("level", "fine", "drop")
        return Judged(check.verdict == "drop" if known else None, check.reason or check.verdict)
    measured = _mapping(_mapping(check.found, "figures"), str(rule.metric))
    value = _number(measured, "value")
    if value is None:
        return Judged(None, f"{rule.metric} is not known")
    said = f"{rule.metric} is {value:.4g}"
    if rule.below is not None and value < rule.below:
        return Judged(True, f"{said}, below {rule.below:g}", value, rule.below)
    if rule.above is not None and value > rule.above:
        return Judged(True, f"{said}, above {rule.above:g}", value, rule.above)
    if rule.drop_by is None:
        return Judged(False, said, value)
    level = _number(_mapping(check.found, "level"), "value") if check.found.get("metric") == rule.metric else None
    baseline = level if rule.baseline is None else rule.baseline
    best = _number(measured, "low" if rule.metric in LOWER_IS_BETTER else "high")
    if baseline is None or best is None:
        return Judged(None, f"{said}; its interval or baseline is not known", value)
    dropped = (best - baseline if rule.metric in LOWER_IS_BETTER else baseline - best) > rule.drop_by
    return Judged(dropped, f"{said}, at best {best:.4g}, against {baseline:.4g} before", value, baseline)


def _labels(rule: kinds.Labels, check: Check) -> Judged:
    coverage, rows = _number(check.found, "coverage"), _number(check.found, "closed")
    if coverage is None or (rows or 0) < rule.least_rows:
        return Judged(None, "too few rows whose label window has closed")
    said = f"{coverage:.1%} of {rows or 0:,.0f} rows have their label"
    return Judged(coverage < rule.coverage_below, said, coverage, rule.coverage_below)


def _operations(evidence: Evidence) -> list[Mapping[str, Any]]:
    """What is known of operations, the best first: live, then as last checked."""
    newest = max(evidence.operations, key=lambda check: check.until_us, default=None)
    live = [evidence.live.found()] if evidence.live is not None else []
    return [*live, *([newest.found] if newest is not None else [])]


def _lost(rule: kinds.LostRows, found: Mapping[str, Any]) -> Judged:
    counts = [_number(found, name) for name in ("dropped", "lost")]
    known = [count for count in counts if count is not None]
    if not known:
        return Judged(None, "the log's drops and losses are not known")
    dropped, lost = (count or 0 for count in counts)
    said = f"the traffic log dropped {dropped:,.0f} rows and lost {lost:,.0f}"
    return Judged(sum(known) > rule.above, said, sum(known), rule.above)


def _rate(rule: kinds.Latency | kinds.ErrorRate | kinds.ShedRate, found: Mapping[str, Any]) -> Judged:
    asked = _number(found, "requests")
    asked = _number(found, "rows") if asked is None else asked
    if asked is None or asked < rule.least_requests:
        return Judged(None, f"{asked or 0:,.0f} requests are too few to judge")
    if isinstance(rule, kinds.Latency):
        name = f"p{round(100 * rule.quantile)}_ms"
        value = _number(found, name)
        return _above(value, rule.above_ms, f"p{round(100 * rule.quantile)} is {_told(value)} ms")
    name, what = (("shed_rate", "shed"), ("error_rate", "failed"))[isinstance(rule, kinds.ErrorRate)]
    value = _number(found, name)
    share = "how many" if value is None else f"{value:.2%}"
    unknown = " is not known" if value is None else ""
    return _above(value, rule.above, f"{share} of {asked:,.0f} requests {what}{unknown}")


def _stale(rule: kinds.Stale, evidence: Evidence) -> Finding:
    if rule.check == "traffic":
        seen = [check.until_us for check in evidence.operations if check.found.get("rows")]
        seen += [evidence.traffic_us] if evidence.traffic_us is not None else []
        never, ago = "no traffic was ever seen", "since a row was seen"
    else:
        checks: Sequence[Check] = getattr(evidence, rule.check)
        seen = [check.at_us for check in checks]
        never, ago = f"no check of {rule.check} was ever made", f"since {rule.check} was checked"
    if not seen:
        return Finding(rule, evidence.model, "firing", never)
    hours = (evidence.now_us - max(seen)) / 3.6e9
    late = evidence.now_us - max(seen) > rule.after_us
    return Finding(
        rule, evidence.model, "firing" if late else "fine", f"{hours:.1f} h {ago}", hours, rule.after_us / 3.6e9
    )


def _above(value: float | None, bound: float | None, said: str) -> Judged:
    if value is None or bound is None:
        return Judged(None, said, None, bound)
    return Judged(value > bound, said, value, bound)


def _worst(each: Iterator[Judged]) -> Judged:
    given = list(each)
    known = [one for one in given if one.bad is not None]
    return next(
        (one for one in known if one.bad), (known or given or [Judged(None, "nothing is known of operations")])[0]
    )


def _number(found: Mapping[str, Any], name: str) -> float | None:
    value = found.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mapping(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    return value if isinstance(value, Mapping) else {}


def _told(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"
