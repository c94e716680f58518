"""Batched or not, a row gets the answer that it would have got alone; a bad one harms itself; a full lane says so."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import numpy as np
import pytest
from cases import Release, mixed_rows

from compile import open_predictor
from serving.errors import Overloaded
from serving.lanes import Cost, Lane, Scored, Scores, dispatch_reason, finite_test

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

    def finish(place: int) -> Callable[[Scored], None]:
        def on(scored: Scored) -> None:
            nonlocal count
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
        for n in range(5):
            made.submit(np.array([0.0, n]).tobytes(), lambda scored: taken.append(scored.score))
        with pytest.raises(Overloaded):
            made.submit(np.array([0.0, 9.0]).tobytes(), lambda scored: taken.append(scored.score))
        while len(taken) < 5:
            await asyncio.sleep(0.001)
        assert taken == [0, 1, 2, 3, 4]
        made.close()

    asyncio.run(run())


def test_cheap_models_are_scored_at_once_and_dear_ones_in_the_thread() -> None:
    assert dispatch_reason(Cost(1.0, 4.0), 300.0) == "inline"
    assert dispatch_reason(Cost(0.0, 5000.0), 300.0) == "busy"
