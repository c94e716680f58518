"""Many rows of one request: each is scored, logged and counted as it would have been alone, and nobody else suffers."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import MIXED, Release, mixed_body, mixed_rows
from hypothesis import given
from hypothesis import strategies as st
from inprocess import Failing, route
from lanes_of import Asking, Parts, lanes_of, logged
from slowly import Slow

from compile import open_predictor
from serving import page
from serving.cost import Cost
from serving.errors import AskerGone, BodyTooLarge, DeadlinePassed, Overloaded, RequestRefused

WAYS = pytest.mark.parametrize("way", ["inline", "tick", "busy"])
FOLDERS = itertools.count()


def run(release: Release, folder: Path, test: Callable[[Parts], Awaitable[None]], *where: str, **given: Any) -> Path:
    """The traffic that the test left."""
    traffic = folder / f"traffic{next(FOLDERS)}"

    async def held() -> None:
        async with lanes_of(release.store, traffic, *where, **given) as parts:
            await test(parts)

    asyncio.run(held())
    return traffic


def encoded(count: int, seed: int) -> list[bytes]:
    return [row.tobytes() for row in mixed_rows(count, seed)]


def alone(bundle: Path, rows: list[bytes]) -> list[float]:
    predictor = open_predictor(bundle)
    return [float(predictor.score(np.frombuffer(row)[None])[0, 0]) for row in rows]


REQUESTS = st.lists(
    st.tuples(st.sampled_from([0, 1, 1, 2, 15, 16, 17, 40, 700]), st.booleans(), st.integers(0, 3)),
    min_size=1,
    max_size=8,
)


@WAYS
@given(requests=REQUESTS)
def test_single_rows_and_many_in_any_order_have_one_score_and_one_line_each(
    way: str, requests: list[tuple[int, bool, int]], release: Release, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pool = mixed_rows(800, 21)
    raw = [row.tobytes() for row in pool]
    of_arm = {"champion": alone(release.champion, raw), "challenger": alone(release.challenger, raw)}
    expected: dict[tuple[str, int], tuple[str, float]] = {}

    async def ask(parts: Parts, number: int, count: int, split: bool, pause: int) -> None:
        for _ in range(pause):
            await asyncio.sleep(0)
        places = [(number * 97 + n) % len(pool) for n in range(count)]
        unit = b"unit-%d" % number
        arm = parts.now.routes.arm_for(unit) if split else "champion"
        wanted = [of_arm[arm][place] for place in places]
        expected.update({(f"r{number}", n): (arm, score) for n, score in enumerate(wanted)})
        if count == 1:
            body = mixed_body(pool[places[0]])
            answer = await parts.one(body, split=split, request_id=b"r%d" % number, unit=unit)
            assert json.loads(answer.body)["probability"] == wanted[0]
            return
        rows = [raw[place] for place in places]
        many = await parts.many(rows, split=split, request_id=b"r%d" % number, unit=unit)
        assert many.scores == wanted
        assert [answered.name for answered in many.arms] == [arm] * count
        assert (many.failed, many.request_id) == ([], b"r%d" % number)

    async def test(parts: Parts) -> None:
        await asyncio.gather(*(ask(parts, n, *request) for n, request in enumerate(requests)))
        assert parts.slot.cells[page.ROWS] == len(expected) == sum(n.rows for n in parts.slot.series_counts())
        dispatched = (page.DISPATCH_INLINE, page.DISPATCH_TICK, page.DISPATCH_BUSY)
        assert sum(parts.slot.cells[cell] for cell in dispatched) == len(expected)

    rows = logged(run(release, tmp_path_factory.mktemp("many"), test, way))
    assert {(row["request_id"], row["row"]): (row["arm"], row["score"]) for row in rows} == expected
    assert len(rows) == len(expected)
    assert {row["status"] for row in rows} <= {200}


@WAYS
def test_the_split_is_the_routes_row_by_row(way: str, release: Release, tmp_path: Path) -> None:
    units = [b"unit-%d" % n for n in range(300)]

    async def test(parts: Parts) -> None:
        many = await parts.many(encoded(300, 3), split=True, units=units, request_id=b"x")
        assert [arm.name for arm in many.arms] == [parts.now.routes.arm_for(unit) for unit in units]
        by_id = await parts.many(encoded(5, 3), split=True, request_id=b"an-id")
        assert {arm.name for arm in by_id.arms} == {parts.now.routes.arm_for(b"an-id")}

    rows = logged(run(release, tmp_path, test, way))
    assert {(row["row"], row["unit"]) for row in rows if row["request_id"] == "x"} == {
        (n, f"unit-{n}") for n in range(300)
    }


class Poisoned:
    """Fails on a call that has a row whose first number is below 30."""

    width, outputs = MIXED.width, 1

    def __init__(self) -> None:
        self.probe_rows = mixed_rows(4)

    def bound(self, rows: np.ndarray, scores: np.ndarray) -> Callable[[int], None]:
        def call(count: int) -> None:
            if (rows[:count, 0] < 30).any():
                raise RuntimeError("a row that this model can't take")
            scores[:count] = 0.125

        return call


@WAYS
def test_a_row_that_an_arm_fails_on_is_the_champions_and_its_neighbours_are_not(
    way: str, release: Release, tmp_path: Path
) -> None:
    raw = encoded(200, 5)
    bad = [n for n, row in enumerate(mixed_rows(200, 5)) if row[0] < 30]
    assert 0 < len(bad) < 100

    async def test(parts: Parts) -> None:
        unit = next(b"u%d" % n for n in range(99) if parts.now.routes.arm_for(b"u%d" % n) == "challenger")
        many = await parts.many(raw, split=True, unit=unit, request_id=b"x")
        assert [n for n, arm in enumerate(many.arms) if arm.name == "champion"] == bad
        expected = alone(release.champion, raw)
        assert many.scores == [expected[n] if n in bad else 0.125 for n in range(200)]
        assert not many.failed
        assert parts.slot.cells[page.FALLBACKS] == len(bad)
        counts = {count.label.split("/")[2]: (count.rows, count.errors) for count in parts.slot.series_counts()}
        assert counts == {"champion": (len(bad), 0), "challenger": (200 - len(bad), len(bad))}

    rows = logged(run(release, tmp_path, test, way, models={"challenger": Poisoned()}))
    told = Counter((row["arm"], row["status"]) for row in rows)
    assert told == {("challenger", 200): 200 - len(bad), ("challenger", 500): len(bad), ("champion", 200): len(bad)}
    assert sorted(row["row"] for row in rows if row["status"] == 500) == bad


@WAYS
def test_where_the_champion_fails_its_rows_are_named(way: str, release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        many = await parts.many(encoded(200, 5))
        assert many.failed == [n for n, row in enumerate(mixed_rows(200, 5)) if row[0] < 30]
        assert all(math.isnan(score) == (n in many.failed) for n, score in enumerate(many.scores))  # type: ignore[arg-type]

    rows = logged(run(release, tmp_path, test, way, models={"champion": Poisoned()}))
    assert len(rows) == 200


@WAYS
def test_an_infinite_score_is_no_answer(way: str, release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        many = await parts.many(encoded(3, 5))
        assert (many.failed, many.scores) == ([0, 1, 2], [math.inf] * 3)

    run(release, tmp_path, test, way, models={"champion": Failing(MIXED.width, 1, math.inf)})


@WAYS
def test_all_rows_see_one_generation(way: str, release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        before = parts.now
        asked = asyncio.create_task(parts.many(encoded(3000, 5), split=True, units=[b"%d" % n for n in range(3000)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        parts.live.snapshot = None  # type: ignore[assignment]  # whoever looked again would fail
        many = await asked
        assert {id(arm) for arm in many.arms} == {id(arm) for arm in before.arms}
        parts.live.snapshot = before

    run(release, tmp_path, test, way)


@WAYS
def test_single_requests_have_their_turn_in_between(way: str, release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        crowds = [asyncio.create_task(parts.many(encoded(2000, 5))) for _ in range(3)]
        await asyncio.sleep(0)
        for row in mixed_rows(5, 9):
            assert (await parts.one(mixed_body(row))).status == 200
        assert not any(crowd.done() for crowd in crowds)
        await asyncio.gather(*crowds)

    run(release, tmp_path, test, way)


def test_the_queue_of_a_busy_lane_is_never_more_than_half_theirs(release: Release, tmp_path: Path) -> None:
    deepest = 0

    async def test(parts: Parts) -> None:
        lane = parts.lanes["champion"]

        async def look() -> None:
            nonlocal deepest
            while True:
                deepest = max(deepest, lane.depth)
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        answers = await asyncio.gather(*(parts.many(encoded(300, n)) for n in range(4)))
        looking.cancel()
        assert [len(many.scores) for many in answers] == [300] * 4
        assert not any(many.failed for many in answers)

    run(release, tmp_path, test, "busy", max_queue_rows=20)
    assert 0 < deepest <= 10


@WAYS
def test_twenty_thousand_rows_at_once_are_all_logged(way: str, release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        await parts.many(encoded(20_000, 5), request_id=b"big")
        assert parts.slot.cells[page.ROWS] == 20_000
        assert parts.slot.cells[page.ROWS_DROPPED_FULL] == 0

    rows = logged(run(release, tmp_path, test, way, max_rows=20_000, max_batch_rows=64))
    assert sorted(row["row"] for row in rows) == list(range(20_000))


def test_a_row_too_many_is_refused_by_the_limit(release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        assert len((await parts.many(encoded(10, 1))).scores) == 10
        with pytest.raises(BodyTooLarge, match="more than 10 rows"):
            await parts.many(encoded(11, 1))
        assert parts.slot.cells[page.ROWS] == 10

    run(release, tmp_path, test, max_rows=10)


@pytest.mark.parametrize("unit", [b"x" * 257, b"\xe9"])
def test_a_unit_that_a_single_request_may_not_have_is_refused(unit: bytes, release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        with pytest.raises(RequestRefused, match="x-unit"):
            await parts.many(encoded(2, 1), unit=unit)

    run(release, tmp_path, test)


def test_an_id_that_may_not_be_sent_back_is_replaced(release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        ids = [(await parts.many([], request_id=given)).request_id for given in (b"", b"a b", b"", b"mine")]
        assert len(set(ids)) == 4
        assert b"a b" not in ids
        assert ids[3] == b"mine"

    run(release, tmp_path, test)


def test_what_can_not_be_done_in_time_is_refused_before_any_row_is_scored(release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        now = time.perf_counter_ns()
        with pytest.raises(DeadlinePassed):
            await parts.many(encoded(1000, 1), timeout=b"50", arrived=now)  # 1,000 rows at 1 ms
        assert parts.slot.cells[page.ROWS] == 0
        assert parts.slot.cells[page.SHED_DEADLINE] == 1000
        assert len((await parts.many(encoded(10, 1), timeout=b"5000", arrived=time.perf_counter_ns())).scores) == 10

    run(release, tmp_path, test, cost=Cost(0.0, 1000.0))


@WAYS
def test_a_deadline_that_passes_on_the_way_ends_the_work(way: str, release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        with pytest.raises(DeadlinePassed):
            # thought to be cheap, so that it is admitted; it needs 3 s
            await parts.many(encoded(3000, 1), timeout=b"300", arrived=time.perf_counter_ns())
        scored = parts.slot.cells[page.ROWS]
        assert 0 < scored < 3000
        assert parts.slot.cells[page.SHED_DEADLINE] == 3000 - scored

    costs = {"inline": Cost(0.0, 1.0), "tick": Cost(21.0, 1.0), "busy": Cost(0.0, 1.0)}
    run(release, tmp_path, test, way, models={"champion": Slow(0.0, 0.001)}, cost=costs[way])


@WAYS
def test_who_has_gone_is_not_worked_for(way: str, release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        asker = Asking()
        asked = asyncio.create_task(parts.many(encoded(5000, 1), asker=asker))
        while not parts.slot.cells[page.ROWS]:
            await asyncio.sleep(0)
        asker.disconnected = True
        with pytest.raises(AskerGone):
            await asked
        assert parts.slot.cells[page.ROWS] + parts.slot.cells[page.SHED_GONE] == 5000
        assert parts.slot.cells[page.SHED_GONE] > 0
        assert not parts.context.under_way

    run(release, tmp_path, test, way)


def test_no_more_rows_than_four_full_requests_are_under_way(release: Release, tmp_path: Path) -> None:
    async def test(parts: Parts) -> None:
        held = [asyncio.create_task(parts.many(encoded(100, n))) for n in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await parts.many(encoded(100, 9))
        assert not any(many.failed for many in await asyncio.gather(*held))
        assert parts.slot.cells[page.SHED_QUEUE_FULL] == 100
        assert len((await parts.many(encoded(100, 9))).scores) == 100

    run(release, tmp_path, test, "busy", max_rows=100)


def test_shadows_are_offered_each_row_by_its_place(release: Release, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(release.store, store)
    route(store, "mixed", {"champion": release.digest("champion")}, shadow=release.digest("challenger"))
    raw = encoded(40, 2)

    async def test(parts: Parts) -> None:
        await parts.many(raw, request_id=b"x")

    shadowed = Release(store, release.champion, release.challenger, release.natives)
    rows = [row for row in logged(run(shadowed, tmp_path, test)) if row["role"] == "shadow"]
    assert {row["row"]: row["score"] for row in rows} == dict(enumerate(alone(release.challenger, raw)))
