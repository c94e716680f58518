"""HTTPS by the same protocol class: a certificate made by openssl, clients that check it, and those that speak no TLS."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import Release, mixed_body, mixed_rows
from running import Running
from test_changes import wait_for

from serving.errors import SettingsRefused
from serving.settings import Settings
from serving.tls import refuse_unusable

BODY = mixed_body(mixed_rows(1)[0])


def make_pair(folder: Path, name: str, *more: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert),
            *(more or ("-nodes",)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def ask(
    server: Running, trusted: Path, path: str, body: bytes | None = None, times: int = 1
) -> list[tuple[int, bytes]]:
    """On one connection, whose certificate must be the trusted one."""
    context = ssl.create_default_context(cafile=trusted)
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=context)
    told = []
    for _ in range(times):
        connection.request("GET" if body is None else "POST", path, body)
        answer = connection.getresponse()
        told.append((answer.status, answer.read()))
    connection.close()
    return told


@pytest.mark.parametrize("knobs", [{}, {"http": "asgi"}, {"inline_budget_us": 0}], ids=["direct", "asgi", "lane"])
def test_scores_come_over_tls(
    release: Release, serve: Callable[..., Running], tmp_path: Path, knobs: dict[str, object]
) -> None:
    cert, key = make_pair(tmp_path, "one")
    server = serve(release.store, tls_cert=cert, tls_key=key, **knobs)
    assert f"ready on https://127.0.0.1:{server.port}" in server.log.read_text(encoding="utf-8")
    told = ask(server, cert, "/predict", BODY, 20)
    assert {status for status, _ in told} == {200}
    assert {json.loads(body)["arm"] for _, body in told} == {"champion"}
    assert [status for status, _ in ask(server, cert, "/predict", b" " * 900_000 + BODY, 2)] == [200, 200]
    assert [status for path in ("/readyz", "/metrics") for status, _ in ask(server, cert, path)] == [200, 200]
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(server, make_pair(tmp_path, "other")[0], "/healthz")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert not b"".join(iter(lambda: plain.recv(1000), b"")).startswith(b"HTTP/1.1 200")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(cert)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname="127.0.0.1")
    assert ask(server, cert, "/predict", BODY)[0][0] == 200
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


def test_sighup_takes_a_new_certificate_up_and_none_that_is_broken(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    cert, key = make_pair(tmp_path, "one")
    server = serve(release.store, tls_cert=cert, tls_key=key, workers=2)
    first = tmp_path / "first.pem"
    first.write_bytes(cert.read_bytes())
    new_cert, new_key = make_pair(tmp_path, "two")
    cert.write_bytes(new_cert.read_bytes())
    key.write_bytes(new_key.read_bytes())
    assert ask(server, first, "/healthz")[0][0] == 200
    before = set(server.workers())
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(server.workers()) == 2 and not before & set(server.workers()), server, 60)
    wait_for(lambda: all(slot.state == 2 for slot in server.page().slots()), server, 60)
    for _ in range(10):
        assert ask(server, new_cert, "/predict", BODY)[0][0] == 200

    wait_for(lambda: server.sync() != 0, server)
    key.write_bytes(b"no key")
    (stays,) = server.workers()[1:]
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "can't serve: COPPICE_TLS_CERT" in server.log.read_text(encoding="utf-8"), server, 60)
    assert stays in server.workers()  # and waits for its turn, which comes when the first one is ready again
    key.write_bytes(new_key.read_bytes())
    wait_for(lambda: stays not in server.workers() and len(server.workers()) == 2, server, 60)
    wait_for(lambda: all(slot.state == 2 for slot in server.page().slots()), server, 60)
    assert ask(server, new_cert, "/predict", BODY)[0][0] == 200


def test_what_is_no_pair_is_refused_by_name(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "one")
    _, other = make_pair(tmp_path, "two")
    _, locked = make_pair(tmp_path, "three", "-passout", "pass:long-enough")
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    refuse_unusable(Settings())
    refuse_unusable(Settings(tls_cert=str(cert), tls_key=str(key)))
    refuse_unusable(Settings(tls_cert=str(both)))
    for name, given in (
        ("COPPICE_TLS_KEY", {"tls_key": str(key)}),
        ("COPPICE_TLS_CERT", {"tls_cert": str(tmp_path / "nowhere"), "tls_key": str(key)}),
        ("COPPICE_TLS_KEY", {"tls_cert": str(cert), "tls_key": str(tmp_path / "nowhere")}),
        ("COPPICE_TLS_CERT", {"tls_cert": str(cert), "tls_key": str(other)}),
        ("COPPICE_TLS_CERT", {"tls_cert": str(cert)}),
        ("encrypted", {"tls_cert": str(cert), "tls_key": str(locked)}),
    ):
        with pytest.raises(SettingsRefused, match=name):
            refuse_unusable(Settings(**given))
    call = [sys.executable, "-m", "coppice", "serve"]
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
        "HOME": str(tmp_path),
    }
    environment |= {"COPPICE_TLS_CERT": str(cert), "COPPICE_TLS_KEY": str(other)}
    ran = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "COPPICE_TLS_CERT" in ran.stderr
