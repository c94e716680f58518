"""A fitted scikit-learn pipeline, taken apart: its transforms as a program, its last step as the model.

What cannot be done to the last bit is refused, naming the step and why. A model that is no pipeline has no program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectorMixin
from sklearn.impute import MissingIndicator
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
from sklearn.utils.validation import check_is_fitted

from compile.columns import Absent, Flowing, first_column, last_column
from compile.errors import ModelRefused
from compile.originals import Original, original_frame, original_of
from compile.program import Program
from compile.transforms import ENCODERS, IMPUTERS, applied, check_kind, sources
from training.features import FeatureSchema

Matrix = npt.NDArray[np.float64]
T = TypeVar("T")
Apply: TypeAlias = Callable[[Any, Sequence[T], str], list[T]]  # a transform, its columns, where it stands


def unwrap(model: Any, schema: FeatureSchema) -> tuple[Program | None, Any]:
    """(what is done to a served row, the estimator that reads the result). A fitted search counts as its best estimator.

    Raises ModelRefused.
    """
    model = getattr(model, "best_estimator_", model)
    if not isinstance(model, Pipeline):
        return None, model
    transforms, final = _parts(model)
    if not transforms:
        return None, final
    _check_fitted(transforms)
    _check_sparse(transforms, final)
    originals = _originals(model, schema)
    by_name = {original.feature.name: first_column(original, j) for j, original in enumerate(originals)}
    columns: list[Flowing] = [by_name.get(name, Absent(name)) for name in _names(model, schema)]
    for name, transform in transforms:
        columns = _walk(transform, columns, applied, name)
    wanted = getattr(final, "n_features_in_", len(columns))
    if not columns or len(columns) != wanted:
        raise ModelRefused(f"pipeline: its transforms give {len(columns)} columns, its model reads {wanted}")
    where = f"{model.steps[-1][0]} ({type(final).__name__})"
    return Program(schema.width, tuple(last_column(column, where) for column in columns)), final


def original_input(model: Any, schema: FeatureSchema, rows: Matrix) -> Any:
    """What the pipeline must be handed to answer for these encoded rows: a DataFrame with the columns it was trained
    with, or an array where it was trained on one; what `original_frame` gives where there are no transforms.
    Raises ModelRefused."""
    import pandas as pd

    model = getattr(model, "best_estimator_", model)
    if not isinstance(model, Pipeline) or not _parts(model)[0]:
        return original_frame(schema, rows)
    columns = {o.feature.name: o.decoded(rows[:, j]) for j, o in enumerate(_originals(model, schema))}
    names = [name for name in _names(model, schema) if name in columns]
    if _trained_names(model) is not None:
        return pd.DataFrame({name: columns[name] for name in names})
    kind = np.result_type(*(column.dtype for column in columns.values()))
    return np.column_stack([columns[name].astype(kind) for name in names])


def _parts(pipeline: Pipeline) -> tuple[list[tuple[str, Any]], Any]:
    """The transforms that do something, with their names, and the last step, of a pipeline and those nested at its end."""
    *before, (name, final) = pipeline.steps
    transforms = [(name, step) for name, step in before if not _is_passthrough(step)]
    if isinstance(final, Pipeline):
        inner, final = _parts(final)
        return transforms + [(f"{name} / {inner_name}", step) for inner_name, step in inner], final
    if not hasattr(final, "predict"):
        raise ModelRefused(f"{name}: the pipeline ends with a transform, not with a model")
    return transforms, final


def _check_fitted(transforms: Sequence[tuple[str, Any]]) -> None:
    for name, transform in transforms:
        try:
            check_is_fitted(transform)
        except NotFittedError:
            raise ModelRefused(f"{name}: is not fitted") from None


def _is_passthrough(step: Any) -> bool:
    return step is None or (isinstance(step, str) and step == "passthrough")


def _walk(step: Any, columns: Sequence[T], apply: Apply[T], where: str) -> list[T]:
    """The columns after the step, which may hold others; `apply` does what one transform does."""
    if _is_passthrough(step):
        return list(columns)
    if isinstance(step, Pipeline):
        for name, inner in step.steps:
            columns = _walk(inner, columns, apply, f"{where} / {name}")
        return list(columns)
    if isinstance(step, ColumnTransformer):
        return [
            column
            for part, inner, name in _chosen(step, columns)
            for column in _walk(inner, part, apply, f"{where} / {name}")
        ]
    if isinstance(step, FeatureUnion):
        if step.transformer_weights:
            raise ModelRefused(f"{where}: transformer_weights are not compiled")
        parts = [
            (name, inner) for name, inner in step.transformer_list if not isinstance(inner, str) or inner != "drop"
        ]
        return [column for name, inner in parts for column in _walk(inner, columns, apply, f"{where} / {name}")]
    return apply(step, columns, f"{where} ({type(step).__name__})")


def _chosen(step: ColumnTransformer, columns: Sequence[T]) -> list[tuple[list[T], Any, str]]:
    """(its columns, the transform, its name), in the order of output."""
    names = list(getattr(step, "feature_names_in_", ()))
    chosen = []
    for name, inner, selection in step.transformers_:
        places = _places(selection, names, len(columns))
        if places and not (isinstance(inner, str) and inner == "drop"):
            chosen.append(([columns[place] for place in places], inner, name))
    return chosen


def _places(selection: Any, names: list[str], width: int) -> list[int]:
    """The positions that a ColumnTransformer's selection means: names, positions, a mask, a slice, or one alone."""
    if isinstance(selection, slice):
        start, stop = selection.start, selection.stop
        if isinstance(start, str) or isinstance(stop, str):  # by name, the last one is among them
            first = 0 if start is None else names.index(start)
            return list(range(width))[first : None if stop is None else names.index(stop) + 1 : selection.step]
        return list(range(width))[selection]
    several: list[Any] = [selection] if np.isscalar(selection) else list(selection)
    if several and all(isinstance(one, bool | np.bool_) for one in several):
        return [int(place) for place in np.flatnonzero(several)]
    return [names.index(one) if isinstance(one, str) else range(width)[int(one)] for one in several]


