"""An experiment as one page that needs nothing else: in plain words what is thought of it, the confidence sequence over time as
it was decided by, each arm's figures, whether the shares were kept, and the guardrails."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from monitoring.acting import Action
from monitoring.charts import Line, Panel, chart, time_ticks
from monitoring.checks import Check
from monitoring.decisions import Decision, Inputs
from monitoring.evidence import Evidence, Interval, Moments
from monitoring.experiment import Experiment
from monitoring.performance_page import POLICY, STYLE
from monitoring.plan import CHAMPION, Plan
from monitoring.srm import Assigned, chi_square, log_mismatch
from monitoring.times import told
from monitoring.unit_metrics import metrics
from monitoring.verdict import Verdict

WORDS = {
    "invalid": "Nothing may be concluded from these data: the experiment did not run as it was meant to.",
    "guardrail": "A challenger is worse than what was allowed beforehand, and is taken back.",
    "no data": "No units come.",
    "insufficient": "It is too early to say anything.",
    "loser": "The challenger is worse than the champion, which stays.",
    "winner": "The challenger is better than the champion, by more than was asked for, and breaks no guardrail.",
    "no difference": "The challenger and the champion do not differ by anything that matters. The champion stays.",
    "futile": "What was set aside for this experiment is spent, or won't be enough. The champion stays.",
    "running": "Nothing is certain yet; the experiment goes on.",
}


def page(experiment: Experiment, inputs: Inputs, made: Decision, remembered: Iterable[Check]) -> str:
    plan = experiment.plan
    title = f"{experiment.model}: {plan.name}"
    lines = [line for line in remembered if line.found.get("verdict", {}).get("plan") == plan.digest]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p><b>{made.verdict.state}</b>. {WORDS[made.verdict.state]} {html.escape(made.verdict.reason)}.</p>",
        f"<p>{_standing(experiment, made.action)}</p>",
        *(_sequence(plan, name, lines, inputs, made.verdict) for name in plan.challengers),
        "<h2>Arms</h2>", _arms(plan, inputs),
        "<h2>Shares</h2>", _shares(inputs),
        "<h2>Guardrails</h2>", _guardrails(plan, inputs),
        f"<p><small>Decision {made.id} by plan {plan.digest[:12]}, as of {told(inputs.now_us)} UTC. Intervals hold at all "
        f"times together, at {1 - plan.each_alpha:.1%}; the control is an arm of the champion's bundle.</small></p>",
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _standing(experiment: Experiment, action: Action) -> str:
    since = f"It runs since {told(experiment.started_us)}. What follows: {action.verb}, {action.reason}."
    if experiment.ended is not None:
        ended = experiment.ended
        since = f"It ran from {told(experiment.started_us)} to {ended.at}; generation {ended.generation}: {ended.note}."
    return html.escape(since)


def _sequence(plan: Plan, name: str, lines: Sequence[Check], inputs: Inputs, verdict: Verdict) -> str:
    """Every remembered interval, and the present one."""
    seen = {line.until_us: _effect(line.found["verdict"]["challengers"], name) for line in lines}
    now = next(one.effect for one in verdict.challengers if one.challenger == name)
    seen[inputs.now_us] = None if now is None else (now.estimate, _finite(now.lower), _finite(now.upper))
    moments = sorted((at, effect) for at, effect in seen.items() if effect is not None)
    if not moments:
        return f"<h2>{html.escape(name)}</h2><p>No interval yet.</p>"
    at = [float(when) for when, _ in moments]
    estimate, low, high = ([effect[part] for _, effect in moments] for part in range(3))
    line = Line("effect", "seen", estimate, low, high, ["dot"] * len(at))
    what = "part of the champion's" if plan.relative or plan.metric.kind == "rare" else "in the metric's unit"
    panel = Panel(f"{plan.metric.name}: how much better than the control, {what}", [line], level=0.0, height=190)
    return f"<h2>{html.escape(name)}</h2>{chart(at, time_ticks(at), [panel])}{_said(now)}"


def _said(now: Interval | None) -> str:
    if now is None:
        return ""
    return (
        f"<p>Now {now.estimate:+.4g} better, between {now.lower:+.4g} and {now.upper:+.4g}, by {now.units:,} units; "
        f"always-valid p {now.p:.3g}.</p>"
    )


def _effect(challengers: Sequence[dict[str, Any]], name: str) -> tuple[float, float | None, float | None] | None:
    found = next((one["effect"] for one in challengers if one["challenger"] == name), None)
    return None if found is None else (found["estimate"], found["lower"], found["upper"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _arms(plan: Plan, inputs: Inputs) -> str:
    rows = []
    for metric in metrics(plan):
        evidence = inputs.seen.metrics.get(metric.name, Evidence())
        for arm in (CHAMPION, *plan.challengers):
            sums = evidence.arm(arm)
            mean = f"{sums.total / sums.n:.4g}" if sums.n else "none yet"
            rows.append((metric.name, _arm(arm), f"{sums.n:,}", mean, f"{sums.nonzero:,}"))
    closed = inputs.seen.unlabelled
    rows += [
        ("has an outcome", _arm(arm), f"{closed.arm(arm).n:,}", _covered(closed.arm(arm)), "")
        for arm in (CHAMPION, *plan.challengers)
    ]
    note = "<p><small>Over all phases: for counting; what is compared is compared within each.</small></p>"
    return _table(("metric", "arm", "units", "mean", "not zero"), rows) + note


def _covered(closed: Moments) -> str:
    return f"{1 - closed.nonzero / closed.n:.1%}" if closed.n else "none due yet"


def _shares(inputs: Inputs) -> str:
    seen, rows = inputs.seen, []
    for phase, at_us in inputs.phases:
        assigned = Assigned(seen.assigned.get(phase, {}), seen.shares[phase])
        units = ", ".join(f"{_arm(arm)} {count:,}" for arm, count in sorted(assigned.units.items())) or "none"
        meant = ", ".join(f"{_arm(arm)} {share:.2%}" for arm, share in seen.shares[phase].items())
        evidence = log_mismatch([assigned])
        rows.append((phase, told(at_us), meant, units, f"{evidence:+.2f}", f"{chi_square(assigned):.3g}"))
    table = _table(("phase", "since", "meant", "units", "log e of a mismatch", "chi-square p, one look"), rows)
    return table + f"<p>{seen.in_two_arms:,} units came to two arms.</p>"


def _guardrails(plan: Plan, inputs: Inputs) -> str:
    if not plan.guardrails:
        return "<p>The plan has none.</p>"
    rows = []
    for guardrail in plan.guardrails:
        evidence = inputs.seen.metrics.get(guardrail.metric.name, Evidence())
        for name in plan.challengers:
            ours, theirs = evidence.arm(name), evidence.arm(CHAMPION)
            rows.append((guardrail.metric.name, name, _mean(ours), _mean(theirs), f"{guardrail.margin:g}"))
    return _table(("guardrail", "challenger", "its mean", "the control's", "margin"), rows)


def _mean(sums: Moments) -> str:
    return f"{sums.total / sums.n:.4g}" if sums.n else "none yet"


def _arm(name: str) -> str:
    return "control" if name == CHAMPION else name


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
