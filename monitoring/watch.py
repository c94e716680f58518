"""Retrain, wait, or investigate: one pure decision from what the checks found, with its reasons.

The first rule of RULES that applies decides; whatever else applies is told beside it. Their order is the order of trust: from
data that may be wrong nothing is concluded, so what is broken is looked into before anything is trained on it; what labels
say counts before what drift suggests, and drift before what an estimate says.

    rule          decides       when
    unseen        investigate   neither drift nor performance was checked within `stale_after`
    books         investigate   served is not logged + dropped + lost, or rows were lost
    dropped       investigate   the log dropped more than `drop_share` of the rows
    inputs        investigate   a column is absent, or has no values, where the reference has some
    gap           investigate   the newest window has less than `gap_share` of the rows that windows of its length had
    broken        investigate   operations are broken for another reason: errors, sheds
    drop          retrain       performance dropped, by labels, and there are `least_labelled` labelled rows to train on
    unlabelled    investigate   performance dropped, by labels, and there are fewer
    drift         retrain       drift in `drift_windows` windows running, and labelled rows enough
    alarm         investigate   the errors of the labelled rows rose, and none of the above explains it
    estimate      investigate   an estimate that can be trusted says that performance dropped; labels would tell
    harmless      wait          drift, too few labelled rows, and an estimate that can be trusted is fine
    unknown       investigate   drift, too few labelled rows, and no estimate that can be trusted
    passing       wait          drift, in fewer windows than `drift_windows`
    calm          wait          nothing of all that

Where retrain is decided within `cooldown` of a decision to retrain that other findings led to, it is wait, by rule `cooldown`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

Decision = Literal["retrain", "wait", "investigate"]
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Limits:
    """What the rules go by. Times in µs."""

    stale_after_us: int = 36 * 3_600_000_000
    cooldown_us: int = 7 * DAY_US
    drift_windows: int = 2
    least_labelled: int = 1000
    drop_share: float = 0.001
    gap_share: float = 0.1


@dataclass(frozen=True)
class Facts:
    """What the checks found of the version that serves. Nothing in it changes with the time of day: found again, it is equal.

    `unseen`: neither drift nor performance was checked lately. `rows`, `usual_rows`: of drift's newest window, and of those
    before it; None: not known. `dropped`, `lost`: rows; `served`: of how many. `performance`: "fine", "drop", or "" where
    labels decide nothing. `estimate`: the same of an estimate that can be trusted. `drifted`: windows running. Texts say why.
    """

    model: str
    version: str
    unseen: bool = False
    faults: tuple[str, ...] = ()
    lost: int = 0
    dropped: int = 0
    served: int = 0
    broken: str = ""
    inputs: tuple[str, ...] = ()
    rows: int | None = None
    usual_rows: int | None = None
    performance: Literal["fine", "drop", ""] = ""
    performance_says: str = ""
    labelled: int = 0
    alarms: tuple[str, ...] = ()
    estimate: Literal["fine", "drop", ""] = ""
    estimate_says: str = ""
    drifted: int = 0
    drift_says: str = ""


@dataclass(frozen=True)
class Verdict:
    """`reasons`: the deciding rule's first, each as `rule: why`. `inputs`: a hash of the facts and limits decided from."""

    decision: Decision
    rule: str
    reasons: tuple[str, ...]
    inputs: str


def decide(facts: Facts, limits: Limits, *, since_retrain_us: int | None = None) -> Verdict:
    """Pure. `since_retrain_us`: how long ago other findings led to a decision to retrain; None: they never did."""
    applying = [(name, decision, why) for name, decision, rule in RULES if (why := rule(facts, limits))]
    name, decision, why = applying[0]
    if decision == "retrain" and since_retrain_us is not None and since_retrain_us < limits.cooldown_us:
        days = since_retrain_us / DAY_US
        applying.insert(0, ("cooldown", "wait", f"{days:.1f} days ago it was decided to retrain"))
        name, decision, why = applying[0]
    reasons = tuple(f"{rule}: {because}" for rule, _, because in applying if rule != "calm" or len(applying) == 1)
    return Verdict(decision, name, reasons, inputs_hash(facts, limits))


