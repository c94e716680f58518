"""One suite for every release store: a generation is created once, a bundle arrives as it was put, failures are told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3 import Bucket

from compile.errors import BundleRefused
from serving import routes
from serving.errors import GenerationTaken, NothingToServe, SettingsRefused, StoreUnreachable
from serving.store import FolderStore, Store, generation_of, open_store


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        (tmp_path / "store").mkdir()
        return FolderStore(tmp_path / "store")
    bucket: Bucket = request.getfixturevalue("bucket")
    return open_store(bucket.address)


def test_generations_are_created_once_and_read_back(store: Store) -> None:
    assert store.models() == []
    assert store.generations("m") == []
    assert store.newest("m", 0) == 0
    assert store.read("m", 1) is None
    for generation in (1, 2, 3):
        assert store.create("m", generation, b"%d" % generation).endswith(f"routes/m/0000000{generation}.json")
    with pytest.raises(GenerationTaken, match="another"):
        store.create("m", 2, b"other")
    store.create("other-model", 1, b"1")
    assert store.models() == ["m", "other-model"]
    assert store.generations("m") == [1, 2, 3]
    assert [store.newest("m", known) for known in (0, 1, 3)] == [3, 3, 3]
    assert store.read("m", 2) == b"2"


def test_of_many_creators_exactly_one_wins(store: Store) -> None:
    def attempt(n: int) -> bool:
        try:
            store.create("m", 1, b"%d" % n)
        except GenerationTaken:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, range(12))) == 1


def test_a_bundle_arrives_as_it_was_put(store: Store, tiny: Path, tmp_path: Path) -> None:
    beats: list[int] = []
    assert not store.holds(tiny.name)
    store.put(tiny)
    store.put(tiny)
    assert store.holds(tiny.name)
    for _ in range(2):
        got = store.fetch(tiny.name, tmp_path / "cache", lambda: beats.append(1))
        assert {path.name: path.read_bytes() for path in got.iterdir()} == {
            path.name: path.read_bytes() for path in tiny.iterdir()
        }
    with pytest.raises(BundleRefused, match="ab" * 32):
        store.fetch("ab" * 32, tmp_path / "cache", lambda: None)
    assert {path.name for path in (tmp_path / "cache").glob("bundles/*")} <= {tiny.name}


def test_a_spoiled_local_copy_is_fetched_again(bucket: Bucket, tiny: Path, tmp_path: Path) -> None:
    store = open_store(bucket.address)
    store.put(tiny)
    got = store.fetch(tiny.name, tmp_path, lambda: None)
    (got / "model.flat").write_bytes(b"spoiled")
    assert (store.fetch(tiny.name, tmp_path, lambda: None) / "model.flat").read_bytes() == (
        tiny / "model.flat"
    ).read_bytes()


def test_what_is_spoiled_in_the_store_is_refused(bucket: Bucket, tiny: Path, tmp_path: Path) -> None:
    store = open_store(bucket.address)
    store.put(tiny)
    bucket.put(f"bundles/{tiny.name}/model.flat", b"spoiled")
    with pytest.raises(BundleRefused, match=r"model\.flat"):
        store.fetch(tiny.name, tmp_path, lambda: None)
    assert not list((tmp_path / "bundles").iterdir())


def test_a_store_that_cannot_be_asked_is_unreachable_and_not_empty(bucket: Bucket, tmp_path: Path) -> None:
    gone = [open_store(tmp_path / "nowhere"), open_store(bucket.address.replace("releases", "no-such-bucket"))]
    bucket.stop()
    gone.append(open_store(bucket.address))
    for store in gone:
        with pytest.raises(StoreUnreachable):
            store.models()
    with pytest.raises(SettingsRefused, match="bucket"):
        open_store("s3://")


def test_routes_read_any_store(store: Store, tiny: Path) -> None:
    store.put(tiny)
    with pytest.raises(NothingToServe):
        routes.read(store, "m")
    made = routes.Routes(
        model="m",
        generation=1,
        salt="00",
        slots=routes.split_slots({"champion": 1}),
        arms={"champion": tiny.name},
    )
    routes.publish(store, made)
    assert routes.read(store, "m") == made
    assert routes.models(store) == ["m"]


def test_a_file_name_is_a_generation_or_it_is_none() -> None:
    named = {"00000007.json": 7, "123456789.json": 123456789, ".draft-x": 0, "7.json.bak": 0, "x.json": 0, "": 0}
    assert {name: generation_of(name) for name in named} == named
