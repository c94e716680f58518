"""`/metrics`: the shared page as Prometheus families, summed over the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import time_ns

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving import page

REQUESTS = {
    "2xx": page.REQUESTS_2XX,
    "4xx": page.REQUESTS_4XX,
    "5xx": page.REQUESTS_5XX,
    "shed": page.REQUESTS_SHED,
}
DISPATCHES = {"inline": page.DISPATCH_INLINE, "tick": page.DISPATCH_TICK, "busy": page.DISPATCH_BUSY}
DROPS = {"full": page.ROWS_DROPPED_FULL, "disk": page.ROWS_DROPPED_DISK}
SHEDS = {
    "queue_full": page.SHED_QUEUE_FULL,
    "deadline": page.SHED_DEADLINE,
    "loop_lag": page.SHED_LOOP_LAG,
    "gone": page.SHED_GONE,
    "shadow": page.SHADOW_SHED,
}
PLAIN = {
    "coppice_fallbacks": ("answers by the champion because the arm failed", page.FALLBACKS),
    "coppice_batches": ("calls of a model through a lane's queue", page.BATCHES),
    "coppice_traffic_rows": ("rows handed to the traffic log", page.ROWS),
    "coppice_traffic_rows_logged": ("rows written to a segment", page.ROWS_LOGGED),
    "coppice_traffic_blocks": ("blocks written to a segment", page.BLOCKS),
    "coppice_traffic_bytes": ("bytes written to segments", page.BYTES),
    "coppice_traffic_fsyncs": ("fsyncs of segments", page.FSYNCS),
    "coppice_worker_starts": ("worker processes started", page.STARTS),
}


class PageCollector(Collector):
    def __init__(self, shared: page.Page) -> None:
        self._shared = shared

    def collect(self) -> Iterator[Metric]:
        slots = self._shared.slots()
        yield _labelled("coppice_requests", "answers by outcome", "outcome", REQUESTS, slots)
        yield _labelled("coppice_dispatches", "rows by the way they were scored", "reason", DISPATCHES, slots)
        yield _labelled("coppice_shed", "rows that were asked for and not scored", "reason", SHEDS, slots)
        yield _labelled("coppice_traffic_rows_dropped", "rows the log dropped", "reason", DROPS, slots)
        for name, (help_text, cell) in PLAIN.items():
            yield CounterMetricFamily(name, help_text, value=_total(slots, cell))
        yield _histogram(
            "coppice_request_seconds", "from parse to write", page.REQUEST_SECONDS, page.EDGES_S, 1e6, slots
        )
        yield _histogram(
            "coppice_queue_seconds", "wait of a batch's first row", page.QUEUE_SECONDS, page.EDGES_S, 1e6, slots
        )
        yield _histogram("coppice_batch_rows", "rows of a batch", page.BATCH_ROWS, page.EDGES_ROWS, 1, slots)
        yield from _arms(slots)
        yield from _workers(slots)


def render(shared: page.Page) -> bytes:
    """The text exposition."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PageCollector(shared))
    return generate_latest(registry)


def _total(slots: Sequence[page.Slot], cell: int) -> int:
    return sum(int(slot.cells[cell]) for slot in slots)


def _labelled(
    name: str, help_text: str, label: str, cells: dict[str, int], slots: Sequence[page.Slot]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_text, labels=[label])
    for value, cell in cells.items():
        family.add_metric([value], _total(slots, cell))
    return family


def _histogram(
    name: str, help_text: str, at: int, edges: Sequence[float], scale: float, slots: Sequence[page.Slot]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, help_text)
    counted, buckets = 0, []
    for n, edge in enumerate([*edges, float("inf")]):
        counted += _total(slots, at + n)
        buckets.append(("+Inf" if edge == float("inf") else repr(float(edge)), counted))
    family.add_metric([], buckets, sum_value=_total(slots, at + page.HISTOGRAM_CELLS - 1) / scale)
    return family


def _arms(slots: Sequence[page.Slot]) -> Iterator[Metric]:
    labels = ["model", "version", "arm"]
    rows = CounterMetricFamily("coppice_arm_rows", "rows answered by the arm", labels=labels)
    errors = CounterMetricFamily("coppice_arm_errors", "rows the arm failed on", labels=labels)
    sums: dict[str, tuple[int, int]] = {}
    for slot in slots:
        for label, row_count, error_count in slot.series_counts():
            before = sums.get(label, (0, 0))
            sums[label] = (before[0] + row_count, before[1] + error_count)
    for label, (row_count, error_count) in sums.items():
        values = [*label.split("/"), "", ""][:3]
        rows.add_metric(values, row_count)
        errors.add_metric(values, error_count)
    yield rows
    yield errors


def _workers(slots: Sequence[page.Slot]) -> Iterator[Metric]:
    now_us = time_ns() // 1000
    ready = GaugeMetricFamily("coppice_worker_ready", "1 while the worker is ready", labels=["worker"])
    silence = GaugeMetricFamily("coppice_worker_silence_seconds", "since the last heartbeat", labels=["worker"])
    generation = GaugeMetricFamily("coppice_worker_generation", "routes generation served", labels=["worker"])
    for index, slot in enumerate(slots):
        ready.add_metric([str(index)], float(slot.state == page.READY))
        silence.add_metric([str(index)], max(0, now_us - slot.heartbeat_us) / 1e6)
        generation.add_metric([str(index)], slot.committed_generation)
    yield from (ready, silence, generation)
