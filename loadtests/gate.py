"""What a run of the load generator measured, whether its bounds held, and the pages that tell it.

A request counts from when it was due (of a closed loop: from when it was sent) and belongs to the stage in which that was.
It was answered in time if its answer came before its stage ended, or within `GRACE_S` of that: a server that falls behind
shows as a share that is missing, however patient the client. What was never sent is a failure.

The generator is looked at, too: its share of a core, and how late it was where nothing but itself was in the way. Near a
whole core the figures are the generator's, and the verdict says so.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.profiles import Bounds
from loadtests.shapes import Shape, Stage

GRACE_S = 0.5
SLICE_S = 0.25  # of the time after a spike, in which p95 is looked at
BUSY = 0.9  # of a core
LATE_MS = 20.0  # of its own making, for one request in a hundred
NO_ANSWER = -1.0

Mask = npt.NDArray[np.bool_]


class Generator:
    """The process that sends: CPU time and the machine's stolen time, from `begin` on."""

    def __init__(self) -> None:
        self._cpu_s, self._at, self._stolen = 0.0, 0.0, (0, 0)

    def begin(self) -> None:
        self._cpu_s, self._at, self._stolen = time.process_time(), time.perf_counter(), _stolen()

    def shares(self) -> dict[str, float]:
        """`cpu` of one core, `stolen` of all cores' time by the host below."""
        seconds = time.perf_counter() - self._at
        before, after = self._stolen, _stolen()
        ticks = after[1] - before[1]
        return {
            "cpu": (time.process_time() - self._cpu_s) / seconds if seconds > 0 else 0.0,
            "stolen": (after[0] - before[0]) / ticks if ticks else 0.0,
        }


def _stolen() -> tuple[int, int]:
    """(stolen, all) ticks since the machine started."""
    first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    ticks = [int(value) for value in first]
    return ticks[7], sum(ticks)


@dataclass
class Book:
    """Every request of the run, in the order in which they ended; times in s since its beginning."""

    due_s: array[float] = field(default_factory=lambda: array("d"))
    took_ms: array[float] = field(default_factory=lambda: array("d"))  # NO_ANSWER: it failed
    own_late_ms: array[float] = field(default_factory=lambda: array("d"))  # of those whose sender was free in time
    reasons: Counter[str] = field(default_factory=Counter)
    not_sent: int = 0
    ended_s: float = 0.0

    def answered(self, due_s: float, took_ms: float) -> None:
        self.due_s.append(due_s)
        self.took_ms.append(took_ms)

    def failed(self, due_s: float, why: str) -> None:
        self.answered(due_s, NO_ANSWER)
        self.reasons[why] += 1

    def left_out(self, due_s: list[float]) -> None:
        """Due, and never sent."""
        for at_s in due_s:
            self.failed(at_s, "not sent: every connection was busy until the run was over")
        self.not_sent += len(due_s)


def measured(book: Book, shape: Shape, warm_s: float, bounds: Bounds, generator: dict[str, float]) -> dict[str, Any]:
    """The run's figures; latencies are NaN where nothing was answered."""
    due, took = np.frombuffer(book.due_s), np.frombuffer(book.took_ms)
    judged = _judged(due, shape, warm_s, bounds)
    stages = [_stage(due, took, stage, judged & _within(due, stage)) for stage in shape.stages]
    told = stages if not all(stage["judged"] for stage in stages) else []
    of_all = [s for s in stages if s["judged"]]
    counted = sum(s["due"] for s in of_all)
    seconds = sum(s["seconds"] for s in of_all)
    in_time = sum(s["in_time"] for s in of_all)
    own_late = np.frombuffer(book.own_late_ms)
    return {
        "requests": len(due),
        "failures": int((took == NO_ANSWER).sum()),
        "not_sent": book.not_sent,
        "reasons": dict(book.reasons.most_common(5)),
        "wanted_rate": counted / seconds if seconds > 0 else 0.0,
        "rate": in_time / seconds if seconds > 0 else 0.0,
        "seconds": seconds,
        **_quantiles(took[judged & (took != NO_ANSWER)]),
        "recovery_s": max((_recovery_s(due, took, shape, n, bounds) for n in range(len(told))), default=0.0),
        "stages": stages if len(stages) > 1 else [],
        "generator": generator | {"late_p99_ms": float(np.percentile(own_late, 99)) if len(own_late) else 0.0},
    }


