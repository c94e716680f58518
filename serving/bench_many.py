"""What a row of many costs, by size and format, beside a single request: `python -m serving.bench_many STORE MODEL`.

Through the application in this process, without a socket: µs per row, best of five. The single request is the one of
`serving.bench`, through the protocol class. They find causes; only a load test makes claims.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from starlette.types import ASGIApp

from serving import bench, page, worker
from serving.app import Health, create
from serving.board import Release
from serving.live import Loader, Snapshot
from serving.settings import Settings
from serving.traffic import TrafficLog
from training.features import decode_matrix

SIZES = (1, 100, 10_000)
PASSES = 5


async def costs(store: Path, model: str) -> dict[str, list[float]]:
    """µs per row for each of `SIZES`, by format."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder:
        slot = page.Page.create(Path(folder) / "bench.page", 1).slot(0)
        log = TrafficLog(Path(folder), server="bench", worker=0, slot=slot)
        settings = Settings(store=str(store), traffic=Path(folder))
        snapshot = Loader(settings, log, slot, loop).load(model)
        door = worker.make_door(settings, slot)
        served = worker.make_served(settings, door, log, slot)
        served.flip(Release(1, model, {model: 1}), {model: snapshot})
        app = create(served, door, Health(ready=lambda: (True, {}), metrics=lambda: b""))
        try:
            found: dict[str, list[float]] = {}
            for rows in SIZES:
                for name, (kind, body) in bodies(snapshot, rows).items():
                    found.setdefault(name, []).append(await time_us(app, kind, body, rows))
            return found
        finally:
            log.close(30)
            snapshot.close()


def bodies(snapshot: Snapshot, rows: int) -> dict[str, tuple[str, bytes]]:
    schema = snapshot.champion.manifest.schema
    taken = bench.servable(schema, snapshot.champion.lane.probe_rows)
    columns = decode_matrix(schema, taken)
    columns = {name: (values * (1 + rows // len(taken)))[:rows] for name, values in columns.items()}
    objects = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    lines = [",".join("" if value is None else str(value) for value in row.values()) for row in objects]
    made = {
        "JSON rows": ("application/json", json.dumps({"rows": objects}).encode()),
        "JSON columns": ("application/json", json.dumps({"columns": columns}).encode()),
        "CSV": ("text/csv", "\n".join([",".join(columns), *lines]).encode()),
    }
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return made
    table = pyarrow.table(columns)
    arrow, parquet = io.BytesIO(), io.BytesIO()
    with pyarrow.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table)
    pyarrow.parquet.write_table(table, parquet)
    return made | {
        "Arrow": ("application/vnd.apache.arrow.stream", arrow.getvalue()),
        "Parquet": ("application/vnd.apache.parquet", parquet.getvalue()),
    }


async def time_us(app: ASGIApp, kind: str, body: bytes, rows: int) -> float:
    best = float("inf")
    for _ in range(PASSES):
        began = perf_counter_ns()
        calls = max(1, 200 // rows)
        for _ in range(calls):
            status = await ask(app, kind, body)
            assert status == 200
        best = min(best, (perf_counter_ns() - began) / 1000 / calls / rows)
        await asyncio.sleep(0.1)  # the log's thread writes what it has
    return best


async def ask(app: ASGIApp, kind: str, body: bytes) -> int:
    scope: dict[str, Any] = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/predict/batch", "raw_path": b"/predict/batch",
        "query_string": b"", "headers": [(b"content-type", kind.encode())],
    }  # fmt: skip
    statuses: list[int] = []
    parts: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    return statuses[0]


def main(tell: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="release store")
    parser.add_argument("model", help="routed model")
    given = parser.parse_args()
    single = asyncio.run(bench.steps(given.store, given.model))["the whole request, bytes in to bytes out"]
    tell(f"{'single request':16}{single:10.2f} µs")
    tell(f"{'rows':16}" + "".join(f"{rows:10d}" for rows in SIZES) + "   µs per row")
    for name, us in asyncio.run(costs(given.store, given.model)).items():
        tell(f"{name:16}" + "".join(f"{each:10.2f}" for each in us))


if __name__ == "__main__":
    main()
