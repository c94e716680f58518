"""The bodies that MLflow, KServe v1 and SageMaker know, as rows of a model. Any thread. All raise RequestRefused.

    dataframe_split     {"columns": [...], "index": [...]?, "data": [[...], ...]}
    dataframe_records   [{...}, ...]
    instances           [{...}, ...], or [[...], ...] with the features in the schema's order
    inputs              {name: [...], ...}, or [[...], ...]
    CSV                 with a header that names features; or without one, the features in the schema's order

JSON may spell a missing number NaN, as Python's writers do. Every value meets the rules of the schema.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from serving.columns import rows_of_columns
from serving.decoding import PARSER
from serving.errors import BodyMalformed, FieldRefused
from serving.tables import READERS
from training.features import FeatureSchema

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
INVALID = "Invalid input. Ensure that input is a valid JSON formatted string."
ONE_OF = f"The input must be a JSON dictionary with exactly one of the input fields {{{', '.join(map(repr, FORMATS))}}}"


def parsed(body: bytes) -> Any:
    """JSON, or Python's spelling of it."""
    try:
        return PARSER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # it may be Python's
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as malformed:
        raise BodyMalformed(f"{INVALID} {malformed}") from None


def rows_of_mlflow(schema: FeatureSchema, told: Any, limit: int) -> list[bytes]:
    """The rows of a parsed body with one of `FORMATS`."""
    if not isinstance(told, dict):
        raise BodyMalformed(f"{ONE_OF}. Received {'a list' if isinstance(told, list) else 'no object'}.")
    given = [name for name in FORMATS if name in told]
    if len(given) != 1:
        raise BodyMalformed(f"{ONE_OF}. Received dictionary with input fields: {given}.")
    data = told[given[0]]
    if given[0] == "dataframe_split":
        return _split(schema, data, limit)
    if given[0] == "dataframe_records":
        if not isinstance(data, list):
            got = "dictionary" if isinstance(data, dict) else "no list"
            raise BodyMalformed(f"Invalid input. Dataframe records format must be a list of records. Got {got}.")
        return _records(schema, data, limit)
    if isinstance(data, dict) and given[0] == "inputs":
        return _columns(schema, data, limit)
    return rows_of_instances(schema, data, limit, given[0])


def rows_of_instances(schema: FeatureSchema, data: Any, limit: int, name: str = "instances") -> list[bytes]:
    if not isinstance(data, list):
        raise BodyMalformed(f"{name}: must be a list of rows")
    if data and isinstance(data[0], dict):
        return _records(schema, data, limit)
    return _matrix(schema, schema.names, data, limit, name)


def rows_of_csv(schema: FeatureSchema, body: bytes, limit: int, max_bytes: int) -> list[bytes]:
    cells = _first_line(body[:max_bytes])
    if body.strip() and len(cells) == schema.width and not set(cells) & set(schema.names):
        body = ",".join(f'"{name}"' for name in schema.names).encode() + b"\n" + body.removeprefix(b"\xef\xbb\xbf")
    return rows_of_columns(schema, READERS["text/csv"](schema, body, limit, max_bytes), limit)


def _first_line(body: bytes) -> list[str]:
    first = body.lstrip(b"\r\n").partition(b"\n")[0].decode("utf-8-sig", "replace").rstrip("\r")
    try:
        return [cell.strip() for cell in next(csv.reader([first]), [])]
    except csv.Error:  # of which the reader of the whole tells
        return []


def _split(schema: FeatureSchema, data: Any, limit: int) -> list[bytes]:
    if not isinstance(data, dict):
        got = "list" if isinstance(data, list) else "no object"
        raise BodyMalformed(f"Invalid input. Dataframe split format must be a dictionary. Got {got}.")
    if "data" not in data or data.keys() - {"columns", "data", "index"}:
        raise BodyMalformed(
            "Invalid input. Dataframe split format must have 'data' field and optionally 'columns' and 'index' fields. "
            f"Got {sorted(data)}."
        )
    names, index = data.get("columns"), data.get("index")
    unfit = "Invalid input. Provided dataframe_split field is not a valid dataframe representation in 'split' format"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BodyMalformed(f"{unfit}: columns must be the names of the features")
    for name in schema.names:
        if names.count(name) > 1:
            raise FieldRefused(f"{name}: two columns have this name", name)
    if index is not None and not (isinstance(index, list) and len(index) == len(data["data"] or [])):
        raise BodyMalformed(f"{unfit}: index must have an entry for each row")
    return _matrix(schema, names, data["data"], limit, unfit)


def _matrix(schema: FeatureSchema, names: Sequence[str], data: Any, limit: int, what: str) -> list[bytes]:
    if not isinstance(data, list):
        raise BodyMalformed(f"{what}: the data must be a list of rows")
    for place, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(names):
            raise BodyMalformed(f"{what}: must be a list of {len(names)} values").of_row(place)
    columns = list(zip(*data, strict=True)) if data else [()] * len(names)
    return rows_of_columns(schema, dict(zip(names, columns, strict=True)), limit)


def _records(schema: FeatureSchema, data: list[Any], limit: int) -> list[bytes]:
    for place, row in enumerate(data):
        if not isinstance(row, dict):
            raise BodyMalformed("must be an object of named features").of_row(place)
        for name in schema.names:
            if name not in row:
                message = f"{name}: the field is missing; send null where the value is unknown"
                raise FieldRefused(message, name).of_row(place)
    return rows_of_columns(schema, {name: [row[name] for row in data] for name in schema.names}, limit)


def _columns(schema: FeatureSchema, data: dict[str, Any], limit: int) -> list[bytes]:
    for name in schema.names:
        if not isinstance(data.get(name, []), list):
            raise FieldRefused(f"{name}: must be an array of values", name)
    return rows_of_columns(schema, data, limit)