def verdict(figures: dict[str, Any], bounds: Bounds) -> list[str]:
    """What is broken; nothing: all bounds held."""
    if bounds.knee is not None:
        return _verdict_of_knee(figures, bounds, bounds.knee)
    broken = []
    answered = figures["requests"] - figures["failures"]
    most = (bounds.failures if bounds.failures is not None else 1.0) * figures["requests"]
    if figures["failures"] > most or answered <= 0:
        why = "; ".join(f"{count} x {reason}" for reason, count in figures["reasons"].items())
        broken.append(f"{figures['failures']} of {figures['requests']} requests failed{': ' + why if why else ''}")
    for name, most_ms in (("p95", bounds.p95_ms), ("p99", bounds.p99_ms)):
        if most_ms is not None and not figures[f"{name}_ms"] < most_ms:
            broken.append(f"{name} {figures[f'{name}_ms']:.1f} ms is not below {most_ms:g} ms")
    if bounds.achieved is not None and figures["rate"] < bounds.achieved * figures["wanted_rate"]:
        wanted = f"{bounds.achieved:.0%} of {figures['wanted_rate']:.0f}/s wanted"
        broken.append(f"{figures['rate']:.0f}/s achieved, {wanted}")
    if bounds.recovery_s is not None and figures["recovery_s"] > bounds.recovery_s:
        broken.append(f"p95 was back after {figures['recovery_s']:.2f} s, {bounds.recovery_s:g} s wanted")
    return broken


def knee(figures: dict[str, Any], bounds: Bounds) -> float:
    """The highest rate of a stage such that it and all slower ones held; 0 where none did."""
    reached = 0.0
    for stage in sorted(figures["stages"], key=lambda stage: float(stage["wanted_rate"])):
        if not _held(stage, bounds):
            break
        reached = stage["wanted_rate"]
    return reached


def limit(figures: dict[str, Any]) -> str:
    """Why the generator was the limit, or nothing."""
    generator = figures["generator"]
    if generator["cpu"] >= BUSY:
        return f"the generator was the limit: it took {generator['cpu']:.0%} of a core"
    if generator["late_p99_ms"] > LATE_MS:
        return f"the generator was the limit: it sent one request in a hundred {generator['late_p99_ms']:.0f} ms late by itself"
    return ""


def line(figures: dict[str, Any]) -> str:
    return (
        f"{figures['requests']:,} requests, {figures['failures']} failed, "
        f"{figures['rate']:.1f}/s achieved of {figures['wanted_rate']:.1f}; "
        f"p50 {figures['p50_ms']:.2f} ms, p95 {figures['p95_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms"
    )


def page(title: str, figures: dict[str, Any], broken: list[str], bounds: Bounds) -> str:
    """Markdown, for the summary of a CI job."""
    generator = figures["generator"]
    verdict_ = "held" if not broken else "BROKEN: " + "; ".join(broken)
    rows = [("requests", f"{figures['requests']:,}", ""), ("failed", f"{figures['failures']:,}", f"{bounds.failures}")]
    share = f"{bounds.achieved:.0%} of {figures['wanted_rate']:.1f}/s" if bounds.achieved is not None else ""
    rows.append(("achieved", f"{figures['rate']:.1f}/s", share))
    for name, most in (("p50", None), ("p95", bounds.p95_ms), ("p99", bounds.p99_ms), ("max", None)):
        rows.append((name, f"{figures[name + '_ms']:.2f} ms", f"below {most:g} ms" if most is not None else ""))
    lines = [f"## Load: {title}", "", f"**{verdict_}**", "", "| | measured | bound |", "|---|---|---|"]
    lines += [f"| {name} | {got} | {most} |" for name, got, most in rows]
    if figures["stages"]:
        lines += [
            "",
            "| stage | wanted | achieved | p50 ms | p95 ms | p99 ms | failed |",
            "|---|---|---|---|---|---|---|",
        ]
        for n, stage in enumerate(figures["stages"], start=1):
            lines.append(
                f"| {n}{'' if stage['judged'] else ', not judged'} | {stage['wanted_rate']:.0f}/s | {stage['rate']:.0f}/s "
                f"| {stage['p50_ms']:.2f} | {stage['p95_ms']:.2f} | {stage['p99_ms']:.2f} | {stage['failures']} |"
            )
    lines += [
        "",
        f"Generator: {generator['cpu']:.0%} of a core; {generator['late_p99_ms']:.1f} ms late by itself (p99); "
        f"{generator['stolen']:.1%} of the machine's time stolen. {limit(figures)}".rstrip(),
        "",
    ]
    return "\n".join(lines)


