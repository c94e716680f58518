"""A server whose store is S3: it pulls what it needs, serves on when S3 is away or the disk is full, and starts without."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cases import Release, mixed_body, mixed_rows
from running import Running
from s3 import Bucket
from test_changes import generation, metric, sync_of, wait_for

from serving import changes, routes
from serving.store import Store, open_store

BODY = mixed_body(mixed_rows(1)[0])


@pytest.fixture
def remote(release: Release, bucket: Bucket) -> Store:
    store = open_store(bucket.address)
    for path in (release.champion, release.challenger):
        store.put(path)
    routes.publish(store, routes.read(release.store, "mixed"))
    return store


def promoted(store: Store) -> int:
    after = changes.promote(routes.read(store, "mixed"), "challenger", note="", by="tests")
    routes.publish(store, after)
    return after.generation


def test_what_is_in_s3_is_served_and_followed_also_while_s3_is_away(
    remote: Store, bucket: Bucket, serve: Callable[..., Running]
) -> None:
    server = serve(bucket.address, workers=2, sync_s=0.1)
    assert server.ask("/predict", BODY)[1]["x-model-version"] == "1"
    assert metric(server, "coppice_sync_bundles_pulled_total") == 2
    assert promoted(remote) == 2
    wait_for(lambda: generation(server) == 2, server)
    wait_for(lambda: server.ask("/predict", BODY)[1]["x-model-version"] == "2", server)
    bucket.stop()
    wait_for(lambda: "unreachable" in sync_of(server)["store"], server, 60)
    assert server.ask("/readyz")[0] == 200
    assert server.ask("/predict", BODY)[1]["x-model-version"] == "2"
    assert server.stop() == 0

    again = serve(bucket.address, traffic=server.traffic, workers=1)  # its own copy is what it has
    assert again.ask("/predict", BODY)[1]["x-routes-generation"] == "2"
    assert "unreachable" in json.loads(again.ask("/readyz")[2])["sync"]["store"]


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_keeps_the_generation_that_is_served(
    remote: Store, bucket: Bucket, release: Release, tmp_path: Path, serve: Callable[..., Running]
) -> None:
    def size_of(path: Path) -> int:
        return sum((file.stat().st_size + 8191) // 4096 * 4 for file in path.iterdir())

    routes.publish(
        remote,
        routes.Routes(
            model="mixed",
            generation=2,
            salt="00",
            slots=routes.split_slots({"champion": 1}),
            arms={"champion": release.champion.name},
        ),
    )
    with small_disk(tmp_path / "traffic" / "releases", size_of(release.champion) + 40):
        server = serve(bucket.address, traffic=tmp_path / "traffic", workers=2, sync_s=0.1)
        assert generation(server) == 2
        routes.publish(
            remote,
            routes.Routes(
                model="mixed",
                generation=3,
                salt="01",
                slots=routes.split_slots({"champion": 1}),
                arms={"champion": release.challenger.name},
            ),
        )
        wait_for(lambda: "mixed 3" in sync_of(server)["refused"], server)
        assert "No space left" in sync_of(server)["refused"]["mixed 3"]
        assert server.ask("/readyz")[0] == 200
        assert server.ask("/predict", BODY)[1]["x-routes-generation"] == "2"
        grown = ["mount", "-o", "remount,size=8m", str(tmp_path / "traffic" / "releases")]
        subprocess.run(grown, check=True)
        wait_for(lambda: generation(server) == 3, server)  # looked at again after five seconds, as a refusal is
        assert server.stop() == 0
