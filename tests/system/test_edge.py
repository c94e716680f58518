"""The edge of a real server, by both ways of serving: keys, rates, named arms, traces, compressed bodies, the access log."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_requests import BAD
from cases import Release, mixed_body, mixed_rows
from running import Running
from test_changes import metric, wait_for

from monitoring.compaction import compact
from monitoring.lake import window
from monitoring.reconcile import reconcile

BODY = mixed_body(mixed_rows(1)[0])
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = PARENT.split("-")[1:3]
WAYS = pytest.mark.parametrize("knobs", [{}, {"http": "asgi"}, {"inline_budget_us": 0}], ids=["direct", "asgi", "lane"])
Serve = Callable[..., Running]


def line(key: str, name: str, more: str = "") -> str:
    return f"{hashlib.sha256(key.encode()).hexdigest()} {name} {more}\n"


def bearer(key: str, **headers: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} | {name.replace("_", "-"): value for name, value in headers.items()}


@WAYS
def test_keys_stand_before_every_path_but_health(
    release: Release, serve: Serve, tmp_path: Path, knobs: dict[str, Any]
) -> None:
    keys = tmp_path / "api.keys"
    keys.write_text(line("first", "shop") + line("second", "bank"))
    server = serve(release.store, api_keys=keys, admin_keys=hashlib.sha256(b"admin").hexdigest(), **knobs)
    asked: list[tuple[str, bytes | None, str | None]] = [
        ("/predict", BODY, None),
        ("/predict/ab", BODY, None),
        ("/predict?x=1", BODY, None),
        ("/%70redict", BODY, None),
        ("/v1/models/mixed/predict", BODY, None),
        ("/v1/models/none/predict", BODY, None),
        ("/predict/batch", BODY, None),
        ("/predict", None, "GET"),
        ("/predict", b" " * 2_000_000, None),
        ("/predict", b"{", "PUT"),
        ("/v1/models", None, None),
        ("/docs", None, None),
        ("/openapi.json", None, None),
        ("/nowhere", None, None),
    ]
    for path, body, method in asked:
        status, headers, told = server.ask(path, body, {}, method)
        assert (status, headers["www-authenticate"]) == (401, "Bearer"), path
        assert "API key" in json.loads(told)["error"]
        for wrong in ("third", hashlib.sha256(b"first").hexdigest(), "firs", "first "[:5] + "x"):
            assert server.ask(path, body, bearer(wrong), method)[0] == 403, path
        assert server.ask(path, body, bearer("first"), method)[0] not in (401, 403), path
    assert server.ask("/predict", BODY, {"x-api-key": "second"})[0] == 200
    assert server.ask("/predict", BODY, {"authorization": "Basic first"})[0] == 401
    for path in ("/healthz", "/readyz", "/metrics"):
        assert server.ask(path)[0] == 200
    assert server.ask("/v1/admin/routes/mixed", None, bearer("admin"))[0] == 200
    assert server.ask("/v1/admin/routes/mixed", None, bearer("first"))[0] == 403
    assert server.ask("/predict", BODY, bearer("admin"))[0] == 403

    keys.write_text(line("second", "bank") + line("third", "shop"))
    wait_for(lambda: server.ask("/predict", BODY, bearer("first"))[0] == 403, server)
    assert server.ask("/predict", BODY, bearer("third"))[0] == 200
    keys.unlink()
    wait_for(lambda: server.ask("/predict", BODY, bearer("third"))[0] == 403, server)
    assert metric(server, 'coppice_unauthorised_total{reason="missing"}') == len(asked) + 1
    assert metric(server, 'coppice_unauthorised_total{reason="wrong"}') >= 4 * len(asked) + 3


@WAYS
def test_a_key_has_its_rate(release: Release, serve: Serve, tmp_path: Path, knobs: dict[str, Any]) -> None:
    keys = tmp_path / "api.keys"
    keys.write_text(line("slow", "slow", "rate=0.001 burst=5") + line("free", "free"))
    server = serve(release.store, api_keys=keys, **knobs)
    told = [server.ask(path, BODY, bearer("slow")) for path in ["/predict", "/predict?x"] * 4]
    assert [status for status, _, _ in told] == [200] * 5 + [429] * 3
    assert 900 <= int(told[-1][1]["retry-after"]) <= 1000
    assert server.ask("/v1/models", None, bearer("slow"))[0] == 429
    assert {server.ask("/predict", BODY, bearer("free"))[0] for _ in range(20)} == {200}
    assert metric(server, 'coppice_shed_total{reason="rate"}') == 4
    assert metric(server, 'coppice_requests_total{outcome="4xx"}') == 4


@WAYS
def test_a_tester_names_the_arm_and_experiments_leave_it_out(
    release: Release, serve: Serve, tmp_path: Path, knobs: dict[str, Any]
) -> None:
    store = Path(shutil.copytree(release.store, tmp_path / "store"))
    keys = tmp_path / "api.keys"
    keys.write_text(line("test", "tests", "override") + line("shop", "shop"))
    server = serve(store, api_keys=keys, workers=1, **knobs)
    for path in ("/predict", "/predict/ab", "/v1/models/mixed/predict/ab", "/predict?x=1"):
        for arm, version in (("champion", "1"), ("challenger", "2")):
            asked = bearer("test", x_arm=arm, x_request_id=f"{path}-{arm}".replace("?", "-"))
            status, headers, told = server.ask(path, BODY, asked)
            assert (status, headers["x-arm"], headers["x-model-version"]) == (200, arm, version)
            assert json.loads(told)["arm"] == arm
        status, _, told = server.ask(path, BODY, bearer("test", x_arm="nobody"))
        assert (status, "challenger" in json.loads(told)["error"]) == (400, True)
        status, _, told = server.ask(path, BODY, bearer("shop", x_arm="champion"))
        assert (status, "x-arm" in json.loads(told)["error"]) == (403, True)
    assert server.ask("/predict", BODY, bearer("shop", x_request_id="plain"))[0] == 200
    assert server.ask("/predict", b"{}", bearer("test", x_arm="challenger"))[0] == 422
    assert metric(server, "coppice_overrides_total") == 9
    assert server.stop() == 0
    compact(server.traffic, tmp_path / "lake")
    rows = window(tmp_path / "lake", "mixed").to_pylist()
    overridden = [row for row in rows if row["role"] == "override"]
    assert len(overridden) == 8
    assert all(row["request_id"].endswith(row["arm"]) for row in overridden)
    assert [row["request_id"] for row in rows if row["role"] == "served"] == ["plain"]
    assert not reconcile(server.traffic, tmp_path / "lake").faults


@WAYS
def test_without_keys_nobody_names_an_arm(release: Release, serve: Serve, knobs: dict[str, Any]) -> None:
    server = serve(release.store, **knobs)
    assert server.ask("/predict/ab", BODY, {"x-arm": "challenger"})[0] == 403
    assert server.ask("/predict/ab", BODY, {"authorization": "Bearer x", "x-unit": "a"})[0] == 200


@WAYS
def test_a_trace_is_found_by_its_id(release: Release, serve: Serve, tmp_path: Path, knobs: dict[str, Any]) -> None:
    server = serve(release.store, **knobs)
    for path in ("/predict", "/predict/ab", "/predict?x=1"):
        status, headers, told = server.ask(path, BODY, {"traceparent": PARENT})
        assert (status, headers["x-trace-id"], headers["x-request-id"]) == (200, TRACE, f"{TRACE}-{SPAN}")
        assert json.loads(told)["request_id"] == f"{TRACE}-{SPAN}"
        status, headers, _ = server.ask(path, BODY, {"traceparent": PARENT, "x-request-id": "mine"})
        assert (headers["x-trace-id"], headers["x-request-id"]) == (TRACE, "mine")
        status, headers, _ = server.ask(path, b"{", {"traceparent": PARENT})
        assert (status, headers["x-trace-id"], headers["x-request-id"]) == (400, TRACE, f"{TRACE}-{SPAN}")
        status, headers, _ = server.ask(path, BODY, {"traceparent": PARENT.upper()})
        assert (status, "x-trace-id" in headers) == (200, False)
    assert server.ask("/v1/models", None, {"traceparent": PARENT})[1]["x-trace-id"] == TRACE
    assert server.stop() == 0
    compact(server.traffic, tmp_path / "lake")
    ids = [row["request_id"] for row in window(tmp_path / "lake", "mixed").to_pylist()]
    assert ids.count(f"{TRACE}-{SPAN}") == ids.count("mine") == 3


@WAYS
def test_bodies_may_be_compressed(release: Release, serve: Serve, knobs: dict[str, Any]) -> None:
    server = serve(release.store, max_body_bytes=65_536, **knobs)
    plain = json.loads(server.ask("/predict", BODY)[2])["probability"]
    for path in ("/predict", "/predict?x=1"):
        for encoding, body in (
            ("gzip", gzip.compress(BODY)),
            ("x-gzip", gzip.compress(BODY)),
            ("deflate", zlib.compress(BODY)),
            ("identity", BODY),
            ("GZIP", gzip.compress(BODY + b" " * (65_536 - len(BODY)))),
        ):
            status, _, told = server.ask(path, body, {"content-encoding": encoding})
            assert (status, json.loads(told).get("probability")) == (200, plain), (encoding, told)
        for encoding, body, wanted, word in (
            ("br", BODY, 415, "br"),
            ("gzip, gzip", gzip.compress(gzip.compress(BODY)), 415, "gzip, gzip"),
            ("gzip", BODY, 400, "gzip"),
            ("gzip", gzip.compress(BODY)[:-4], 400, "gzip"),
            ("gzip", b"", 400, "gzip"),
            ("gzip", gzip.compress(b"{}"), 422, "age"),
            ("gzip", gzip.compress(b" " * 65_537), 413, "65536"),
            ("gzip", gzip.compress(b" " * 60_000_000), 413, "65536"),
            ("gzip", b" " * 70_000, 413, "65536"),
        ):
            status, _, told = server.ask(path, body, {"content-encoding": encoding})
            assert (status, word in json.loads(told)["error"]) == (wanted, True), (encoding, status, told)


@WAYS
def test_both_edges_answer_alike(release: Release, serve: Serve, tmp_path: Path, knobs: dict[str, Any]) -> None:
    """The protocol's own answers against those of the application, asked on the same server by a query string."""
    keys = tmp_path / "api.keys"
    keys.write_text(line("k", "tests", "override") + line("none", "none", "rate=1e-9 burst=1"))
    server = serve(release.store, api_keys=keys, access_log=1, **knobs)
    server.ask("/predict", BODY, bearer("none"))
    conversations: list[dict[str, str]] = [
        {},
        bearer("wrong"),
        bearer("none"),
        bearer("k", x_request_id="r"),
        bearer("k", x_request_id="r", traceparent=PARENT),
        bearer("k", traceparent=PARENT),
        bearer("wrong", traceparent=PARENT),
        bearer("k", x_request_id="r", x_arm="challenger"),
        bearer("k", x_request_id="r", x_arm="challenger", traceparent=PARENT),
        bearer("k", x_request_id="r", x_arm="none", traceparent=PARENT),
        bearer("k", x_request_id="r", content_encoding="br", traceparent=PARENT),
        bearer("k", x_request_id="r", content_type="text/csv"),
    ]
    for headers in conversations:
        for body in (BODY, b"{}"):
            fast, slow = (timeless(server.ask(path, body, headers)) for path in ("/predict", "/predict?x=1"))
            assert fast == slow, headers


