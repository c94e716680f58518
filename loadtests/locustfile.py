"""Constant arrival at a scoring endpoint, and a service level that sets the exit code. A black box: HTTP is all it knows.

    locust -f loadtests/locustfile.py --headless --users 50 --spawn-rate 50 --run-time 60s --host http://127.0.0.1:8000

Rows come from a JSONL file (`--rows`) or are drawn from the schema that `GET /v1/models/{model}` states. The measured part
begins when every user has started; failures count from the first request. The gate fails the run (exit code 1) when p95
reaches its limit, when less than the wanted share of the rate was achieved, or when one request failed.

Closed loop: a user waits for its answer, so at a server slower than the users together can ask, the rate falls (and the
gate says so) rather than the queue growing.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant_throughput, events, task

DRAWN_ROWS = 5_000
HEADERS = {"content-type": "application/json"}


@dataclass
class Run:
    """What this run measured. Latencies in ms, of answered requests, in the order in which they ended."""

    bodies: Iterator[str] = field(default_factory=lambda: iter(()))
    path: str = "/predict/ab"
    spread_s: float = 0.0  # each user begins at its own place in this time: arrivals are even, not in volleys
    began: float = 0.0
    ended: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    requests: int = 0
    failures: int = 0


run = Run()


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    ours = parser.add_argument_group("Coppice load test")
    ours.add_argument("--rate", type=float, default=1000.0, help="requests per second, all users together")
    ours.add_argument("--path", default="/predict/ab", help="endpoint to ask")
    ours.add_argument("--model", default="", help="model whose schema rows are drawn from; default: the only one")
    ours.add_argument("--rows", default="", help="JSONL file of bodies to cycle through, instead of drawn rows")
    ours.add_argument("--slo-p95-ms", type=float, default=100.0, help="p95 must stay below this")
    ours.add_argument("--slo-rate-share", type=float, default=0.98, help="share of --rate that must be achieved")
    ours.add_argument("--summary", default="", help="file for the figures, as JSON")


@events.test_start.add_listener
def _prepare(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    run.path = options.path
    bodies = _read(options.rows) if options.rows else _drawn(environment.host, options.model)
    run.bodies = itertools.cycle(bodies)
    users = options.num_users or 1
    Caller.wait_time = constant_throughput(options.rate / users)
    run.spread_s = users / options.rate


@events.spawning_complete.add_listener
def _measure_from_here(**_: Any) -> None:
    run.began = time.perf_counter()
    run.latencies_ms.clear()


@events.request.add_listener
def _record(response_time: float, exception: BaseException | None, **_: Any) -> None:
    run.requests += 1
    run.ended = time.perf_counter()
    if exception is None:
        run.latencies_ms.append(response_time)
    else:
        run.failures += 1


@events.quitting.add_listener
def _judge(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    figures = measured(run, options.rate)
    broken = []
    if run.failures or not run.latencies_ms:
        broken.append(f"{run.failures} of {run.requests} requests failed")
    if figures["p95_ms"] >= options.slo_p95_ms:
        broken.append(f"p95 {figures['p95_ms']:.1f} ms is not below {options.slo_p95_ms:g} ms")
    if figures["rate"] < options.slo_rate_share * options.rate:
        broken.append(f"{figures['rate']:.0f}/s achieved, {options.slo_rate_share:.0%} of {options.rate:g} wanted")
    print(
        f"{figures['requests']:,} requests, {figures['failures']} failed, "
        f"{figures['rate']:.1f}/s achieved of {options.rate:g}; "
        f"p50 {figures['p50_ms']:.2f} ms, p95 {figures['p95_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms"
    )
    print(f"service level {'broken: ' + '; '.join(broken) if broken else 'held'}")
    if options.summary:
        Path(options.summary).write_text(json.dumps(figures | {"broken": broken}, indent=1), encoding="utf-8")
    environment.process_exit_code = 1 if broken else 0


class Caller(FastHttpUser):
    """One client with one connection, asking at its share of the rate."""

    connection_timeout = 5.0
    network_timeout = 5.0

    def on_start(self) -> None:
        time.sleep(random.uniform(0, run.spread_s))  # gevent's: other users go on

    @task
    def predict(self) -> None:
        self.client.post(run.path, data=next(run.bodies), headers=HEADERS, name=run.path)


def measured(of: Run, wanted_rate: float) -> dict[str, float]:
    """The run's figures; latencies are NaN where nothing was answered."""
    ordered = sorted(of.latencies_ms)
    seconds = of.ended - of.began
    return {
        "requests": of.requests,
        "failures": of.failures,
        "wanted_rate": wanted_rate,
        "rate": len(ordered) / seconds if seconds > 0 else 0.0,
        "seconds": seconds,
        "p50_ms": quantile(ordered, 0.5),
        "p95_ms": quantile(ordered, 0.95),
        "p99_ms": quantile(ordered, 0.99),
        "max_ms": ordered[-1] if ordered else float("nan"),
    }


def quantile(ordered: list[float], share: float) -> float:
    """The smallest value that at least `share` of the ascending values do not exceed."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1))]


def _read(path: str) -> list[str]:
    bodies = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not bodies:
        raise SystemExit(f"--rows: {path} is empty")
    return bodies


def _drawn(host: str, model: str) -> list[str]:
    """Rows that the server says it accepts, the same for every run."""
    features = schema(host, model)
    rng = random.Random(0)
    return [json.dumps({f["name"]: _value(f, rng) for f in features}) for _ in range(DRAWN_ROWS)]


def schema(host: str, model: str) -> list[dict[str, Any]]:
    """The features that the server states for the model."""
    from urllib.request import urlopen

    def get(path: str) -> Any:
        with urlopen(host + path, timeout=10) as answer:
            return json.load(answer)

    if not model:
        model = get("/v1/models")["models"][0]
    return list(get(f"/v1/models/{model}")["schema"]["features"])


def _value(feature: dict[str, Any], rng: random.Random) -> Any:
    if feature["missing"] != "refuse" and rng.random() < 0.05:
        return None
    if feature["kind"] == "category":
        return rng.choice(feature["categories"])
    if feature["kind"] == "boolean":
        return rng.random() < 0.5
    low = feature["low"] if feature["low"] is not None else -3.0
    high = feature["high"] if feature["high"] is not None else max(3.0, low + 1)
    return round(rng.uniform(low, high), 4)
