"""What each step of the usual request costs, in µs of the loop's thread: `python -m serving.steps STORE MODEL`.

The request is one call of C, which tells no times of its own. So it is stopped: it gives up, as it does for what is not its
to judge, at a place that the request or the door decides, and each step is the difference of two such places. A byte too
many ends it after the head; a block without room, after the arm is known; a body whose last byte is wrong, after the row is
read; a score that is no number, after the model. The log's share is measured by itself, and the answer's is what is left of
the whole. All are timed in turns, over distinct rows, the best of many passes, on a transport that discards what is written:
what the kernel and the event loop cost is not in here (`make profile` adds it, and the thread that writes the log).
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Literal

import numpy as np
import uvicorn

from serving import page, quick_layout, worker
from serving.arena import Layout
from serving.bench import Discard, bodies_of, servable
from serving.board import Release
from serving.live import Loader, Snapshot
from serving.protocol import direct
from serving.quick import Quick
from serving.settings import Settings
from serving.traffic import TrafficLog

PASSES = 40
LOGGED = 200  # rows at once; a block has room for more
PATH = "/predict/ab"
ID = b"0660fc00000000-0000-000000"


class StepsUnknown(Exception):
    """The model's requests are not C's to answer at once: there is nothing to split."""


async def split(store: Path, model: str, passes: int = PASSES, *, http: Literal["direct", "python"] = "direct") -> dict[str, float]:
    """µs by step, and of the whole. Raises StepsUnknown."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder:
        slot = page.Page.create(Path(folder) / "steps.page", 1).slot(0)
        log = TrafficLog(Path(folder), server="steps", worker=0, slot=slot, max_blocks=1 << 20)
        settings = Settings(store=str(store), traffic=Path(folder), http=http)
        try:
            snapshot = Loader(settings, log, slot, loop).load(model)
            door = worker.make_door(settings, slot)
            worker.make_served(settings, door, log, slot).flip(Release(1, model, {model: 1}), {model: snapshot})
            if door.quick is None or snapshot.quick is None:
                raise StepsUnknown(f"{model}: its requests are answered by Python")
            config = uvicorn.Config(_nothing, http=direct(door), log_config=None, lifespan="off")
            protocol: Any = direct(door)(config, uvicorn.Server(config).server_state, {}, loop)
            protocol.connection_made(Discard())
            return _steps(_Places(door.quick, snapshot, protocol, _requests(snapshot)).timed(passes))
        finally:
            log.close(30)


def _requests(snapshot: Snapshot) -> list[bytes]:
    schema = snapshot.champion.manifest.schema
    bodies = bodies_of(schema, servable(schema, snapshot.champion.lane.probe_rows)[:200])
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
    return [b"%b%d\r\n\r\n%b" % (head.encode(), len(body), body) for body in bodies]


class _Places:
    """Where a request can be stopped, as functions of the request's number. Each leaves the door as it was."""

    def __init__(self, quick: Quick, snapshot: Snapshot, protocol: Any, requests: list[bytes]) -> None:
        self._quick, self._protocol, self._requests = quick, protocol, requests
        self._library, self._address = quick_layout.library(), quick.address
        self._door = quick_layout.Door.from_address(quick.address)
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
        best: dict[str, float] = {}
        places = self._places()
        for request in self._requests:  # the first answers of a release are laid out anew
            self._protocol.data_received(request)
        for _ in range(passes):
            for name, (begin, end) in places.items():
                took = begin()
                end()
                best[name] = min(best.get(name, took), took)
        return best

    def _places(self) -> Mapping[str, tuple[Callable[[], float], Callable[[], None]]]:
        whole = self._requests
        too_long, cut = [each + b" " for each in whole], [each[:-1] + b"?" for each in whole]
        return {
            "call": (lambda: self._stopped([b""] * len(whole)), _as_it_is),
            "head": (lambda: self._stopped(too_long), _as_it_is),
            "arm": (self._without_room, _as_it_is),
            "row": (lambda: self._stopped(cut), _as_it_is),
            "score": (self._without_score, _as_it_is),
            "answer": (self._answered, self._quick.renew),
            "log": (self._logged, self._quick.renew),
            "whole": (self._received, self._quick.renew),
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
            told |= answer(at, requests[i], len(requests[i]), 0)

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
        self._quick.renew()
        took, told = self._ask(self._requests)
        assert told, "no request was answered"
        return took

    def _logged(self) -> float:
        """Of many in one call: a call costs more than a row."""
        self._quick.renew()
        began = perf_counter_ns()
        self._log(self._address, self._row.ctypes.data, len(self._row), ID, len(ID), LOGGED)
        return (perf_counter_ns() - began) / 1000 / LOGGED

    def _received(self) -> float:
        self._quick.renew()
        return self._per_request(lambda i: self._protocol.data_received(self._requests[i]))


def _as_it_is() -> None:
    pass


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
    given = parser.parse_args()
    try:
        told = asyncio.run(split(given.store, given.model))
    except StepsUnknown as unknown:
        raise SystemExit(str(unknown)) from None
    print(json.dumps(told) if given.json else "\n".join(f"{us:8.2f} µs  {name}" for name, us in told.items()))


if __name__ == "__main__":
    main()