def _trained_names(model: Any) -> list[str] | None:
    """The names of the columns that the pipeline was trained with; None where it was trained on an array."""
    names = getattr(_first(_parts(model)[0]), "feature_names_in_", None)
    return None if names is None else [str(name) for name in names]


def _first(steps: Sequence[tuple[str, Any]]) -> Any:
    """The first step that reads its columns, which a pipeline that begins with a passthrough does not."""
    for _, step in steps:
        found = _first(step.steps) if isinstance(step, Pipeline) else step
        if not _is_passthrough(found):
            return found
    return None


def _names(model: Any, schema: FeatureSchema) -> list[str]:
    """The schema's names of the pipeline's columns, in its order; by position where it was trained on an array."""
    names = _trained_names(model)
    if names is not None:
        return names
    width = getattr(_first(_parts(model)[0]), "n_features_in_", schema.width)
    if width != schema.width:
        raise ModelRefused(
            f"pipeline: was trained on an array of {width} columns, the schema has {schema.width} features"
        )
    return list(schema.names)


def _originals(model: Any, schema: FeatureSchema) -> list[Original]:
    """Each feature as the pipeline's encoders and imputers know it."""
    vocabulary: dict[str, list[object]] = {name: [] for name in schema.names}
    with_none: set[str] = set()

    def note(transform: Any, columns: Sequence[str], where: str) -> list[str]:
        check_kind(transform, where)
        if isinstance(transform, ENCODERS):
            for name, categories in zip(columns, transform.categories_, strict=True):
                vocabulary.get(name, []).extend(categories.tolist())
            return [""] * len(sources(transform, len(columns)))  # no longer what the schema knows
        if isinstance(transform, IMPUTERS) and transform.missing_values is None:
            with_none.update(columns)
        return [columns[i] for i in sources(transform, len(columns))]

    columns = _names(model, schema)
    for name, transform in _parts(model)[0]:
        columns = _walk(transform, columns, note, name)
    known = partial(original_of, coded=_trained_names(model) is None)
    return [known(f, vocabulary[f.name], none=f.name in with_none) for f in schema.features]


def _check_sparse(transforms: Sequence[tuple[str, Any]], final: Any) -> None:
    """An absent entry of a sparse matrix is a zero to LightGBM and scikit-learn, and missing to XGBoost."""
    if not _sparse(Pipeline([*transforms, ("", "passthrough")]), "pipeline"):
        return
    if type(final).__module__.partition(".")[0] not in ("lightgbm", "sklearn"):
        raise ModelRefused(
            f"{transforms[-1][0]}: gives the model a sparse matrix, whose zeros are missing values to {type(final).__name__}:"
            " train with sparse_threshold=0 (ColumnTransformer) or sparse_output=False (OneHotEncoder)"
        )


def _sparse(step: Any, where: str) -> bool:
    """Whether it gives a sparse matrix. Raises ModelRefused where a transform reads one: its arithmetic is another."""
    if isinstance(step, ColumnTransformer):
        for name, inner, _ in step.transformers_:
            _sparse(inner, f"{where} / {name}")
        return bool(step.sparse_output_)
    if isinstance(step, FeatureUnion):
        found = [_sparse(inner, f"{where} / {name}") for name, inner in step.transformer_list]
        return any(found)
    if isinstance(step, Pipeline):
        sparse = False
        for name, inner in step.steps:
            if _is_passthrough(inner) or (sparse and isinstance(inner, (SelectorMixin, FunctionTransformer))):
                continue
            if sparse:
                raise ModelRefused(
                    f"{where} / {name}: reads a sparse matrix; train the step before it with sparse_output=False"
                )
            sparse = _sparse(inner, f"{where} / {name}")
        return sparse
    if isinstance(step, OneHotEncoder):
        return bool(step.sparse_output)
    return isinstance(step, MissingIndicator) and step.sparse is True
