"""What OpenAPI says of the admin API."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.releasing import Change, Verb
from serving.routes import Routes

ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
REFUSALS = {
    "400": "the body is no change",
    "401": "a key of COPPICE_ADMIN_KEYS is needed",
    "403": "the key is not one of COPPICE_ADMIN_KEYS",
    "404": "the model has no such generation",
    "409": "another publisher was faster, or the generation named is not the newest",
    "413": "the body is too long",
    "422": "such routes must not be published",
    "500": "our own mistake; the server's log has the cause",
    "503": "the store can't be reached, or too many changes are waiting",
}
KEY = {"AdminKey": {"type": "http", "scheme": "bearer", "description": "a key of COPPICE_ADMIN_KEYS"}}


def describe_admin(verb: Verb) -> dict[str, Any]:
    """To be added to the operation of the verb."""
    described: dict[str, Any] = {
        "security": [{name: [] for name in KEY}],
        "responses": {"200": _json("the routes", _schema(Routes))},
    }
    described["responses"] |= {status: _json(why, ERROR) for status, why in REFUSALS.items()}
    if verb != "show":
        described["requestBody"] = {"content": {"application/json": {"schema": _schema(Change)}}}
    return described


def _schema(kind: type) -> dict[str, Any]:
    """With what it refers to inside it: the document's components are FastAPI's own."""
    (schema,), parts = msgspec.json.schema_components([kind], ref_template="{name}")
    whole: dict[str, Any] = _whole(schema, parts)
    return whole


def _whole(schema: Any, parts: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _whole(parts[schema["$ref"]], parts)
        return {word: _whole(value, parts) for word, value in schema.items()}
    return [_whole(value, parts) for value in schema] if isinstance(schema, list) else schema


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
