"""A training run, in the order it happens: split, infer, fit, measure, judge, record, register.

The split comes first, so that nothing about the holdout - no category, no missing rate - can reach the schema. A model
that fails a gate has its run recorded, for whoever wants to know why, and is not registered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from training import boosters, card, fit_on_ray, measures, registry, runs, verdict
from training.assessment import Assessment
from training.calibrating import calibrated
from training.costs import amounts
from training.data import Dataset
from training.errors import GateFailed, RecipeRefused
from training.evaluation import Gate
from training.features import FeatureSchema, InputRefused, infer
from training.inference import constants, identifiers
from training.out_of_core import OutOfCore
from training.parts import Part, part_of
from training.recipe import Recipe
from training.segments import refuse_unknown
from training.splitting import split
from training.view import Lookup

Progress = Callable[[str], None]


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Trained:
    """`assessed`: of a model of two classes alone."""

    registered: registry.Registered
    metrics: Mapping[str, float]
    gates: tuple[Gate, ...]
    schema: FeatureSchema
    rounds: int
    assessed: Assessment | None


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    name: str,
    schema: FeatureSchema | None = None,
    aliases: tuple[str, ...] = (),
    on_disk: OutOfCore | None = None,
    workers: int = 0,
    progress: Progress = _silent,
) -> Trained:
    """Fit, measure and register `name`'s next version. `schema`: the contract to keep; else the recipe's, else inferred.
    `on_disk`: the file that `dataset` is the sample of; fitted to is all of it but the validation rows and the holdout,
    by `workers` processes on Ray, where there are any.

    Raises GateFailed, after recording the run, where the model isn't good enough; DataRefused where the rows don't fit.
    """
    rows = split(dataset, recipe)
    schema = schema or recipe.schema or infer(dataset.features.iloc[rows["train"]], exclude=[recipe.split.column])
    left_out = [str(column) for column in dataset.features.columns if column not in schema.names]
    sample = f"a sample of {on_disk.rows:,}: " if on_disk else ""
    progress(f"{sample}{len(dataset.labels):,} rows of {dataset.source}, {schema.width} features, {_kinds(schema)}")
    if left_out:
        reasons = _reasons(dataset, left_out, recipe.split.column)
        progress(f"left out: {', '.join(f'{column} ({why})' for column, why in reasons.items())}")
    if recipe.lookup:
        _refuse_lookup(recipe.lookup, schema)
    refuse_unknown(recipe.evaluation, dataset.features, dataset.source)
    if recipe.costs:
        amounts(recipe.costs, dataset.features, dataset.source)
    parts = {part: part_of(dataset, schema, of_it, recipe.query) for part, of_it in rows.items()}

    if on_disk and workers:
        progress(f"{workers} workers on Ray read and fit")
        fitted = fit_on_ray.fit(recipe, schema, on_disk, rows, parts["validation"], workers)
    else:
        fitted = boosters.fit(
            recipe,
            schema,
            on_disk.fitting(schema, rows, progress) if on_disk else parts["train"],
            parts["validation"],
            lambda round_, loss: progress(f"round {round_}: validation loss {loss:.5f}"),
        )
    progress(f"fitted {recipe.algorithm}: {fitted.rounds} rounds kept of {len(fitted.curve)}")
    fitted, calibration = calibrated(recipe, schema, fitted, parts["validation"])
    if recipe.calibration != "none":
        progress(f"calibration by {len(parts['validation'].labels):,} validation rows: {calibration}")
    threshold = verdict.threshold_of(recipe, dataset, schema, fitted, parts["validation"])
    if recipe.rounds.refit:
        fitted = _refitted(recipe, dataset, schema, parts, fitted)
    said = boosters.probability(fitted.booster, schema, parts["holdout"].matrix)
    found = verdict.judge(
        name, recipe, dataset, schema, parts, said, threshold=threshold, rounds=fitted.rounds, left_out=left_out
    )
    for line in found.lines():
        progress(line)

    run_id, model_uri = runs.record(recipe, dataset, schema, fitted, parts, said, found, calibration)
    if found.failed:
        raise GateFailed(
            f"{name}: not registered: {'; '.join(map(str, found.failed))}. Run {run_id} has the figures; "
            "gates are set in the recipe"
        )
    registered = registry.publish(
        name,
        run_id,
        model_uri,
        tags={
            "algorithm": recipe.algorithm,
            "task": recipe.task,
            "schema": schema.fingerprint,
            **{metric: f"{found.metrics[metric]:.4f}" for metric in measures.TOLD[recipe.task]},
        },
        description=card.shortened(found.card),
    )
    for alias in aliases:
        registry.alias(registered, alias)
    progress(f"registered {registered.reference}" + "".join(f" as {alias}" for alias in aliases))
    return Trained(registered, found.metrics, found.gates, schema, fitted.rounds, found.assessed)


def _refuse_lookup(lookup: Lookup, schema: FeatureSchema) -> None:
    try:
        lookup.refuse_misfit(schema)
    except InputRefused as refused:
        raise RecipeRefused(f"lookup: {refused}") from None


def _refitted(
    recipe: Recipe, dataset: Dataset, schema: FeatureSchema, parts: Mapping[str, Part], fitted: boosters.Fitted
) -> boosters.Fitted:
    """The same rounds again, on the validation rows too. The curve stays that of the rows that were not fitted to."""
    rounds = msgspec.structs.replace(recipe.rounds, most=fitted.rounds, patience=0)
    every = part_of(dataset, schema, np.concatenate([parts["train"].rows, parts["validation"].rows]), recipe.query)
    shorter = msgspec.structs.replace(recipe, rounds=rounds)
    again = boosters.fit(shorter, schema, every, parts["validation"], lambda *_: None)
    return dataclasses.replace(again, curve=fitted.curve)


def _reasons(dataset: Dataset, left_out: list[str], split_by: str) -> dict[str, str]:
    naming, constant = set(identifiers(dataset.features)), set(constants(dataset.features))
    return {
        column: "identifies rows"
        if column in naming
        else "what the rows are split by"
        if column == split_by
        else "one value only"
        if column in constant
        else "not in the schema"
        for column in left_out
    }


def _kinds(schema: FeatureSchema) -> str:
    kinds = [feature.kind for feature in schema.features]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
