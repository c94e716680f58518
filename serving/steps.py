"""What each step of the usual request costs, in µs of the loop's thread: `python -m serving.steps STORE MODEL`.

The request is one call of C, which tells no times of its own. So it is stopped: it gives up, as it does for what is not its
to judge, at a place that the request or the door decides, and each step is the difference of two such places. A byte too
many ends it after the head; a block without room, after the arm is known; a body whose last byte is wrong, after the row is
read; a score that is no number, after the model. The log's share is measured by itself, and the answer's is what is left of
the whole. All are timed in turns, the best of many passes, on a transport that discards what is written: with warm caches.

`--serve PLACE --port N` stops there, too, and then writes a constant answer, under real connections and an event loop, so that
the CPU time of such servers can be compared from outside (`make profile`): `floor` does nothing but that, `whole` is the
protocol class itself.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Literal

import numpy as np
import uvicorn
import uvloop

from serving import page, quick_layout, worker
from serving.arena import Layout
from serving.bench import Discard, bodies_of, servable
from serving.board import Release
from serving.door import Door
from serving.live import Loader, Snapshot
from serving.protocol import direct
from serving.quick import Quick
from serving.settings import Settings
from serving.traffic import TrafficLog

PASSES = 20
MOST_ROWS = 2_000
AT_ONCE = LOGGED = 400  # requests, rows: a block has room for more
PATH = "/predict/ab"
PLACES = ("floor", "head", "arm", "row", "score", "answer", "whole")
CONSTANT = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 300\r\n\r\n" + b"x" * 300
ID = b"0660fc00000000-0000-000000"


class StepsUnknown(Exception):
    """The model's requests are not C's to answer at once: there is nothing to split."""


@asynccontextmanager
async def _laid_out(
    store: Path, model: str, http: Literal["direct", "python"] = "direct"
) -> AsyncIterator[tuple[Door, Snapshot]]:
    """A door that answers from the model. Raises StepsUnknown."""
    with tempfile.TemporaryDirectory() as folder:
        slot = page.Page.create(Path(folder) / "steps.page", 1).slot(0)
        log = TrafficLog(Path(folder), server="steps", worker=0, slot=slot, max_blocks=1 << 20)
        settings = Settings(store=str(store), traffic=Path(folder), http=http)
        try:
            snapshot = Loader(settings, log, slot, asyncio.get_running_loop()).load(model)
            door = worker.make_door(settings, slot)
            worker.make_served(settings, door, log, slot).flip(Release(1, model, {model: 1}), {model: snapshot})
            if door.quick is None or snapshot.quick is None:
                raise StepsUnknown(f"{model}: its requests are answered by Python")
            yield door, snapshot
        finally:
            log.close(30)


def _protocols(door: Door) -> Callable[[], Any]:
    """One for each connection, of one server: what they share is laid out once."""
    made = direct(door)
    config = uvicorn.Config(_nothing, http=made, log_config=None, lifespan="off")
    state, loop = uvicorn.Server(config).server_state, asyncio.get_running_loop()
    return lambda: made(config, state, {}, loop)


async def split(
    store: Path,
    model: str,
    passes: int = PASSES,
    *,
    rows: Path | None = None,
    http: Literal["direct", "python"] = "direct",
) -> dict[str, float]:
    """µs by step, and of the whole. Raises StepsUnknown."""
    async with _laid_out(store, model, http) as (door, snapshot):
        assert door.quick is not None
        protocol = _protocols(door)()
        protocol.connection_made(Discard())
        places = _Places(door.quick, snapshot, protocol, _requests(snapshot, rows))
        return _steps(places.timed(passes))


async def serve(store: Path, model: str, place: str, port: int) -> None:
    """Until it is ended: whatever is sent goes as far as the place. Raises StepsUnknown."""
    async with _laid_out(store, model) as (door, snapshot):
        assert door.quick is not None
        step = _Places(door.quick, snapshot, None, []).on_the_way(place) if place != "whole" else None
        factory = (lambda: Stopped(step)) if step is not None else _protocols(door)
        server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", port, backlog=1024)
        await server.serve_forever()


class Stopped(asyncio.Protocol):
    """Does a step with what it reads, and answers a constant."""

    def __init__(self, step: Callable[[bytes], object]) -> None:
        self._step = step

    def connection_made(self, transport: Any) -> None:
        self._write = transport.write

    def data_received(self, data: bytes) -> None:
        self._step(data)
        self._write(CONSTANT)


def _requests(snapshot: Snapshot, rows: Path | None) -> list[bytes]:
    """Of the file's lines, or of the bundle's probe. Few rows are learned by heart, and then scored in half the time."""
    if rows is not None:
        bodies = rows.read_bytes().splitlines()[:MOST_ROWS]
    else:
        schema = snapshot.champion.manifest.schema
        bodies = bodies_of(schema, servable(schema, snapshot.champion.lane.probe_rows)[:MOST_ROWS])
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
    return [b"%b%d\r\n\r\n%b" % (head.encode(), len(body), body) for body in bodies]


class _Places:
    """Where a request can be stopped: µs up to there, of the requests that are looked at. Each leaves the door as it was."""

    def __init__(self, quick: Quick, snapshot: Snapshot, protocol: Any, requests: list[bytes]) -> None:
        self._quick, self._protocol = quick, protocol
        self._library, self._address = quick_layout.library(), quick.address
        self._door = quick_layout.Door.from_address(quick.address)
        requests = [each for n, each in enumerate(requests) if self._is_for_c(n, each)]
        self._parts = [requests[n : n + AT_ONCE] for n in range(0, len(requests), AT_ONCE)]
        self._requests = self._parts[0] if self._parts else []
        endpoints = [
            quick_layout.Endpoint.from_address(self._door.endpoints + n * ctypes.sizeof(quick_layout.Endpoint))
            for n in range(self._door.endpoint_count)
        ]
        step = ctypes.sizeof(quick_layout.Arm)
        self._arms = [
            quick_layout.Arm.from_address(endpoint.arms + n * step)
            for endpoint in endpoints
            for n in range(len(snapshot.arms) if endpoint.split else 1)
        ]
        if not all(arm.run and not arm.queue for arm in self._arms):
            raise StepsUnknown("an arm's rows wait for others, or for a thread: their cost is not the loop's alone")
        self._nan = np.full(1, np.nan)
        self._row = np.zeros(snapshot.champion.manifest.schema.width)
        self._log = self._library.coppice_log_again
        self._log.restype = None
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._log.argtypes = [pointer, pointer, number, ctypes.c_char_p, number, number]

    def timed(self, passes: int) -> dict[str, float]:
        """µs up to each place, by its name."""
        best: dict[tuple[str, int], float] = {}
        places = self._places()
        for request in self._requests:  # the first answers of a release are laid out anew
            self._protocol.data_received(request)
        for _ in range(passes):
            for name, place in places.items():
                for n, part in enumerate(self._parts):  # all of them, before any comes again
                    self._requests = part
                    self._quick.renew()
                    took = place()
                    best[name, n] = min(best.get((name, n), took), took)
        weights = [len(part) for part in self._parts]
        return {name: sum(best[name, n] * weight for n, weight in enumerate(weights)) / sum(weights) for name in places}

    def on_the_way(self, place: str) -> Callable[[bytes], object]:
        """As a function of a request, which leaves the door as the place needs it."""
        answer, at, quick = self._quick.answer, self._address, self._quick

        def as_it_is(data: bytes) -> None:
            length = answer(at, data, len(data), 0)
            if length < 0:
                quick.after_answer(length)

        if place == "arm":
            block = Layout.from_address(self._door.rows)
            block.count = block.rows
        elif place == "score":
            for arm in self._arms:
                arm.score = self._nan.ctypes.data
        steps: dict[str, Callable[[bytes], object]] = {
            "floor": lambda _: None,
            "head": lambda data: answer(at, data + b" ", len(data) + 1, 0),
            "row": lambda data: answer(at, data[:-1] + b"?", len(data), 0),
        }
        return steps.get(place, as_it_is)

    def _is_for_c(self, number: int, request: bytes) -> bool:
        if number % AT_ONCE == 0:
            self._quick.renew()
        return bool(self._quick.answer(self._address, request, len(request), 0))

    def _places(self) -> Mapping[str, Callable[[], float]]:
        return {
            "call": lambda: self._stopped([b""] * len(self._requests)),
            "head": lambda: self._stopped([each + b" " for each in self._requests]),
            "arm": self._without_room,
            "row": lambda: self._stopped([each[:-1] + b"?" for each in self._requests]),
            "score": self._without_score,
            "answer": self._answered,
            "log": self._logged,
            "whole": self._received,
        }

    def _per_request(self, step: Callable[[int], object]) -> float:
        count = len(self._requests)
        began = perf_counter_ns()
        for i in range(count):
            step(i)
        return (perf_counter_ns() - began) / 1000 / count

    def _ask(self, requests: list[bytes]) -> tuple[float, int]:
        answer, at, told = self._quick.answer, self._address, 0

        def one(i: int) -> None:
            nonlocal told
            told += answer(at, requests[i], len(requests[i]), 0) != 0

        return self._per_request(one), told

    def _stopped(self, requests: list[bytes]) -> float:
        took, told = self._ask(requests)
        assert not told, "a request that was to be stopped was answered"
        return took

    def _without_room(self) -> float:
        block = Layout.from_address(self._door.rows)
        kept, block.count = block.count, block.rows
        try:
            return self._stopped(self._requests)
        finally:
            block.count = kept

    def _without_score(self) -> float:
        kept = [arm.score for arm in self._arms]
        for arm in self._arms:
            arm.score = self._nan.ctypes.data
        try:
            return self._stopped(self._requests)
        finally:
            for arm, score in zip(self._arms, kept, strict=True):
                arm.score = score

    def _answered(self) -> float:
        took, told = self._ask(self._requests)
        assert told == len(self._requests), "a request was not answered"
        return took

    def _logged(self) -> float:
        """Of many in one call: a call costs more than a row."""
        began = perf_counter_ns()
        self._log(self._address, self._row.ctypes.data, len(self._row), ID, len(ID), LOGGED)
        return (perf_counter_ns() - began) / 1000 / LOGGED

    def _received(self) -> float:
        return self._per_request(lambda i: self._protocol.data_received(self._requests[i]))


def _steps(at: dict[str, float]) -> dict[str, float]:
    log = at["log"]
    return {
        "receive: protocol in Python, call into C": at["whole"] - at["answer"] + at["call"],
        "parse: request line and headers": at["head"] - at["call"],
        "route: request id, arm of the unit": at["arm"] - at["head"],
        "decode: JSON to a row": at["row"] - at["arm"],
        "queue: scored at once": 0.0,
        "score: the model": at["score"] - at["row"],
        "encode: the answer, and to count it": at["answer"] - at["score"] - log,
        "log: a row into the block": log,
        "the whole, bytes in to bytes out": at["whole"],
    }


async def _nothing(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError("a scoring request must not reach the application")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="release store")
    parser.add_argument("model", help="routed model")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--rows", type=Path, help="JSONL file of bodies; default: those of the bundle's probe")
    parser.add_argument("--serve", choices=PLACES, help="serve so far, instead")
    parser.add_argument("--port", type=int, default=0, help="to serve at")
    given = parser.parse_args()
    try:
        if given.serve:
            uvloop.run(serve(given.store, given.model, given.serve, given.port))
        told = asyncio.run(split(given.store, given.model, rows=given.rows))
    except StepsUnknown as unknown:
        raise SystemExit(str(unknown)) from None
    print(json.dumps(told) if given.json else "\n".join(f"{us:8.2f} µs  {name}" for name, us in told.items()))


if __name__ == "__main__":
    main()
