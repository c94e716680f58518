"""The generation that begins an experiment: its plan, under a new salt, with the arms of the first step."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from monitoring.deciding import manifests_of
from monitoring.errors import NoExperiment, PlanRefused
from monitoring.experiment import Experiment, newest
from monitoring.plan import CHAMPION, CONTROL, Plan, as_routes, decode
from monitoring.publishing import release
from monitoring.times import told
from monitoring.unit_metrics import refuse
from monitoring.verdict import HOUR_US
from serving.routes import POINTS, Routes, read


def read_plan(path: Path) -> Plan:
    """From TOML, or JSON by the file's name. Raises PlanRefused, naming the file and the field."""
    try:
        content = path.read_text(encoding="utf-8")
        return decode(content if path.suffix == ".json" else tomllib.loads(content))
    except OSError as failure:
        raise PlanRefused(f"{path}: {failure.strerror}") from None
    except UnicodeDecodeError:
        raise PlanRefused(f"{path}: is not UTF-8") from None
    except tomllib.TOMLDecodeError as malformed:
        raise PlanRefused(f"{path}: {malformed}") from None
    except PlanRefused as refused:
        raise PlanRefused(f"{path}: {refused}") from None


def start(
    store: Path, trust: str, model: str, plan: Plan, bundles: Mapping[str, str], *, note: str, by: str, now_us: int
) -> Routes:
    """`bundles` by challenger. Raises NoExperiment while another runs, or cools down; PlanRefused for a plan that these
    bundles can't answer; Overtaken, Unreleased."""
    now = read(store, model)
    before = newest(store, model)
    if before is not None:
        _refuse_too_soon(before, now_us)
    if set(bundles) != set(plan.challengers):
        raise PlanRefused(f"challengers: the plan names {sorted(plan.challengers)}, --arm {sorted(bundles)}")
    arms = {CHAMPION: now.arms[CHAMPION], CONTROL: now.arms[CHAMPION], **bundles}
    shadow = tuple(one for one in now.shadow if one.name not in arms)
    points = round(POINTS * plan.ramp[0].share)
    split = {CHAMPION: POINTS - points * (len(bundles) + 1), **dict.fromkeys((CONTROL, *bundles), points)}
    if not points:
        raise PlanRefused(f"ramp[0].share: {plan.ramp[0].share} is less than one of {POINTS:,} parts")
    refuse(plan, manifests_of(store, arms, (CONTROL, *plan.challengers)))
    return release(
        store, trust, "publish", model, by,
        arms=arms, split=split, shadow=shadow, plan=as_routes(plan), generation=now.generation,
        note=note or f"experiment {plan.name}: {100 * plan.ramp[0].share:g} % each, plan {plan.digest[:12]}",
    )  # fmt: skip


def promoted(experiment: Experiment) -> bool:
    """It is over, and its champion is another."""
    return experiment.ended is not None and experiment.ended.arms[CHAMPION] != experiment.first.arms[CHAMPION]


def _refuse_too_soon(before: Experiment, now_us: int) -> None:
    if before.ended is None or before.ended_us is None:
        raise NoExperiment(
            f"{before.model}: the experiment {before.plan.name!r} runs since generation {before.first.generation}; coppice "
            "decide --apply ends it in time, coppice experiment stop now"
        )
    over_us = before.ended_us + round(before.plan.cooldown_hours * HOUR_US)
    if not promoted(before) and now_us < over_us:
        raise NoExperiment(
            f"{before.model}: the experiment {before.plan.name!r} ended without a winner, and cools down until {told(over_us)}"
        )
