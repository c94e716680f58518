"""Throughput and latency from 100 requests a second to three times the capacity, as an open loop; and after a spike.

    python -m loadtests.knee [--seconds 4] [--workers 1 2]      (make bench-knee; needs gcc)

The small models of `make bench`, split evenly, log on. One worker has one core and the generator another; two workers have
both, which the generator shares. Arrivals are Poisson; times count from when a request was due, and one that waited
`PATIENCE_S` to be sent is given up and counts as not answered. Capacity: the most answers a second when far more is asked.
The knee: the highest rate up to which p95 of all that was due is below 100 ms. The spike: half the capacity, three times the
capacity for `SPIKE_S`, half of it again. Writes loadtests/results/knee.md, knee.json and a plot.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from loadtests import materials, open_arrivals
from loadtests.open_arrivals import Arrivals
from loadtests.servers import HERE, commit, coppice_plan, machine, say, serving, two_cores

LOW = (100.0, 300.0, 1_000.0, 3_000.0)
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.2, 1.5, 2.0, 3.0)
CONNECTIONS, FLOOD = 256, 200_000.0
PATIENCE_S, WARM_S = 1.0, 1.0
P95_MS, NEAR_PEAK, IN_TIME = 100.0, 0.9, 0.98
CALM_S, SPIKE_S, AFTER_S, RECOVERY_S, SLICE_S = 3.0, 2.0, 5.0, 2.0, 0.1


@dataclass(frozen=True)
class Point:
    """One rate: what was answered a second, and the times of all that was due, in ms (inf: too many not answered)."""

    asked: float
    answered: float
    in_time: float  # share of what was due
    p50_ms: float
    p95_ms: float
    p99_ms: float
    generator: float  # of its core

    @property
    def holds(self) -> bool:
        return self.p95_ms < P95_MS and self.in_time >= IN_TIME


@dataclass(frozen=True)
class Curve:
    workers: int
    points: list[Point]
    slices: list[tuple[float, float]]  # (s since the spike was over, p95 ms)

    @property
    def peak(self) -> float:
        return max(point.answered for point in self.points)

    @property
    def knee(self) -> Point | None:
        """The last of those that hold, up to the first that does not."""
        last = None
        for point in sorted(self.points, key=lambda point: point.asked):
            if not point.holds:
                break
            last = point
        return last

    @property
    def recovery_s(self) -> float:
        """From the spike's end until p95 is below its bound for good; inf: not within what was looked at."""
        late = [at_s for at_s, p95_ms in self.slices if at_s >= 0 and not p95_ms < P95_MS]
        if not late:
            return 0.0
        return late[-1] + SLICE_S if late[-1] < self.slices[-1][0] else float("inf")


def main() -> None:
    options = _options()
    cores = two_cores("loadtests.knee")
    curves = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        program, rows = open_arrivals.build(folder), materials.data(folder)
        materials.small_models(folder)
        for workers in options.workers:
            port = 18750 + workers
            plan = coppice_plan(f"coppice, {workers} worker(s)", port, "bench", "--workers", str(workers))
            with serving(plan, folder, cores[:workers]):
                client = cores[1:2] if workers == 1 else cores
                curves.append(curve(program, port, rows, workers, options.seconds, client))
    options.out.mkdir(parents=True, exist_ok=True)
    text, met = page(curves, options.seconds)
    (options.out / "knee.md").write_text(text, encoding="utf-8")
    told = [asdict(curve) | {"peak": curve.peak, "recovery_s": curve.recovery_s} for curve in curves]
    (options.out / "knee.json").write_text(json.dumps(told, indent=1).replace("Infinity", "null"), encoding="utf-8")
    plot(curves, options.out / "knee.png")
    print(text)
    sys.exit(0 if met else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="of each rate; the first is not judged")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for knee.md, knee.json and knee.png")
    return parser.parse_args()


def curve(program: Path, port: int, rows: Path, workers: int, seconds: float, cores: list[int]) -> Curve:
    def asked(*stages: tuple[float, float]) -> Arrivals:
        path, patient = "/predict/ab", PATIENCE_S
        return open_arrivals.run(
            program, port, path, rows, stages, connections=CONNECTIONS, patience_s=patient, cores=cores
        )

    flooded = asked((FLOOD, 1 + WARM_S))
    capacity = flooded.answered(WARM_S, 1 + WARM_S)
    say(f"{workers} worker(s): at most {capacity:,.0f}/s")
    rates = sorted({rate for rate in LOW if rate < 3 * capacity} | {share * capacity for share in SHARES})
    points = []
    for rate in rates:
        points.append(point_of(asked((rate, seconds)), rate, WARM_S, seconds))
        told = points[-1]
        say(f"{rate:,.0f}/s: answered {told.answered:,.0f}/s, p50 {told.p50_ms:.2f}, p95 {told.p95_ms:.2f} ms")
    spike = asked((capacity / 2, CALM_S), (3 * capacity, SPIKE_S), (capacity / 2, AFTER_S))
    return Curve(workers, points, slices_of(spike, CALM_S + SPIKE_S, CALM_S + SPIKE_S + AFTER_S))


