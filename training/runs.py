"""A training run in MLflow: settings, figures and pictures; and what the registered version will carry."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd

from training import assessment, boosters, card, figures, registry
from training.calibrating import TRUSTED
from training.card_page import page
from training.data import Dataset, Labels
from training.features import FeatureSchema, Matrix
from training.parts import Part
from training.recipe import FORESTS, Recipe, flat
from training.verdict import Verdict

REFERENCE_ROWS = 10_000
POINTS = 50  # of the learning curve


def record(
    recipe: Recipe,
    dataset: Dataset,
    schema: FeatureSchema,
    fitted: boosters.Fitted,
    parts: Mapping[str, Part],
    said: Matrix,
    verdict: Verdict,
    calibration: str,
) -> tuple[str, str]:
    """(run id, URI of the logged model). `said`: the model's answers to the holdout; `calibration`: what was chosen."""
    registry.connect()
    import mlflow

    facts = _facts(recipe, dataset, schema, verdict, calibration)
    assessed = verdict.assessed
    with mlflow.start_run() as run:
        kept = {"rounds.kept": str(fitted.rounds), "calibration.kept": calibration}
        mlflow.log_params(facts.recipe | {"data.source": dataset.source} | kept)
        mlflow.log_metrics((assessment.metrics_of(assessed) if assessed else {}) | dict(verdict.metrics))
        for title, table in (assessment.files(assessed) if assessed else {}).items():
            mlflow.log_text(table, f"evaluation/{title}")
        for step in range(0, len(fitted.curve), max(1, len(fitted.curve) // POINTS)):
            mlflow.log_metric("validation_loss", fitted.curve[step], step=step + 1)
        mlflow.set_tags(
            {
                "data_sha256": dataset.digest,
                "git_commit": facts.git_commit,
                "schema": schema.fingerprint,
                "gates": "failed" if verdict.failed else "passed",
            }
        )
        pictures = figures.pictures(parts["holdout"].labels, said, fitted, assessed)
        for title, figure in pictures.items():
            mlflow.log_figure(figure, f"figures/{title}.png")
        with tempfile.TemporaryDirectory() as folder:
            carried = Path(folder)
            (carried / registry.SCHEMA).write_bytes(schema.to_json())
            (carried / registry.FACTS).write_bytes(msgspec.json.encode(facts, order="sorted"))
            (carried / registry.CARD).write_text(verdict.card, encoding="utf-8")
            drawn = {f"{title}.png": figures.png(pictures[title]) for title in card.PICTURES if title in pictures}
            for title, picture in drawn.items():
                (carried / title).write_bytes(picture)
            mlflow.log_text(page(verdict.card, drawn), "model_card.html")
            unseen = [parts["holdout"], *([] if recipe.rounds.refit else [parts["validation"]])]
            _write_reference(carried / registry.REFERENCE, dataset, schema, fitted, unseen, recipe.seed)
            held_out = parts["holdout"].frame[list(schema.names)]
            held_out.assign(**{dataset.target: _told(dataset, parts["holdout"])}).to_parquet(
                carried / registry.HOLDOUT, index=False
            )
            mlflow.log_artifacts(folder, "carried")
        model_uri = _log_model(recipe, schema, fitted, parts["holdout"].matrix[:50])
    return run.info.run_id, model_uri


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


def _facts(
    recipe: Recipe, dataset: Dataset, schema: FeatureSchema, verdict: Verdict, calibration: str
) -> registry.Facts:
    intervals = verdict.assessed.figures if verdict.assessed else {}
    return registry.Facts(
        algorithm=recipe.algorithm,
        classes=dataset.classes,
        target=dataset.target,
        threshold=verdict.threshold,
        source=dataset.source,
        data_sha256=dataset.digest,
        schema_fingerprint=schema.fingerprint,
        git_commit=git_commit(),
        recipe=dict(flat(recipe)),
        metrics=dict(verdict.metrics),
        intervals={name: (found.low, found.high) for name, found in intervals.items()},
        calibration=calibration,
        lookup=recipe.lookup,
    )


def _told(dataset: Dataset, part: Part) -> Labels:
    """As people wrote them, where they are several classes."""
    return np.array(dataset.classes)[part.labels] if len(dataset.classes) > 2 else part.labels


def _write_reference(
    path: Path, dataset: Dataset, schema: FeatureSchema, fitted: boosters.Fitted, unseen: Sequence[Part], seed: int
) -> None:
    """What drift is measured against: rows as they came, with what the model says of them. Of rows that it was fitted to a
    model is surer than of new ones, so traffic without any drift would differ from them."""
    matrix = np.concatenate([part.matrix for part in unseen])
    frame = dataset.features.iloc[np.concatenate([part.rows for part in unseen])][list(schema.names)]
    picked = np.arange(len(matrix))
    if len(picked) > REFERENCE_ROWS:
        picked = np.sort(np.random.default_rng(seed).choice(len(picked), REFERENCE_ROWS, replace=False))
    said = boosters.probability(fitted.booster, schema, matrix[picked])
    if said.ndim == 1:
        told = {"prediction": said}
    else:
        told = {f"prediction[{label}]": said[:, k] for k, label in enumerate(dataset.classes)}
    frame.iloc[picked].assign(**told).to_parquet(path, index=False)


def _log_model(recipe: Recipe, schema: FeatureSchema, fitted: boosters.Fitted, sample: Matrix) -> str:
    """In the native flavour, with a signature over the encoded columns. Requirements are given: inferring them
    would run the model in a fresh process and take longer than the training."""
    import mlflow
    import sklearn
    from sklearn.base import BaseEstimator

    encoded = pd.DataFrame(sample, columns=list(schema.names))
    signature = mlflow.models.infer_signature(encoded, boosters.probability(fitted.booster, schema, sample))
    requirements = [f"numpy=={np.__version__}"]
    if recipe.algorithm not in FORESTS:
        requirements.insert(0, f"{recipe.algorithm}=={__import__(recipe.algorithm).__version__}")
    if isinstance(fitted.booster, BaseEstimator):
        logged = mlflow.sklearn.log_model(
            fitted.booster,
            name="model",
            signature=signature,
            pip_requirements=[*requirements, f"scikit-learn=={sklearn.__version__}"],
            pyfunc_predict_fn="predict_proba" if hasattr(fitted.booster, "predict_proba") else "predict",
            skops_trusted_types=list(TRUSTED),
        )
    elif recipe.algorithm == "xgboost":
        logged = mlflow.xgboost.log_model(
            fitted.booster, name="model", signature=signature, pip_requirements=requirements, model_format="ubj"
        )
    else:
        logged = mlflow.lightgbm.log_model(
            fitted.booster, name="model", signature=signature, pip_requirements=requirements
        )
    return str(logged.model_uri)
