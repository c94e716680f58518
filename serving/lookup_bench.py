"""What a look-up costs: `python -m serving.lookup_bench [--rows 100000] [--features 30] [--redis redis://host:port/db]`.

A view of that many entities is written to a temporary folder (and, where addressed, to Redis). Then, over entities drawn at
random: finding a row; a request's body by entity, decoded to a row; and, beside it, the body of all features, decoded by
the same model's plain decoder. p50, p99 and the worst, in µs, of one call each. Redis: one asker at a time, and 64 at once.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, perf_counter_ns

import msgspec
import numpy as np

from serving.decoding import decoder
from serving.errors import LookedUpElsewhere
from serving.lookup import finder_of, looking_up
from training import view as views
from training.features import Feature, FeatureSchema
from training.view import Facts, Lookup

CALLS = 20_000
AT_ONCE = 64
LOOKUP = Lookup("bench", "customer_id")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=30)
    parser.add_argument("--redis", default="", help="also measure a view there")
    asked = parser.parse_args()
    schema = FeatureSchema(tuple(Feature(name=f"feature_{n}", kind="number") for n in range(asked.features)))
    rng = random.Random(0)
    facts = Facts("bench", "customer_id", {f.name: f.kind for f in schema.features}, "2024-04-01T00:00:00+00:00", 0)
    rows = [
        (f"c{n:08d}", views.spell(facts.features, {name: round(rng.gauss(0, 100), 3) for name in schema.names}))
        for n in range(asked.rows)
    ]
    names = [rng.choice(rows)[0] for _ in range(CALLS)]
    with tempfile.TemporaryDirectory() as folder:
        began = perf_counter()
        views.write(Path(folder), facts, rows)
        size = views.path_of(Path(folder), "bench").stat().st_size / 1e6
        print(
            f"{asked.rows:,} entities of {asked.features} features: {size:.0f} MB, written in {perf_counter() - began:.1f} s"
        )
        _measure_file(folder, schema, names, dict(rows))
        if asked.redis:
            _measure_redis(asked.redis, schema, names, facts, rows)


def _measure_file(folder: str, schema: FeatureSchema, names: Sequence[str], content: dict[str, bytes]) -> None:
    finder, plain = finder_of(folder, schema, LOOKUP), decoder(schema)
    by_entity = looking_up(plain, schema, LOOKUP, finder)
    bodies = [_body(name) for name in names]
    whole = [content[name] for name in names]
    _tell("find a row", finder.find, names)
    _tell("body by entity", by_entity, bodies)
    _tell("body of all features", plain, whole)


def _measure_redis(
    address: str, schema: FeatureSchema, names: Sequence[str], facts: Facts, rows: Sequence[tuple[str, bytes]]
) -> None:
    from training import view_redis

    began = perf_counter()
    view_redis.write(address, facts, rows)
    print(f"Redis: written in {perf_counter() - began:.1f} s")
    finder, plain = finder_of(address, schema, LOOKUP), decoder(schema)
    by_entity = looking_up(plain, schema, LOOKUP, finder)
    for at_once in (1, AT_ONCE):
        took = asyncio.run(_ask(by_entity, plain, names[: CALLS // 4], at_once))
        _told(f"Redis, {at_once} at once", took)


async def _ask(
    by_entity: Callable[[bytes], bytes], plain: Callable[[bytes], bytes], names: Sequence[str], at_once: int
) -> list[int]:
    """From body to decoded row, of each; ns."""
    loop, took, left = asyncio.get_running_loop(), list[int](), iter(names)

    async def asker() -> None:
        for name in left:
            began, answered = perf_counter_ns(), loop.create_future()
            try:
                by_entity(_body(name))
            except LookedUpElsewhere as elsewhere:
                elsewhere.ask(answered.set_result)
                plain(elsewhere.complete(await answered))
            took.append(perf_counter_ns() - began)

    await asyncio.gather(*(asker() for _ in range(at_once)))
    return took


def _body(name: str) -> bytes:
    return msgspec.json.encode({"entity": {"customer_id": name}})


def _tell(what: str, call: Callable[[str], object] | Callable[[bytes], object], given: Sequence[object]) -> None:
    for one in given[:1000]:
        call(one)  # type: ignore[arg-type]  # each call has its own kind of argument
    took = []
    for one in given:
        began = perf_counter_ns()
        call(one)  # type: ignore[arg-type]
        took.append(perf_counter_ns() - began)
    _told(what, took)


def _told(what: str, took: Sequence[int]) -> None:
    middle, high, worst = np.percentile(np.array(took) / 1000, (50, 99, 100))
    print(f"  {what:24} p50 {middle:8.1f}   p99 {high:8.1f}   worst {worst:9.1f} µs")


if __name__ == "__main__":
    main()