def point_of(arrivals: Arrivals, rate: float, warm_s: float, seconds: float) -> Point:
    judged = arrivals.within(warm_s, seconds)
    return Point(
        asked=rate,
        answered=arrivals.answered(warm_s, seconds),
        in_time=float(np.isfinite(judged.took_ms).mean()) if len(judged.took_ms) else 0.0,
        p50_ms=judged.ms(50),
        p95_ms=judged.ms(95),
        p99_ms=judged.ms(99),
        generator=arrivals.cpu,
    )


def slices_of(arrivals: Arrivals, over_s: float, end_s: float) -> list[tuple[float, float]]:
    """p95 of what was due in each slice, from a second before the spike's end on; empty slices are left out."""
    starts = np.arange(-10, round((end_s - over_s) / SLICE_S)) * SLICE_S
    told = [(float(at), arrivals.within(over_s + at, over_s + at + SLICE_S)) for at in starts]
    return [(at, part.ms(95)) for at, part in told if len(part.due_s)]


def page(curves: list[Curve], seconds: float) -> tuple[str, bool]:
    lines = [
        "# Knee",
        "",
        f"`python -m loadtests.knee --seconds {seconds:g} --workers {' '.join(str(curve.workers) for curve in curves)}`, "
        f"commit {commit()}, {datetime.now(UTC):%Y-%m-%d}, {machine()}. Poisson arrivals over at most {CONNECTIONS} "
        f"connections; ms from when a request was due; of all that was due after {WARM_S:g} s, what was not sent within "
        f"{PATIENCE_S:g} s, or was not answered, took for ever.",
        "",
    ]
    met = True
    for curve in curves:
        verdicts = verdicts_of(curve)
        met = met and all(kept for _, kept in verdicts)
        lines += [f"## {curve.workers} worker(s)", ""]
        lines += [f"- {'met' if kept else 'MISSED'}: {text}" for text, kept in verdicts]
        lines += ["", "| asked | answered | in time | p50 | p95 | p99 | generator |", "|---|---|---|---|---|---|---|"]
        for point in curve.points:
            times = " | ".join(
                f"{ms:.2f}" if np.isfinite(ms) else "never" for ms in (point.p50_ms, point.p95_ms, point.p99_ms)
            )
            limit = ", its limit" if point.generator >= 0.9 and not point.holds else ""
            cells = f"{point.asked:,.0f}/s | {point.answered:,.0f}/s | {point.in_time:.1%} | {times}"
            lines.append(f"| {cells} | {point.generator:.0%}{limit} |")
        lines.append("")
    return "\n".join([*lines, "![p95 and answers by rate; p95 after a spike](knee.png)", ""]), met


def verdicts_of(curve: Curve) -> list[tuple[str, bool]]:
    knee = curve.knee
    reached = knee.answered if knee else 0.0
    share = f"{reached / curve.peak:.0%} of the peak of {curve.peak:,.0f}/s (at least {NEAR_PEAK:.0%})"
    spike = f"after {SPIKE_S:g} s of three times the capacity, p95 is back after {curve.recovery_s:.1f} s"
    return [
        (f"p95 below {P95_MS:g} ms up to {reached:,.0f}/s, {share}", reached >= NEAR_PEAK * curve.peak),
        (f"{spike} (within {RECOVERY_S:g})", curve.recovery_s <= RECOVERY_S),
    ]


def plot(curves: list[Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(16, 4.5))
    by_rate, answered, after = axes
    for curve in curves:
        label, rates = f"{curve.workers} worker(s)", [point.asked for point in curve.points]
        by_rate.plot(rates, _drawable([point.p95_ms for point in curve.points]), "o-", label=label)
        answered.plot(rates, [point.answered for point in curve.points], "o-", label=label)
        after.plot([at for at, _ in curve.slices], _drawable([p95 for _, p95 in curve.slices]), label=label)
    by_rate.axhline(P95_MS, linestyle="--", color="grey")
    by_rate.set(xscale="log", yscale="log", xlabel="asked a second", ylabel="p95 ms, of what was due")
    answered.set(xscale="log", yscale="log", xlabel="asked a second", ylabel="answered a second")
    after.axhline(P95_MS, linestyle="--", color="grey")
    after.axvline(0, linestyle=":", color="grey")
    after.set(yscale="log", xlabel="s since the spike was over", ylabel="p95 ms, of what was due")
    for axis in axes:
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _drawable(values: list[float]) -> list[Any]:
    """What never came leaves a gap."""
    return [value if np.isfinite(value) else float("nan") for value in values]


if __name__ == "__main__":
    main()
