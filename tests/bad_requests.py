"""Requests that deserve a 4xx: (method, path, body, headers, status, what the message must name), by title."""

from __future__ import annotations

import gzip
import json
from typing import Any

from cases import mixed_body, mixed_rows

ROW = mixed_rows(1, 3)[0]
GOOD = json.loads(mixed_body(ROW))
Bad = tuple[str, str, bytes | None, dict[str, str], int, str]


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


def with_(**fields: Any) -> bytes:
    return json.dumps(GOOD | fields).encode()


def literal(name: str, written: bytes) -> bytes:
    """The row with a field written as no JSON library would."""
    marked = json.dumps(GOOD | {name: "(here)"}).encode()
    return marked.replace(b'"(here)"', written)


def post(body: bytes, status: int, named: str, path: str = "/predict", **headers: str) -> Bad:
    return ("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()}, status, named)


def fields() -> dict[str, Bad]:
    wrong = {"string": "x", "array": [1], "object": {"a": 1}}
    numbers = wrong | {"boolean": True, "numeric string": "40", "empty string": "", "empty array": []}
    categories = wrong | {"number": 1, "float": 1.5, "boolean": False, "array of names": ["basic"]}
    booleans = wrong | {"number": 1, "zero": 0, "true in a string": "true", "empty object": {}}
    del categories["string"]
    kinds = {"age": numbers, "balance": numbers, "visits": numbers, "plan": categories, "region": categories}
    kinds["autopay"] = booleans
    bad = {
        f"{name}: {what}": post(with_(**{name: value}), 422, name)
        for name in kinds
        for what, value in kinds[name].items()
    }
    return bad | {f"{name}: missing": post(without(name), 422, name) for name in kinds}


def literals() -> dict[str, Bad]:
    not_json = [
        "01",
        "+1",
        ".5",
        "1.",
        "0x1F",
        "1e",
        "--1",
        "1_000",
        "nan",
        "inf",
        "True",
        "None",
        "undefined",
        "'a'",
        "",
    ]
    strings = [b'"\\x41"', b'"\\ud83"', b'"a\nb"', b'"\x00"', b'"unended', b'"\\"', b'"\\u12"']
    bad = {f"age as {text!r}": post(literal("age", text.encode()), 400, "JSON") for text in not_json}
    bad |= {f"plan as {text!r}": post(literal("plan", text), 400, "JSON") for text in strings}
    infinite = ["NaN", "Infinity", "-Infinity"]
    bad |= {f"balance as {text}": post(literal("balance", text.encode()), 422, "balance") for text in infinite}
    too_large = ["151", "-1", "1e3", "-1e-300", "150.0000000001", "9" * 400]
    return bad | {f"age as {text[:20]}": post(literal("age", text.encode()), 422, "age") for text in too_large}


def bodies() -> dict[str, Bad]:
    good = mixed_body(ROW)
    deep = b'{"age":' * 5000 + b"1" + b"}" * 5000
    inner = good[1:-1]
    return {
        "empty": post(b"", 400, "empty"),
        "white space": post(b" \r\n\t", 400, "empty"),
        "an array": post(b"[1, 2]", 400, "object"),
        "an array of objects": post(b"[" + good + b"]", 400, "object"),
        "a number": post(b"3", 400, "object"),
        "a string": post(b'"a"', 400, "object"),
        "null": post(b"null", 400, "object"),
        "true": post(b"true", 400, "object"),
        "no fields": post(b"{}", 422, "age"),
        "other names": post(b'{"AGE": 1}', 422, "age"),
        "cut short": post(good[:-2], 400, "JSON"),
        "cut in a name": post(good[:4], 400, "JSON"),
        "a brace alone": post(b"{", 400, "JSON"),
        "more after the end": post(good + b"}", 400, "JSON"),
        "two objects": post(good + good, 400, "JSON"),
        "two lines": post(good + b"\n" + good, 400, "JSON"),
        "a comma at the end": post(b"{" + inner + b",}", 400, "JSON"),
        "a comma at the start": post(b"{," + inner + b"}", 400, "JSON"),
        "no comma": post(good.replace(b", ", b" ", 1), 400, "JSON"),
        "no colon": post(good.replace(b": ", b" ", 1), 400, "JSON"),
        "equals for a colon": post(good.replace(b": ", b"= ", 1), 400, "JSON"),
        "names without quotes": post(good.replace(b'"age"', b"age"), 400, "JSON"),
        "single quotes": post(good.replace(b'"', b"'"), 400, "JSON"),
        "a comment": post(b"/* row */" + good, 400, "JSON"),
        "a form": post(b"age=40&plan=basic", 400, "JSON"),
        "XML": post(b"<row><age>40</age></row>", 400, "JSON"),
        "a byte order mark": post(b"\xef\xbb\xbf" + good, 400, "JSON"),
        "UTF-16": post(good.decode().encode("utf-16"), 400, "UTF-8"),
        "gzip": post(gzip.compress(good, mtime=0), 400, "UTF-8"),
        "NULs": post(b"\0" * 100, 400, "JSON"),
        "a NUL behind": post(good + b"\0", 400, "JSON"),
        "huge": post(b" " * 2_000_000, 413, "1048576"),
        "huge, and of another type": post(b" " * 2_000_000, 413, "1048576", content_type="text/csv"),
        "deeply nested": post(deep, 400, "nest"),
        "deeply nested arrays": post(b"[" * 100_000, 400, "nest"),
        "deeply nested in a field of no use": post(b'{"x":' + b"[" * 40 + b"]" * 40 + b"," + inner + b"}", 400, "nest"),
        "deeply nested and never closed": post(b'{"a":' * 3000, 400, "nest"),
        "invalid UTF-8": post(with_(plan="basic").replace(b"basic", b"\xff\xfe"), 400, "UTF-8"),
        "an overlong encoding": post(with_(plan="basic").replace(b"basic", b"\xc0\xaf"), 400, "UTF-8"),
        "a surrogate in UTF-8": post(with_(plan="basic").replace(b"basic", b"\xed\xa0\x80"), 400, "UTF-8"),
        "a character cut short": post(with_(plan="basic").replace(b"basic", b"\xe2\x82"), 400, "UTF-8"),
        "a name repeated, the last one wrong": post(b"{" + inner + b', "age": "x"}', 422, "age"),
    }


def requests() -> dict[str, Bad]:
    good = mixed_body(ROW)
    types = [
        "text/csv",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "json",
        "multipart/form-data",
    ]
    bad = {f"of type {name}": post(good, 415, "application/json", content_type=name) for name in types}
    timeouts = ["0", "-1", "1.5", "soon", "9999999999", "1e3"]
    bad |= {
        f"a timeout of {text}": post(good, 400, "x-request-timeout-ms", x_request_timeout_ms=text) for text in timeouts
    }
    return bad | {
        "a long unit": post(good, 400, "x-unit", "/predict/ab", x_unit="u" * 257),
        "a unit that is not ASCII": post(good, 400, "x-unit", "/predict/ab", x_unit="\xe9"),
        "out of range, by the split": post(with_(age=200), 422, "age", "/predict/ab"),
        "unknown path": post(good, 404, "/predikt", "/predikt"),
        "unknown path below": post(good, 404, "/predict/ab/c", "/predict/ab/c"),
        "a path in capitals": post(good, 404, "/PREDICT", "/PREDICT"),
        "wrong method": ("GET", "/predict", None, {}, 405, "POST"),
        "wrong method, with a body": ("PUT", "/predict/ab", good, {}, 405, "POST"),
        "DELETE": ("DELETE", "/predict", None, {}, 405, "POST"),
        "PATCH": ("PATCH", "/predict", good, {}, 405, "POST"),
        "an unknown model": ("GET", "/v1/models/none", None, {}, 404, "none"),
    }


BAD: dict[str, Bad] = fields() | literals() | bodies() | requests()
