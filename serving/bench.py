"""Micro-benchmarks of the request path, step by step: `python -m serving.bench STORE MODEL`.

They find causes; only a load test makes claims. Each step is timed over distinct rows, best of five passes, in µs; the last
lines are the whole request through the protocol class on a transport that discards what is written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
from collections.abc import Callable
from ctypes import PYFUNCTYPE, c_uint32, c_void_p
from hashlib import sha256
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import uvicorn

from serving import page, quick_layout, worker
from serving.board import Release
from serving.decoding import decode_slowly
from serving.errors import RequestRefused
from serving.live import Loader
from serving.protocol import direct
from serving.quick_layout import address
from serving.settings import Settings
from serving.traffic import TrafficLog
from training.features import FeatureSchema, decode_matrix

PASSES = 5
KEY = "a-key-of-the-benchmark"


class Discard(asyncio.Transport):
    """A transport whose peer reads at once."""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002
        return default

    def is_closing(self) -> bool:
        return False


def bodies_of(schema: FeatureSchema, rows: Any) -> list[bytes]:
    columns = decode_matrix(schema, rows)
    return [
        json.dumps(dict(zip(columns, values, strict=True))).encode() for values in zip(*columns.values(), strict=True)
    ]


def servable(schema: FeatureSchema, rows: Any) -> Any:
    """Those of the rows that JSON can tell and the schema takes: a probe also holds infinities and codes beyond the last."""
    taken = []
    for n in range(len(rows)):
        with contextlib.suppress(IndexError, RequestRefused):
            decode_slowly(schema, bodies_of(schema, rows[n : n + 1])[0])
            taken.append(n)
    return rows[taken]


def time_us(step: Callable[[int], object], count: int) -> float:
    best = float("inf")
    for _ in range(PASSES):
        began = perf_counter_ns()
        for i in range(count):
            step(i)
        best = min(best, (perf_counter_ns() - began) / 1000 / count)
    return best


async def steps(store: Path, model: str) -> dict[str, float]:
    """µs of each step, by name."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder:
        shared = page.Page.create(Path(folder) / "bench.page", 1)
        slot = shared.slot(0)
        log = TrafficLog(Path(folder), server="bench", worker=0, slot=slot, max_blocks=1 << 20)
        settings = Settings(store=str(store), traffic=Path(folder))
        snapshot = Loader(settings, log, slot, loop).load(model)
        try:
            return _measure(snapshot, log, slot, settings, loop)
        finally:
            log.close(30)


def _measure(
    snapshot: Any, log: TrafficLog, slot: page.Slot, settings: Settings, loop: asyncio.AbstractEventLoop
) -> dict[str, float]:
    champion = snapshot.champion
    schema = champion.manifest.schema
    rows = servable(schema, champion.lane.probe_rows)[:200]
    bodies = bodies_of(schema, rows)
    raw = [row.tobytes() for row in rows]
    units = [b"unit-%d" % i for i in range(len(rows))]
    scores = [champion.lane.score_now(row) for row in raw]
    n = len(rows)
    door = worker.make_door(settings, slot)
    model = snapshot.routes.model

    def whole(header: str = "", **knobs: Any) -> float:
        behind = worker.make_door(settings.model_copy(update=knobs), slot)
        worker.make_served(settings, behind, log, slot).flip(Release(1, model, {model: 1}), {model: snapshot})
        config = uvicorn.Config(_nothing, http=direct(behind), log_config=None, lifespan="off")
        protocol = direct(behind)(config, uvicorn.Server(config).server_state, {}, loop)
        protocol.connection_made(Discard())
        head = f"POST /predict/ab HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{header}content-length: "
        requests = [b"%b%d\r\n\r\n%b" % (head.encode(), len(body), body) for body in bodies]
        return time_us(lambda i: protocol.data_received(requests[i]), n)

    return {
        "decode, by the reference encoder": time_us(lambda i: decode_slowly(schema, bodies[i]), n),
        "decode": time_us(lambda i: snapshot.decode(bodies[i]), n),
        "assign an arm": time_us(lambda i: snapshot.points[snapshot.point_of(units[i])], n),
        "score one row": time_us(lambda i: champion.lane.score_now(raw[i]), n),
        "put into the log": time_us(
            lambda i: champion.put(champion.tag, i, units[i], 0, units[i], raw[i], scores[i], 200, 1, 2, 3, 1), n
        ),
        "encode the answer": time_us(lambda i: champion.encode(scores[i], units[i], 12, 0, 5), n),
        "count the answer": time_us(lambda _: door.on_answer(200, 40), n),
        **_in_c(snapshot, bodies, units),
        "the whole request, bytes in to bytes out": whole(),
        "the same, without C": whole(http="python"),
        "the same, with an API key": whole(
            f"authorization: Bearer {KEY}\r\n", api_keys=sha256(KEY.encode()).hexdigest()
        ),
        "the same, with a traceparent": whole(f"traceparent: 00-{'1' * 32}-{'2' * 16}-01\r\n"),
        "the same, hardly ever in the access log": whole(access_log=1e-9),
    }


def _in_c(snapshot: Any, bodies: list[bytes], units: list[bytes]) -> dict[str, float]:
    """The steps that C does by itself, each with what a call into C costs; nothing where C is not asked."""
    rows, native = snapshot.quick, snapshot.champion.lane.native
    if rows is None or native is None:
        return {}
    library, powers, row = quick_layout.library(), address(quick_layout.powers_of_ten()), np.zeros(rows.width)
    endpoint = quick_layout.Endpoint(features=rows.features, width=rows.width, order=rows.order)
    endpoint_at, row_at, call = (
        address(endpoint),
        row.ctypes.data,
        PYFUNCTYPE(None, c_void_p, c_uint32)(native.function),
    )
    return {
        "in C: a call that does nothing": time_us(lambda _: library.coppice_quick_abi(), len(bodies)),
        "in C: decode": time_us(
            lambda i: library.coppice_read_row(endpoint_at, powers, bodies[i], len(bodies[i]), row_at), len(bodies)
        ),
        "in C: assign an arm": time_us(
            lambda i: library.coppice_point_of(
                endpoint_at + quick_layout.Endpoint.salted.offset, units[i], len(units[i])
            ),
            len(units),
        ),
        "in C: score one row": time_us(lambda _: call(native.handle, 1), len(bodies)),
    }


async def _nothing(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError("a scoring request must not reach the application")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="release store")
    parser.add_argument("model", help="routed model")
    given = parser.parse_args()
    for name, us in asyncio.run(steps(given.store, given.model)).items():
        print(f"{us:8.2f} µs  {name}")


if __name__ == "__main__":
    main()