def inputs_hash(facts: Facts, limits: Limits) -> str:
    """Of the same findings and limits, the same."""
    told = json.dumps([asdict(facts), asdict(limits)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()


def _unseen(facts: Facts, limits: Limits) -> str:
    hours = limits.stale_after_us / 3.6e9
    return f"neither drift nor performance was checked within {hours:g} h" if facts.unseen else ""


def _books(facts: Facts, _: Limits) -> str:
    return "; ".join([*facts.faults, *([f"{facts.lost:,} rows were lost"] if facts.lost else [])])


def _dropped(facts: Facts, limits: Limits) -> str:
    if facts.dropped and facts.dropped > limits.drop_share * (facts.served + facts.dropped):
        return f"the log dropped {facts.dropped:,} rows, and has {facts.served:,}"
    return ""


def _inputs(facts: Facts, _: Limits) -> str:
    return "; ".join(facts.inputs)


def _gap(facts: Facts, limits: Limits) -> str:
    if facts.rows is None or facts.usual_rows is None or facts.rows >= limits.gap_share * facts.usual_rows:
        return ""
    return f"{facts.rows:,} rows in the newest window, where {facts.usual_rows:,} are usual"


def _broken(facts: Facts, _: Limits) -> str:
    return facts.broken


def _enough(facts: Facts, limits: Limits) -> bool:
    return facts.labelled >= limits.least_labelled


def _drop(facts: Facts, limits: Limits) -> str:
    if facts.performance != "drop" or not _enough(facts, limits):
        return ""
    return f"{facts.performance_says}; {facts.labelled:,} labelled rows to train on"


def _unlabelled(facts: Facts, limits: Limits) -> str:
    if facts.performance != "drop" or _enough(facts, limits):
        return ""
    return f"{facts.performance_says}; {facts.labelled:,} labelled rows are too few to train on"


def _running(facts: Facts, limits: Limits) -> bool:
    return facts.drifted >= limits.drift_windows


def _drift(facts: Facts, limits: Limits) -> str:
    if not _running(facts, limits) or not _enough(facts, limits):
        return ""
    return f"{facts.drift_says}, in {facts.drifted} windows running; {facts.labelled:,} labelled rows to train on"


def _alarm(facts: Facts, _: Limits) -> str:
    return "; ".join(facts.alarms)


def _estimate(facts: Facts, _: Limits) -> str:
    return facts.estimate_says if facts.estimate == "drop" and facts.performance != "drop" else ""


def _harmless(facts: Facts, limits: Limits) -> str:
    if not _running(facts, limits) or _enough(facts, limits) or facts.estimate != "fine":
        return ""
    return f"{facts.drift_says}; {facts.estimate_says}; {facts.labelled:,} labelled rows are too few to train on"


def _unknown(facts: Facts, limits: Limits) -> str:
    if not _running(facts, limits) or _enough(facts, limits) or facts.estimate:
        return ""
    return f"{facts.drift_says}; nothing can be said of performance, and {facts.labelled:,} labelled rows are too few"


def _passing(facts: Facts, limits: Limits) -> str:
    if not 0 < facts.drifted < limits.drift_windows:
        return ""
    return f"{facts.drift_says}, in {facts.drifted} of the {limits.drift_windows} windows that count"


def _calm(facts: Facts, _: Limits) -> str:
    return facts.performance_says or facts.estimate_says or "no drift, and no sign that performance dropped"


RULES: tuple[tuple[str, Decision, Callable[[Facts, Limits], str]], ...] = (
    ("unseen", "investigate", _unseen),
    ("books", "investigate", _books),
    ("dropped", "investigate", _dropped),
    ("inputs", "investigate", _inputs),
    ("gap", "investigate", _gap),
    ("broken", "investigate", _broken),
    ("drop", "retrain", _drop),
    ("unlabelled", "investigate", _unlabelled),
    ("drift", "retrain", _drift),
    ("alarm", "investigate", _alarm),
    ("estimate", "investigate", _estimate),
    ("harmless", "wait", _harmless),
    ("unknown", "investigate", _unknown),
    ("passing", "wait", _passing),
    ("calm", "wait", _calm),
)
