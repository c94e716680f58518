"""A training run, in the order it happens: split, infer, fit, measure, judge, record, register.

The split comes first, so that nothing about the holdout - no category, no missing rate - can reach the schema. A model
that fails a gate has its run recorded, for whoever wants to know why, and is not registered.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from training import assessment, boosters, card, figures, registry
from training.assessment import Assessment
from training.card_page import page
from training.checks import warnings_of
from training.costs import amounts, best_threshold
from training.data import Dataset
from training.errors import DataRefused, GateFailed, RecipeRefused
from training.evaluation import THRESHOLD, Gate, evaluate, judge
from training.features import FeatureSchema, InputRefused, Matrix, encode_frame, infer
from training.inference import constants, identifiers
from training.recipe import Recipe, flat
from training.segments import refuse_unknown
from training.view import Lookup

REFERENCE_ROWS = 10_000
Indices = npt.NDArray[np.intp]
Progress = Callable[[str], None]


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Trained:
    registered: registry.Registered
    metrics: Mapping[str, float]
    gates: tuple[Gate, ...]
    schema: FeatureSchema
    rounds: int
    assessed: Assessment


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    name: str,
    schema: FeatureSchema | None = None,
    aliases: tuple[str, ...] = (),
    progress: Progress = _silent,
) -> Trained:
    """Fit, measure and register `name`'s next version. `schema`: the contract to keep; else the recipe's, else inferred.

    Raises GateFailed, after recording the run, where the model isn't good enough; DataRefused where the rows don't fit.
    """
    parts = _split(dataset, recipe)
    frames = {part: dataset.features.iloc[rows] for part, rows in parts.items()}
    schema = schema or recipe.schema or infer(frames["train"])
    left_out = [str(column) for column in dataset.features.columns if column not in schema.names]
    progress(f"{len(dataset.positive):,} rows of {dataset.source}, {schema.width} features, {_kinds(schema)}")
    if left_out:
        progress(f"left out: {', '.join(f'{column} ({why})' for column, why in _reasons(dataset, left_out).items())}")
    if recipe.lookup:
        _refuse_lookup(recipe.lookup, schema)
    refuse_unknown(recipe.evaluation, dataset.features, dataset.source)
    if recipe.costs:
        amounts(recipe.costs, dataset.features, dataset.source)
    matrices = {part: _encoded(schema, dataset, frames[part]) for part in parts}
    labels = {part: dataset.positive[rows] for part, rows in parts.items()}

    fitted = boosters.fit(
        recipe,
        schema,
        (matrices["train"], labels["train"]),
        (matrices["validation"], labels["validation"]),
        lambda round_, loss: progress(f"round {round_}: validation log loss {loss:.5f}"),
    )
    progress(f"fitted {recipe.algorithm}: {fitted.rounds} rounds kept of {len(fitted.curve)}")
    held_out = boosters.probability(fitted.booster, schema, matrices["holdout"])
    threshold = _threshold(recipe, dataset, schema, fitted, frames, matrices, labels)
    metrics = evaluate(labels["holdout"], held_out, threshold)
    assessed = assessment.assess(
        recipe,
        dataset,
        frames["holdout"],
        labels["holdout"],
        held_out,
        name=name,
        threshold=threshold,
        prior=float(labels["train"].mean()),
        warnings=_warnings(schema, frames, labels),
    )
    gates = [assessment.pays(assessed.worth)] if assessed.worth and not recipe.gates else judge(metrics, recipe.gates)
    for line in assessment.lines(assessed):
        progress(line)

    sizes = {part: len(rows) for part, rows in parts.items()}
    text = card.write(name, recipe, dataset, schema, metrics, gates, sizes, fitted.rounds, left_out, assessed)
    run_id, model_uri = _record(
        recipe, dataset, schema, fitted, metrics, gates, text, parts, matrices, labels, held_out, assessed
    )
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        raise GateFailed(
            f"{name}: not registered: {'; '.join(map(str, failed))}. Run {run_id} has the figures; gates are set in the recipe"
        )
    registered = registry.publish(
        name,
        run_id,
        model_uri,
        tags={
            "algorithm": recipe.algorithm,
            "accuracy": f"{metrics['accuracy']:.4f}",
            "roc_auc": f"{metrics['roc_auc']:.4f}",
            "schema": schema.fingerprint,
        },
        description=card.shortened(text),
    )
    for alias in aliases:
        registry.alias(registered, alias)
    progress(f"registered {registered.reference}" + "".join(f" as {alias}" for alias in aliases))
    return Trained(registered, metrics, tuple(gates), schema, fitted.rounds, assessed)


def git_commit() -> str:
    """The commit of the working folder, `+changes` where it isn't clean, or `none` outside a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        status = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "none"
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _split(dataset: Dataset, recipe: Recipe) -> dict[str, Indices]:
    from sklearn.model_selection import train_test_split

    every = np.arange(len(dataset.positive))
    shares = recipe.split
    try:
        rest, holdout = train_test_split(
            every, test_size=shares.holdout, random_state=recipe.seed, stratify=dataset.positive
        )
        train, validation = train_test_split(
            rest,
            test_size=shares.validation / (1 - shares.holdout),
            random_state=recipe.seed,
            stratify=dataset.positive[rest],
        )
    except ValueError as refused:
        raise DataRefused(f"{dataset.source}: {refused}") from None
    return {"train": train, "validation": validation, "holdout": holdout}


