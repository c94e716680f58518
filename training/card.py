"""The model card: six sections of Markdown, filled from the run; what figures can't say comes from the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.data import Dataset
from training.evaluation import THRESHOLD, Gate
from training.features import FeatureSchema
from training.recipe import Recipe

UNSAID = "_Not stated in the recipe. Say it there, under `[card]`, before others rely on this model._"


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
    words = recipe.card
    share = dataset.positive.mean()
    missing = dataset.features[list(schema.names)].isna().mean()
    most_missing = [f"`{column}` {part:.0%}" for column, part in missing.nlargest(3).items() if part > 0]
    lines = [
        f"# Model card: {name}",
        "",
        "## Description",
        words.description or UNSAID,
        "",
        f"A {recipe.algorithm} binary classifier of {rounds} rounds over {schema.width} features. It answers the "
        f"probability that `{dataset.target}` is `{dataset.classes[1]}`; above {THRESHOLD:g} that is the prediction, "
        f"otherwise `{dataset.classes[0]}`.",
        "",
        "## Intended use",
        words.intended_use or UNSAID,
        "",
        "## Training data",
        f"{dataset.source}: {len(dataset.positive):,} rows, sha256 `{dataset.digest[:16]}`; {share:.1%} are "
        f"`{dataset.classes[1]}`. Stratified into {sizes['train']:,} to train, {sizes['validation']:,} to stop early, "
        f"{sizes['holdout']:,} held out.",
        "",
        f"Inputs (contract `{schema.fingerprint[:16]}`): "
        + ", ".join(f"`{f.name}` ({f.kind})" for f in schema.features)
        + ".",
        "",
        f"Left out as identifiers or constants: {', '.join(f'`{column}`' for column in left_out) or 'nothing'}. "
        f"Most often missing: {', '.join(most_missing) or 'nothing is'}.",
        "",
        "## Performance metrics",
        f"On the {sizes['holdout']:,} rows held out:",
        "",
        "| metric | value |",
        "|---|---|",
        *[f"| {metric} | {value:.4f} |" for metric, value in metrics.items()],
        "",
        *[f"- gate {gate}" for gate in gates],
        "",
        "## Limitations",
        words.limitations or UNSAID,
        "",
        f"The figures hold for rows like the training data's: no figure here speaks for another time or population. "
        f"With {sizes['holdout']:,} rows held out, accuracy is known to ± {1.96 * _error(metrics, sizes):.3f} (95 %).",
        "",
        "## Ethical considerations",
        words.ethical_considerations or UNSAID,
        "",
    ]
    return "\n".join(lines)


def _error(metrics: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    accuracy = metrics["accuracy"]
    return float((accuracy * (1 - accuracy) / sizes["holdout"]) ** 0.5)
