"""What can't be answered in time is told so at once, is not scored, and is counted by its reason."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cases import Release
from slowly import BODY, Slow, Slowly, slowly

from serving import page
from serving.admission import MAX_LAG_NS, Admission
from serving.cost import Cost
from serving.errors import LoopLate

CHEAP = Cost(0.0, 1.0)  # what a model is thought to cost, where a test wants admission to let all in
WAYS = pytest.mark.parametrize("http", ["direct", "asgi"])


def run(release: Release, folder: Path, test: Callable[[Slowly], Awaitable[None]], **given: Any) -> None:
    async def held() -> None:
        async with slowly(release.store, folder / "traffic", **given) as server:
            await test(server)

    asyncio.run(held())


@WAYS
def test_what_the_queue_will_keep_too_long_is_refused_at_once(http: str, release: Release, tmp_path: Path) -> None:
    async def test(server: Slowly) -> None:
        began = time.perf_counter()
        status, said = await server.ask("x-request-timeout-ms: 100", body=b"not even JSON")
        assert time.perf_counter() - began < 0.25
        assert status == 503
        assert re.search(rb"retry-after: [123]\r\n", said)
        assert b"deadline" in said
        assert server.model.scored == 0
        assert server.slot.cells[page.SHED_DEADLINE] == 1
        assert (await server.ask("x-request-timeout-ms: 5000"))[0] == 200

    run(release, tmp_path, test, model=Slow(0.3), cost=Cost(300_000.0, 0.0), http=http)


@WAYS
def test_the_smaller_of_the_two_deadlines_holds(http: str, release: Release, tmp_path: Path) -> None:
    async def test(server: Slowly) -> None:
        assert (await server.ask())[0] == 503
        assert (await server.ask("x-request-timeout-ms: 90000"))[0] == 503
        assert server.slot.cells[page.SHED_DEADLINE] == 2

    run(release, tmp_path, test, model=Slow(0.3), cost=Cost(300_000.0, 0.0), http=http, deadline_ms=200)


@WAYS
def test_a_row_past_its_deadline_is_not_scored(http: str, release: Release, tmp_path: Path) -> None:
    async def test(server: Slowly) -> None:
        first = asyncio.create_task(server.ask())
        await asyncio.sleep(0.05)  # the thread has it
        late, patient = await asyncio.gather(server.ask("x-request-timeout-ms: 60"), server.ask())
        assert (late[0], patient[0], (await first)[0]) == (503, 200, 200)
        assert re.search(rb"retry-after: [123]\r\n", late[1])
        assert server.model.scored == 2
        assert server.slot.cells[page.SHED_DEADLINE] == 1

    run(release, tmp_path, test, model=Slow(0.3), cost=CHEAP, http=http)


@WAYS
def test_what_was_scored_is_answered_however_late(http: str, release: Release, tmp_path: Path) -> None:
    async def test(server: Slowly) -> None:
        assert (await server.ask("x-request-timeout-ms: 100"))[0] == 200

    run(release, tmp_path, test, model=Slow(0.3), cost=CHEAP, http=http)


@WAYS
@pytest.mark.parametrize("leave", ["close", "write_eof"])
def test_the_row_of_a_client_that_left_is_not_scored(http: str, leave: str, release: Release, tmp_path: Path) -> None:
    """`write_eof` closes its sending side alone, which looks the same from here until something is written."""

    async def test(server: Slowly) -> None:
        first = asyncio.create_task(server.ask())
        await asyncio.sleep(0.05)
        staying, leaving = await server.send()
        await leaving.drain()
        await asyncio.sleep(0.05)
        getattr(leaving, leave)()
        assert (await first)[0] == 200
        assert (await server.ask())[0] == 200
        assert not await asyncio.wait_for(staying.read(), 20) if leave == "write_eof" else True
        leaving.close()
        assert server.model.scored == 2
        assert server.slot.cells[page.SHED_GONE] == 1

    run(release, tmp_path, test, model=Slow(0.3), cost=CHEAP, http=http)


@WAYS
def test_a_full_queue_is_told_before_the_body_is_looked_at(http: str, release: Release, tmp_path: Path) -> None:
    async def test(server: Slowly) -> None:
        first = asyncio.create_task(server.ask())
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(server.ask()) for _ in range(3)]
        await asyncio.sleep(0.05)
        status, said = await server.ask(body=b"not even JSON")
        assert status == 503
        assert b"3 rows are waiting" in said
        assert server.slot.cells[page.SHED_QUEUE_FULL] == 1
        assert [(await asked)[0] for asked in (first, *waiting)] == [200] * 4

    run(release, tmp_path, test, model=Slow(0.3), cost=CHEAP, http=http, max_queue_rows=3)


@WAYS
def test_a_late_loop_sheds_those_with_less_time_than_it_is_late(http: str, release: Release, tmp_path: Path) -> None:
    async def test(server: Slowly) -> None:
        connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        await asyncio.sleep(0.05)
        for (_, writer), timeout_ms in zip(connections, (150, 60_000), strict=True):
            writer.write(server.request(f"x-request-timeout-ms: {timeout_ms}"))
        time.sleep(0.4)  # the loop is blocked: both wait in the socket, unseen
        statuses = [int((await reader.read()).split(b" ", 2)[1]) for reader, _ in connections]
        for _, writer in connections:
            writer.close()
        assert statuses == [503, 200]
        assert server.slot.cells[page.SHED_LOOP_LAG] == 1

    run(release, tmp_path, test, model=Slow(0.001), cost=CHEAP, http=http)


def test_the_lag_is_measured_and_a_second_of_it_sheds_everyone(release: Release, tmp_path: Path) -> None:
    async def test(server: Slowly) -> None:
        admission = Admission(0)
        admission.watch(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        assert admission.lag_ns < 200_000_000
        assert admission.admit(b"", 0, server.lane) == 0
        asyncio.get_running_loop().call_soon(time.sleep, 1.2)
        while admission.lag_ns < MAX_LAG_NS:
            await asyncio.sleep(0)
        assert admission.strict
        with pytest.raises(LoopLate):
            admission.admit(b"", time.perf_counter_ns(), server.lane)
        now = time.perf_counter_ns()
        assert admission.admit(b"", now, server.lane, since=now - 10_000_000) == 0  # this one came in the last 10 ms
        with pytest.raises(LoopLate):
            admission.admit(b"", now, server.lane, since=now - 1_200_000_000)
        await asyncio.sleep(0.1)
        assert not admission.strict

    run(release, tmp_path, test, model=Slow(0.001), cost=CHEAP)


def test_under_load_a_slow_model_is_batched(release: Release, tmp_path: Path) -> None:
    async def client(server: Slowly) -> None:
        for _ in range(8):
            assert (await server.ask())[0] == 200

    async def test(server: Slowly) -> None:
        await asyncio.gather(*(client(server) for _ in range(64)))
        batches = server.slot.cells[page.BATCHES]
        assert server.model.scored == 64 * 8
        assert server.model.scored / batches > 4
        assert server.slot.cells[page.DISPATCH_BUSY] == 64 * 8

    run(release, tmp_path, test, model=Slow(0.02, 0.0002), cost=Cost(20_000.0, 200.0))


def test_a_lone_request_waits_for_no_batch(release: Release, tmp_path: Path) -> None:
    async def test(server: Slowly) -> None:
        waits = []
        for _ in range(20):
            began = time.perf_counter()
            assert (await server.ask())[0] == 200
            waits.append(time.perf_counter() - began)
        assert statistics.median(waits) < 0.015  # 5 ms are the model's, and a connection is made for each

    run(release, tmp_path, test, model=Slow(0.005), cost=Cost(5000.0, 0.0))


def test_a_lane_learns_what_its_model_costs_of_late(release: Release, tmp_path: Path) -> None:
    async def behind_one(server: Slowly) -> float:
        """What the lane tells while it has a row in its thread."""
        asked = asyncio.create_task(server.ask())
        while server.lane.wait_us() == idle_us:
            await asyncio.sleep(0)
        told = server.lane.wait_us()
        assert (await asked)[0] == 200
        return told

    async def test(server: Slowly) -> None:
        for _ in range(60):
            await server.ask()
        assert 8_000 < await behind_one(server) < 100_000
        server.model.call_s = 0.0002
        for _ in range(90):
            await server.ask()
        assert await behind_one(server) < 10_000

    idle_us = 1000.0
    run(release, tmp_path, test, model=Slow(0.01), cost=Cost(idle_us, 0.0))


@WAYS
def test_a_model_that_was_slow_for_a_while_is_asked_again(http: str, release: Release, tmp_path: Path) -> None:
    """By what its calls took it could not answer in time; but who is refused teaches nothing, so an idle lane tries."""

    async def test(server: Slowly) -> None:
        for _ in range(5):
            assert (await server.ask())[0] == 200
        server.model.call_s = 0.001
        assert [(await server.ask("x-request-timeout-ms: 250"))[0] for _ in range(10)] == [200] * 10

    run(release, tmp_path, test, model=Slow(0.6), cost=Cost(100_000.0, 0.0), http=http)


@pytest.mark.parametrize("timeout", ["", "0", "-1", "1.5", "1e3", "ten", "1000000000", "1 2", "+5", "0x10"])
@WAYS
def test_a_malformed_timeout_is_a_400_that_names_the_header(
    http: str, timeout: str, release: Release, tmp_path: Path
) -> None:
    async def test(server: Slowly) -> None:
        status, said = await server.ask(f"x-request-timeout-ms: {timeout}", body=BODY)
        assert status == 400
        assert b"x-request-timeout-ms" in said

    run(release, tmp_path, test, model=Slow(0.0), cost=CHEAP, http=http)
