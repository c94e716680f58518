"""One corpus of conversations, three ways of serving, the same bytes: see `conversations`."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cases import Release
from conversations import (
    BODIES,
    BODY,
    CONVERSATIONS,
    DIFFERENT,
    GET,
    LOST,
    Heard,
    Step,
    bare,
    chunked,
    hold,
    post,
)
from hypothesis import given
from hypothesis import strategies as st
from running import Running

LIMIT = 65_536
WAYS: dict[str, dict[str, object]] = {
    "asgi": {"http": "asgi"},
    "direct": {"http": "direct"},
    "python": {"http": "python"},
    "lane": {"http": "direct", "inline_budget_us": 0},
}
PIECES = st.sampled_from(
    [
        *map(post, BODIES[:4]),
        post(b"{"),
        post(BODIES[5], b"x-unit: v", path=b"/predict/ab"),
        post(BODIES[5], b"x-unit: u", path=b"/predict/ab?x=1"),
        chunked(BODIES[6], 7),
        chunked(BODIES[7], 999),
        bare(b"HEAD /predict HTTP/1.1", b"host: x"),
        post(b" " * 100, b"content-type: text/csv"),
        GET,
        LOST,
    ]
)


@pytest.fixture
def servers(release: Release, serve: Callable[..., Running]) -> dict[str, Running]:
    return {way: serve(release.store, max_body_bytes=LIMIT, **knobs) for way, knobs in WAYS.items()}


def all_of(server: Running, conversations: dict[str, list[Step]]) -> dict[str, Heard]:
    with ThreadPoolExecutor(8) as pool:
        heard = pool.map(lambda steps: hold(server.port, steps), conversations.values())
        return dict(zip(conversations, heard, strict=True))


def test_every_conversation_is_the_same_in_every_way_of_serving(servers: dict[str, Running]) -> None:
    assert len(CONVERSATIONS) >= 100
    expected = all_of(servers["asgi"], CONVERSATIONS)
    for way in ("direct", "python", "lane"):
        got = all_of(servers[way], CONVERSATIONS)
        for title in CONVERSATIONS:
            assert got[title] == expected[title], (way, title)


def test_every_conversation_is_the_same_with_an_edge_before_it(
    servers: dict[str, Running], release: Release, serve: Callable[..., Running]
) -> None:
    """Told to the access log; and refused for want of a key, which the application's edge does before it reads the body."""
    watched = serve(release.store, max_body_bytes=LIMIT, access_log=1)
    expected, got = all_of(servers["asgi"], CONVERSATIONS), all_of(watched, CONVERSATIONS)
    keyed = {
        way: serve(release.store, max_body_bytes=LIMIT, api_keys="0" * 64, **WAYS[way]) for way in ("asgi", "direct")
    }
    refused = {way: all_of(server, CONVERSATIONS) for way, server in keyed.items()}
    different = set()
    for title in CONVERSATIONS:
        assert got[title] == expected[title], title
        if refused["direct"][title] != refused["asgi"][title]:
            different.add(title)
    assert different == {
        "half a body",
        "half a body behind a whole one",
        "half-closed in a body",
    }  # not read to its end
    assert b"401" in refused["direct"]["a scoring request"].said


@pytest.mark.parametrize("way", ["direct", "lane"])
def test_where_uvicorn_errs_we_differ_and_say_why(way: str, release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, max_body_bytes=LIMIT, **WAYS[way])
    for title, (why, steps, statuses, end) in DIFFERENT.items():
        if way == "lane" and title == "half-closed behind a request":
            continue  # as uvicorn, and as docs/edge.md says: who closes a side while a row waits has gone
        heard = hold(server.port, steps)
        assert (heard.statuses, heard.end) == (statuses, end), (title, why, heard)
        assert b"late" not in heard.said, (title, why)  # what a trailer said


