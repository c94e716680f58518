"""Change under load: a hundred promotions and rollbacks in a minute, and everything that can be wrong with one, while a
thousand requests a second are answered: none fails, and none is answered by anything but what its generation routes."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import MIXED, mixed_body, mixed_rows, train_mixed
from hostile import forge
from pacing import Load, Told
from running import Running

from compile import build_bundle, bundle
from serving import changes, routes
from serving.errors import GenerationTaken, RoutesRefused, StoreUnreachable
from training.features import FeatureSchema

UNITS = [f"customer-{n}" for n in range(100)]


class Shop:
    """A store with bundles of versions 1, 2, ..., and the history that a test makes of them."""

    def __init__(self, folder: Path, bundles: int) -> None:
        self.store = folder / "store"
        built = folder / "built"
        self.versions: dict[str, str] = {}
        for number in range(1, bundles + 1):
            made = build_bundle(
                train_mixed("xgboost", trees=5, seed=number),
                MIXED,
                mixed_rows(60, number),
                built,
                name="mixed",
                version=str(number),
                classes=("no", "yes"),
            )
            self.versions[bundle.publish(made, self.store)] = str(number)
        self.digests = list(self.versions)
        self.bad: set[int] = set()  # generations that a test published to be refused

    def publish(self, champion: str, challenger: str, salt: str = "") -> int:
        before = routes.history(self.store, "mixed")
        generation = (before[-1] if before else 0) + 1
        routes.publish(
            self.store,
            routes.Routes(
                model="mixed",
                generation=generation,
                salt=salt or routes.new_salt(),
                slots=routes.split_slots({"champion": 50, "challenger": 50}),
                arms={"champion": champion, "challenger": challenger},
                by="tests",
                at=routes.stamp(),
            ),
        )
        return generation

    def change(self, number: int) -> int:
        """Now a new pair, now a promotion of the challenger, now a rollback."""
        now = routes.read(self.store, "mixed")
        if number % 3 == 0 or now.generation in self.bad:
            count = len(self.digests)
            return self.publish(self.digests[number % count], self.digests[(number + 1) % count])
        past = [n for n in routes.history(self.store, "mixed") if n < now.generation and n not in self.bad]
        older = routes.read(self.store, "mixed", past[-1])
        if number % 3 == 1 and "challenger" in now.arms:
            after, restores = changes.promote(now, "challenger", note="", by="tests"), None
        else:
            after, restores = changes.rollback(now, older, note="", by="tests"), older.generation
        routes.publish(self.store, after, restores=restores)
        return after.generation

    def misjudged(self, told: list[Told]) -> list[Told]:
        """Answers that are not what their generation routes: status, arm of the unit, version of the arm."""
        known: dict[int, routes.Routes] = {}
        wrong = []
        for one in told:
            if one.generation not in known and one.generation:
                known[one.generation] = routes.read(self.store, "mixed", one.generation)
            routed = known.get(one.generation)
            if one.status != 200 or routed is None:
                wrong.append(one)
                continue
            arm = routed.arm_for(one.unit.encode()) if one.path.endswith("/ab") else "champion"
            if one.arm != arm or one.version != self.versions[routed.arms[arm]]:
                wrong.append(one)
        return wrong


def generation(server: Running, model: str = "mixed") -> int:
    """What all workers serve; -1 within the 20 ms in which they follow the commit."""
    told = json.loads(server.ask("/readyz")[2])
    if any(worker["release"] != told["release"] for worker in told["workers"]):
        return -1
    return int(told["generations"].get(model, 0))


def wait_for(claim: Callable[[], bool], server: Running, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, (server.ask("/readyz")[2], server.log.read_text(encoding="utf-8")[-3000:])
        time.sleep(0.02)


def metric(server: Running, name: str) -> float:
    text = server.ask("/metrics")[2].decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))


def footprint(pids: list[int]) -> tuple[int, int]:
    """(KB resident, descriptors) of the processes together."""
    rss = sum(
        int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))[1])  # type: ignore[index]
        for pid in pids
    )
    return rss, sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def corrupt(shop: Shop, victim: str) -> str:
    """A bundle of its own digest, one byte of whose model is not what its manifest says."""
    bundles = shop.store / "bundles"
    made = forge(bundles / victim, bundles, change=lambda manifest: manifest | {"version": "corrupt"})
    data = bytearray((made / "model.flat").read_bytes())
    data[len(data) // 2] ^= 1
    (made / "model.flat").unlink()
    (made / "model.flat").write_bytes(data)
    return made.name


def of_another_schema(shop: Shop, folder: Path) -> str:
    features = tuple(f if f.name != "visits" else type(f)(name="calls", kind="number") for f in MIXED.features)
    made = build_bundle(
        train_mixed("xgboost", trees=3),
        FeatureSchema(features),
        mixed_rows(40, 1),
        folder / "built",
        name="mixed",
        version="other",
        classes=("no", "yes"),
    )
    return bundle.publish(made, shop.store)


def publish_on_a_full_disk(shop: Shop, told: multiprocessing.Queue[str]) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
    try:
        shop.publish(shop.digests[0], shop.digests[1])
    except StoreUnreachable as refused:
        told.put(str(refused))


def publish_at_once(shop: Shop, start: multiprocessing.synchronize.Barrier, told: multiprocessing.Queue[str]) -> None:
    now = routes.read(shop.store, "mixed")
    after = changes.rollback(now, routes.read(shop.store, "mixed", 1), note=str(os.getpid()), by="tests")
    start.wait()
    try:
        routes.publish(shop.store, after, restores=1)
        told.put("won")
    except GenerationTaken as lost:
        told.put(str(lost))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, size: Callable[[int, int], int]) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"), size(6, 20))


def test_a_hundred_changes_under_load_fail_no_request(
    shop: Shop, serve: Callable[..., Running], tmp_path: Path, size: Callable[[int, int], int]
) -> None:
    count, seconds, rate = size(20, 100), size(8, 60), size(400, 1000)
    shop.publish(shop.digests[0], shop.digests[1])
    server = serve(shop.store, workers=2, sync_s=0.05)
    bodies = [mixed_body(row) for row in mixed_rows(100)]
    load = Load(server.port, rate, bodies, ["/predict/ab", "/predict", "/v1/models/mixed/predict/ab"], UNITS)
    load.start()
    troubles = {
        count // 4: "corrupt",
        count // 3: "schema",
        count // 2: "disk",
        count * 2 // 3: "away",
        count * 5 // 6: "race",
    }
    began = time.monotonic()
    early: tuple[int, int] | None = None
    for number in range(count):
        if number in troubles:
            trouble(troubles[number], shop, server, tmp_path)
        last = shop.change(number)
        wait_for(lambda last=last: generation(server) >= last, server)  # type: ignore[misc]
        time.sleep(max(0.0, began + (number + 1) * seconds / count - time.monotonic()))
        if number == count // 10 + 1:
            early = footprint(server.workers())
    took = time.monotonic() - began
    late = footprint(server.workers())
    load.finish()

    assert not load.failed
    wrong = shop.misjudged(load.told)
    assert not wrong, wrong[:5]
    served = {one.generation for one in load.told}
    flips = metric(server, "coppice_sync_flips_total")
    told = json.loads(server.ask("/readyz")[2])
    slowest = sorted(one.took_s for one in load.told)
    print(
        f"\n{count} changes over {len(shop.digests)} bundles in {took:.1f} s, {len(load.told)} answers "
        f"({len(load.told) / took:.0f}/s), {len(served)} generations answered, {flips:.0f} flips, "
        f"p50 {slowest[len(slowest) // 2] * 1e3:.2f} ms, p99 {slowest[len(slowest) * 99 // 100] * 1e3:.1f} ms, "
        f"max {slowest[-1] * 1e3:.0f} ms, RSS and descriptors {early} -> {late}"
    )
    assert len(load.told) > 0.8 * rate * took
    assert flips >= count
    assert {worker["release"] for worker in told["workers"]} == {told["release"]}
    assert early is not None
    assert late[0] - early[0] < 12_000  # KB over two workers: 100 flips of leaked bundles would be ten times that
    assert late[1] <= early[1] + 8
    wait_for(lambda: metric(server, "coppice_worker_open_bundles") <= 4, server)  # two arms in each of two workers


def trouble(kind: str, shop: Shop, server: Running, tmp_path: Path) -> None:
    """One thing that goes wrong in the middle of it all, and what may be seen of it: /readyz and metrics, nothing else."""
    before = generation(server)
    if kind == "corrupt":
        bad = shop.publish(corrupt(shop, shop.digests[0]), shop.digests[1])
        shop.bad.add(bad)
        is_refused(server, bad, "model.flat")
    elif kind == "schema":
        bad = shop.publish(shop.digests[0], of_another_schema(shop, tmp_path))
        shop.bad.add(bad)
        is_refused(server, bad, "other inputs than the champion")
    elif kind == "disk":
        told: multiprocessing.Queue[str] = multiprocessing.get_context("fork").Queue()
        publisher = multiprocessing.get_context("fork").Process(target=publish_on_a_full_disk, args=(shop, told))
        publisher.start()
        assert "can't be written" in told.get(timeout=20)
        publisher.join()
    elif kind == "away":
        away = shop.store.with_name("away")
        shop.store.rename(away)
        wait_for(lambda: "unreachable" in sync_of(server)["store"], server)
        assert metric(server, "coppice_sync_looks_failed_total") > 0
        away.rename(shop.store)
        wait_for(lambda: sync_of(server)["store"] == "reached", server)
    else:
        context = multiprocessing.get_context("fork")
        told = context.Queue()
        start = context.Barrier(2)
        both = [context.Process(target=publish_at_once, args=(shop, start, told)) for _ in range(2)]
        for publisher in both:
            publisher.start()
        said = sorted(told.get(timeout=20) for _ in both)
        assert said[1] == "won"
        assert "generation" in said[0]
        for publisher in both:
            publisher.join()
        wait_for(lambda: generation(server) == routes.history(shop.store, "mixed")[-1], server)
        return
    assert generation(server) == before
    assert server.ask("/readyz")[0] == 200


def is_refused(server: Running, bad: int, why: str) -> None:
    wait_for(lambda: f"mixed {bad}" in sync_of(server)["refused"], server)
    assert why in sync_of(server)["refused"][f"mixed {bad}"]
    assert metric(server, "coppice_sync_refused_total") > 0


def sync_of(server: Running) -> dict[str, dict[str, str]]:
    told: dict[str, dict[str, str]] = json.loads(server.ask("/readyz")[2])["sync"]
    return told


def test_what_one_worker_cannot_load_no_worker_serves(shop: Shop, serve: Callable[..., Running]) -> None:
    """A bundle that passes every hash and is no model: only opening it tells."""
    shutil.rmtree(shop.store / "routes", ignore_errors=True)
    shop.publish(shop.digests[0], shop.digests[1])
    server = serve(shop.store, workers=2, sync_s=0.05)
    bad = shop.publish(shop.digests[0], unsound(shop))
    wait_for(lambda: f"mixed {bad}" in sync_of(server)["refused"], server)
    assert metric(server, "coppice_sync_withdrawn_total") == 1
    assert generation(server) == 1
    assert server.ask("/predict", mixed_body(mixed_rows(1)[0]))[1]["x-routes-generation"] == "1"
    good = shop.publish(shop.digests[1], shop.digests[2])
    wait_for(lambda: generation(server) == good, server)
    assert not sync_of(server)["refused"]


def unsound(shop: Shop) -> str:
    bundles = shop.store / "bundles"
    source = bundles / shop.digests[0]
    data = (source / "model.flat").read_bytes()[:-8] + b"\xff" * 8

    def only_that(manifest: dict[str, Any]) -> dict[str, Any]:
        return manifest | {"backends": {"treelite": manifest["backends"]["treelite"]}}

    return forge(source, bundles, {"model.flat": data}, only_that).name


def test_models_come_and_go_with_their_routes(shop: Shop, serve: Callable[..., Running], tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(shop.store / "bundles", store / "bundles")
    body = mixed_body(mixed_rows(1)[0])

    def route(model: str, digest: str) -> None:
        slots, at = routes.split_slots({"champion": 100}), routes.stamp()
        arms = {"champion": digest}
        routes.publish(
            store, routes.Routes(model=model, generation=1, salt=routes.new_salt(), slots=slots, arms=arms, at=at)
        )

    route("one", shop.digests[0])
    server = serve(store, workers=2, sync_s=0.05)
    route("two", shop.digests[1])
    wait_for(lambda: generation(server, "two") == 1, server)
    assert json.loads(server.ask("/v1/models")[2]) == {"models": ["one", "two"]}
    for path, version in (("/predict", "1"), ("/v1/models/one/predict", "1"), ("/v1/models/two/predict/ab", "2")):
        status, headers, _ = server.ask(path, body)
        assert (status, headers["x-model-version"]) == (200, version), path
    assert "/v1/models/two/predict" in json.loads(server.ask("/openapi.json")[2])["paths"]
    shutil.rmtree(store / "routes" / "two")
    wait_for(lambda: generation(server, "two") == 0, server)
    wait_for(lambda: server.ask("/v1/models/two/predict", body)[0] == 404, server)  # workers follow within 20 ms
    shutil.rmtree(store / "routes" / "one")
    time.sleep(0.3)
    assert server.ask("/predict", body)[0] == 200  # the default model never disappears
    assert server.stop() == 0

    route("one", shop.digests[0])
    route("two", shop.digests[1])
    several = serve(store, workers=1)
    assert several.ask("/v1/models/one/predict", body)[0] == 200
    status, _, told = several.ask("/predict", body)
    assert status == 404
    assert b"none is the default" in told
    named = serve(store, workers=1, model="two")
    assert named.ask("/predict", body)[1]["x-model-version"] == "2"


def test_ramps_only_give(shop: Shop) -> None:
    shutil.rmtree(shop.store / "routes", ignore_errors=True)
    shop.publish(shop.digests[0], shop.digests[1])
    now = routes.read(shop.store, "mixed")
    with pytest.raises(RoutesRefused, match="never takes"):
        changes.ramp(now, {"challenger": 25}, note="", by="")
    for share in (60.0, 75.0, 100.0):
        before = routes.read(shop.store, "mixed")
        after = changes.ramp(before, {"challenger": share}, note="", by="")
        routes.publish(shop.store, after)
        assert after.salt == before.salt
        for unit in UNITS:
            if before.arm_for(unit.encode()) == "challenger":
                assert after.arm_for(unit.encode()) == "challenger"
        assert sum(slot.hi - slot.lo for slot in after.slots if slot.arm == "challenger") == round(share * 100)