def _encoded(schema: FeatureSchema, dataset: Dataset, frame: pd.DataFrame) -> Matrix:
    try:
        return encode_frame(schema, frame)
    except InputRefused as refused:
        raise DataRefused(f"{dataset.source}: {refused}") from None


def _refuse_lookup(lookup: Lookup, schema: FeatureSchema) -> None:
    try:
        lookup.refuse_misfit(schema)
    except InputRefused as refused:
        raise RecipeRefused(f"lookup: {refused}") from None


def _threshold(
    recipe: Recipe,
    dataset: Dataset,
    schema: FeatureSchema,
    fitted: boosters.Fitted,
    frames: Mapping[str, pd.DataFrame],
    matrices: Mapping[str, Matrix],
    labels: Mapping[str, npt.NDArray[np.bool_]],
) -> float:
    """The one that costs least on the validation rows; without costs, the half. The holdout has no say in it."""
    if recipe.costs is None:
        return THRESHOLD
    said = boosters.probability(fitted.booster, schema, matrices["validation"])
    amount = amounts(recipe.costs, frames["validation"], dataset.source)
    return best_threshold(recipe.costs, labels["validation"], said, amount)


def _warnings(
    schema: FeatureSchema, frames: Mapping[str, pd.DataFrame], labels: Mapping[str, npt.NDArray[np.bool_]]
) -> list[str]:
    read = {part: frame[list(schema.names)] for part, frame in frames.items()}
    return warnings_of(read["train"], read["holdout"], labels["train"], labels["holdout"])


def _reasons(dataset: Dataset, left_out: list[str]) -> dict[str, str]:
    naming, constant = set(identifiers(dataset.features)), set(constants(dataset.features))
    return {
        column: "identifies rows"
        if column in naming
        else "one value only"
        if column in constant
        else "not in the schema"
        for column in left_out
    }


