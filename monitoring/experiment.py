"""The experiment that a model's routes carry: its plan, and its phases, each a generation.

An experiment begins with a generation that has a plan under a new salt (`coppice experiment start`) and lasts as long as the
plan and the salt stay. Its arms are its challengers and `control`, an arm of the champion's own bundle and of the size of
each challenger; the champion keeps the rest of the split, and all of /predict. The control only grows, as the challengers
do, so that no unit ever changes its arm in a ramp - which it would, were it compared with the champion's shrinking rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from monitoring.errors import NoExperiment
from monitoring.plan import CHAMPION, CONTROL, Plan, decode
from monitoring.times import moment_us
from serving.routes import POINTS, Routes, history, read


@dataclass(frozen=True)
class Phase:
    """A generation. `shares` are of all units, by arm; the control's under the name "champion", as `verdict.Seen` has it."""

    generation: int
    at_us: int
    shares: Mapping[str, float]

    @property
    def name(self) -> str:
        return f"generation {self.generation}"


@dataclass(frozen=True)
class Experiment:
    """`ended`: the generation after its last, or None where it still runs."""

    plan: Plan
    phases: tuple[Phase, ...]
    first: Routes
    ended: Routes | None

    @property
    def model(self) -> str:
        return self.first.model

    @property
    def started_us(self) -> int:
        return self.phases[0].at_us

    @property
    def generation(self) -> int:
        """Its newest."""
        return self.phases[-1].generation

    @property
    def arms(self) -> tuple[str, ...]:
        """As the log names them."""
        return (CONTROL, *self.plan.challengers)

    @property
    def ended_us(self) -> int | None:
        return None if self.ended is None else _at_us(self.ended)


def running(store: Path, model: str) -> Experiment:
    """Raises NoExperiment where none runs, NothingToServe where the model has no routes."""
    found = newest(store, model)
    if found is None or found.ended is not None:
        raise NoExperiment(f"{model}: no experiment runs; coppice experiment start begins one")
    return found


def newest(store: Path, model: str) -> Experiment | None:
    """The one that runs, or the last that did. Raises PlanRefused for a plan that is none."""
    after: Routes | None = None
    carried: list[Routes] = []
    for routes in _backwards(store, model):
        if carried and (routes.plan, routes.salt) != (carried[0].plan, carried[0].salt):
            break
        if routes.plan is None:
            after = routes
        else:
            carried.append(routes)
    if not carried:
        return None
    carried.reverse()
    plan = decode(carried[0].plan)
    phases = tuple(Phase(routes.generation, _at_us(routes), _shares(routes, plan)) for routes in carried)
    return Experiment(plan, phases, carried[0], after)


def refuse_routes(experiment: Experiment) -> None:
    """Routes that no verb of ours makes, and whose units can't be compared. Raises NoExperiment."""
    first, plan = experiment.first, experiment.plan
    if first.arms.get(CONTROL) != first.arms[CHAMPION]:
        raise NoExperiment(
            f"{first.model}: generation {first.generation} carries the plan {plan.name!r}, and its arm {CONTROL!r} is not of "
            "the champion's bundle; coppice experiment start makes such routes"
        )
    for phase in experiment.phases:
        least, most = min(phase.shares.values()), max(phase.shares.values())
        if not least or most - least > 1.5 / POINTS:
            raise NoExperiment(
                f"{first.model}: {phase.name} gives {CONTROL!r} and the challengers unequal shares, so that those who come "
                "new to them can't be compared; coppice experiment stop, and start anew"
            )


def _backwards(store: Path, model: str) -> Iterator[Routes]:
    yield (present := read(store, model))
    for generation in reversed(history(store, model)):
        if generation < present.generation:
            yield read(store, model, generation)


def _shares(routes: Routes, plan: Plan) -> dict[str, float]:
    points = dict.fromkeys((CONTROL, *plan.challengers), 0)
    for slot in routes.slots:
        if slot.arm in points:
            points[slot.arm] += slot.hi - slot.lo
    return {CHAMPION if arm == CONTROL else arm: count / POINTS for arm, count in points.items()}


def _at_us(routes: Routes) -> int:
    found = moment_us(f"{routes.model}: generation {routes.generation}: at", routes.at)
    assert found is not None
    return found
