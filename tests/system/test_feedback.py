"""`/feedback` on a real server: what was answered 202 outlives a kill -9; what a disk refuses is a 503, and scoring goes on."""

from __future__ import annotations

import http.client
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable

from cases import Release, mixed_body, mixed_rows
from running import Running

from serving import page
from serving.outcomes import latest, read_outcomes

BODY = mixed_body(mixed_rows(1, 3)[0])


def test_what_was_acknowledged_outlives_a_kill(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, workers=2)
    acknowledged: list[list[tuple[str, float]]] = [[] for _ in range(6)]
    stop = threading.Event()

    def tell(sender: int) -> None:
        for n in range(100_000):
            if stop.is_set():
                return
            outcomes = [(f"s{sender}-{n}-{k}", n / 7) for k in range(1 + n % 3)]
            body = [{"request_id": request_id, "value": value} for request_id, value in outcomes]
            try:
                status = server.ask("/feedback", json.dumps(body).encode())[0]
            except (OSError, http.client.HTTPException):  # the worker was killed: nothing was acknowledged
                continue
            if status == 202:
                acknowledged[sender] += outcomes

    senders = [threading.Thread(target=tell, args=(n,)) for n in range(6)]
    for sender in senders:
        sender.start()
    for _ in range(3):
        time.sleep(0.4)
        for pid in server.workers()[:1]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)
    stop.set()
    for sender in senders:
        sender.join()
    expected = {request_id: value for told in acknowledged for request_id, value in told}
    assert len(expected) > 100
    found = {outcome.request_id: outcome.value for outcome in read_outcomes(server.traffic / "outcomes")}
    assert {request_id: found.get(request_id) for request_id in expected} == expected


def test_a_disk_that_refuses_is_a_503_and_scoring_goes_on(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store)
    (pid,) = server.workers()
    one = json.dumps({"request_id": "small", "value": "yes"}).encode()
    many = json.dumps([{"request_id": f"large-{n}", "row": n, "value": True} for n in range(4000)]).encode()
    assert server.ask("/feedback", one)[0] == 202
    no_limit = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, no_limit[1]))
    for _ in range(3):
        status, headers, told = server.ask("/feedback", many)
        assert (status, headers["retry-after"] in "123") == (503, True), told
        assert "could not be written" in json.loads(told)["error"]
        assert server.ask("/predict", BODY)[0] == 200
        assert server.ask("/feedback", one)[0] == 202
    cells = server.page().slots()[0].cells
    assert cells[page.OUTCOMES_REFUSED] == 12_000
    resource.prlimit(pid, resource.RLIMIT_FSIZE, no_limit)
    assert server.ask("/feedback", many)[0] == 202
    metrics = server.ask("/metrics")[2].decode()
    assert "coppice_outcomes_written_total 4004.0" in metrics
    assert "coppice_outcomes_refused_total 12000.0" in metrics
    assert server.stop() == 0
    found = latest(read_outcomes(server.traffic / "outcomes"))
    assert len(found) == 4001
    assert not list((server.traffic / "outcomes" / "open").iterdir())


def test_feedback_finds_its_row_by_the_id_of_the_answer(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store)
    answer = json.loads(server.ask("/predict", BODY)[2])
    assert server.ask("/feedback", json.dumps({"request_id": answer["request_id"], "value": 1}).encode())[0] == 202
    status, _, told = server.ask("/feedback", b'[{"request_id": "a", "value": 1}, {"request_id": "b"}]')
    assert (status, json.loads(told)["row"], json.loads(told)["field"]) == (422, 1, "value")
    assert set(latest(read_outcomes(server.traffic / "outcomes"))) == {(answer["request_id"], 0)}