def _kinds(schema: FeatureSchema) -> str:
    kinds = [feature.kind for feature in schema.features]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def _record(
    recipe: Recipe,
    dataset: Dataset,
    schema: FeatureSchema,
    fitted: boosters.Fitted,
    metrics: Mapping[str, float],
    gates: list[Gate],
    text: str,
    parts: Mapping[str, Indices],
    matrices: Mapping[str, Matrix],
    labels: Mapping[str, npt.NDArray[np.bool_]],
    held_out: npt.NDArray[np.float64],
    assessed: Assessment,
) -> tuple[str, str]:
    """The MLflow run: (run id, URI of the logged model)."""
    registry.connect()
    import mlflow

    commit = git_commit()
    facts = registry.Facts(
        algorithm=recipe.algorithm,
        classes=dataset.classes,
        target=dataset.target,
        threshold=assessed.threshold,
        source=dataset.source,
        data_sha256=dataset.digest,
        schema_fingerprint=schema.fingerprint,
        git_commit=commit,
        recipe=dict(flat(recipe)),
        metrics=dict(metrics),
        intervals={name: (found.low, found.high) for name, found in assessed.figures.items()},
        lookup=recipe.lookup,
    )
    with mlflow.start_run() as run:
        mlflow.log_params(facts.recipe | {"data.source": dataset.source, "rounds.kept": str(fitted.rounds)})
        mlflow.log_metrics(assessment.metrics_of(assessed) | dict(metrics))
        for title, table in assessment.files(assessed).items():
            mlflow.log_text(table, f"evaluation/{title}")
        for step in range(0, len(fitted.curve), max(1, len(fitted.curve) // 50)):
            mlflow.log_metric("validation_log_loss", fitted.curve[step], step=step + 1)
        mlflow.set_tags(
            {
                "data_sha256": dataset.digest,
                "git_commit": commit,
                "schema": schema.fingerprint,
                "gates": "passed" if all(gate.passed for gate in gates) else "failed",
            }
        )
        pictures = figures.pictures(labels["holdout"], held_out, metrics["roc_auc"], fitted, assessed)
        for title, figure in pictures.items():
            mlflow.log_figure(figure, f"figures/{title}.png")
        with tempfile.TemporaryDirectory() as folder:
            carried = Path(folder)
            (carried / registry.SCHEMA).write_bytes(schema.to_json())
            (carried / registry.FACTS).write_bytes(msgspec.json.encode(facts, order="sorted"))
            (carried / registry.CARD).write_text(text, encoding="utf-8")
            drawn = {f"{title}.png": figures.png(pictures[title]) for title in card.PICTURES if title in pictures}
            for title, picture in drawn.items():
                (carried / title).write_bytes(picture)
            mlflow.log_text(page(text, drawn), "model_card.html")
            _write_reference(
                carried / registry.REFERENCE, dataset, schema, fitted, parts["train"], matrices["train"], recipe
            )
            holdout = dataset.features.iloc[parts["holdout"]][list(schema.names)]
            holdout.assign(**{dataset.target: labels["holdout"]}).to_parquet(carried / registry.HOLDOUT, index=False)
            mlflow.log_artifacts(folder, "carried")
        model_uri = _log_model(recipe, schema, fitted, matrices["holdout"][:50])
    return run.info.run_id, model_uri


def _write_reference(
    path: Path,
    dataset: Dataset,
    schema: FeatureSchema,
    fitted: boosters.Fitted,
    rows: Indices,
    matrix: Matrix,
    recipe: Recipe,
) -> None:
    """What drift is measured against: training rows as they came, with what the model says of them."""
    picked = np.arange(len(rows))
    if len(rows) > REFERENCE_ROWS:
        picked = np.sort(np.random.default_rng(recipe.seed).choice(len(rows), REFERENCE_ROWS, replace=False))
    raw = dataset.features.iloc[rows[picked]][list(schema.names)]
    raw.assign(prediction=boosters.probability(fitted.booster, schema, matrix[picked])).to_parquet(path, index=False)


def _log_model(recipe: Recipe, schema: FeatureSchema, fitted: boosters.Fitted, sample: Matrix) -> str:
    """In the native flavour, with a signature over the encoded columns. Requirements are given: inferring them
    would run the model in a fresh process and take longer than the training."""
    import mlflow

    encoded = pd.DataFrame(sample, columns=list(schema.names))
    signature = mlflow.models.infer_signature(encoded, boosters.probability(fitted.booster, schema, sample))
    library = __import__(recipe.algorithm)
    requirements = [f"{recipe.algorithm}=={library.__version__}", f"numpy=={np.__version__}"]
    if recipe.algorithm == "xgboost":
        logged = mlflow.xgboost.log_model(
            fitted.booster, name="model", signature=signature, pip_requirements=requirements, model_format="ubj"
        )
    else:
        logged = mlflow.lightgbm.log_model(
            fitted.booster, name="model", signature=signature, pip_requirements=requirements
        )
    return str(logged.model_uri)