def _verdict_of_knee(figures: dict[str, Any], bounds: Bounds, wanted: float) -> list[str]:
    reached = knee(figures, bounds)
    slow = [stage for stage in figures["stages"] if stage["level"] <= wanted]
    failures = sum(stage["failures"] for stage in slow)
    broken = []
    if failures > (bounds.failures or 0.0) * sum(stage["due"] for stage in slow):
        broken.append(f"{failures} requests failed at or below {wanted:g}/s")
    if reached < 0.95 * wanted:
        broken.append(f"held up to {reached:.0f}/s, {wanted:g}/s wanted")
    return broken


def _held(stage: dict[str, Any], bounds: Bounds) -> bool:
    """NaN holds nothing."""
    quick = bounds.p95_ms is None or stage["p95_ms"] < bounds.p95_ms
    quick = quick and (bounds.p99_ms is None or stage["p99_ms"] < bounds.p99_ms)
    return bool(quick and stage["rate"] >= (bounds.achieved or 0.0) * stage["wanted_rate"])


def _stage(due: npt.NDArray[np.float64], took: npt.NDArray[np.float64], stage: Stage, judged: Mask) -> dict[str, Any]:
    """Of the requests that are judged; of a stage that is not judged, of all."""
    kept = judged if stage.judged else _within(due, stage)
    good = kept & (took != NO_ANSWER)
    in_time = int((good & (due + took / 1e3 <= stage.end_s + GRACE_S)).sum())
    spans = due[kept]
    seconds = stage.end_s - (max(stage.begin_s, float(spans.min())) if len(spans) else stage.begin_s)
    return {
        "judged": stage.judged,
        "level": max(stage.low, stage.high),
        "seconds": seconds,
        "due": int(kept.sum()),
        "in_time": in_time,
        "wanted_rate": int(kept.sum()) / seconds if seconds > 0 else 0.0,
        "rate": in_time / seconds if seconds > 0 else 0.0,
        "failures": int((kept & (took == NO_ANSWER)).sum()),
        **_quantiles(took[good]),
    }


def _judged(due: npt.NDArray[np.float64], shape: Shape, warm_s: float, bounds: Bounds) -> Mask:
    judged: Mask = due >= warm_s
    for stage in shape.stages:
        if not stage.judged:
            judged &= (due < stage.begin_s) | (due >= stage.end_s + (bounds.recovery_s or 0.0))
    return judged


def _within(due: npt.NDArray[np.float64], stage: Stage) -> Mask:
    return (due >= stage.begin_s) & (due < stage.end_s)


def _recovery_s(
    due: npt.NDArray[np.float64], took: npt.NDArray[np.float64], shape: Shape, n: int, bounds: Bounds
) -> float:
    """After the n-th stage, if it is a spike: until the last slice of the next whose p95 breaks its bound, or has a failure."""
    if shape.stages[n].judged or n + 1 == len(shape.stages):
        return 0.0
    after = shape.stages[n + 1]
    most_ms = bounds.p95_ms if bounds.p95_ms is not None else float("inf")
    recovered_s = after.begin_s
    for begin_s in np.arange(after.begin_s, after.end_s, SLICE_S):
        there = took[(due >= begin_s) & (due < begin_s + SLICE_S)]
        if len(there) and ((there == NO_ANSWER).any() or np.percentile(there, 95) >= most_ms):
            recovered_s = begin_s + SLICE_S
    return float(recovered_s - after.begin_s)


def _quantiles(took: npt.NDArray[np.float64]) -> dict[str, float]:
    names = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99, "max_ms": 100}
    if not len(took):
        return dict.fromkeys(names, float("nan"))
    values = np.percentile(took, list(names.values()), method="inverted_cdf")
    return dict(zip(names, values.tolist(), strict=True))
