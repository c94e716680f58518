"""One evaluation of the experiment that runs, and, where that is asked for, the act that follows from it.

    routes -> sums from the lake -> verdict -> decision log -> the next generation -> aliases

The log comes before the act, so that a generation can name its decision in its note; routes are what counts: a decider that is
killed anywhere leaves either the old generation, of which the next one decides again, or the new, and aliases that the next one
sets. A generation is created exclusively, on top of the very one that was decided about, so that of two deciders one acts, and
the other says that it was overtaken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compile.bundle import Manifest, locate
from compile.bundle import read as read_bundle
from monitoring.acting import Action, Phase
from monitoring.decisions import Decision, Inputs, decide, remember
from monitoring.engine import open_engine
from monitoring.experiment import Experiment, refuse_routes, running
from monitoring.exposures import look
from monitoring.plan import CONTROL
from monitoring.publishing import release
from monitoring.unit_metrics import refuse
from serving.routes import Routes


@dataclass(frozen=True)
class Places:
    store: Path
    lake: str
    checks: Path
    engine: str = "duckdb"
    trust: str = "hashed"


def evaluate(places: Places, model: str, now_us: int, *, approved: bool = False) -> tuple[Experiment, Inputs, Decision]:
    """Raises NoExperiment where none runs, LakeRefused where the lake has no traffic of the model."""
    experiment = running(places.store, model)
    inputs = gather(places, experiment, now_us, approved=approved)
    return experiment, inputs, decide(inputs)


def gather(places: Places, experiment: Experiment, now_us: int, *, approved: bool = False) -> Inputs:
    """What the experiment, running or over, has seen by then."""
    refuse_routes(experiment)
    manifests = manifests_of(places.store, experiment.first.arms, experiment.arms)
    refuse(experiment.plan, manifests)
    seen = look(open_engine(places.lake, places.engine), experiment, manifests, now_us)
    phases = tuple(Phase(phase.name, phase.at_us) for phase in experiment.phases)
    return Inputs(experiment.model, experiment.generation, now_us, approved, experiment.plan, phases, seen)


def manifests_of(store: Path, bundles: Mapping[str, str], arms: tuple[str, ...]) -> dict[str, Manifest]:
    """By arm, in that order. Raises BundleRefused, naming the file."""
    return {arm: read_bundle(locate(store, bundles[arm])) for arm in arms}


def log(places: Places, experiment: Experiment, inputs: Inputs, made: Decision) -> None:
    champion = read_bundle(locate(places.store, experiment.first.arms[CONTROL]))
    remember(places.checks, inputs, made, champion.version)


def apply(places: Places, experiment: Experiment, made: Decision, by: str) -> Routes | None:
    """The generation that the decision makes; None where it moves nobody. Raises Overtaken where another was faster."""
    change = change_of(experiment, made.action)
    if change is None:
        return None
    verb, fields = change
    note = f"{made.action.verb}, decision {made.id}: {made.action.reason}"
    fields |= {"note": note, "generation": experiment.generation}
    return release(places.store, places.trust, verb, experiment.model, by, **fields)


def change_of(experiment: Experiment, action: Action) -> tuple[str, dict[str, object]] | None:
    """(verb, fields) of `serving.releasing`."""
    if action.verb in ("roll back", "end"):
        return "rollback", {"to": experiment.first.generation - 1}
    if action.verb == "promote":
        return "promote", {"arm": action.arm}
    if action.verb == "ramp":
        return "ramp", {"shares": dict.fromkeys(experiment.arms, action.percent)}
    return None
