"""The shelf: MLflow's registry behind a few verbs - publish, resolve, alias, history, download, tag, attach.

A reference names a version: `churn@champion` (an alias), `churn@3` (a version), `churn` (the newest). What a version
carries beside the native model lies in its run's artifacts:

    schema.json         the FeatureSchema, canonical
    reference.parquet   rows that the model was not fitted to: raw columns, and `prediction`, the model's answer
                        (of several classes, `prediction[label]` for each)
    holdout.parquet     raw columns, and the target
    model_card.md       six sections; with the pictures that it shows, *.png
    facts.json          algorithm, classes, target, threshold, data and recipe: what a bundle's lineage repeats

Without MLFLOW_TRACKING_URI the records are SQLite in `./var/mlflow.db` with artifacts in `./var/mlartifacts`. MLflow is
imported when a verb is called, never when this module is.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from training.errors import NotRegistered
from training.features import Feature, FeatureSchema, Matrix
from training.view import Lookup

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "coppice"
SCHEMA, REFERENCE, HOLDOUT, CARD, FACTS = (
    "schema.json",
    "reference.parquet",
    "holdout.parquet",
    "model_card.md",
    "facts.json",
)


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a registered version says of itself. `classes`: of two, negative and positive; of a regression, none."""

    algorithm: str
    classes: tuple[str, ...]
    target: str
    threshold: float
    source: str
    data_sha256: str
    schema_fingerprint: str
    git_commit: str
    recipe: dict[str, str]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float | None, float | None]] = {}  # low, high
    lookup: Lookup | None = None
    calibration: str = "none"  # or platt, isotonic


@dataclass(frozen=True)
class Registered:
    model: str
    version: str
    run_id: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    created_ms: int = 0

    @property
    def reference(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True)
class Shelf:
    """A version with all that it carries. `rows`: the holdout, encoded, float64 (n, width). Paths are local copies."""

    model: str
    version: str
    facts: Facts
    native: Any  # xgboost.Booster or lightgbm.Booster, a forest of scikit-learn's, or its calibration of one
    schema: FeatureSchema
    rows: Matrix
    reference: Path
    holdout: Path
    card: str
    pictures: Mapping[str, bytes]  # of the card, by file name
    lineage: Mapping[str, str]

    def probability(self, rows: Matrix) -> Matrix:
        """The native library's own answer for encoded rows (n, width): float64 (n,), or (n, k) of k classes."""
        from training.boosters import probability

        return probability(self.native, self.schema, rows)

    @property
    def run_id(self) -> str:
        return self.lineage["run_id"]

    @property
    def algorithm(self) -> str:
        return self.facts.algorithm

    @property
    def classes(self) -> tuple[str, ...]:
        return self.facts.classes

    @property
    def threshold(self) -> float:
        return self.facts.threshold


def tracking_uri() -> str:
    """Where runs and versions are recorded: MLFLOW_TRACKING_URI, or SQLite under ./var, whose folder is made."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    Path("var").mkdir(exist_ok=True)
    return "sqlite:///var/mlflow.db"


def connect() -> MlflowClient:
    """MLflow, quiet, pointed at `tracking_uri()`, with our experiment present and active."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import logging

    import mlflow

    for noisy in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(
        logging.ERROR
    )  # it misses pip where uv built the environment
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = mlflow.MlflowClient()
    if client.get_experiment_by_name(EXPERIMENT) is None:
        artifacts = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts"
        client.create_experiment(EXPERIMENT, artifacts.as_uri() if uri.startswith("sqlite:///") else None)
    mlflow.set_experiment(EXPERIMENT)
    return client


def publish(model: str, run_id: str, source: str, *, tags: Mapping[str, str], description: str = "") -> Registered:
    """A new version of `model` from a run's logged model. Versions are numbered from 1 and never change."""
    client = connect()
    if _found(client, model) is None:
        client.create_registered_model(model)
    made = client.create_model_version(model, source, run_id, tags=dict(tags), description=description)
    return _registered(client, made)


def resolve(reference: str) -> Registered:
    """Raises NotRegistered, saying what there is."""
    client = connect()
    model, _, which = reference.partition("@")
    known = _found(client, model)
    if known is None:
        others = ", ".join(sorted(entry.name for entry in client.search_registered_models())) or "none yet"
        raise NotRegistered(f"{reference}: no model {model!r} is registered (there are: {others}); see `coppice train`")
    versions = {str(version.version): version for version in _versions(client, model)}
    which = which or max(versions, key=int, default="")
    which = str(known.aliases.get(which, which))
    if which not in versions:
        choices = ", ".join([*sorted(known.aliases), *sorted(versions, key=int)])
        raise NotRegistered(f"{reference}: {model!r} has no such version or alias (it has: {choices})")
    return _registered(client, versions[which])


def find(reference: str) -> Registered:
    """As `resolve`; also by the digest of the bundle that a version was compiled to, or how it begins (6 digits or more)."""
    if not re.fullmatch("[0-9a-f]{6,64}", reference) or _found(connect(), reference) is not None:
        return resolve(reference)
    every = [version for model in models() for version in history(model)]
    found = [version for version in every if version.tags.get("bundle", "").startswith(reference)]
    if len(found) != 1:
        raise NotRegistered(f"{reference}: {len(found)} registered versions were compiled to a bundle that begins so")
    return found[0]


def described(reference: str) -> tuple[Facts, FeatureSchema]:
    """What a version says of itself, without its model or rows."""
    import mlflow

    registered = resolve(reference)
    with tempfile.TemporaryDirectory() as folder:
        facts, schema = (
            Path(
                mlflow.artifacts.download_artifacts(
                    run_id=registered.run_id, artifact_path=f"carried/{name}", dst_path=folder
                )
            ).read_bytes()
            for name in (FACTS, SCHEMA)
        )
    return msgspec.json.decode(facts, type=Facts), FeatureSchema.from_json(schema)


