"""Many rows, encoded by the rules of the FeatureSchema: from row objects, from columns of values, or from a matrix.

Rows come out as `Decode` makes one of a body: `8 * width` bytes of native float64 each. What the reference encoder
(`training.features.encode`) refuses is refused here in its words, with the place of the row. Any thread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from serving.decoding import PARSER, Decode, codes_of
from serving.errors import BodyMalformed, BodyTooLarge, FieldRefused, RequestRefused
from training.features import Feature, FeatureSchema, InputRefused, encode_value

Matrix = npt.NDArray[np.float64]
Column = Sequence[Any] | npt.NDArray[Any]
"""A feature's values: JSON's (null is None), or an array of numbers (NaN is missing) or of booleans."""

NONE = type(None)
PLAIN: dict[str, frozenset[type]] = {
    "number": frozenset({float, int, NONE}),
    "category": frozenset({str, NONE}),
    "boolean": frozenset({bool, NONE}),
}
FLAT = msgspec.json.Decoder(dict[str, list[float | str | bool | None]])
TOO_DEEP = "the body is nested too deeply"
SHAPE = 'send {"rows": [{...}, ...]}, or a list of rows, or {"columns": {name: [...], ...}}'


class _Body(msgspec.Struct):
    rows: list[msgspec.Raw] | None = None
    columns: msgspec.Raw = msgspec.Raw()


_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_BODY = msgspec.json.Decoder(_Body)


def rows_of_json(schema: FeatureSchema, decode: Decode, body: bytes, limit: int) -> list[bytes]:
    """The rows of a body like `SHAPE`, at most `limit`. `decode` is the schema's own. Raises RequestRefused."""
    parsed = parse(schema, body)
    if isinstance(parsed, list):
        return rows_of_objects(decode, parsed, limit)
    return rows_of_columns(schema, parsed, limit)


def parse(schema: FeatureSchema, body: bytes) -> list[msgspec.Raw] | dict[str, list[Any]]:
    """The row objects, or the columns, of a body like `SHAPE`. Raises RequestRefused."""
    try:
        if body.lstrip()[:1] == b"[":
            return _LIST.decode(body)
        parsed = _BODY.decode(body)
    except RecursionError:
        raise BodyMalformed(TOO_DEEP) from None
    except msgspec.ValidationError:
        raise BodyMalformed(SHAPE) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as malformed:
        _refuse_non_finite(schema, body)
        raise BodyMalformed(f"the body is not JSON: {malformed}") from None
    if (parsed.rows is None) == (not bytes(parsed.columns)):
        raise BodyMalformed(SHAPE)
    return parsed.rows if parsed.rows is not None else _columns(schema, bytes(parsed.columns))


def rows_of_objects(decode: Decode, objects: Sequence[msgspec.Raw], limit: int) -> list[bytes]:
    """Each object as `decode` takes it alone; 3 µs for 30 numbers (`python -m serving.bench_many`). Raises RequestRefused."""
    if len(objects) > limit:
        raise BodyTooLarge.of_rows(limit)
    rows: list[bytes] = []
    for row in map(bytes, objects):
        try:
            rows.append(decode(row))
        except RequestRefused as refused:
            told = refused if row.startswith(b"{") else BodyMalformed("must be one JSON object of named features")
            raise told.of_row(len(rows)) from None
    return rows


def rows_of_columns(schema: FeatureSchema, columns: Mapping[str, Column], limit: int) -> list[bytes]:
    """Rows of columns of one length; such as the schema does not name are ignored. Raises RequestRefused."""
    for name in schema.names:
        if name not in columns:
            raise FieldRefused(f"{name}: the column is missing; send nulls where its values are unknown", name)
    first = schema.names[0]
    count = len(columns[first])
    if count > limit:
        raise BodyTooLarge.of_rows(limit)
    matrix = np.empty((count, schema.width))
    for place, feature in enumerate(schema.features):
        values = columns[feature.name]
        if len(values) != count:
            raise FieldRefused(f"{feature.name}: has {len(values)} values; {first} has {count}", feature.name)
        matrix[:, place] = _encoded(feature, values)
    return _split(matrix)


