"""Batched or not, a row gets the answer that it would have got alone; a bad one harms itself; a full lane says so."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
from cases import Release, mixed_rows
from hypothesis import given
from hypothesis import strategies as st

from compile import open_predictor
from serving.cost import Cost, dispatch_reason
from serving.errors import Overloaded
from serving.lanes import PATIENT, Lane, Scored, Scores, finite_test

WAYS = {"inline": 1e9, "tick": 0.0, "busy": 0.0}


def lane(
    predictor: object, way: str, *, max_batch_rows: int = 16, max_queue_rows: int = 1000
) -> tuple[Lane, list[tuple[str, int]]]:
    """A lane of the kind named, and what it tallies."""
    batches: list[tuple[str, int]] = []
    costs = {"inline": Cost(1.0, 1.0), "tick": Cost(100.0, 1.0), "busy": Cost(0.0, 5000.0)}
    made = Lane(
        predictor,  # type: ignore[arg-type]  # a fake below is a lane's Bindable as well
        asyncio.get_running_loop(),
        cost=costs[way],
        max_batch_rows=max_batch_rows,
        max_queue_rows=max_queue_rows,
        inline_budget_us=300.0 if way != "tick" else 50.0,
        tally=lambda reason, rows, queue_us: batches.append((reason, rows)),  # noqa: ARG005  # a Tally takes three
    )
    return made, batches


async def scores_of(made: Lane, rows: np.ndarray) -> list[Scores]:
    """All rows at once, as a burst of requests would come."""
    done: list[Scores] = [math.inf] * len(rows)
    left = asyncio.Event()
    count = 0

    def finish(place: int) -> Callable[[Scored | None], None]:
        def on(scored: Scored | None) -> None:
            nonlocal count
            assert scored is not None
            done[place] = scored.score
            count += 1
            if count == len(rows):
                left.set()

        return on

    for place, row in enumerate(rows):
        made.submit(row.tobytes(), finish(place))
    await asyncio.wait_for(left.wait(), 20)
    return done


@pytest.mark.parametrize("way", ["tick", "busy"])
def test_a_burst_is_batched_and_answered_as_one_by_one(release: Release, way: str) -> None:
    async def run() -> None:
        predictor = open_predictor(release.champion)
        made, batches = lane(predictor, way)
        rows = mixed_rows(200, 12)
        got = await scores_of(made, rows)
        alone = [float(predictor.score(row[None])[0, 0]) for row in rows]
        assert got == alone
        assert sum(count for _, count in batches) == 200
        assert max(count for _, count in batches) > 1  # under load it does form batches
        assert all(count <= 16 for _, count in batches)
        made.close()

    asyncio.run(run())


class Poisoned:
    """Fails any batch that holds the row whose first value is 13."""

    width = 2
    outputs = 1
    probe_rows = np.zeros((1, 2))

    def bound(self, rows: np.ndarray, scores: np.ndarray) -> Callable[[int], None]:
        def run(count: int) -> None:
            if (rows[:count, 0] == 13).any():
                raise RuntimeError("poisoned")
            scores[:count, 0] = rows[:count, 1]

        return run


@pytest.mark.parametrize("way", ["tick", "busy"])
def test_a_poisoned_row_harms_itself_alone(way: str) -> None:
    async def run() -> None:
        made, _ = lane(Poisoned(), way)
        rows = np.column_stack([np.arange(40.0), np.arange(40.0) / 7])
        got = await scores_of(made, rows)
        assert [n for n, score in enumerate(got) if math.isnan(score)] == [13]
        assert all(score == n / 7 for n, score in enumerate(got) if n != 13)
        made.close()

    asyncio.run(run())


class Several(Poisoned):
    """Of three outputs."""

    outputs = 3

    def bound(self, rows: np.ndarray, scores: np.ndarray) -> Callable[[int], None]:
        def run(count: int) -> None:
            if (rows[:count, 0] == 13).any():
                raise RuntimeError("poisoned")
            scores[:count] = rows[:count, 1:] + np.arange(3)

        return run


@pytest.mark.parametrize("way", ["inline", "tick", "busy"])
def test_a_row_of_several_outputs_has_a_tuple_of_scores_whichever_way_it_went(way: str) -> None:
    async def run() -> None:
        made, _ = lane(Several(), way)
        got = await scores_of(made, np.column_stack([np.arange(40.0), np.arange(40.0) / 7]))
        finite = finite_test(3)
        for n, scores in enumerate(got):
            assert isinstance(scores, tuple)
            assert len(scores) == 3
            assert finite(scores) == (n != 13)
            assert n == 13 or scores == tuple(n / 7 + k for k in range(3))
        assert not finite((1.0, math.inf, 0.0))
        made.close()

    asyncio.run(run())


def test_a_full_lane_refuses_the_next_row_and_serves_those_it_took() -> None:
    async def run() -> None:
        made, _ = lane(Poisoned(), "tick", max_queue_rows=5)
        taken: list[float] = []

        def keep(scored: Scored | None) -> None:
            assert scored is not None
            taken.append(scored.score)

        for n in range(5):
            made.submit(np.array([0.0, n]).tobytes(), keep)
        with pytest.raises(Overloaded):
            made.submit(np.array([0.0, 9.0]).tobytes(), keep)
        while len(taken) < 5:
            await asyncio.sleep(0.001)
        assert taken == [0, 1, 2, 3, 4]
        made.close()

    asyncio.run(run())


class Gone:
    disconnected = True


@given(
    bursts=st.lists(st.tuples(st.sampled_from(["champion", "challenger"]), st.integers(1, 40)), max_size=12),
    pauses=st.lists(st.sampled_from([0, 0, 1, 2]), min_size=12, max_size=12),
    way=st.sampled_from(["inline", "tick", "busy"]),
    max_batch_rows=st.sampled_from([1, 2, 7, 64]),
)
def test_any_interleaving_of_two_versions_gives_each_row_its_own_answer(
    release: Release, bursts: list[tuple[str, int]], pauses: list[int], way: str, max_batch_rows: int
) -> None:
    """Bit for bit; and since the versions disagree on every row, no batch held rows of both."""
    predictors, alone = (
        {arm: open_predictor(getattr(release, arm)) for arm in ("champion", "challenger")} for _ in range(2)
    )  # a lane is the only caller of its own
    rows = mixed_rows(sum(count for _, count in bursts) or 1, len(bursts))

    async def run() -> None:
        lanes = {arm: lane(predictor, way, max_batch_rows=max_batch_rows) for arm, predictor in predictors.items()}
        asked: list[tuple[str, int, asyncio.Future[float]]] = []
        loop = asyncio.get_running_loop()
        for (arm, count), pause in zip(bursts, pauses, strict=False):
            for _ in range(count):
                place, answered = len(asked), loop.create_future()
                asked.append((arm, place, answered))
                lanes[arm][0].submit(
                    rows[place].tobytes(),
                    lambda scored, answered=answered: answered.set_result(scored.score),  # type: ignore[misc]
                )
            for _ in range(pause):
                await asyncio.sleep(0)
        for arm, place, answered in asked:
            expected = float(alone[arm].score(rows[place][None])[0, 0])
            assert await asyncio.wait_for(answered, 20) == expected
        for made, batches in lanes.values():
            assert all(count <= max_batch_rows for _, count in batches)
            made.close()

    asyncio.run(run())


@given(
    fates=st.lists(st.sampled_from(["served", "late", "gone", "poisoned"]), min_size=1, max_size=60),
    way=st.sampled_from(["tick", "busy"]),
)
def test_the_late_the_gone_and_the_poisoned_harm_no_neighbour(fates: list[str], way: str) -> None:
    async def run() -> None:
        made, batches = lane(Poisoned(), way, max_batch_rows=8)
        done: dict[int, Scored | None] = {}
        for n, fate in enumerate(fates):
            made.submit(
                np.array([13.0 if fate == "poisoned" else 0.0, n]).tobytes(),
                lambda scored, n=n: done.__setitem__(n, scored),  # type: ignore[misc]
                expires=1 if fate == "late" else 0,
                asker=Gone() if fate == "gone" else PATIENT,
            )
        async with asyncio.timeout(20):
            while len(done) < len(fates):
                await asyncio.sleep(0.0005)
        for n, fate in enumerate(fates):
            scored = done[n]
            if fate in ("late", "gone"):
                assert scored is None
            else:
                assert scored is not None
                assert math.isnan(scored.score) if fate == "poisoned" else scored.score == n
        assert sum(count for _, count in batches) == sum(fate in ("served", "poisoned") for fate in fates)
        made.close()

    asyncio.run(run())


def test_cheap_models_are_scored_at_once_and_dear_ones_in_the_thread() -> None:
    assert dispatch_reason(Cost(1.0, 4.0), 300.0) == "inline"
    assert dispatch_reason(Cost(0.0, 5000.0), 300.0) == "busy"


def test_who_asks_on_hearing_an_answer_finds_an_idle_lane() -> None:
    """However soon the loop hears of a batch: a lane whose rows are all answered is idle, so a slow past refuses nobody."""

    class Prompt:
        """A loop that runs at once what a thread hands it, while the thread waits: the earliest that a loop can be."""

        def call_soon(self, function: Callable[..., object], *given: object) -> None:
            function(*given)

        call_soon_threadsafe = call_soon

    class Model:
        width, outputs, probe_rows = 1, 1, np.zeros((1, 1))

        def bound(self, rows: np.ndarray, scores: np.ndarray) -> Callable[[int], None]:  # noqa: ARG002  # a Bindable's
            return lambda count: threading.Event().wait(0.02 * count) and None

    told: list[float] = []
    made = Lane(
        Model(),
        Prompt(),  # type: ignore[arg-type]  # the part of a loop that a lane uses
        cost=Cost(0.0, 1000.0),
        max_batch_rows=4,
        max_queue_rows=8,
        inline_budget_us=0.0,
        tally=lambda reason, rows, queue_us: None,  # noqa: ARG005  # a Tally takes three
    )
    heard = threading.Event()

    def done(scored: Scored | None) -> None:  # noqa: ARG001  # only that it came
        told.append(made.wait_us())
        heard.set()

    for _ in range(5):
        heard.clear()
        made.submit(np.zeros(1).tobytes(), done)
        assert heard.wait(20)
    made.close()
    assert told == [1000.0] * 5
