"""Three times what the server can do, arriving all the same: what is still answered, how late, and what the rest is told.

    python -m loadtests.overload [--seconds 14] [--deadline-ms 100]      (make bench-overload; needs h2load)

Two models, one worker on one core, h2load on another: a forest that is slow to score (LightGBM, 4,000 deep trees in ONNX
Runtime), so that scoring is the limit; and the small models of `make bench`, where HTTP is, on a share of its core: the
client, which has as much to do for a request as the server, could not send three times what a whole core answers. First the
peak, in a closed loop: the most answers a second. Then 3 x that as an open loop. Then what a lone client sees. Writes
loadtests/results/overload.md and a plot.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from loadtests import materials
from loadtests.limited import limited
from loadtests.open_loop import Requests, clients_for, need_h2load, ramp_s, run_h2load
from loadtests.servers import (
    HERE,
    Plan,
    Server,
    commit,
    coppice_plan,
    machine,
    rss_mb,
    say,
    serving,
    two_cores,
    workers_of,
)

TIMES = 3
SETTLE_S = 1.0  # of the overload, not judged: connections are made
RECOVERY_S = 2.0
NEAR = 5.0  # times the lone request's usual time, plus 5 ms: normal again


@dataclass(frozen=True)
class Case:
    title: str
    plan: Plan
    path: str
    body: Path
    goodput: float  # of the peak, at least
    p95_ms: float | None = 100  # of what is accepted, at most; None: told, not judged
    core: float = 1.0  # the share of it that the server has


@dataclass
class Watch(threading.Thread):
    """RSS of the worker, and a few requests of its own whose headers are looked at."""

    server: Server
    path: str
    body: bytes
    rss: list[float] = field(default_factory=list)
    shed: int = 0
    without_retry_after: int = 0

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._ending = threading.Event()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        (worker,) = workers_of(self.server)
        while not self._ending.wait(0.1):
            self.rss.append(rss_mb(worker))
            try:
                status, headers, _ = ask(self.server, self.path, self.body)
            except OSError:
                continue
            self.shed += status == 503
            self.without_retry_after += status == 503 and "retry-after" not in headers

    def end(self) -> None:
        self._ending.set()
        self.join(30)


@dataclass(frozen=True)
class Outcome:
    case: Case
    peak: float
    lone_ms: float
    asked: float
    requests: Requests
    seconds: float
    rss: tuple[float, float, float]  # before, highest, after
    shed_looked_at: int
    without_retry_after: int
    normal_after_s: float

    @property
    def judged(self) -> Requests:
        return self.requests.within(self.settle_s, self.seconds)

    @property
    def goodput(self) -> float:
        return self.judged.per_second(200, self.seconds - self.settle_s)

    @property
    def settle_s(self) -> float:
        return SETTLE_S + ramp_s(clients_for(self.asked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=14, help="of the overload")
    parser.add_argument("--deadline-ms", type=int, default=100)
    parser.add_argument(
        "--core", type=float, default=0.25, help="share of its core that the server of the small models has"
    )
    parser.add_argument("--only", choices=["slow", "small"])
    parser.add_argument("--folder", type=Path, help="where models are made and kept; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for overload.md and overload.png")
    options = parser.parse_args()
    need_h2load()
    cores = two_cores("loadtests.overload")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = [_measured(case, folder, cores, options.seconds) for case in _cases(folder, options)]
    options.out.mkdir(parents=True, exist_ok=True)
    page, met = _page(outcomes, options)
    (options.out / "overload.md").write_text(page, encoding="utf-8")
    _plot(outcomes, options.out / "overload.png")
    print(page)
    sys.exit(0 if met else 1)


def _cases(folder: Path, options: argparse.Namespace) -> list[Case]:
    cases = []
    deadline = str(options.deadline_ms)
    if options.only != "small":
        plan = coppice_plan("slow", 18720, "slow", "--workers", "1", deadline_ms=deadline)
        cases.append(
            Case("scoring is the limit", plan, "/predict", _once(folder, "slow.json", materials.slow_model), 0.9)
        )
    if options.only != "slow":
        body = materials.one_body(folder)
        if not (folder / "var/releases/routes/bench").is_dir():
            materials.small_models(folder)
        plan = coppice_plan("small", 18721, "bench", "--workers", "1", deadline_ms=deadline)
        cases.append(Case("HTTP is the limit", plan, "/predict/ab", body, 0.7, None, options.core))
    return cases


def _once(folder: Path, name: str, make: Callable[[Path], Path]) -> Path:
    """What a kept folder has is not made again."""
    return folder / name if (folder / name).exists() else make(folder)


def _measured(case: Case, folder: Path, cores: list[int], seconds: float) -> Outcome:
    server_core, client_core = cores[:1], cores[1:2]
    with serving(case.plan, folder, server_core) as server, _held(server, case.core):
        body, sent = case.body, case.body.read_bytes()
        lone_ms = float(np.median([_timed_ms(server, case.path, sent) for _ in range(200)]))
        peaks = []
        for clients in (4, 16, 64):
            closed = run_h2load(server, case.path, body, clients, None, 3, client_core)
            peaks.append(closed.per_second(200, 3))
        peak = max(peaks)
        say(f"{case.title}: a lone request {lone_ms:.2f} ms; peak {peak:,.0f}/s; now {TIMES} x that")
        (worker,) = workers_of(server)
        before = rss_mb(worker)
        watch = Watch(server, case.path, sent)
        watch.start()
        asked = TIMES * peak
        requests = run_h2load(server, case.path, body, clients_for(asked), asked, seconds, client_core)
        normal_after_s = _recovery_s(server, case.path, sent, lone_ms)
        watch.end()
        return Outcome(
            case=case,
            peak=peak,
            lone_ms=lone_ms,
            asked=asked,
            requests=requests,
            seconds=seconds,
            rss=(before, max(watch.rss), rss_mb(worker)),
            shed_looked_at=watch.shed,
            without_retry_after=watch.without_retry_after,
            normal_after_s=normal_after_s,
        )


@contextmanager
def _held(server: Server, core: float) -> Iterator[None]:
    if core == 1:
        yield
        return
    with limited([server.pid, *workers_of(server)], core):
        yield


def ask(server: Server, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=10)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def _timed_ms(server: Server, path: str, body: bytes) -> float:
    began = time.perf_counter()
    status, _, told = ask(server, path, body)
    if status != 200:
        sys.exit(f"{server.title}: a lone request was answered {status}: {told!r}")
    return 1e3 * (time.perf_counter() - began)


def _recovery_s(server: Server, path: str, body: bytes, lone_ms: float) -> float:
    """When the last answer came, since the load ended, that was not a 200 in the usual time."""
    began = time.perf_counter()
    normal_after_s = 0.0
    while time.perf_counter() - began < 2 * RECOVERY_S:
        asked = time.perf_counter()
        status, _, _ = ask(server, path, body)
        now = time.perf_counter()
        if status != 200 or 1e3 * (now - asked) > NEAR * lone_ms + 5:
            normal_after_s = now - began
        time.sleep(0.02)
    return normal_after_s


def _page(outcomes: list[Outcome], options: argparse.Namespace) -> tuple[str, bool]:
    lines = [
        "# Overload",
        "",
        f"`python -m loadtests.overload --seconds {options.seconds:g} --deadline-ms {options.deadline_ms}`, commit {commit()}, "
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. One worker on one core, h2load on another, "
        f"`COPPICE_DEADLINE_MS={options.deadline_ms}`; judged from {SETTLE_S:g} s after all have connected.",
        "",
    ]
    met = True
    for outcome in outcomes:
        verdicts = _verdicts(outcome)
        met = met and all(kept for _, kept in verdicts)
        lines += [f"## {outcome.case.title[0].upper()}{outcome.case.title[1:]}", ""]
        lines += [f"- {'met' if kept else 'MISSED'}: {text}" for text, kept in verdicts]
        judged, seconds = outcome.judged, outcome.seconds - outcome.settle_s
        others = {int(s): int((judged.status == s).sum()) for s in np.unique(judged.status) if s not in (200, 503)}
        share = f", which has {outcome.case.core:.0%} of its core" if outcome.case.core != 1 else ""
        lines += [
            f"- a lone request {outcome.lone_ms:.2f} ms; peak {outcome.peak:,.0f}/s in a closed loop{share}; asked for "
            f"{outcome.asked:,.0f}/s, sent {judged.per_second(None, seconds):,.0f}/s over {clients_for(outcome.asked)} "
            f"connections; other statuses: {json.dumps(others) if others else 'none'}",
            "",
        ]
    return "\n".join([*lines, "![answers a second, and their times](overload.png)", ""]), met


def _verdicts(outcome: Outcome) -> list[tuple[str, bool]]:
    judged = outcome.judged
    share = outcome.goodput / outcome.peak
    accepted, shed = [judged.ms(200, p) for p in (50, 95, 99)], [judged.ms(503, p) for p in (50, 95, 99)]
    before, highest, after = outcome.rss
    known = np.isin(judged.status, (200, 503)).all()
    most = outcome.case.p95_ms
    verdicts = [
        (f"goodput {outcome.goodput:,.0f}/s, {share:.0%} of the peak (at least {outcome.case.goodput:.0%})",
         share >= outcome.case.goodput),
        (f"accepted: p50 {accepted[0]:.1f}, p95 {accepted[1]:.1f}, p99 {accepted[2]:.1f} ms"
         + (f" (p95 below {most:g})" if most else " (not judged: each waits for the others before it)"),
         not most or accepted[1] < most),
        (f"RSS {before:.0f} MB before, {highest:.0f} at most, {after:.0f} after (at most 64 MB more)", highest < before + 64),
        (f"normal again after {outcome.normal_after_s:.2f} s (within {RECOVERY_S:g})", outcome.normal_after_s <= RECOVERY_S),
    ]  # fmt: skip
    if (judged.status == 503).any():
        text = f"the rest 503: p50 {shed[0]:.1f}, p95 {shed[1]:.1f}, p99 {shed[2]:.1f} ms (p95 within 10); "
        text += f"{outcome.shed_looked_at} looked at, {outcome.without_retry_after} without Retry-After"
        verdicts.insert(2, (text, bool(known and shed[1] <= 10 and not outcome.without_retry_after)))
    else:
        verdicts.insert(2, ("nothing had to be shed", bool(known)))
    return verdicts


def _plot(outcomes: list[Outcome], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(outcomes), figsize=(6 * len(outcomes), 6), squeeze=False, sharex="col")
    for column, outcome in enumerate(outcomes):
        above, below = axes[0][column], axes[1][column]
        requests = outcome.requests
        bins = np.arange(0, outcome.seconds + 0.25, 0.25)
        for status, label in ((200, "answered"), (503, "503")):
            ended = requests.start_s + requests.took_ms / 1e3
            counts, _ = np.histogram(ended[requests.status == status], bins)
            above.step(bins[:-1], counts / 0.25, where="post", label=label)
        above.axhline(outcome.peak, linestyle="--", color="grey", label="peak")
        above.set(title=outcome.case.title, ylabel="a second", ylim=(0, None))
        above.legend()
        for status, label in ((200, "answered"), (503, "503")):
            mask = requests.status == status
            below.plot(requests.start_s[mask], requests.took_ms[mask], ",", label=label)
        below.axhline(100, linestyle="--", color="grey")
        below.set(yscale="log", ylabel="ms", xlabel="s")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