def rows_of_matrix(schema: FeatureSchema, matrix: npt.NDArray[Any], limit: int) -> list[bytes]:
    """Rows of numbers (n, width), features in the schema's order, NaN for missing; a boolean is 0 or 1. A category has no
    number that its sender could know. Raises RequestRefused."""
    if matrix.ndim != 2 or matrix.shape[1] != schema.width:
        shape = " x ".join(map(str, matrix.shape))
        raise BodyMalformed(f"the matrix is of {shape}; this model takes rows of {schema.width} numbers")
    if len(matrix) > limit:
        raise BodyTooLarge.of_rows(limit)
    encoded = np.empty(matrix.shape)
    for place, feature in enumerate(schema.features):
        values = matrix[:, place].astype(np.float64)
        if feature.kind == "category":
            raise FieldRefused(f"{feature.name}: is a category; send it by name, as a string", feature.name)
        if feature.kind == "boolean":
            values = _flags(feature, values)
        encoded[:, place] = _ruled(feature, values)
    return _split(encoded)


def encode_column_slowly(feature: Feature, values: Column) -> Matrix:
    """Value by value, by the reference encoder. Raises FieldRefused, naming the row."""
    encoded = np.empty(len(values))
    for row, value in enumerate(values):
        try:
            encoded[row] = encode_value(feature, value)
        except InputRefused as refused:
            raise FieldRefused(str(refused), refused.field).of_row(row) from None
    return encoded


def _split(matrix: Matrix) -> list[bytes]:
    data, step = matrix.tobytes(), 8 * matrix.shape[1]
    return [data[at : at + step] for at in range(0, len(data), step)]


def _columns(schema: FeatureSchema, text: bytes) -> dict[str, list[Any]]:
    try:
        return FLAT.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # a number out of range, or what the schema may ignore
    try:
        columns = PARSER.decode(text)
    except RecursionError:
        raise BodyMalformed(TOO_DEEP) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as malformed:
        raise BodyMalformed(f"columns: not JSON: {malformed}") from None
    if not isinstance(columns, dict):
        raise BodyMalformed(SHAPE)
    for name in schema.names:
        if not isinstance(columns.get(name, []), list):
            raise FieldRefused(f"{name}: must be an array of values", name)
    return columns


def _encoded(feature: Feature, values: Column) -> Matrix:
    """Whole columns of the plain kinds at once; what is unusual goes value by value, so that the rules are one."""
    if isinstance(values, np.ndarray):
        if feature.kind == "number" and values.dtype.kind in "iuf":
            return _ruled(feature, values.astype(np.float64))
        if feature.kind == "boolean" and values.dtype.kind == "b":
            return values.astype(np.float64)
        return encode_column_slowly(feature, values)
    types = set(map(type, values))
    if not types <= PLAIN[feature.kind] or (NONE in types and feature.missing == "refuse"):
        return encode_column_slowly(feature, values)
    try:
        if feature.kind == "category":
            codes = codes_of(feature)
            return np.fromiter((codes[value] for value in values), np.float64, len(values))
        return _ruled(feature, np.array(values, dtype=np.float64))  # None becomes NaN
    except (KeyError, OverflowError):
        return encode_column_slowly(feature, values)


def _ruled(feature: Feature, values: Matrix) -> Matrix:
    """Numbers, or booleans as numbers, by the feature's rules for the missing, the infinite and those out of range."""
    odd = np.isinf(values)
    if feature.missing == "nan":
        values[np.isnan(values)] = math.nan  # a NaN may have a sign, which a missing value has not
    else:
        odd |= np.isnan(values)
    if feature.low is not None:
        odd |= values < feature.low
    if feature.high is not None:
        odd |= values > feature.high
    for row in np.flatnonzero(odd).tolist():
        try:
            values[row] = encode_value(feature, float(values[row]))
        except InputRefused as refused:
            raise FieldRefused(str(refused), refused.field).of_row(row) from None
    return values


def _flags(feature: Feature, values: Matrix) -> Matrix:
    wrong = np.flatnonzero(~np.isin(values, (0.0, 1.0)) & ~np.isnan(values))
    if len(wrong):
        row = int(wrong[0])
        message = f"{feature.name}: must be 1 or 0 for true or false, got {float(values[row])!r}"
        raise FieldRefused(message, feature.name).of_row(row)
    return values


def _refuse_non_finite(schema: FeatureSchema, body: bytes) -> None:
    """NaN and Infinity are Python's spelling, not JSON: name the row and the field, since their sender can't tell."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return
    rows = parsed.get("rows") if isinstance(parsed, dict) else parsed
    columns = parsed.get("columns") if isinstance(parsed, dict) else None
    for name in schema.names:
        if isinstance(rows, list):
            values: Any = [row.get(name) if isinstance(row, dict) else None for row in rows]
        else:
            values = columns.get(name) if isinstance(columns, dict) else None
        for row, value in enumerate(values if isinstance(values, list) else []):
            if isinstance(value, float) and not math.isfinite(value):
                message = f"{name}: {value} is not a JSON number; send null for a missing value"
                raise FieldRefused(message, name).of_row(row)
