"""Alerts of a model: told once when they begin, again after a while, once when they end; never lost.

A run holds the model's state (`monitoring.alert_state`), finds what fires (`monitoring.alert_findings`), writes down what is
to be told, and only then tells it. What could not be delivered waits for the next run, in order, each delivery apart from the
others: whatever is down, slow or killed, nothing is lost. Each event is also a line among the checks, kind "alerts": its
verdict is "firing", "again" or "resolved", and `found` is the event.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from monitoring import checks as memory
from monitoring.alert_findings import Evidence, Finding, findings
from monitoring.alert_rules import Rules
from monitoring.alert_state import MOST_WAITING, Firing, State, StateFile, Waiting, hold
from monitoring.checks import Check
from monitoring.deliveries import Address, Event, addresses, deliver
from monitoring.errors import ServerSilent
from monitoring.scrapes import Figures, Scrape, between, scrape, together

DELIVERY_TIME_S = 60.0
LOCK_WAIT_S = 90.0


@dataclass(frozen=True)
class Outcome:
    """`failed`: by delivery, why something waits for the next run. `firing`: what goes on now, told or not."""

    findings: tuple[Finding, ...]
    events: tuple[Event, ...]
    firing: tuple[Event, ...]
    waiting: int
    failed: Mapping[str, str]
    given_up: int


def run(
    model: str,
    rules: Rules,
    checks: Path,
    *,
    servers: Sequence[str] = (),
    environ: Mapping[str, str],
    now_us: int | None = None,
    dry: bool = False,
    delivery_time_s: float = DELIVERY_TIME_S,
    lock_wait_s: float = LOCK_WAIT_S,
) -> Outcome:
    """One look. `dry`: nothing is told or written."""
    told_to = addresses(rules.deliveries, environ)
    with hold(checks, model, wait_s=lock_wait_s) as file:
        before = file.read()
        now = time.time_ns() // 1000 if now_us is None else now_us
        evidence, scrapes = look(model, checks, servers, before, now)
        found = findings(rules, evidence)
        after, events = turn(before, found, rules, model, now)
        after = msgspec.structs.replace(after, scrapes=scrapes, traffic_us=evidence.traffic_us)
        failed: dict[str, str] = {}
        if not dry:
            file.write(after)
            after = record(after, checks, file)
            after, failed = tell(after, told_to, file, until_s=time.monotonic() + delivery_time_s)
    firing = tuple(one.event for one in after.firing.values())
    waiting = sum(bool(one.to) for one in after.waiting)
    return Outcome(tuple(found), tuple(events), firing, waiting, failed, after.given_up)


def look(
    model: str, checks: Path, servers: Sequence[str], before: State, now_us: int
) -> tuple[Evidence, dict[str, Scrape]]:
    """What is known: the checks, and the servers since they were last asked."""
    wrong: dict[str, str] = {}
    scrapes = {url: before.scrapes[url] for url in servers if url in before.scrapes}
    live: list[Figures] = []
    for url, seen in scrape(servers, model).items():
        if isinstance(seen, ServerSilent):
            wrong[url] = str(seen)
            continue
        wrong[url] = "" if seen.ready == seen.workers else f"{seen.ready} of {seen.workers} workers are ready"
        live.append(between(before.scrapes.get(url), seen))
        scrapes[url] = seen
    rows = sum(figures.rows for figures in live)
    return Evidence(
        model=model,
        now_us=now_us,
        drift=memory.read(checks, "drift", model),
        performance=memory.read(checks, "performance", model),
        operations=memory.read(checks, "operations", model),
        live=together(live) if live else None,
        servers=wrong if servers else None,
        traffic_us=now_us if rows else before.traffic_us,
    ), scrapes


def turn(before: State, found: Sequence[Finding], rules: Rules, model: str, now_us: int) -> tuple[State, list[Event]]:
    """Pure: what goes on, and what is to be told. Finding the same again tells nothing again."""
    firing: dict[str, Firing] = {}
    events: list[Event] = []

    def tell_of(event: Event) -> Event:
        events.append(event)
        return event

    present = {finding.key: finding for finding in found}
    for key, finding in present.items():
        known = before.firing.get(key)
        if finding.state == "firing" and known is None:
            firing[key] = Firing(now_us, now_us, 1, tell_of(_event("firing", finding, model, now_us, now_us, 1)))
        elif known is not None and finding.state == "firing" and _due(known, rules, now_us):
            times = known.times + 1
            again = tell_of(_event("again", finding, model, known.since_us, now_us, times))
            firing[key] = Firing(known.since_us, now_us, times, again)
        elif known is not None and finding.state != "fine":
            firing[key] = known
        elif known is not None:
            tell_of(_event("resolved", finding, model, known.since_us, now_us, known.times))
    for key in before.firing.keys() - present.keys():
        tell_of(_gone(before.firing[key], now_us))
    waiting = [*before.waiting, *(Waiting(event, _to(rules, event.severity)) for event in events)]
    kept, given_up = _bounded(waiting, rules)
    return msgspec.structs.replace(before, firing=firing, waiting=kept, given_up=before.given_up + given_up), events


def record(state: State, checks: Path, file: StateFile) -> State:
    """The events that are not among the checks yet become lines there; each once, also after a kill in between."""
    new = [one for one in state.waiting if not one.recorded]
    if not new:
        return state
    there = {check.found.get("id") for check in memory.read(checks, "alerts", new[0].event.model)}
    for event in (one.event for one in new if one.event.id not in there):
        found = msgspec.to_builtins(event)
        window = (event.since_us, event.at_us)
        memory.append(checks, Check("alerts", event.model, "", *window, event.event, event.reason, found, event.at_us))
    recorded = (msgspec.structs.replace(one, recorded=True) for one in state.waiting)
    state = msgspec.structs.replace(state, waiting=tuple(one for one in recorded if one.to))
    file.write(state)
    return state


def tell(state: State, told_to: Sequence[Address], file: StateFile, *, until_s: float) -> tuple[State, dict[str, str]]:
    """Deliver what waits, in order. Once a delivery fails, what waits for it behind is left for the next run."""
    failed: dict[str, str] = {}
    for address in told_to:
        name = address.to.name
        for waiting in [one for one in state.waiting if name in one.to]:
            if state.held.get(name, 0) > time.time_ns() // 1000:
                failed[name] = "asked not to be asked again yet"
                break
            told = deliver(address, waiting.event, until_s=until_s)
            if told.failed:
                failed[name] = told.failed
                if told.hold_s:
                    held = state.held | {name: time.time_ns() // 1000 + round(told.hold_s * 1e6)}
                    state = msgspec.structs.replace(state, held=held)
                    file.write(state)
                if told.skip:
                    continue
                break
            state = _delivered(state, waiting.event.id, name)
            file.write(state)
    return state, failed


def _delivered(state: State, event_id: str, name: str) -> State:
    left = (
        msgspec.structs.replace(one, to=tuple(to for to in one.to if to != name)) if one.event.id == event_id else one
        for one in state.waiting
    )
    held = {other: until for other, until in state.held.items() if other != name}
    return msgspec.structs.replace(state, waiting=tuple(one for one in left if one.to), held=held)


def _due(known: Firing, rules: Rules, now_us: int) -> bool:
    return bool(rules.repeat_after_us) and now_us - known.told_us >= rules.repeat_after_us


def _to(rules: Rules, severity: str) -> tuple[str, ...]:
    return tuple(to.name for to in rules.deliveries if to.wants(severity))


def _bounded(waiting: Sequence[Waiting], rules: Rules) -> tuple[tuple[Waiting, ...], int]:
    """At most MOST_WAITING, the newest; nothing for deliveries that the rules no longer have. And how many were given up."""
    present = {to.name for to in rules.deliveries}
    own = [msgspec.structs.replace(one, to=tuple(name for name in one.to if name in present)) for one in waiting]
    useful = [one for one in own if one.to or not one.recorded]
    return tuple(useful[-MOST_WAITING:]), len(own) - min(len(useful), MOST_WAITING)


def _event(
    event: Literal["firing", "again", "resolved"], finding: Finding, model: str, since_us: int, at_us: int, times: int
) -> Event:
    rule = finding.rule
    return Event(
        id=_id(model, finding.key, since_us, event, times),
        event=event,
        model=model,
        rule=rule.name,
        kind=rule.kind,
        severity=rule.severity,
        subject=finding.subject,
        reason=finding.reason,
        since_us=since_us,
        at_us=at_us,
        value=_finite(finding.value),
        bound=_finite(finding.bound),
    )


def _gone(known: Firing, now_us: int) -> Event:
    """The rule, the version or the server is no longer looked at."""
    last = known.event
    return msgspec.structs.replace(
        last,
        id=_id(last.model, f"{last.rule}|{last.subject}", known.since_us, "resolved", known.times),
        event="resolved",
        reason=f"{last.subject} is no longer looked at",
        at_us=now_us,
        value=None,
    )


def _id(model: str, key: str, since_us: int, event: str, times: int) -> str:
    return hashlib.sha256(f"{model}|{key}|{since_us}|{event}|{times}".encode()).hexdigest()[:24]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
