"""A training run, in the order it happens: split, infer, fit, measure, judge, record, register.

The split comes first, so that nothing about the holdout - no category, no missing rate - can reach the schema. A model
that fails a gate has its run recorded, for whoever wants to know why, and is not registered.
"""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd

from training import boosters, card, figures, measures, registry, task_card
from training.data import Dataset
from training.errors import DataRefused, GateFailed
from training.evaluation import THRESHOLD, Gate
from training.features import FeatureSchema, InputRefused, Matrix, encode_frame, infer
from training.inference import constants, identifiers
from training.recipe import Recipe, flat
from training.splitting import Indices, split

REFERENCE_ROWS = 10_000
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
    parts = split(dataset, recipe)
    frames = {part: dataset.features.iloc[rows] for part, rows in parts.items()}
    schema = schema or recipe.schema or infer(frames["train"], exclude=[recipe.split.column])
    left_out = [str(column) for column in dataset.features.columns if column not in schema.names]
    progress(f"{len(dataset.labels):,} rows of {dataset.source}, {schema.width} features, {_kinds(schema)}")
    if left_out:
        reasons = _reasons(dataset, left_out, recipe.split.column)
        progress(f"left out: {', '.join(f'{column} ({why})' for column, why in reasons.items())}")
    matrices = {part: _encoded(schema, dataset, frames[part]) for part in parts}
    labels = {part: dataset.labels[rows] for part, rows in parts.items()}

    fitted = boosters.fit(
        recipe,
        schema,
        (matrices["train"], labels["train"]),
        (matrices["validation"], labels["validation"]),
        lambda round_, loss: progress(f"round {round_}: validation loss {loss:.5f}"),
    )
    if recipe.rounds.refit:
        fitted = _refitted(recipe, schema, matrices, labels, fitted)
    progress(f"fitted {recipe.algorithm}: {fitted.rounds} rounds kept of {len(fitted.curve)}")
    held_out = boosters.probability(fitted.booster, schema, matrices["holdout"])
    metrics = measures.measure(recipe.task, labels["holdout"], held_out, labels["train"])
    gates = measures.judge(recipe.task, metrics, recipe.gates)
    progress("holdout: " + ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items()))

    sizes = {part: len(rows) for part, rows in parts.items()}
    write = card.write if recipe.task == "binary" else task_card.write
    text = write(name, recipe, dataset, schema, metrics, gates, sizes, fitted.rounds, left_out)
    run_id, model_uri = _record(
        recipe, dataset, schema, fitted, metrics, gates, text, parts, matrices, labels, held_out
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
            "task": recipe.task,
            "schema": schema.fingerprint,
            **{metric: f"{metrics[metric]:.4f}" for metric in measures.TOLD[recipe.task]},
        },
    )
    for alias in aliases:
        registry.alias(registered, alias)
    progress(f"registered {registered.reference}" + "".join(f" as {alias}" for alias in aliases))
    return Trained(registered, metrics, tuple(gates), schema, fitted.rounds)


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


def _refitted(
    recipe: Recipe,
    schema: FeatureSchema,
    matrices: Mapping[str, Matrix],
    labels: Mapping[str, boosters.Labels],
    fitted: boosters.Fitted,
) -> boosters.Fitted:
    """The same rounds again, on the validation rows too. The curve stays that of the rows that were not fitted to."""
    rounds = msgspec.structs.replace(recipe.rounds, most=fitted.rounds)
    every = (
        np.concatenate([matrices["train"], matrices["validation"]]),
        np.concatenate([labels["train"], labels["validation"]]),
    )
    validation = (matrices["validation"], labels["validation"])
    shorter = msgspec.structs.replace(recipe, rounds=rounds)
    again = boosters.fit(shorter, schema, every, validation, lambda *_: None, stop_early=False)
    return dataclasses.replace(again, curve=fitted.curve)


def _told(dataset: Dataset, labels: boosters.Labels) -> boosters.Labels:
    """As people wrote them, where they are several classes."""
    return np.array(dataset.classes)[labels] if len(dataset.classes) > 2 else labels


def _encoded(schema: FeatureSchema, dataset: Dataset, frame: pd.DataFrame) -> Matrix:
    try:
        return encode_frame(schema, frame)
    except InputRefused as refused:
        raise DataRefused(f"{dataset.source}: {refused}") from None


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
    labels: Mapping[str, boosters.Labels],
    held_out: Matrix,
) -> tuple[str, str]:
    """The MLflow run: (run id, URI of the logged model)."""
    registry.connect()
    import mlflow

    commit = git_commit()
    facts = registry.Facts(
        algorithm=recipe.algorithm,
        classes=dataset.classes,
        target=dataset.target,
        threshold=THRESHOLD,
        source=dataset.source,
        data_sha256=dataset.digest,
        schema_fingerprint=schema.fingerprint,
        git_commit=commit,
        recipe=dict(flat(recipe)),
        metrics=dict(metrics),
    )
    with mlflow.start_run() as run:
        mlflow.log_params(facts.recipe | {"data.source": dataset.source, "rounds.kept": str(fitted.rounds)})
        mlflow.log_metrics(dict(metrics))
        for step in range(0, len(fitted.curve), max(1, len(fitted.curve) // 50)):
            mlflow.log_metric("validation_loss", fitted.curve[step], step=step + 1)
        mlflow.set_tags(
            {
                "data_sha256": dataset.digest,
                "git_commit": commit,
                "schema": schema.fingerprint,
                "gates": "passed" if all(gate.passed for gate in gates) else "failed",
            }
        )
        pictures = {
            "importance": figures.importance(fitted.importance),
            "learning": figures.learning(fitted.curve, fitted.rounds),
        }
        if recipe.task == "binary":
            pictures["roc"] = figures.roc(labels["holdout"], held_out, metrics["roc_auc"])
            pictures["calibration"] = figures.calibration(labels["holdout"], held_out)
        for title, figure in pictures.items():
            mlflow.log_figure(figure, f"figures/{title}.png")
        with tempfile.TemporaryDirectory() as folder:
            carried = Path(folder)
            (carried / registry.SCHEMA).write_bytes(schema.to_json())
            (carried / registry.FACTS).write_bytes(msgspec.json.encode(facts, order="sorted"))
            (carried / registry.CARD).write_text(text, encoding="utf-8")
            _write_reference(
                carried / registry.REFERENCE, dataset, schema, fitted, parts["train"], matrices["train"], recipe
            )
            holdout = dataset.features.iloc[parts["holdout"]][list(schema.names)]
            holdout.assign(**{dataset.target: _told(dataset, labels["holdout"])}).to_parquet(
                carried / registry.HOLDOUT, index=False
            )
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
    said = boosters.probability(fitted.booster, schema, matrix[picked])
    if said.ndim == 1:
        told = {"prediction": said}
    else:
        told = {f"prediction[{label}]": said[:, k] for k, label in enumerate(dataset.classes)}
    raw.assign(**told).to_parquet(path, index=False)


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
