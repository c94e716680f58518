"""What OpenAPI says of `/predict/batch`."""

from __future__ import annotations

from typing import Any

from serving.live import Snapshot
from serving.tables import READERS
from serving.tasks import row_schema

REFUSALS = {
    "400": "the body can't be read as its content type, or a parameter is none of its values",
    "413": "the body is too long, or has too many rows",
    "415": "a content type that is not read here",
    "422": "a named field of a named row is missing, of the wrong type or out of range; no row was scored",
    "500": "the model could score none of the rows",
    "503": "it can't be done now, or not in time; retry after the seconds that the header says",
}
BINARY = {"type": "string", "format": "binary"}
STRING = {"type": "string"}


def describe_batch(
    operation: dict[str, Any], now: Snapshot, row: dict[str, Any], asked: dict[str, Any], error: dict[str, Any]
) -> None:
    """Complete the operation; `row` is the schema of all features, `asked` that of a single body, `error` a refusal's."""
    columns = {name: {"type": "array", "items": value} for name, value in row["properties"].items()}
    rows = {"type": "array", "items": asked}
    bodies = {
        "oneOf": [
            {"type": "object", "required": ["rows"], "properties": {"rows": rows}},
            rows,
            {
                "type": "object",
                "required": ["columns"],
                "properties": {"columns": {"type": "object", "required": list(columns), "properties": columns}},
            },
        ]
    }
    operation["summary"] = "Score many rows"
    operation["tags"] = ["scoring"]
    operation["parameters"] = [
        _parameter("split", ["0", "1"], "1: the arm that the experiment assigns to each row's unit; else the champion"),
        _parameter("answer", ["rows", "columns"], "how the answer is laid out"),
        {"name": "x-request-id", "in": "header", "schema": STRING, "description": "returned and logged"},
        {"name": "x-unit", "in": "header", "schema": STRING, "description": "who is assigned, of all rows"},
    ]
    content = {"application/json": {"schema": bodies}} | {kind: {"schema": BINARY} for kind in READERS}
    operation["requestBody"] = {"required": True, "content": content}
    operation["responses"] = {"200": {"description": "the scores, in the order of the rows", "content": _answers(now)}}
    for status, description in REFUSALS.items():
        operation["responses"][status] = {
            "description": description,
            "content": {"application/json": {"schema": error}},
        }
    if now.champion.manifest.lookup is not None:
        unknown = {"description": "the view has no such entity", "content": {"application/json": {"schema": error}}}
        operation["responses"]["404"] = unknown


def _answers(now: Snapshot) -> dict[str, Any]:
    failed = {"type": "object", "required": ["error"], "properties": {"error": STRING}}
    common = {
        "failed": {"type": "integer", "minimum": 0},
        "request_id": STRING,
        "model_version": STRING,
        "arm": STRING,
    }
    predictions = {"type": "array", "items": {"anyOf": [row_schema(now.champion.manifest), failed]}}
    columns = {"type": "object", "additionalProperties": {"type": "array"}}
    shapes = [
        {"type": "object", "required": [name, "failed", "request_id"], "properties": common | {name: schema}}
        for name, schema in (("predictions", predictions), ("columns", columns))
    ]
    return {
        "application/json": {"schema": {"oneOf": shapes}},
        "application/vnd.apache.arrow.stream": {"schema": BINARY},
    }


def _parameter(name: str, values: list[str], description: str) -> dict[str, Any]:
    schema = {"type": "string", "enum": values, "default": values[0]}
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}