def timeless(told: tuple[int, dict[str, str], bytes]) -> tuple[int, list[tuple[str, str]], bytes]:
    status, headers, body = told
    return status, [pair for pair in headers.items() if pair[0] not in ("date", "server-timing")], body


@WAYS
def test_the_access_log_has_a_line_for_each_answer(
    release: Release, serve: Serve, tmp_path: Path, knobs: dict[str, Any]
) -> None:
    keys = tmp_path / "api.keys"
    keys.write_text(line("k", "the shop"))
    server = serve(release.store, api_keys=keys, access_log=1, **knobs)
    server.ask("/predict", BODY, bearer("k", x_request_id="one"))
    server.ask("/predict/ab?who=secret", BODY, bearer("k", traceparent=PARENT))
    server.ask("/predict", b"{", bearer("k", x_request_id="two"))
    server.ask("/predict", BODY)
    server.ask("/v1/models", None, bearer("k"))
    for path in ("/healthz", "/readyz", "/metrics"):
        server.ask(path)
    assert server.stop() == 0
    lines = access_lines(server)
    told = [
        (at["method"], at["path"], at["status"], at.get("request_id"), at.get("key"), at.get("arm")) for at in lines
    ]
    assert told[0] == ("POST", "/predict", 200, "one", "the shop", "champion")
    assert told[1][:3] == ("POST", "/predict/ab", 200)
    assert told[1][3:5] == (f"{TRACE}-{SPAN}", "the shop")
    assert told[2] == ("POST", "/predict", 400, "two", "the shop", None)
    assert told[3] == ("POST", "/predict", 401, None, None, None)
    assert told[4] == ("GET", "/v1/models", 200, None, "the shop", None)
    assert len(told) == 5
    assert lines[0]["bytes_in"] == len(BODY)
    assert lines[0]["bytes_out"] > 80
    assert lines[1]["trace_id"] == TRACE
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", lines[0]["ts"])


