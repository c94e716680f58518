"""What the holdout says of a fitted model - its figures, its gates, and the card that tells them - by the recipe's task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training import assessment, boosters, card, measures, task_card
from training.assessment import Assessment
from training.checks import warnings_of
from training.costs import amounts, best_threshold
from training.data import Dataset
from training.evaluation import THRESHOLD, Gate, evaluate
from training.features import FeatureSchema, Matrix
from training.parts import Part
from training.recipe import Recipe


@dataclass(frozen=True)
class Verdict:
    """`assessed`: intervals, groups, costs and rivals, of a model of two classes alone."""

    metrics: Mapping[str, float]
    gates: tuple[Gate, ...]
    card: str
    threshold: float
    assessed: Assessment | None

    @property
    def failed(self) -> list[Gate]:
        return [gate for gate in self.gates if not gate.passed]

    def lines(self) -> list[str]:
        """For the terminal."""
        if self.assessed:
            return assessment.lines(self.assessed)
        return ["holdout: " + ", ".join(f"{metric} {value:.4f}" for metric, value in self.metrics.items())]


def threshold_of(
    recipe: Recipe, dataset: Dataset, schema: FeatureSchema, fitted: boosters.Fitted, validation: Part
) -> float:
    """The one that costs least on the validation rows, by a model not fitted to them; without costs, the half.

    The holdout has no say in it.
    """
    if recipe.costs is None:
        return THRESHOLD
    said = boosters.probability(fitted.booster, schema, validation.matrix)
    amount = amounts(recipe.costs, validation.frame, dataset.source)
    return best_threshold(recipe.costs, validation.labels, said, amount)


def judge(
    name: str,
    recipe: Recipe,
    dataset: Dataset,
    schema: FeatureSchema,
    parts: Mapping[str, Part],
    said: Matrix,
    *,
    threshold: float,
    rounds: int,
    left_out: Sequence[str],
) -> Verdict:
    """`said`: the model's answers to the holdout."""
    sizes = {part: len(rows.labels) for part, rows in parts.items()}
    holdout = parts["holdout"]
    if recipe.task != "binary":
        metrics = measures.measure(recipe.task, holdout, said, parts["train"])
        gates = measures.judge(recipe.task, metrics, recipe.gates)
        text = task_card.write(name, recipe, dataset, schema, metrics, gates, sizes, rounds, left_out)
        return Verdict(metrics, tuple(gates), text, threshold, None)
    metrics = evaluate(holdout.labels, said, threshold)
    assessed = assessment.assess(
        recipe,
        dataset,
        holdout.frame,
        holdout.labels,
        said,
        name=name,
        threshold=threshold,
        prior=float(parts["train"].labels.mean()),
        warnings=_warnings(schema, parts),
    )
    gates = measures.judge(recipe.task, metrics, recipe.gates)
    if assessed.worth and not recipe.gates:
        gates = [assessment.pays(assessed.worth)]
    text = card.write(name, recipe, dataset, schema, metrics, gates, sizes, rounds, left_out, assessed)
    return Verdict(metrics, tuple(gates), text, threshold, assessed)


def _warnings(schema: FeatureSchema, parts: Mapping[str, Part]) -> list[str]:
    train, holdout = parts["train"], parts["holdout"]
    columns = list(schema.names)
    return warnings_of(train.frame[columns], holdout.frame[columns], train.labels, holdout.labels)
