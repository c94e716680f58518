"""Laws of routes: slots partition the points, assignment is stable and fair, generations are written once."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import GenerationTaken, NothingToServe, RoutesRefused
from serving.routes import POINTS, Routes, Shadow, Slot, history, models, new_salt, publish, read, split_slots

BUNDLES = [hashlib.sha256(bytes([n])).hexdigest() for n in range(3)]
SALT = "00112233445566778899aabbccddeeff"


def make(generation: int = 1, split: dict[str, float] | None = None, salt: str = SALT, **more: object) -> Routes:
    return Routes(
        model="churn",
        generation=generation,
        salt=salt,
        slots=split_slots(split or {"champion": 50, "challenger": 50}),
        arms={"champion": BUNDLES[0], "challenger": BUNDLES[1]},
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for bundle in BUNDLES:
        (tmp_path / "bundles" / bundle).mkdir(parents=True)
        (tmp_path / "bundles" / bundle / "manifest.json").write_text("{}")
    return tmp_path


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0.001, 1000), min_size=1))
def test_slots_partition_the_points_in_proportion(shares: dict[str, float]) -> None:
    slots = split_slots(shares)
    assert slots[0].lo == 0
    assert slots[-1].hi == POINTS
    assert all(a.hi == b.lo for a, b in pairwise(slots))
    total = sum(shares.values())
    for name, share in shares.items():
        owned = sum(slot.hi - slot.lo for slot in slots if slot.arm == name)
        assert abs(owned - POINTS * share / total) <= 1


def test_assignment_depends_on_unit_and_salt_alone() -> None:
    """The documented formula, written out by hand."""
    for unit in (b"", b"42", b"customer-7"):
        digest = hashlib.blake2b(unit, digest_size=8, key=bytes.fromhex(SALT)).digest()
        assert make().point_of(unit) == int.from_bytes(digest, "big") * 10_000 // 2**64
    assert make(1).arm_for(b"42") == make(9, {"champion": 50, "challenger": 50}).arm_for(b"42")


def test_shares_are_met_within_sampling_error() -> None:
    routes = make(split={"champion": 90, "challenger": 10})
    hits = sum(routes.arm_for(b"%d" % n) == "challenger" for n in range(20_000))
    assert abs(hits - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5


def test_a_ramp_never_takes_a_unit_from_a_growing_arm() -> None:
    before = make(split={"challenger": 10, "champion": 90})
    after = make(split={"challenger": 30, "champion": 70})
    for n in range(5000):
        if before.arm_for(b"%d" % n) == "challenger":
            assert after.arm_for(b"%d" % n) == "challenger"


def test_what_is_published_is_read_back(store: Path) -> None:
    routes = make(shadow=(Shadow("candidate", BUNDLES[2], 0.25),), note="why", by="who", at="2026-01-31T12:00:00Z")
    publish(store, routes)
    assert read(store, "churn") == routes
    assert history(store, "churn") == [1]
    assert models(store) == ["churn"]
    assert [path.name for path in (store / "routes/churn").iterdir()] == ["00000001.json"]


def test_of_many_publishers_of_one_generation_exactly_one_wins(store: Path) -> None:
    def attempt(n: int) -> str | None:
        try:
            publish(store, make(note=str(n)))
        except GenerationTaken:
            return None
        return str(n)

    with ThreadPoolExecutor(16) as pool:
        winners = [note for note in pool.map(attempt, range(48)) if note is not None]
    assert len(winners) == 1
    assert read(store, "churn").note == winners[0]


def test_a_generation_may_not_be_skipped_or_repeated(store: Path) -> None:
    publish(store, make(1))
    with pytest.raises(GenerationTaken, match="generation 1 exists"):
        publish(store, make(1))
    with pytest.raises(RoutesRefused, match="would skip 2"):
        publish(store, make(3))


def test_reassigning_units_under_one_salt_is_refused(store: Path) -> None:
    publish(store, make(1, {"challenger": 30, "champion": 70}))
    with pytest.raises(RoutesRefused, match="same salt"):
        publish(store, make(2, {"challenger": 10, "champion": 90}))
    publish(store, make(2, {"challenger": 40, "champion": 60}))
    publish(store, make(3, {"champion": 100}, salt=new_salt()))


def test_a_bundle_that_the_store_does_not_hold_is_refused(store: Path) -> None:
    missing = "ab" * 32
    with pytest.raises(RoutesRefused, match=missing):
        publish(store, make(shadow=(Shadow("candidate", missing),)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": (Slot(0, 5000, "champion"),)}, "must reach 10000"),
        ({"slots": (Slot(0, 5000, "champion"), Slot(4000, 10_000, "challenger"))}, "gap or overlap"),
        ({"slots": (Slot(0, 10_000, "nobody"),)}, "nobody"),
        ({"arms": {"challenger": BUNDLES[0]}}, "champion"),
        ({"arms": {"champion": "../../etc"}}, "digest"),
        ({"model": "../escape"}, "name"),
        ({"salt": "xyz"}, "salt"),
        ({"generation": 0}, "counts from 1"),
        ({"shadow": (Shadow("champion", BUNDLES[2]),)}, "share a name"),
        ({"shadow": (Shadow("candidate", BUNDLES[2], 1.5),)}, "sample"),
        ({"format": 2}, "format"),
    ],
)
def test_routes_that_make_no_sense_cannot_exist(change: dict[str, object], message: str) -> None:
    fields = msgspec.structs.asdict(make()) | change
    with pytest.raises(RoutesRefused, match=message):
        Routes(**fields)


def test_a_broken_file_is_named(store: Path) -> None:
    path = Path(publish(store, make()))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RoutesRefused, match=r"00000001\.json"):
        read(store, "churn")
    with pytest.raises(NothingToServe, match="coppice routes publish"):
        read(store, "nothing")
