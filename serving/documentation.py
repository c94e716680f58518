"""The OpenAPI document: what FastAPI knows of the routes, and what the served models' schemas say of the bodies."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.admin_documentation import KEY
from serving.batch_documentation import describe_batch
from serving.live import Snapshot
from serving.lookup import ENTITY, MAX_ENTITY_LETTERS
from serving.protocol_documentation import describe_protocol, is_protocol
from serving.served import Served
from serving.tasks import answer_schema
from training.features import Feature

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "field": {"type": "string"}},
}
REFUSALS = {
    "400": "not JSON, or not an object",
    "401": "an API key is needed here",
    "403": "the API key is not known here, or may not name the arm",
    "413": "the body is too long, or inflates to more",
    "415": "the body is of another content type or encoding",
    "422": "a named field is missing, of the wrong type or out of range",
    "429": "more requests than the API key's rate; retry after the seconds that the header says",
    "500": "the model could not score the row, or its score is infinite",
    "503": "too many rows are waiting; retry after the seconds that the header says",
}
UNKNOWN = "the view has no such entity"
MODEL = "/v1/models/{model}"
JSON_TYPE = {"number": "number", "category": "string", "boolean": "boolean"}


def openapi_of(app: FastAPI, served: Served) -> dict[str, Any]:
    """The document of the release that serves now: built for each request of it, since a flip may change it."""
    document = get_openapi(title=app.title, version="1", summary=app.summary, routes=app.routes)
    paths: dict[str, Any] = {}
    rows = {name: _body(live.snapshot) for name, live in served.models.items()}
    for path, operations in document["paths"].items():
        if is_protocol(path):
            paths |= describe_protocol(path, operations, served, rows)
        elif not path.endswith(("/predict", "/predict/ab", "/predict/batch")):
            paths[path] = operations
        elif "{model}" in path:
            for name, live in sorted(served.models.items()):
                paths[path.replace("{model}", name)] = {
                    "post": _described(operations["post"], path, live.snapshot, name)
                }
        elif served.default is not None:
            paths[path] = {"post": _described(operations["post"], path, served.default.snapshot, "")}
    if served.models and MODEL in paths:
        paths[MODEL]["get"]["parameters"][0]["schema"] = {"type": "string", "enum": sorted(served.models)}
    if any("security" in operation for operations in paths.values() for operation in operations.values()):
        document.setdefault("components", {})["securitySchemes"] = KEY
    return document | {"paths": paths}


def _described(operation: dict[str, Any], path: str, now: Snapshot, model: str) -> dict[str, Any]:
    operation = dict(operation)
    if path.endswith("/batch"):
        describe_batch(operation, now, _body(now), _either(now), ERROR)
    else:
        _describe(operation, path, now)
    if model:
        operation["summary"] += f" of {model}"
        operation["operationId"] = f"{operation['operationId']}_{model}"
    return operation


def _describe(operation: dict[str, Any], path: str, now: Snapshot) -> None:
    asks = "the arm that the experiment assigns to the unit" if path.endswith("/ab") else "the champion"
    operation["summary"] = f"Score one row with {asks}"
    operation["tags"] = ["scoring"]
    operation["parameters"] = [
        _header("x-request-id", "returned and logged"),
        _header("x-unit", "who is assigned"),
        _header("x-arm", "the arm that is to answer, with an API key that may name it"),
        _header("traceparent", "W3C trace context: its trace id is returned"),
    ]
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _either(now)}}}
    answer = answer_schema(now.champion.manifest, [arm.name for arm in now.arms])
    operation["responses"] = {"200": {"description": "the score", "content": {"application/json": {"schema": answer}}}}
    for status, description in REFUSALS.items():
        operation["responses"][status] = {
            "description": description,
            "content": {"application/json": {"schema": ERROR}},
        }
    if now.champion.manifest.lookup is not None:
        unknown = {"description": UNKNOWN, "content": {"application/json": {"schema": ERROR}}}
        operation["responses"]["404"] = unknown


def _either(now: Snapshot) -> dict[str, Any]:
    """All features; or, where the model looks them up, an entity, with what may be given beside it."""
    plain, lookup = _body(now), now.champion.manifest.lookup
    if lookup is None:
        return plain
    named = {"type": "object", "required": [lookup.entity], "additionalProperties": False}
    named["properties"] = {lookup.entity: {"type": ["string", "integer"], "maxLength": MAX_ENTITY_LETTERS}}
    beside = {name: plain["properties"][name] for name in lookup.override}
    others = {name: False for name in plain["properties"] if name not in lookup.override}
    by_entity = {"type": "object", "required": [ENTITY], "properties": {ENTITY: named, **beside, **others}}
    return {"anyOf": [plain | {"not": {"required": [ENTITY]}}, by_entity]}


def _body(now: Snapshot) -> dict[str, Any]:
    features = now.champion.manifest.schema.features
    return {
        "type": "object",
        "required": [feature.name for feature in features],
        "properties": {feature.name: _property(feature) for feature in features},
    }


def _property(feature: Feature) -> dict[str, Any]:
    described: dict[str, Any] = {"type": JSON_TYPE[feature.kind]}
    if feature.missing != "refuse":
        described["type"] = [JSON_TYPE[feature.kind], "null"]
    if feature.kind == "category":
        if feature.unseen == "refuse":
            described["enum"] = [*feature.categories, *([None] if feature.missing != "refuse" else [])]
        else:
            described["examples"] = list(feature.categories[:5])
    bounds = {"minimum": feature.low, "maximum": feature.high}
    return described | {word: bound for word, bound in bounds.items() if bound is not None}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": description}
