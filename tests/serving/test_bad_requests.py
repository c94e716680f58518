"""Each bad request gets a 4xx whose message names the cause, and the server's next answer is right."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import numpy as np
import pytest
from bad_requests import BAD, ROW, with_
from cases import Release, mixed_body
from running import Running

from compile import open_predictor


@pytest.mark.parametrize("http", ["direct", "asgi"])
def test_each_is_a_4xx_that_names_its_cause_and_harms_no_one(
    http: str, release: Release, serve: Callable[..., Running]
) -> None:
    assert len(BAD) >= 140
    server = serve(release.store, http=http)
    right = float(open_predictor(release.champion).score(ROW[None])[0, 0])
    for title, (method, path, body, headers, status, named) in BAD.items():
        got, _, answer = server.ask(path, body, headers, method)
        assert got == status, (title, got, answer)
        told = json.loads(answer)
        assert named in json.dumps(told), (title, told)
        assert "Traceback" not in answer.decode(), title
        good, _, answer = server.ask("/predict", mixed_body(ROW))
        assert good == 200
        assert json.loads(answer)["probability"] == right, title


def test_a_bad_request_leaves_its_connection_usable(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store)
    good, bad = mixed_body(ROW), with_(age="x")
    requests = b"".join(
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
        for body in (good, bad, good)
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(requests)
        received = b""
        while received.count(b"HTTP/1.1 ") < 3 or not received.endswith(b"}"):
            chunk = connection.recv(65536)
            assert chunk, received
            received += chunk
    statuses = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"422", b"200"]


def test_garbage_on_the_wire_is_a_400(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")
    assert server.ask("/predict", mixed_body(ROW))[0] == 200


def test_a_thousand_bad_bodies_do_not_change_the_next_answer(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store)
    rng = np.random.default_rng(0)
    before = json.loads(server.ask("/predict", mixed_body(ROW))[2])["probability"]
    for _ in range(1000):
        body = bytearray(mixed_body(ROW))
        body[rng.integers(len(body))] = rng.integers(256)
        assert server.ask("/predict", bytes(body))[0] in (200, 400, 422)
    assert json.loads(server.ask("/predict", mixed_body(ROW))[2])["probability"] == before
