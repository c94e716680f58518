"""The input contract: which features, in which order, of which kind, and what each odd value becomes.

A FeatureSchema travels with its model: into the run, the bundle, the routes and every traffic segment. Its `fingerprint`
answers "same inputs?" with one string. `encode` is the reference encoder - training uses it, and the server's decoder is
generated from the same schema and held equal to it by a property test.

    number    a float; booleans and strings are refused
    category  a string; becomes its position in `categories`, as a float
    boolean   true or false; becomes 1.0 or 0.0

A missing value is None (JSON null), or NaN in a frame. A field that is absent is refused always: a typing error in a
name must not read as a missing value. Fields that the schema does not name are ignored.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Matrix = npt.NDArray[np.float64]
Kind = Literal["number", "category", "boolean"]


class InputRefused(ValueError):
    """A value that the schema does not accept. `field` names the feature, `reason` says what was wrong."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input.

    categories: the known ones, in code order; categories only.
    missing: what None becomes: NaN, a number (for a category: a code), or a refusal.
    unseen: what a category outside `categories` becomes: the missing value, the extra code `len(categories)`, a refusal.
    infinity: what an infinite number becomes. low, high: inclusive range; a number outside is refused.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    missing: Literal["nan", "refuse"] | float = "nan"
    unseen: Literal["missing", "other", "refuse"] = "missing"
    infinity: Literal["refuse", "missing"] = "refuse"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise InputRefused("schema", "a feature has no name")
        if any(character in '"\\' or character < " " for character in self.name):
            raise InputRefused(self.name, "a name must be free of quotes, backslashes and control characters")
        if len(set(self.categories)) != len(self.categories):
            raise InputRefused(self.name, "a category is listed twice")
        if self.kind != "category" and self.categories:
            raise InputRefused(self.name, f"a {self.kind} has no categories")
        if self.kind == "category" and not self.categories:
            raise InputRefused(self.name, "a category needs at least one category")
        if self.kind != "number" and (self.low is not None or self.high is not None):
            raise InputRefused(self.name, f"a {self.kind} has no range")
        if not isinstance(self.missing, str) and not math.isfinite(self.missing):
            raise InputRefused(self.name, "missing must be 'nan', 'refuse' or a finite number")


class FeatureSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ordered features of a model. Names are unique."""

    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        if not self.features:
            raise InputRefused("schema", "there are no features")
        if len(set(self.names)) != len(self.features):
            twice = Counter(self.names).most_common(1)[0][0]
            raise InputRefused(twice, "two features share this name")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @property
    def width(self) -> int:
        return len(self.features)

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON, 64 hex digits."""
        return _fingerprint(self)

    def to_json(self) -> bytes:
        """Canonical: sorted keys, every field present, no white space."""
        return msgspec.json.encode(self, order="sorted")

    @classmethod
    def from_json(cls, text: bytes) -> FeatureSchema:
        """Raises InputRefused where the text is not a schema."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as malformed:
            raise InputRefused("schema", str(malformed)) from None


def encode(schema: FeatureSchema, rows: Sequence[Mapping[str, object]]) -> Matrix:
    """(n, width) float64, C-contiguous: the reference encoder. Raises InputRefused, naming the field."""
    matrix = np.empty((len(rows), schema.width), dtype=np.float64)
    for i, row in enumerate(rows):
        for j, feature in enumerate(schema.features):
            if feature.name not in row:
                raise InputRefused(feature.name, "the field is missing; send null where the value is unknown")
            matrix[i, j] = encode_value(feature, row[feature.name])
    return matrix


def encode_value(feature: Feature, value: object) -> float:
    """What one value becomes. Raises InputRefused."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _missing(feature)
    if feature.kind == "boolean":
        if not isinstance(value, bool | np.bool_):
            raise _wrong_type(feature, "true or false", value)
        return float(value)
    if feature.kind == "category":
        if not isinstance(value, str):
            raise _wrong_type(feature, "a string", value)
        return _code(feature, value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise _wrong_type(feature, "a number", value)
    return _number(feature, value)


def encode_frame(schema: FeatureSchema, frame: pd.DataFrame) -> Matrix:
    """What `encode` makes of the frame's rows, column by column. Raises InputRefused, naming the column."""
    matrix = np.empty((len(frame), schema.width), dtype=np.float64)
    for j, feature in enumerate(schema.features):
        if feature.name not in frame.columns:
            raise InputRefused(feature.name, "the column is missing")
        matrix[:, j] = _encode_column(feature, frame[feature.name])
    return matrix


def decode_matrix(schema: FeatureSchema, matrix: Matrix) -> dict[str, list[Any]]:
    """The raw values that an encoded (n, width) matrix stands for, by feature: codes are categories again, NaN is None.

    An unseen category comes back as `<other>` where it had a code of its own, and as None where it became missing.
    """
    return {feature.name: _decode_column(feature, matrix[:, j]) for j, feature in enumerate(schema.features)}


def infer(frame: pd.DataFrame, *, exclude: Sequence[str] = ()) -> FeatureSchema:
    """The schema that a frame's columns suggest, in their order. See `training.inference` for the rules."""
    from training.inference import infer_schema

    return infer_schema(frame, exclude=exclude)


@lru_cache(maxsize=64)
def _fingerprint(schema: FeatureSchema) -> str:
    return hashlib.sha256(schema.to_json()).hexdigest()


def _missing(feature: Feature) -> float:
    if feature.missing == "refuse":
        raise InputRefused(feature.name, "the value is missing (null), which this model does not accept")
    return math.nan if isinstance(feature.missing, str) else float(feature.missing)


def _code(feature: Feature, value: str) -> float:
    code = _codes(feature).get(value)
    if code is not None:
        return code
    if feature.unseen == "refuse":
        known = ", ".join(feature.categories[:8]) + (", ..." if len(feature.categories) > 8 else "")
        raise InputRefused(feature.name, f"{value!r} is not one of the known categories: {known}")
    return float(len(feature.categories)) if feature.unseen == "other" else _missing(feature)


@lru_cache(maxsize=4096)
def _codes(feature: Feature) -> dict[str, float]:
    return {category: float(code) for code, category in enumerate(feature.categories)}


def _number(feature: Feature, value: Any) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        if feature.infinity == "missing":
            return _missing(feature)
        raise InputRefused(feature.name, "the number is infinite, or too large for a float")
    if (feature.low is not None and number < feature.low) or (feature.high is not None and number > feature.high):
        low = "-inf" if feature.low is None else f"{feature.low:g}"
        high = "inf" if feature.high is None else f"{feature.high:g}"
        raise InputRefused(feature.name, f"{number!r} is outside the range {low} to {high}")
    return number


def _wrong_type(feature: Feature, wanted: str, value: object) -> InputRefused:
    return InputRefused(feature.name, f"must be {wanted} or null, got {_json_type(value)}")


def _json_type(value: object) -> str:
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def _encode_column(feature: Feature, column: pd.Series[Any]) -> Matrix:
    """Whole columns of the plain kinds at once; whatever is unusual goes value by value, so that the rules are one."""
    if feature.kind == "number" and column.dtype.kind in "iuf":
        values = column.to_numpy(dtype=np.float64)
        lows = np.full_like(values, False, dtype=bool) if feature.low is None else values < feature.low
        highs = np.full_like(values, False, dtype=bool) if feature.high is None else values > feature.high
        odd = ~np.isfinite(values) | lows | highs
        if odd.any():
            values = values.copy()
            values[odd] = [encode_value(feature, float(value)) for value in values[odd]]
        return values
    distinct: dict[object, float] = {}
    encoded = np.empty(len(column), dtype=np.float64)
    for i, cell in enumerate(column.astype(object).to_numpy()):
        value = None if _is_missing(cell) else cell
        key = (type(value), value)
        if key not in distinct:
            distinct[key] = encode_value(feature, value)
        encoded[i] = distinct[key]
    return encoded


def _is_missing(value: Any) -> bool:
    """None, NaN, pandas.NA and NaT, without importing pandas: only a missing value differs from itself, or refuses to say."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


def _decode_column(feature: Feature, values: Matrix) -> list[Any]:
    if feature.kind == "number":
        return [None if math.isnan(value) else value for value in values.tolist()]
    if feature.kind == "boolean":
        return [None if math.isnan(value) else bool(value) for value in values.tolist()]
    names = [*feature.categories, "<other>"]
    return [None if math.isnan(value) else names[min(int(value), len(names) - 1)] for value in values.tolist()]