def alias(registered: Registered, name: str) -> None:
    """Point `name` at the version; an alias points at one version at a time."""
    connect().set_registered_model_alias(registered.model, name, registered.version)


def aliases(model: str) -> dict[str, str]:
    """Version by alias. Raises NotRegistered."""
    client = connect()
    known = _found(client, model)
    if known is None:
        raise NotRegistered(f"{model}: no model of that name is registered")
    return {str(name): str(version) for name, version in known.aliases.items()}


def drop_alias(model: str, name: str) -> None:
    connect().delete_registered_model_alias(model, name)


def tag(registered: Registered, key: str, value: str) -> None:
    connect().set_model_version_tag(registered.model, registered.version, key, value)


def attach(run_id: str, name: str, text: str) -> None:
    """Keep `text` under `name` among the run's artifacts; what was there by that name is replaced."""
    connect().log_text(run_id, text, name)


def add_compiled(registered: Registered, bundle: Path, *, loader: str, schema: FeatureSchema, outputs: int) -> None:
    """Make the bundle what MLflow's `python_function` of the version answers by, through the module `loader`; its native
    flavour stays. The bundle is stored before anything names it, and doing it again changes nothing. Raises NotRegistered
    where what is behind the version is no model that a run logged.
    """
    import mlflow
    from mlflow.models import Model

    client = connect()
    source = str(client.get_model_version(registered.model, registered.version).source)
    if not source.startswith("models:/m-"):
        raise NotRegistered(f"{registered.reference}: its source, {source}, is no model that a run logged")
    model_id = source.removeprefix("models:/")
    place = f"bundles/{bundle.name}"
    client.log_model_artifacts(model_id, str(bundle), place)
    with tempfile.TemporaryDirectory() as folder:
        stored = client.get_model_version_download_uri(registered.model, registered.version)
        mlflow.artifacts.download_artifacts(artifact_uri=f"{stored}/MLmodel", dst_path=folder)
        model = Model.load(folder)
        model.flavors["python_function"] |= {"loader_module": loader, "data": place, "predict_fn": "predict"}
        model.signature = _signature(schema, outputs)
        model.save(str(Path(folder) / "MLmodel"))
        client.log_model_artifact(model_id, str(Path(folder) / "MLmodel"))


def _signature(schema: FeatureSchema, outputs: int) -> Any:
    """Raw columns, as at `/predict`; a boolean that may be missing has no type of MLflow's."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Schema, TensorSpec

    def kind(feature: Feature) -> Any:
        if feature.kind == "boolean":
            return DataType.boolean if feature.missing == "refuse" else AnyType()  # type: ignore[no-untyped-call]
        return DataType.double if feature.kind == "number" else DataType.string

    columns = Schema([ColSpec(kind(feature), feature.name) for feature in schema.features])
    shape = (-1,) if outputs == 1 else (-1, outputs)
    scores = Schema([ColSpec(DataType.double)] if outputs == 1 else [TensorSpec(np.dtype(np.float64), shape)])
    return ModelSignature(columns, scores)


def history(model: str) -> list[Registered]:
    """Every version, newest first. Raises NotRegistered."""
    client = connect()
    resolve(model)
    return [_registered(client, version) for version in _versions(client, model)]


def models() -> list[str]:
    return sorted(entry.name for entry in connect().search_registered_models())


def download(reference: str) -> Shelf:
    """The version with its native model and artifacts, verified against the fingerprint it was registered with."""
    import mlflow
    import pandas as pd

    from training.features import encode_frame

    registered = resolve(reference)
    folder = Path(mlflow.artifacts.download_artifacts(run_id=registered.run_id, artifact_path="carried"))
    facts = msgspec.json.decode((folder / FACTS).read_bytes(), type=Facts)
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    if schema.fingerprint != facts.schema_fingerprint:
        raise NotRegistered(f"{reference}: {SCHEMA} is not the schema that this version was registered with")
    holdout = pd.read_parquet(folder / HOLDOUT)
    return Shelf(
        model=registered.model,
        version=registered.version,
        facts=facts,
        native=_native(facts, f"models:/{registered.model}/{registered.version}"),
        schema=schema,
        rows=encode_frame(schema, holdout),
        reference=folder / REFERENCE,
        holdout=folder / HOLDOUT,
        card=(folder / CARD).read_text(encoding="utf-8"),
        pictures={file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))},
        lineage={
            "run_id": registered.run_id,
            "data_sha256": facts.data_sha256,
            "source": facts.source,
            "git_commit": facts.git_commit,
            **{f"recipe.{key}": value for key, value in facts.recipe.items()},
        },
    )


def _native(facts: Facts, uri: str) -> Any:
    import mlflow

    flavours = {"xgboost": mlflow.xgboost, "lightgbm": mlflow.lightgbm}
    flavour = flavours.get(facts.algorithm, mlflow.sklearn) if facts.calibration == "none" else mlflow.sklearn
    return flavour.load_model(uri)


def _found(client: MlflowClient, model: str) -> Any:
    """The registered model, or None. Other failures of the store are not ours to hide."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _versions(client: MlflowClient, model: str) -> list[Any]:
    found = client.search_model_versions(f"name='{model}'")
    return sorted(found, key=lambda version: -int(version.version))


def _registered(client: MlflowClient, version: Any) -> Registered:
    full = client.get_model_version(version.name, str(version.version))
    return Registered(
        full.name,
        str(full.version),
        str(full.run_id),
        tuple(sorted(full.aliases)),
        dict(full.tags),
        int(full.creation_timestamp or 0),
    )
