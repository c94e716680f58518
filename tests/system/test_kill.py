"""kill -9 of a worker under load: the other goes on, a successor starts, and the books name exactly what was lost."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow.compute as pc
from cases import Release, mixed_body, mixed_rows
from pacing import Load
from running import Running
from test_changes import generation, metric, wait_for

from monitoring.compaction import compact
from monitoring.lake import window
from monitoring.reconcile import reconcile
from monitoring.segments import live_writers
from serving import routes
from serving.page import READY, STATE, Page

ROOT = Path(__file__).parent.parent.parent


class Client(threading.Thread):
    """Asks on one connection until told to stop; when the connection breaks, opens another. Keeps the ids it was given."""

    def __init__(self, port: int, bodies: list[bytes]) -> None:
        super().__init__(daemon=True)
        self.port, self.bodies = port, bodies
        self.ids: list[str] = []
        self.broken = 0
        self.other: list[int] = []
        self.stopping = False

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        n = 0
        while not self.stopping:
            n += 1
            try:
                connection.request(
                    "POST", "/predict/ab", self.bodies[n % len(self.bodies)], {"content-type": "application/json"}
                )
                answer = connection.getresponse()
                told = json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                self.broken += 1
                connection.close()
                continue
            if answer.status == 200:
                self.ids.append(told["request_id"])
            else:
                self.other.append(answer.status)
        connection.close()


def test_a_killed_worker_costs_its_unflushed_rows_and_no_more(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    server = serve(release.store, workers=2)
    clients = [Client(server.port, [mixed_body(row) for row in mixed_rows(50, seed)]) for seed in range(8)]
    for client in clients:
        client.start()
    time.sleep(2.5)  # more than the log's flush time: some blocks are acknowledged
    (path,) = (server.traffic / "pages").glob("*.page")
    shared = Page.open(path, readonly=True)
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    deadline = time.monotonic() + 30
    while len(server.workers()) < 2 or before[0] in server.workers() or not ready(shared):
        assert time.monotonic() < deadline, server.log.read_text(encoding="utf-8")
        time.sleep(0.05)
    answered = [len(client.ids) for client in clients]
    time.sleep(1.0)
    assert before[1] in server.workers()  # the other went on
    assert sum(len(client.ids) for client in clients) > sum(answered)
    for client in clients:
        client.stopping = True
    for client in clients:
        client.join(15)
    assert server.stop() == 0
    assert not live_writers(server.traffic)

    lake = tmp_path / "lake"
    compact(server.traffic, lake)
    compact(server.traffic, lake)
    books = reconcile(server.traffic, lake)
    assert not books.faults, books
    assert len(books.writers) == 3
    assert books.total("dropped") == 0
    assert books.total("served") == books.total("logged") + books.total("lost")
    dead = [writer for writer in books.writers if writer.lost]
    assert len(dead) <= 1
    for writer in dead:
        assert writer.logged >= writer.acknowledged > 0
        assert sum(last - first + 1 for first, last in writer.ranges) == writer.lost
    logged = (
        window(lake, "mixed", columns=["request_id"], where=pc.field("role") == "served")
        .column("request_id")
        .to_pylist()
    )
    assert len(set(logged)) == len(logged)
    given = {given for client in clients for given in client.ids}
    assert len(given - set(logged)) <= books.total("lost")
    assert not [status for client in clients for status in client.other]
    assert 1 <= sum(client.broken for client in clients) <= len(clients)


def ready(shared: Page) -> bool:
    return all(slot.cells[STATE] == READY for slot in shared.slots())


def test_when_the_supervisor_dies_the_workers_drain_and_seal(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    server = serve(release.store, workers=2)
    for row in mixed_rows(100):
        server.ask("/predict", mixed_body(row))
    workers = server.workers()
    server.process.kill()
    server.process.wait(10)
    deadline = time.monotonic() + 20
    while any(
        Path(f"/proc/{pid}/stat").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
        for pid in workers
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    compact(server.traffic, tmp_path / "lake")
    books = reconcile(server.traffic, tmp_path / "lake")
    assert not books.faults
    assert books.total("logged") == books.total("served") == 100
    server.process.returncode = 0  # was ended by this test, as it meant to


def test_each_process_may_be_killed_in_turn(release: Release, serve: Callable[..., Running], tmp_path: Path) -> None:
    """Workers one by one, then the sync process, which no client notices; a change goes through after each."""
    store = Path(shutil.copytree(release.store, tmp_path / "store"))
    server = serve(store, workers=2, sync_s=0.05)
    load = Load(server.port, 200, [mixed_body(row) for row in mixed_rows(20)], ["/predict/ab"], ["a", "b"])
    load.start()

    def up() -> bool:
        return len(server.workers()) == 2 and server.sync() != 0 and ready(server.page())

    for victim in (0, 1, None):
        pid = server.sync() if victim is None else server.workers()[victim]
        failed = len(load.failed)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: up() and pid not in (*server.workers(), server.sync()), server)  # type: ignore[misc]
        now = routes.read(store, "mixed")
        after = msgspec.structs.replace(now, generation=now.generation + 1, note="after a kill")
        routes.publish(store, after)
        wait_for(lambda after=after: generation(server) == after.generation, server)  # type: ignore[misc]
        wait_for(lambda: len({worker["release"] for worker in workers_of(server)}) == 1, server)
        if victim is None:
            assert len(load.failed) == failed
    time.sleep(0.5)
    load.finish()
    assert len(load.failed) <= load.connections  # the connections that the killed workers held, each once or so
    assert metric(server, "coppice_sync_starts_total") == 2
    assert {one.status for one in load.told} == {200}
    assert {one.generation for one in load.told if one.at > load.told[-1].at - 0.1} == {4}


def workers_of(server: Running) -> list[dict[str, int]]:
    told: list[dict[str, int]] = json.loads(server.ask("/readyz")[2])["workers"]
    return told


def test_a_rolling_restart_fails_no_request(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, workers=2, drain_delay_s=0.5)
    before = {*server.workers(), server.sync()}
    load = Load(server.port, 300, [mixed_body(row) for row in mixed_rows(20)], ["/predict/ab"], ["a", "b"])
    load.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGHUP)
    least_ready = 2

    def rolled() -> bool:
        nonlocal least_ready
        status, _, told = server.ask("/readyz")
        assert status == 200, told
        least_ready = min(least_ready, sum(worker["ready"] for worker in json.loads(told)["workers"]))
        present = {*server.workers(), server.sync()}
        return len(present) == 3 and not present & before and 0 not in present and ready(server.page())

    wait_for(rolled, server, 40)
    time.sleep(0.5)
    load.finish()
    assert not load.failed
    assert {one.status for one in load.told} == {200}
    assert least_ready == 1  # never both at once
    assert max(one.took_s for one in load.told) < 5


def test_a_unix_socket_is_served_by_all_workers(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    path = tmp_path / "coppice.sock"
    server = serve(release.store, workers=2, host=f"unix:{path}")
    pids = set()
    for _ in range(200):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            body = mixed_body(mixed_rows(1)[0])
            client.sendall(
                b"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            told = b"".join(iter(lambda client=client: client.recv(65536), b""))  # type: ignore[misc]
            assert told.startswith(b"HTTP/1.1 200"), told
            pids.add(told.split(b"x-request-id: ")[1].split(b"\r\n")[0][14:22])
    assert len(pids) == 2  # the mark of the worker's log in the id
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COPPICE_")}
    environment |= {"COPPICE_STORE": str(release.store), "COPPICE_HOST": f"unix:{path}", "PYTHONPATH": str(ROOT)}
    second = subprocess.run(
        [sys.executable, "-m", "coppice", "serve"], env=environment, cwd=tmp_path, capture_output=True, check=False
    )
    assert second.returncode == 2  # taken
    assert server.stop() == 0
    assert not path.exists()


def test_when_the_supervisor_dies_so_does_the_sync_process(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, workers=1)
    sync = server.sync()
    server.process.kill()
    server.process.wait(10)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{sync}/stat").exists() and "Z" not in Path(f"/proc/{sync}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.process.returncode = 0  # was ended by this test, as it meant to


def test_shadow_rows_are_logged_and_never_answer(
    release: Release, serve: Callable[..., Running], tmp_path: Path
) -> None:
    from cases import publish_routes

    store = tmp_path / "store"
    shutil.copytree(release.store, store)
    shutil.rmtree(store / "routes")
    publish_routes(
        store, {"champion": release.digest("champion")}, {"champion": 100}, shadow=release.digest("challenger")
    )
    server = serve(store)
    for row in mixed_rows(50, 8):
        assert json.loads(server.ask("/predict/ab", mixed_body(row))[2])["arm"] == "champion"
    assert server.stop() == 0
    compact(server.traffic, tmp_path / "lake")
    rows = window(tmp_path / "lake", "mixed").to_pylist()
    served = {row["request_id"]: row for row in rows if row["role"] == "served"}
    shadow = {row["request_id"]: row for row in rows if row["role"] == "shadow"}
    assert served.keys() == shadow.keys()
    assert len(served) == 50
    assert {row["version"] for row in shadow.values()} == {"2"}
    for request_id, row in shadow.items():  # bit for bit: a missing value is NaN, which equals nothing
        assert str(row["features"]) == str(served[request_id]["features"])
