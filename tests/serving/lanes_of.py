"""A worker's request path in this process, with lanes of the kind that a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import msgspec
import pyarrow.ipc

from compile import open_predictor
from compile.bundle import locate
from serving import page
from serving.admission import Admission
from serving.answers import Answer
from serving.cost import Cost
from serving.lanes import Lane
from serving.live import Arm, Live, Loader, Snapshot, lane_tally
from serving.many import Context, Many, score_many
from serving.scoring import scorer
from serving.segments import Segment, split_payload
from serving.settings import Settings
from serving.traffic import TrafficLog

COSTS = {"inline": Cost(1.0, 1.0), "tick": Cost(100.0, 1.0), "busy": Cost(0.0, 5000.0)}


class Asking:
    """Who waits for an answer, and may leave."""

    since = 0
    disconnected = False

    def __init__(self) -> None:
        self.answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def __call__(self, answer: Answer) -> None:
        self.answered.set_result(answer)


@dataclass(frozen=True)
class Parts:
    live: Live
    context: Context
    slot: page.Slot
    log: TrafficLog
    lanes: dict[str, Lane]

    @property
    def now(self) -> Snapshot:
        return self.live.snapshot

    async def many(self, rows: list[bytes], *, split: bool = False, **given: Any) -> Many:
        asked = {
            "request_id": b"",
            "unit": b"",
            "timeout": b"",
            "arrived": perf_counter_ns(),
            "asker": Asking(),
        } | given
        return await score_many(self.context, self.now, None if split else self.now.champion, rows, **asked)

    async def one(self, body: bytes, *, split: bool = False, request_id: bytes = b"", unit: bytes = b"") -> Answer:
        score = scorer(self.live, self.log, self.slot, self.context.admission, split=split)
        asking = Asking()
        return score(body, request_id, unit, b"", perf_counter_ns(), asking) or await asking.answered


@contextlib.asynccontextmanager
async def lanes_of(
    store: Path,
    traffic: Path,
    way: str = "inline",
    *,
    models: Mapping[str, Any] = {},
    cost: Cost | None = None,
    max_rows: int = 10_000,
    max_queue_rows: int = 1000,
    max_batch_rows: int = 16,
) -> AsyncIterator[Parts]:
    """The store's newest release of `mixed`; `models` stand in for those of the arms they are named after."""
    loop = asyncio.get_running_loop()
    (traffic / "pages").mkdir(parents=True, exist_ok=True)
    slot = page.Page.create(traffic / "pages" / "s.page", 1).slot(0)
    log = TrafficLog(traffic, server="s", worker=0, slot=slot)
    loaded = Loader(Settings(store=store, traffic=traffic), log, slot, loop).load("mixed")
    lanes = {
        arm.name: Lane(
            models.get(arm.name) or open_predictor(locate(store, loaded.routes.arms[arm.name])),
            loop,
            cost=cost or COSTS[way],
            max_batch_rows=max_batch_rows,
            max_queue_rows=max_queue_rows,
            inline_budget_us={"inline": 1e9, "tick": 1e9, "busy": 0.0}[way],
            tally=lane_tally(slot),
        )
        for arm in loaded.arms
    }
    assert {lane.reason for lane in lanes.values()} == {way}
    live = Live(_with(loaded, lanes))
    yield Parts(live, Context(log, slot, Admission(0), max_rows, 1 << 20), slot, log, lanes)
    for shadow in loaded.shadows:
        shadow.drain_now()
    for lane in lanes.values():
        lane.close()
    loaded.close()
    assert log.close(20)


def logged(traffic: Path) -> list[dict[str, Any]]:
    """Every row of the sealed segments, with its tag's facts."""
    rows: list[dict[str, Any]] = []
    for path in sorted((traffic / "sealed").glob("*.seg")):
        for payload in Segment(path).payloads():
            facts, stream = split_payload(payload)
            read = pyarrow.ipc.open_stream(stream).read_all().to_pylist()
            rows += [row | msgspec.to_builtins(facts.tags[row["tag"]]) for row in read]
    return rows


def _with(now: Snapshot, lanes: Mapping[str, Lane]) -> Snapshot:
    def relaid(arm: Arm, fallback: Arm | None) -> Arm:
        lane = lanes[arm.name]
        return msgspec.structs.replace(arm, lane=lane, inline=lane.reason == "inline", fallback=fallback)

    champion = relaid(now.champion, None)
    arms = {arm.name: champion if arm is now.champion else relaid(arm, champion) for arm in now.arms}
    points = tuple(arms[arm.name] for arm in now.points)
    return dataclasses.replace(now, champion=champion, arms=tuple(arms.values()), points=points)
