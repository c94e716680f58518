"""A trained model as what a bundle is made of: a program, a forest over its columns, a link; and the oracle it must equal.

Read from the outside in: a pipeline's transforms become the program, calibrators become the link's last step, and the
booster at the end is read by its library's module. An estimator that has no module of ours, or stands behind transforms
that have no steps, is left to skl2onnx where that is possible.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from compile import calibration, pipelines
from compile.bundle import Task
from compile.errors import ModelRefused
from compile.forest import Forest, joined, renumbered
from compile.inputs import Inputs, read_estimator
from compile.links import Link, width
from compile.native import NativeModel, as_matrix, native_model
from compile.program import Program, Sentinel, identity, side_by_side, value
from training.features import FeatureSchema

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Normal:
    """`forest` is None where only skl2onnx may convert `final`, whose rows are the program's; `unmodelled` says why.

    `classes`: labels in the order of the library's outputs, as text; empty where there are none. `by_name`: the model was
    trained on category names, so no other category can be asked of it.
    """

    task: Task
    kind: str
    classes: tuple[str, ...]
    program: Program | None
    forest: Forest | None
    link: Link
    native: NativeModel
    final: Any
    by_name: bool
    unmodelled: str = ""


def normalise(model: Any, schema: FeatureSchema) -> Normal:
    """Raises ModelRefused, naming the part, for what can't be compiled exactly and is no estimator of scikit-learn's."""
    try:
        return _modelled(model, schema)
    except ModelRefused as reason:
        if type(model).__module__.split(".")[0] != "sklearn":
            raise
        return _left_to_skl2onnx(model, schema, str(reason))


def _modelled(model: Any, schema: FeatureSchema) -> Normal:
    program, final = pipelines.unwrap(model, schema)
    estimators, build = _uncalibrated(final)
    piped = model if program is not None and final is not model else None
    if piped is None and program is None and hasattr(estimators[0], "steps"):
        piped = estimators[0]
        program, estimators, forests, links = _folds_of_pipelines(estimators, schema)
        first = None
    else:
        parts = [read_estimator(estimator, Inputs.of(schema, program)) for estimator in estimators]
        first = parts[0]
        if any(part.places != first.places or part.by_name != first.by_name for part in parts):
            raise ModelRefused("ensemble: its members were trained on different columns")
        forests, links = [part.forest for part in parts], [part.link for part in parts]
    forest, link = joined(forests), build(links)
    sentinel = getattr(estimators[0], "missing", math.nan)
    if sentinel is not None and not math.isnan(sentinel):
        program = (program or identity(schema.width)).then(Sentinel(value(sentinel)))
    original = as_matrix if first is None else first.original
    if piped is not None:
        original = partial(pipelines.original_input, piped, schema)
    return Normal(
        task=_task(final, estimators[0], width(link, forest.outputs)),
        kind=_kind(model, final, estimators[0]),
        classes=tuple(str(label) for label in getattr(final, "classes_", ())),
        program=program,
        forest=forest,
        link=link,
        native=native_model(model, final, original),
        final=final,
        by_name=piped is not None or (first is not None and first.by_name),
    )


def _folds_of_pipelines(
    folds: tuple[Any, ...], schema: FeatureSchema
) -> tuple[Program, tuple[Any, ...], list[Forest], list[Link]]:
    """Calibrated pipelines: each fold has transforms of its own, whose columns stand side by side."""
    programs, finals = [], []
    for fold in folds:
        program, final = pipelines.unwrap(fold, schema)
        programs.append(program or identity(schema.width))
        finals.append(final)
    whole = side_by_side(programs)
    forests, links, begin = [], [], 0
    for program, final in zip(programs, finals, strict=True):
        part = read_estimator(final, Inputs.of(schema, program))
        forests.append(renumbered(part.forest, range(begin, begin + program.width), whole.width))
        links.append(part.link)
        begin += program.width
    return whole, tuple(finals), forests, links


def _left_to_skl2onnx(model: Any, schema: FeatureSchema, reason: str) -> Normal:
    program, final = _taken_apart(model, schema)
    if isinstance(getattr(final, "classes_", None), list) or np.ndim(getattr(final, "n_classes_", 0)):
        raise ModelRefused(reason)  # several targets: each has probabilities of its own
    if program is None and any(feature.kind == "category" for feature in schema.features):
        raise ModelRefused(reason)
    names = [str(name) for name in getattr(model, "feature_names_in_", schema.names)]
    if program is None and (sorted(names) != sorted(schema.names) or model.n_features_in_ != schema.width):
        raise ModelRefused(f"{reason}; columns: the model was trained on {', '.join(names)}")
    places = [schema.names.index(name) for name in names] if program is None else []
    if places != list(range(schema.width)) and program is None:
        raise ModelRefused(f"{reason}; columns: the schema must have the model's order: {', '.join(names)}")
    original = as_matrix if program is None else partial(pipelines.original_input, model, schema)
    labels = tuple(str(label) for label in getattr(final, "classes_", ()))
    if labels and not hasattr(final, "predict_proba"):
        raise ModelRefused(f"{reason}; {type(final).__name__} answers classes without probabilities")
    link = Link("identity", column=1) if len(labels) == 2 else Link("identity")
    task: Task = "regression" if not labels else "binary" if len(labels) == 2 else "multiclass"
    return Normal(
        task, _kind(model, final, final), labels, program, None, link, native_model(model, final, original), final,
        program is not None, reason,
    )  # fmt: skip


def _taken_apart(model: Any, schema: FeatureSchema) -> tuple[Program | None, Any]:
    """The pipeline's program where it has one, else the whole model."""
    try:
        return pipelines.unwrap(model, schema)
    except ModelRefused:
        return None, model


def _uncalibrated(final: Any) -> tuple[tuple[Any, ...], Callable[[list[Link]], Link]]:
    if not calibration.is_calibrated(final):
        return (final,), lambda links: links[0]
    calibrated = calibration.unwrap(final)
    return calibrated.estimators, calibrated.build


def _task(final: Any, estimator: Any, outputs: int) -> Task:
    objective = objective_of(estimator)
    if type(final).__name__ == "IsolationForest":
        return "outlier"
    if objective.startswith("rank:") or objective in ("lambdarank", "rank_xendcg"):
        return "ranking"
    classifies = objective.split(":")[0] in ("binary", "multi", "multiclass", "multiclassova")
    if objective == "binary:logitraw" or not (classifies or hasattr(final, "classes_")):
        return "regression"
    if objective == "binary:logistic" and outputs > 1:
        return "multilabel"
    return "binary" if outputs == 1 else "multiclass"


def _kind(model: Any, final: Any, estimator: Any) -> str:
    parts = [type(model).__name__] if final is not model else []
    parts += [type(final).__name__] if estimator is not final else []
    return " / ".join([*parts, type(estimator).__name__]) + f" {objective_of(estimator)}".rstrip()


def objective_of(estimator: Any) -> str:
    """The library's own word for what was optimised, without parameters; empty for scikit-learn's estimators."""
    library = type(estimator).__module__.split(".")[0]
    if library == "xgboost":
        booster = estimator.get_booster() if hasattr(estimator, "get_booster") else estimator
        return str(json.loads(booster.save_config())["learner"]["objective"]["name"])
    if library == "lightgbm":
        booster = getattr(estimator, "booster_", estimator)
        tokens = booster.model_to_string(num_iteration=1).split("\nobjective=", 1)
        return tokens[1].split()[0] if len(tokens) == 2 else "custom"
    return ""
