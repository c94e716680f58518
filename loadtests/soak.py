"""Minutes of mixed traffic at a bounded rate while the routes change every few seconds: what grows, fails, or is lost.

    python -m loadtests.soak [--minutes 10] [--rate 1000]      (make soak MINUTES=10)

Two workers. Seven requests in ten are scored; the rest are malformed, ask what is served, how it is, and for metrics. Any
status but the expected one, and any request without an answer, is an error. RSS and descriptors of every process are
sampled each second; the slope is a least-squares line through what came after the first fifth. At the end the server is
stopped and its books are read: served = logged + dropped + lost. Writes loadtests/results/soak.md.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from loadtests import materials
from loadtests.servers import (
    HERE,
    Server,
    commit,
    coppice,
    coppice_plan,
    descriptors,
    machine,
    metrics,
    rss_mb,
    say,
    serving,
    workers_of,
)

CONNECTIONS = 16
FLIP_S = 5.0
WARM = 0.2  # of the time, in which memory may still grow: caches fill, log blocks are made
FLAT_MB_PER_HOUR = 10.0
ANSWER_S = 10.0
PORT = 18730


@dataclass
class Traffic(threading.Thread):
    """`rate` requests a second over some connections, until `end`."""

    bodies: list[bytes]
    rate: float
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._ending = False

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        async def all_of_it() -> None:
            kinds = self._kinds()
            await asyncio.gather(*(self._connection(number, kinds) for number in range(CONNECTIONS)))

        asyncio.run(all_of_it())

    def end(self) -> None:
        self._ending = True
        self.join(2 * ANSWER_S)

    async def _connection(self, number: int, requests: list[tuple[str, bytes, int]]) -> None:
        kinds = itertools.islice(itertools.cycle(requests), 37 * number, None)
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        due = time.perf_counter() + number / self.rate
        while not self._ending:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            due = max(due + CONNECTIONS / self.rate, time.perf_counter() - 1)  # it does not catch up for ever
            name, request, expected = next(kinds)
            try:
                writer.write(request)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_S)
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                told = await asyncio.wait_for(reader.readexactly(length), ANSWER_S)
                status = int(head.split(b" ", 2)[1])
                self.statuses[name, status] += 1
                if status != expected:
                    self.errors.append(f"{name}: {status} {told[:200]!r}")
            except (OSError, EOFError, IndexError, ValueError, TimeoutError) as failure:
                self.errors.append(f"{name}: {failure!r}")
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        writer.close()

    def _kinds(self) -> list[tuple[str, bytes, int]]:
        """(what it is, the request, the status that is right), in the order in which they are sent."""
        scored = [("split", _post("/predict/ab", body), 200) for body in self.bodies[::2]]
        scored += [("champion", _post("/predict", body), 200) for body in self.bodies[1::2]]
        others = [
            ("malformed", _post("/predict", b'{"x00": '), 400),
            ("wrong type", _post("/predict/ab", self.bodies[0].replace(b'"x00": ', b'"x00": "no", "gone": ', 1)), 422),
            ("unknown path", b"GET /nowhere HTTP/1.1\r\nhost: soak\r\n\r\n", 404),
            ("models", b"GET /v1/models HTTP/1.1\r\nhost: soak\r\n\r\n", 200),
            ("ready", b"GET /readyz HTTP/1.1\r\nhost: soak\r\n\r\n", 200),
        ]
        mixed = []
        for n, one in enumerate(scored):
            mixed.append(one)
            if n % 7 in (2, 4, 6):
                mixed.append(others[(n // 2) % len(others)])
        return [*mixed, ("metrics", b"GET /metrics HTTP/1.1\r\nhost: soak\r\n\r\n", 200)]


def _post(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass
class Watch:
    """A sample each second: RSS in MB and descriptors of the workers, and of the sync process and the supervisor."""

    pids: dict[str, int]
    at_s: list[float] = field(default_factory=list)
    rss: dict[str, list[float]] = field(default_factory=dict)
    files: dict[str, list[int]] = field(default_factory=dict)

    def look(self, at_s: float) -> None:
        self.at_s.append(at_s)
        for name, pid in self.pids.items():
            self.rss.setdefault(name, []).append(rss_mb(pid))
            self.files.setdefault(name, []).append(descriptors(pid))

    def slope(self, name: str) -> float:
        """MB an hour, after the warm part."""
        at = np.array(self.at_s)
        warm = at >= WARM * at[-1]
        return float(3600 * np.polyfit(at[warm], np.array(self.rss[name])[warm], 1)[0])

    def more_files(self, name: str) -> float:
        """Median of the last tenth less that of the tenth after the warm part: segments and bundles come and go."""
        files = np.array(self.files[name])
        tenth = max(1, len(files) // 10)
        warm = int(WARM * len(files))
        return float(np.median(files[-tenth:]) - np.median(files[warm : warm + tenth]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=1000, help="requests a second")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for soak.md")
    parser.add_argument("--folder", type=Path, help="where models are made; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows = materials.data(folder)
        digests = materials.small_models(folder)
        bodies = rows.read_bytes().splitlines()[:700]
        plan = coppice_plan("soak", PORT, "bench", "--workers", "2")
        with serving(plan, folder, list(range(2))) as server:
            traffic, watch, flips, counted = _soak(server, folder, digests, bodies, options)
        books = _books(folder)
    page, met = _page(traffic, watch, flips, counted, books, server.process.returncode, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.md").write_text(page, encoding="utf-8")
    print(page)
    sys.exit(0 if met else 1)


def _soak(
    server: Server, folder: Path, digests: dict[str, str], bodies: list[bytes], options: argparse.Namespace
) -> tuple[Traffic, Watch, int, dict[str, float]]:
    workers = workers_of(server)
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="utf-8").split()
    pids = {f"worker {n}": pid for n, pid in enumerate(workers)} | {"supervisor": server.pid}
    pids["sync process"] = next(int(pid) for pid in children if int(pid) not in workers)
    traffic, watch, flips = Traffic(bodies, options.rate), Watch(pids), 0
    traffic.start()
    began = time.perf_counter()
    due = began + FLIP_S
    while (now := time.perf_counter()) - began < 60 * options.minutes:
        watch.look(now - began)
        if now >= due:
            flips, due = flips + 1, due + FLIP_S
            swapped = dict(zip(digests, reversed(digests.values()), strict=True)) if flips % 2 else digests
            materials.publish(folder, "bench", swapped)
            if flips % 12 == 0:
                say(
                    f"{(now - began) / 60:.0f} min: {sum(traffic.statuses.values()):,} answers, {len(traffic.errors)} errors"
                )
        time.sleep(1)
    traffic.end()
    return traffic, watch, flips, metrics(server)


def _books(folder: Path) -> str:
    """What `coppice reconcile` says, after the server is gone; it exits where the books do not balance."""
    traffic = f"var/traffic-{PORT}"
    coppice(folder, "compact", "--traffic", traffic)
    return coppice(folder, "reconcile", "--traffic", traffic).strip()


def _page(
    traffic: Traffic,
    watch: Watch,
    flips: int,
    counted: dict[str, float],
    books: str,
    status: int | None,
    options: argparse.Namespace,
) -> tuple[str, bool]:
    total = sum(traffic.statuses.values())
    rate = total / (60 * options.minutes)
    flipped = int(counted.get("coppice_sync_flips_total", 0)) - 1
    verdicts = [(f"{len(traffic.errors)} errors in {total:,} answers, {rate:,.0f}/s", not traffic.errors)]
    verdicts.append((f"{flips} generations published, {flipped} flipped to", flipped >= 0.8 * flips))
    for name, rss in watch.rss.items():
        slope, files = watch.slope(name), watch.more_files(name)
        verdicts.append(
            (f"{name}: RSS {rss[0]:.1f} MB at first, {rss[-1]:.1f} at the end, slope {slope:+.1f} MB/h; {files:+.0f} "
             f"descriptors of {watch.files[name][-1]}", slope <= FLAT_MB_PER_HOUR and files <= 2)
        )  # fmt: skip
    verdicts.append((f"exit status {status} after SIGTERM", status == 0))
    lines = [
        "# Soak",
        "",
        f"`python -m loadtests.soak --minutes {options.minutes:g} --rate {options.rate:g}`, commit {commit()}, "
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Two workers, {CONNECTIONS} connections, another champion every "
        f"{FLIP_S:g} s; slopes are of the time after the first {WARM:.0%}, flat is below {FLAT_MB_PER_HOUR:g} MB/h.",
        "",
        *[f"- {'met' if kept else 'MISSED'}: {text}" for text, kept in verdicts],
        f"- answers: {json.dumps({f'{name} {status}': n for (name, status), n in sorted(traffic.statuses.items())})}",
        *[f"- error: {error}" for error in traffic.errors[:10]],
        "",
        "```",
        books,
        "```",
        "",
    ]
    return "\n".join(lines), all(kept for _, kept in verdicts)


if __name__ == "__main__":
    main()
