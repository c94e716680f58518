"""The decision log: every evaluation of an experiment, with all that it was made from, so that anyone can make it again.

    <checks>/decisions.jsonl         lines of `monitoring.checks`, of the kind "decisions"; never edited

    verdict   the state of `monitoring.verdict`, or "aliases"
    found     {"id": first 12 digits of "inputs", "inputs": sha256 of "from" as JSON, its keys sorted,
               "from": {"model", "generation", "now_us", "approved", "plan", "phases", "seen"},
               "verdict": {...}, "action": {"verb", "arm", "percent", "reason"}}

Nothing but "from" goes into a verdict and its action. The same inputs are remembered once. A line "aliases" says that the
registry's aliases were set to what the generation `found.generation` routes; its arms stand beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from monitoring.acting import Action, Phase, act
from monitoring.checks import Check, append, read
from monitoring.errors import MonitoringError, NotReproduced
from monitoring.evidence import Evidence, Moments
from monitoring.plan import Plan, as_routes, decode
from monitoring.verdict import Seen, Verdict, judge

KIND = "decisions"
ALIASES = "aliases"


@dataclass(frozen=True)
class Inputs:
    model: str
    generation: int
    now_us: int
    approved: bool
    plan: Plan
    phases: tuple[Phase, ...]
    seen: Seen


@dataclass(frozen=True)
class Decision:
    """`inputs` is the hash."""

    inputs: str
    verdict: Verdict
    action: Action

    @property
    def id(self) -> str:
        return self.inputs[:12]


def decide(given: Inputs) -> Decision:
    """Raises MonitoringError for sums that no experiment has."""
    try:
        verdict = judge(given.plan, given.seen, given.now_us)
    except ValueError as impossible:
        raise MonitoringError(f"{given.model}: {impossible}") from None
    action = act(given.plan, given.phases, given.seen, verdict, given.now_us, approved=given.approved)
    return Decision(_digest(_written(given)), verdict, action)


def remember(folder: Path, given: Inputs, made: Decision, version: str) -> None:
    """`version`: the champion's."""
    if any(line.found.get("inputs") == made.inputs for line in read(folder, KIND, given.model)):
        return
    found = {"id": made.id, "inputs": made.inputs, "from": _written(given), **_told(made)}
    append(
        folder,
        Check(
            KIND,
            given.model,
            version,
            given.seen.started_us,
            given.now_us,
            made.verdict.state,
            made.verdict.reason,
            found,
        ),
    )


def recompute(folder: Path, model: str, name: str) -> tuple[Check, Decision]:
    """The remembered line, and what follows from its inputs. Raises NotReproduced where that is another decision."""
    lines = [line for line in read(folder, KIND, model) if str(line.found.get("id", "")).startswith(name)]
    if len(lines) != 1:
        raise MonitoringError(f"--recompute: {len(lines)} decisions of {model} begin with {name!r} in {folder}")
    found = lines[0].found
    try:
        made = decide(_inputs(found["from"]))
    except (KeyError, TypeError, ValueError, msgspec.MsgspecError) as spoiled:
        raise NotReproduced(f"decision {name}: its inputs can't be read: {spoiled}") from None
    if _digest(found["from"]) != found["inputs"]:
        raise NotReproduced(f"decision {name}: its inputs do not have the hash that it names")
    if any(found.get(part) != told for part, told in _told(made).items()):
        raise NotReproduced(
            f"decision {name}: was {found['verdict']['state']}, {found['action']['verb']}; from its inputs follows "
            f"{made.verdict.state}, {made.action.verb}"
        )
    return lines[0], made


def aliased(folder: Path, model: str) -> dict[str, str] | None:
    """The arms whose versions the registry's aliases were last set to; None: never."""
    lines = [line for line in read(folder, KIND, model) if line.verdict == ALIASES]
    return dict(lines[-1].found["arms"]) if lines else None


def remember_aliases(folder: Path, model: str, generation: int, arms: Mapping[str, str]) -> None:
    found = {"generation": generation, "arms": dict(arms)}
    append(folder, Check(KIND, model, "", 0, 0, ALIASES, f"set to generation {generation}", found))


def _told(made: Decision) -> dict[str, Any]:
    """As JSON has it: an open side of an interval is null."""
    told: dict[str, Any] = msgspec.json.decode(msgspec.json.encode({"verdict": made.verdict, "action": made.action}))
    return told


def _digest(written: Any) -> str:
    return hashlib.sha256(json.dumps(written, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _written(given: Inputs) -> dict[str, Any]:
    seen = given.seen
    return {
        "model": given.model,
        "generation": given.generation,
        "now_us": given.now_us,
        "approved": given.approved,
        "plan": json.loads(json.dumps(as_routes(given.plan))),
        "phases": [[phase.name, phase.at_us] for phase in given.phases],
        "seen": {
            "shares": {phase: dict(shares) for phase, shares in seen.shares.items()},
            "assigned": {phase: dict(units) for phase, units in seen.assigned.items()},
            "metrics": {name: _cells(evidence) for name, evidence in seen.metrics.items()},
            "started_us": seen.started_us,
            "last_us": seen.last_us,
            "in_two_arms": seen.in_two_arms,
            "lost": _cells(seen.lost),
            "unlabelled": _cells(seen.unlabelled),
        },
    }


def _cells(evidence: Evidence) -> list[list[Any]]:
    return [[list(stratum), arm, asdict(sums)] for (stratum, arm), sums in sorted(evidence.cells.items())]


def _inputs(written: Mapping[str, Any]) -> Inputs:
    seen = dict(written["seen"])
    seen["metrics"] = {name: _evidence(cells) for name, cells in seen["metrics"].items()}
    given = Seen(**seen | {name: _evidence(seen[name]) for name in ("lost", "unlabelled")})
    phases = tuple(Phase(name, at_us) for name, at_us in written["phases"])
    rest = {name: written[name] for name in ("model", "generation", "now_us", "approved")}
    return Inputs(**rest, plan=decode(written["plan"]), phases=phases, seen=given)


def _evidence(cells: list[list[Any]]) -> Evidence:
    return Evidence({(tuple(stratum), arm): Moments(**sums) for stratum, arm, sums in cells})
