"""What an encoded row stood for in the frame that a pipeline was trained on: text, missing values, unseen categories.

A served category arrives as its code, but a fitted encoder knows it as text, or as a number where the training frame
held numbers. Which, is read from the encoders' own vocabulary; the schema's text is matched to it by its written form,
and what could be meant in two ways is refused.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from compile.errors import ModelRefused
from training.features import Feature, FeatureSchema

if TYPE_CHECKING:
    import pandas as pd

Matrix = npt.NDArray[np.float64]
Outcome = int | Literal["missing", "other"]  # a code, or one of the two that have none


@dataclass(frozen=True)
class Original:
    """One input as the pipeline saw it in training. A number stands for itself; it has no codes."""

    feature: Feature
    codes: tuple[object, ...]  # what each code stands for
    missing: object  # None, or NaN
    unseen: object

    def outcomes(self) -> dict[Outcome, object]:
        """All that a served row can hold here, as the schema has it, and what each stands for."""
        found: dict[Outcome, object] = dict(enumerate(self.codes))
        if self.feature.missing == "nan":
            found["missing"] = self.missing
        stands_for = self.feature.missing
        if self.feature.unseen == "other" or (not isinstance(stands_for, str) and not self._is_code(stands_for)):
            found["other"] = self.unseen
        return found

    def decoded(self, values: Matrix) -> npt.NDArray[Any]:
        """The column of the training frame that encoded values stand for: float64 where all of it is numbers."""
        if self.feature.kind == "number":
            return values
        decoded = np.empty(len(values), dtype=object)
        for i, value in enumerate(values.tolist()):
            seen = self.codes[int(value)] if self._is_code(value) else self.unseen
            decoded[i] = self.missing if math.isnan(value) else seen
        if all(isinstance(value, float) for value in (*self.codes, self.missing, self.unseen)):
            return decoded.astype(np.float64)
        return decoded

    def _is_code(self, value: float) -> bool:
        return 0 <= value < len(self.codes) and value == int(value)


def original_of(feature: Feature, vocabulary: Sequence[object], *, none: bool, coded: bool) -> Original:
    """The feature as it was, from what the encoders know of it. `none`: an imputer takes None as missing. `coded`: the
    pipeline may have been trained on encoded rows. Raises ModelRefused."""
    known = [value for value in vocabulary if not is_missing(value)]
    none = none or (any(value is None for value in vocabulary) and not any(is_nan(value) for value in vocabulary))
    missing = None if none else math.nan
    if feature.kind == "number":
        return Original(feature, (), math.nan, math.nan)
    if feature.kind == "boolean":
        if known and not any(value in (0, 1) for value in known):
            raise ModelRefused(f"{feature.name}: the schema has a boolean, its encoder knows {_few(known)}")
        return Original(
            feature, (0.0, 1.0), math.nan, 2.0 if isinstance(feature.missing, str) else float(feature.missing)
        )
    matches = [_match(feature, category, known) for category in feature.categories]
    codes = tuple(float(code) for code in range(len(feature.categories)))
    if coded and set(known) <= {*codes, *([float(len(codes))] if feature.unseen == "other" else [])}:
        if any(match not in ((), (code,)) for match, code in zip(matches, codes, strict=True)):
            raise ModelRefused(f"{feature.name}: its encoder may know codes or categories that read as numbers")
        return Original(feature, codes, math.nan, float(len(codes)))
    if known and not any(matches):
        raise ModelRefused(f"{feature.name}: its encoder knows none of the schema's categories, but {_few(known)}")
    if known and all(isinstance(value, numbers.Real) for value in known):
        return _numeric(feature, matches, [float(value) for value in known])  # type: ignore[arg-type]
    text = (match[0] if match else name for match, name in zip(matches, feature.categories, strict=True))
    return Original(feature, tuple(text), missing, _stranger(feature, known))


def original_frame(schema: FeatureSchema, rows: Matrix) -> pd.DataFrame:
    """The frame behind encoded rows, for a model that reads the schema's own values: categories are Categorical, in
    code order; an unseen one that the schema gives a code is a category of its own, after them."""
    import pandas as pd

    columns: dict[str, object] = {}
    for j, feature in enumerate(schema.features):
        if feature.kind != "category":
            columns[feature.name] = rows[:, j]
            continue
        names = [*feature.categories, *(["<other>"] if feature.unseen == "other" else [])]
        codes = np.where(rows[:, j] < len(names), rows[:, j], -1).astype(np.int64)
        columns[feature.name] = pd.Categorical.from_codes(codes, categories=pd.Index(names))
    return pd.DataFrame(columns)


def is_nan(value: object) -> bool:
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def is_missing(value: object) -> bool:
    return value is None or is_nan(value)


def _match(feature: Feature, category: str, known: Sequence[object]) -> tuple[object, ...]:
    """The known value that is written as the category, if there is one. Raises ModelRefused where there are two."""
    found = [value for value in known if category in _forms(value)]
    if len({(type(value) is str, value) for value in found}) > 1:
        raise ModelRefused(f"{feature.name}: {category!r} may be any of {_few(found)} to its encoders")
    return tuple(found[:1])


def _forms(value: object) -> set[str]:
    forms = {str(value)}
    if isinstance(value, float) and value.is_integer():
        forms.add(str(int(value)))
    return forms


def _numeric(feature: Feature, matches: Sequence[tuple[object, ...]], known: Sequence[float]) -> Original:
    """All that the encoders know is numbers: so was the column, and categories they do not know are other numbers."""
    stranger = math.nextafter(max(known), math.inf)
    codes = tuple(float(match[0]) if match else stranger for match in matches)  # type: ignore[arg-type]
    return Original(feature, codes, math.nan, stranger)


def _stranger(feature: Feature, known: Sequence[object]) -> str:
    name = "<other>"
    while name in feature.categories or name in known:
        name += "<other>"
    return name


def _few(values: Sequence[object]) -> str:
    return ", ".join(repr(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")
