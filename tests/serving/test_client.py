"""A client gets the server's answer, or an error that says whose fault it is; what is shed is asked again, never doubled."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Release, mixed_body, mixed_rows
from running import Running

from compile import open_predictor
from serving.client import AsyncClient, Client, Failed, Refused, Unavailable
from serving.outcomes import latest, read_outcomes

ROOT = Path(__file__).parent.parent.parent


def fields_of(row: np.ndarray) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(mixed_body(row))
    return fields


def test_both_clients_get_what_the_model_answers(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store)
    url = f"http://127.0.0.1:{server.port}"
    rows = mixed_rows(20, 3)
    expected = open_predictor(release.champion).score(rows)[:, 0].tolist()
    with Client(url) as client:
        answers = [client.predict(fields_of(row)) for row in rows]
        assert [answer["probability"] for answer in answers] == expected
        assert {(answer.arm, answer.model_version, answer.attempts) for answer in answers} == {("champion", "1", 1)}
        assert [answer["request_id"] for answer in answers] == [answer.request_id for answer in answers]
        arms = {client.predict(fields_of(rows[0]), unit="u1", ab=True).arm for _ in range(5)}
        assert len(arms) == 1
        with pytest.raises(Refused, match="age") as refused:
            client.predict(fields_of(rows[0]) | {"age": "old"})
        assert (refused.value.status, refused.value.field) == (422, "age")

    async def together() -> list[float]:
        async with AsyncClient(url) as client:
            answers = await asyncio.gather(*(client.predict(fields_of(row)) for row in rows))
            return [answer["probability"] for answer in answers]

    assert asyncio.run(together()) == expected
    call = [sys.executable, "-m", "coppice", "predict", "-", "--url", url]
    lines = b"\n".join(mixed_body(row) for row in rows)
    ran = subprocess.run(call, input=lines, cwd=ROOT, capture_output=True, check=True)
    assert [json.loads(line)["probability"] for line in ran.stdout.splitlines()] == expected
    ran = subprocess.run([*call, "--batch", "7"], input=lines, cwd=ROOT, capture_output=True, check=True)
    assert [json.loads(line)["probability"] for line in ran.stdout.splitlines()] == expected
    ran = subprocess.run(call, input=b'{"age":', cwd=ROOT, capture_output=True, check=False)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert b"- line 1" in ran.stderr


class Scripted(BaseHTTPRequestHandler):
    """Answers what the script says, one entry a request; the last again and again."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        script: Any = self.server
        self.rfile.read(int(self.headers["content-length"]))
        script.asked.append((time.monotonic(), self.headers["x-request-id"]))
        status, headers, body = script.script[min(len(script.asked), len(script.script)) - 1]
        self.send_response(status)
        for name, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[Callable[..., Any]]:
    servers = []

    def start(*script: tuple[int, dict[str, str], bytes]) -> Any:
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
        server.script, server.asked, server.daemon_threads = script, [], True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


SHED = (503, {"retry-after": "1"}, b'{"error":"64 rows are waiting"}')
GOOD = (200, {"x-model-version": "3", "x-arm": "champion", "x-routes-generation": "9"}, b'{"prediction":"yes"}')


def test_what_is_shed_is_asked_again_when_the_server_says_so_and_under_one_id(scripted: Callable[..., Any]) -> None:
    server = scripted(SHED, SHED, GOOD)
    with Client(f"http://127.0.0.1:{server.server_port}") as client:
        answer = client.predict({"a": 1})
    assert (answer["prediction"], answer.attempts, answer.generation) == ("yes", 3, 9)
    times, ids = zip(*server.asked, strict=True)
    assert set(ids) == {answer.request_id}
    assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(times))


def test_a_deadline_ends_the_attempts(scripted: Callable[..., Any]) -> None:
    server = scripted(SHED)
    with Client(f"http://127.0.0.1:{server.server_port}", deadline_s=1.5) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="64 rows are waiting"):
            client.predict({"a": 1})
        assert time.monotonic() - began < 3
    with Client("http://127.0.0.1:9", deadline_s=0.3) as client, pytest.raises(Unavailable, match="ConnectError"):
        client.predict({"a": 1})


def test_what_fails_or_is_refused_is_not_asked_again(scripted: Callable[..., Any]) -> None:
    for answer, kind in (((500, {}, b"no JSON"), Failed), ((404, {}, b'{"error":"no model"}'), Refused)):
        server = scripted(answer)
        with Client(f"http://127.0.0.1:{server.server_port}") as client, pytest.raises(kind):
            client.predict({"a": 1})
        assert len(server.asked) == 1


def test_both_clients_send_many_rows_and_what_became_of_them(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store)
    url = f"http://127.0.0.1:{server.port}"
    rows = mixed_rows(20, 3)
    fields = [fields_of(row) for row in rows]
    expected = open_predictor(release.champion).score(rows)[:, 0].tolist()
    with Client(url, model="mixed") as client:
        answer = client.predict_batch(fields)
        assert [row["probability"] for row in answer["predictions"]] == expected
        assert (answer.arm, answer["request_id"]) == ("champion", answer.request_id)
        assert "arm" in client.predict_batch(fields, split=True)["predictions"][0]
        client.feedback(answer.request_id, 0.5, row=3, ts=1.5)
        with pytest.raises(Refused, match="row 1: age") as refused:
            client.predict_batch([fields[0], fields[0] | {"age": "old"}])
        assert (refused.value.status, refused.value.field) == (422, "age")
        with pytest.raises(Refused, match="request_id"):
            client.feedback("no id", True)

    async def together() -> None:
        async with AsyncClient(url) as client:
            answer = await client.predict_batch(fields)
            assert [row["probability"] for row in answer["predictions"]] == expected
            await asyncio.gather(*(client.feedback(f"r{n}", "yes") for n in range(50)))

    asyncio.run(together())
    found = latest(read_outcomes(server.traffic / "outcomes"))
    assert len(found) == 51
    told = found[answer.request_id, 3]
    assert (told.value, told.ts_us) == (0.5, 1_500_000)
