"""What OpenAPI says of the protocols of other servers: `/v2/...`, `/v1/models/{model}:predict`, `/invocations`.

A path that names a model is written out for each model that is served, so that its body is of that model's features.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from serving.invocations import PARQUET
from serving.live import Snapshot
from serving.oip_infer import inputs_of, takes_matrix
from serving.predictions import outputs_of
from serving.served import Served
from serving.tensors import BYTES, KINDS

STRING, NUMBER, INTEGER, BOOLEAN = ({"type": kind} for kind in ("string", "number", "integer", "boolean"))
ERROR = {"type": "object", "required": ["error"], "properties": {"error": STRING}}
MLFLOW_ERROR = {
    "type": "object",
    "required": ["error_code", "message"],
    "properties": {"error_code": STRING, "message": STRING},
}
REFUSALS = {
    "400": "the body is not of the protocol, or a value of it not by the model's schema",
    "404": "nothing of that name is served here",
    "413": "the body is too long, or has too many rows",
    "415": "a content type or encoding that is not read here",
    "500": "the model could not score one of the rows",
    "503": "it can't be done now, or not in time",
}
INVOCATIONS = "/invocations"
PREDICT_V1 = ":predict"
INFER = "/infer"


def is_protocol(path: str) -> bool:
    return path.startswith("/v2") or path.endswith(PREDICT_V1) or path == INVOCATIONS


def describe_protocol(
    path: str, operations: dict[str, Any], served: Served, rows: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The path, or one for each model, with its operations complete. `rows`: each model's schema of a single body."""
    if "{model}" not in path:
        default = served.default
        now = default.snapshot if default else None
        yield path, _described(path, operations, now, rows.get(served.release.default))
        return
    for model, live in sorted(served.models.items()):
        named = _described(path, operations, live.snapshot, rows[model])
        for operation in named.values():
            operation["operationId"] += f"_{model}"
            operation["summary"] += f": {model}"
        yield path.replace("{model}", model), named


def _described(
    path: str, operations: dict[str, Any], now: Snapshot | None, row: dict[str, Any] | None
) -> dict[str, Any]:
    described: dict[str, Any] = deepcopy(operations)
    for operation in described.values():
        operation["responses"] = {"200": _json("the answer", {}), "503": _json(REFUSALS["503"], ERROR)}
        if "{version}" in path and now is not None:
            versions = sorted({arm.manifest.version for arm in now.arms})
            operation["parameters"] = [
                {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "enum": versions}}
            ]
            operation["responses"]["404"] = _json(REFUSALS["404"], ERROR)
        if now is None or row is None or "post" not in described or path.endswith("/index"):
            continue
        refused = MLFLOW_ERROR if path == INVOCATIONS else ERROR
        operation["responses"] |= {status: _json(why, refused) for status, why in REFUSALS.items()}
        if path.endswith(INFER):
            _describe_infer(operation, now)
        else:
            _describe_predictions(operation, row, invocations=path == INVOCATIONS)
    return described


def _describe_infer(operation: dict[str, Any], now: Snapshot) -> None:
    manifest = now.champion.manifest
    kinds = [*KINDS, BYTES]
    named = [name for name, _, _ in inputs_of(manifest.schema)]
    named += list(manifest.schema.names) if takes_matrix(manifest.schema) else []
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string", "enum": named},
            "shape": {"type": "array", "items": INTEGER | {"minimum": 0}, "minItems": 1, "maxItems": 2},
            "datatype": {"type": "string", "enum": kinds},
            "parameters": {"type": "object"},
            "data": {"type": "array"},
        },
    }
    wanted = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "enum": [output.name for output in outputs_of(manifest)]},
            "parameters": {"type": "object"},
        },
    }
    body = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": STRING,
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1},
            "outputs": {"type": "array", "items": wanted},
        },
    }
    answer = {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": STRING,
            "model_version": STRING,
            "id": STRING,
            "outputs": {"type": "array", "items": tensor | {"properties": {"name": STRING, "datatype": STRING}}},
        },
    }
    content = {"schema": body, "example": {"inputs": [_example(now, *told) for told in inputs_of(manifest.schema)]}}
    operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    operation["responses"]["200"] = _json("the outputs", answer)


def _example(now: Snapshot, name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    """A tensor of one row that the model takes."""
    values: dict[str, Any] = {}
    for feature in now.champion.manifest.schema.features:
        number = max(feature.low or 0.0, 0.0) if feature.high is None else feature.high
        values[feature.name] = {"number": number, "boolean": True}.get(feature.kind, [*feature.categories, ""][0])
    data = list(values.values()) if len(shape) == 2 else [values[name]]
    return {"name": name, "datatype": datatype, "shape": [1, *shape[1:]], "data": data}


def _describe_predictions(operation: dict[str, Any], row: dict[str, Any], *, invocations: bool) -> None:
    rows = {"type": "array", "items": row}
    formats: dict[str, Any] = {"instances": rows}
    content: dict[str, Any] = {}
    if invocations:
        columns = {name: {"type": "array", "items": value} for name, value in row["properties"].items()}
        split = {
            "type": "object",
            "required": ["columns", "data"],
            "properties": {"columns": {"type": "array", "items": STRING}, "data": {"type": "array"}},
            "additionalProperties": False,
        }
        formats |= {
            "dataframe_records": rows,
            "dataframe_split": split,
            "inputs": {"type": "object", "required": list(columns), "properties": columns},
        }
        binary = {"schema": {"type": "string", "format": "binary"}}
        content = {"text/csv": {"schema": STRING}, PARQUET: binary}
        operation["responses"]["415"]["content"]["text/plain"] = {"schema": STRING}
    bodies = [{"type": "object", "required": [name], "properties": {name: told}} for name, told in formats.items()]
    schema = {"oneOf": bodies} if invocations else bodies[0]
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}} | content}
    predictions = {"type": "array", "items": {"oneOf": [NUMBER, {"type": "array", "items": NUMBER}]}}
    answer = {"type": "object", "required": ["predictions"], "properties": {"predictions": predictions}}
    operation["responses"]["200"] = _json("the scores, in the order of the rows", answer)
    if invocations:
        operation["responses"]["200"]["content"]["text/csv"] = {"schema": STRING}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
