"""Requests that deserve a 4xx: (method, path, body, headers, status, what the message must name), by title."""

from __future__ import annotations

import json
from typing import Any

from cases import mixed_body, mixed_rows

ROW = mixed_rows(1, 3)[0]
GOOD = json.loads(mixed_body(ROW))


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


def with_(**fields: Any) -> bytes:
    return json.dumps(GOOD | fields).encode()


BAD: dict[str, tuple[str, str, bytes | None, dict[str, str], int, str]] = {
    "missing field": ("POST", "/predict", without("age"), {}, 422, "age"),
    "a string for a number": ("POST", "/predict", with_(age="40"), {}, 422, "age"),
    "a boolean for a number": ("POST", "/predict", with_(age=True), {}, 422, "age"),
    "a number for a category": ("POST", "/predict", with_(plan=1), {}, 422, "plan"),
    "a number for a boolean": ("POST", "/predict", with_(autopay=1), {}, 422, "autopay"),
    "out of range": ("POST", "/predict", with_(age=200), {}, 422, "age"),
    "an array for a field": ("POST", "/predict/ab", with_(age=[1]), {}, 422, "age"),
    "NaN": ("POST", "/predict", with_(age=1).replace(b'"age": 1', b'"age": NaN'), {}, 422, "age"),
    "Infinity": ("POST", "/predict", with_(age=1).replace(b'"age": 1', b'"age": Infinity'), {}, 422, "age"),
    "-Infinity": ("POST", "/predict/ab", with_(age=1).replace(b'"age": 1', b'"age": -Infinity'), {}, 422, "age"),
    "empty": ("POST", "/predict", b"", {}, 400, "empty"),
    "an array": ("POST", "/predict", b"[1, 2]", {}, 400, "object"),
    "a number": ("POST", "/predict", b"3", {}, 400, "object"),
    "cut short": ("POST", "/predict", mixed_body(ROW)[:-2], {}, 400, "JSON"),
    "more after the end": ("POST", "/predict", mixed_body(ROW) + b"}", {}, 400, "JSON"),
    "huge": ("POST", "/predict", b" " * 2_000_000, {}, 413, "1048576"),
    "deeply nested": ("POST", "/predict", b'{"age":' * 5000 + b"1" + b"}" * 5000, {}, 400, "nest"),
    "invalid UTF-8": ("POST", "/predict", with_(plan="basic").replace(b"basic", b"\xff\xfe"), {}, 400, "UTF-8"),
    "wrong content type": ("POST", "/predict", mixed_body(ROW), {"content-type": "text/csv"}, 415, "application/json"),
    "unknown path": ("POST", "/predikt", mixed_body(ROW), {}, 404, "/predikt"),
    "wrong method": ("GET", "/predict", None, {}, 405, "POST"),
    "wrong method, with a body": ("PUT", "/predict/ab", mixed_body(ROW), {}, 405, "POST"),
}