@given(st.lists(PIECES, min_size=1, max_size=8), st.lists(st.floats(0, 1), max_size=5))
def test_any_pipeline_cut_anywhere_is_answered_alike(
    servers: dict[str, Running], pieces: list[bytes], cuts: list[float]
) -> None:
    sent = b"".join(pieces)
    places = [0, *sorted(int(cut * len(sent)) for cut in cuts), len(sent)]
    steps: list[Any] = []
    for begin, end in pairwise(places):
        steps += [sent[begin:end], 0.001]
    heard = {way: hold(server.port, steps, answers=len(pieces)) for way, server in servers.items()}
    assert heard["direct"] == heard["asgi"] == heard["lane"]
    assert len(heard["direct"].statuses) == len(pieces)


@pytest.mark.parametrize("way", ["direct", "lane"])
def test_a_request_split_at_any_byte_has_one_answer(way: str, release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, **WAYS[way])
    for request in (post(), chunked(BODY, 40)):
        whole = hold(server.port, [request])
        with ThreadPoolExecutor(16) as pool:
            splits = [[request[:at], 0.002, request[at:]] for at in range(1, len(request))]
            assert set(pool.map(lambda steps: hold(server.port, steps), splits)) == {whole}
        assert (
            hold(server.port, [step for at in range(len(request)) for step in (request[at : at + 1], 0.0005)]) == whole
        )


@pytest.mark.parametrize("way", ["direct", "lane"])
def test_who_sends_and_never_reads_fills_nothing(way: str, release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, **WAYS[way])
    (worker,) = server.workers()
    requests = b"".join(post(BODIES[n % 20], b"x-request-id: n%d" % n) for n in range(40_000))
    before = resident_mb(worker)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(1.0)
        sent = send_until_it_blocks(connection, requests)
        assert sent < len(requests)
        assert resident_mb(worker) - before < 12
        assert server.ask("/predict", BODY)[0] == 200  # the others are served meanwhile
        connection.settimeout(10)
        whole = requests[:sent].count(b"POST /") - 1
        answers = b""
        while answers.count(b'"request_id":"n%d"' % (whole - 1)) == 0:
            chunk = connection.recv(1 << 20)
            assert chunk
            answers += chunk
    ids = [int(part.split(b'"')[0]) for part in answers.split(b'"request_id":"n')[1:]]
    assert ids == list(range(len(ids)))


def test_a_pipeline_of_thousands_is_answered_in_order(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, **WAYS["lane"])
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        count = 3000
        with ThreadPoolExecutor(1) as pool:
            pool.submit(
                connection.sendall,
                b"".join((post(BODY, b"x-request-id: n%d" % n) if n % 3 else GET) for n in range(count)) + post(b"["),
            )
            answers = b""
            while b" 400 Bad Request" not in answers:
                chunk = connection.recv(1 << 20)
                assert chunk
                answers += chunk
    assert answers.count(b"HTTP/1.1 200 OK") == count
    ids = [int(part.split(b'"')[0]) for part in answers.split(b'"request_id":"n')[1:]]
    assert ids == [n for n in range(count) if n % 3]


def test_the_idle_the_slow_and_the_deaf_are_closed(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, keep_alive_s=1)
    began = time.monotonic()
    said = {
        "idle after an answer": [post()],
        "idle before a request": [0.01],
        "half a request": [post()[:-5]],
        "half a head": [post()[:50]],
    }
    with ThreadPoolExecutor(4) as pool:
        heard = dict(zip(said, pool.map(lambda s: hold(server.port, [*s, "silent"], 5.0), said.values()), strict=True))
    assert 0.9 < time.monotonic() - began < 4
    assert {title: (one.statuses, one.end) for title, one in heard.items()} == {
        "idle after an answer": ([200], "closed"),
        "idle before a request": ([], "closed"),
        "half a request": ([408], "closed"),
        "half a head": ([408], "closed"),
    }
    busy = [step for _ in range(5) for step in (post(), 0.5)]
    assert hold(server.port, busy).statuses == [200] * 5


def send_until_it_blocks(connection: socket.socket, data: bytes) -> int:
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < len(data):
            sent += connection.send(data[sent : sent + 65_536])
    return sent


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
