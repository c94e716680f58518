"""The model card of a regression or of several classes: the six sections, by the figures of its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.card import PICTURES, assembled, code, inputs, plain
from training.data import Dataset
from training.evaluation import Gate
from training.features import FeatureSchema
from training.recipe import Recipe


def write(
    name: str,
    recipe: Recipe,
    dataset: Dataset,
    schema: FeatureSchema,
    metrics: Mapping[str, float],
    gates: Sequence[Gate],
    sizes: Mapping[str, int],
    rounds: int,
    left_out: Sequence[str],
) -> str:
    """`sizes`: rows by part (train, validation, holdout)."""
    answers = f"the value of {code(dataset.target)}"
    if recipe.task == "ranking":
        answers = f"a score for each row, by which those of one {code(recipe.query)} are ordered, the highest first"
    if dataset.classes:
        answers = f"the probability of each class of {code(dataset.target)}: {', '.join(map(code, dataset.classes))}"
    return assembled(
        name,
        recipe.card,
        model=f"A {recipe.algorithm} {recipe.task} model of {rounds} rounds over {schema.width} features. "
        f"It answers {answers}.",
        data=[
            f"{plain(dataset.source)}: {len(dataset.labels):,} rows, sha256 `{dataset.digest[:16]}`. Split by "
            f"{recipe.split.by}: {sizes['train']:,} to train, {sizes['validation']:,} to validate, "
            f"{sizes['holdout']:,} held out.",
            "",
            f"{inputs(schema)}. Left out: {', '.join(map(code, left_out)) or 'nothing'}.",
        ],
        figures=[
            f"On the {sizes['holdout']:,} rows held out:",
            "",
            "| metric | value |",
            "|---|---|",
            *[f"| {metric} | {value:.4f} |" for metric, value in metrics.items()],
            "",
            *[f"- gate {plain(str(gate))}" for gate in gates],
            "",
            f"![{PICTURES['importance']}](importance.png)",
            "",
        ],
        limits=[
            "The figures hold for rows like the training data's: no figure here speaks for another time or population."
        ],
    )