def access_lines(server: Running) -> list[dict[str, Any]]:
    """The log of a test's server has stdout and stderr."""
    written = server.log.read_text(encoding="utf-8").splitlines()
    return [json.loads(text) for text in written if text.startswith("{")]


@WAYS
def test_nothing_secret_is_in_any_log(release: Release, serve: Serve, tmp_path: Path, knobs: dict[str, Any]) -> None:
    keys = tmp_path / "api.keys"
    keys.write_text(line("secret-of-key", "shop", "override") + "secret-of-line shop\n")
    admin = tmp_path / "admin.keys"
    admin.write_text(line("secret-of-admin", "ops"))
    server = serve(release.store, api_keys=keys, admin_keys=admin, access_log=1, **knobs)
    secret = {
        "x-unit": "secret-of-unit",
        "x-other": "secret-of-header",
        "cookie": "session=secret-of-cookie",
        "tracestate": "a=secret-of-state",
        "traceparent": PARENT,
    }
    told = json.dumps(json.loads(BODY) | {"region": "secret-of-region", "more": "secret-of-more"}).encode()
    spoilt = json.dumps(json.loads(BODY) | {"age": "secret-of-age"}).encode()
    paths = [
        "/predict", "/predict/ab", "/predict/batch", "/feedback", "/invocations", "/v1/models/mixed/predict",
        "/v1/models/mixed:predict", "/v2/models/mixed/infer", "/v1/models", "/nowhere", "/v1/admin/routes/mixed/promote",
        "/predict?token=secret-of-query", "/healthz", "/docs",
    ]  # fmt: skip
    key_headers: list[dict[str, str]] = [
        bearer("secret-of-key"),
        {"x-api-key": "secret-of-key"},
        bearer("secret-of-guess"),
        bearer("secret-of-admin"),
        {"authorization": "Basic secret-of-basic"},
        {},
    ]
    bodies = [told, spoilt, b'{"secret-of-body', b'["secret-of-list"]', b"secret-of-text", gzip.compress(told)]
    for path in paths:
        for headers in key_headers:
            for body in bodies:
                server.ask(path, body, secret | headers)
        server.ask(path, bodies[2], secret | bearer("secret-of-key", content_encoding="gzip"))
        server.ask(path, told, secret | bearer("secret-of-key", content_type="text/secret-of-type"))
        server.ask(path, told, secret | bearer("secret-of-key", x_arm="secret-of-arm"))
        server.ask(path, told, secret | bearer("secret-of-key", x_request_timeout_ms="secret-of-timeout"))
    for method, path, body, headers, _, _ in BAD.values():
        server.ask(path, body, headers | bearer("secret-of-key", cookie="secret-of-cookie"), method)
    raw(server, b"POST /predict HTTP/1.1\r\nhost: x\r\nsecret-of-line\r\n\r\n")
    assert server.stop() == 0
    written = server.log.read_text(encoding="utf-8")
    assert "secret" not in written.replace(str(tmp_path), ""), written[:2000]
    assert hashlib.sha256(b"secret-of-key").hexdigest() not in written
    assert len(access_lines(server)) > len(paths) * len(key_headers)


def raw(server: Running, sent: bytes) -> bytes:
    import socket

    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))
