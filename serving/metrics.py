"""`/metrics`: the shared page as Prometheus families, summed over the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import time_ns

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving import board as boards
from serving import page

REQUESTS = {
    "2xx": page.REQUESTS_2XX,
    "4xx": page.REQUESTS_4XX,
    "5xx": page.REQUESTS_5XX,
    "shed": page.REQUESTS_SHED,
}
DISPATCHES = {"inline": page.DISPATCH_INLINE, "tick": page.DISPATCH_TICK, "busy": page.DISPATCH_BUSY}
ADMIN = {"done": page.ADMIN_DONE, "refused": page.ADMIN_REFUSED}
DROPS = {"full": page.ROWS_DROPPED_FULL, "disk": page.ROWS_DROPPED_DISK}
SHEDS = {
    "queue_full": page.SHED_QUEUE_FULL,
    "deadline": page.SHED_DEADLINE,
    "loop_lag": page.SHED_LOOP_LAG,
    "gone": page.SHED_GONE,
    "shadow": page.SHADOW_SHED,
    "rate": page.SHED_RATE,
}
UNSEEN = {"full": page.UNSEEN, "write": page.UNSEEN_UNWRITTEN}
KEYS = {"missing": page.KEYS_MISSING, "wrong": page.KEYS_WRONG}
PLAIN = {
    "coppice_fallbacks": ("answers by the champion because the arm failed", page.FALLBACKS),
    "coppice_overrides": ("rows asked of the arm that `x-arm` named", page.OVERRIDES),
    "coppice_batches": ("calls of a model through a lane's queue", page.BATCHES),
    "coppice_traffic_rows": ("rows handed to the traffic log", page.ROWS),
    "coppice_traffic_rows_logged": ("rows written to a segment", page.ROWS_LOGGED),
    "coppice_traffic_blocks": ("blocks written to a segment", page.BLOCKS),
    "coppice_traffic_bytes": ("bytes written to segments", page.BYTES),
    "coppice_traffic_fsyncs": ("fsyncs of segments", page.FSYNCS),
    "coppice_outcomes_received": ("outcomes that came in order", page.OUTCOMES_RECEIVED),
    "coppice_outcomes_written": ("outcomes on disk, and acknowledged", page.OUTCOMES_WRITTEN),
    "coppice_outcomes_refused": (
        "outcomes that could not be written, and were not acknowledged",
        page.OUTCOMES_REFUSED,
    ),
    "coppice_worker_starts": ("worker processes started", page.STARTS),
}


SYNC = {
    "coppice_sync_looks": ("looks at the release store", boards.LOOKS),
    "coppice_sync_looks_failed": ("looks that did not reach the release store", boards.LOOKS_FAILED),
    "coppice_sync_refused": ("generations, or retries of them, that were not in order", boards.REFUSED),
    "coppice_sync_offers": ("releases that workers were asked to load", boards.OFFERS),
    "coppice_sync_flips": ("releases that all workers flipped to", boards.COMMITS),
    "coppice_sync_withdrawn": ("releases that a worker could not load", boards.WITHDRAWN),
    "coppice_sync_bundles_pulled": ("bundles fetched from the release store", boards.BUNDLES_PULLED),
    "coppice_sync_starts": ("sync processes started", boards.STARTS),
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
        yield _labelled("coppice_admin_requests", "requests of the admin API by outcome", "outcome", ADMIN, slots)
        yield _labelled("coppice_unauthorised", "requests without a known API key", "reason", KEYS, slots)
        yield _labelled(
            "coppice_access_log_dropped", "answers not told to access log or tracing", "reason", UNSEEN, slots
        )
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
        yield from _sync(self._shared.board)


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


def arm_counts(slots: Sequence[page.Slot]) -> dict[str, tuple[int, int]]:
    """(rows, errors) of each `model/version/arm`, over all workers."""
    sums: dict[str, tuple[int, int]] = {}
    for slot in slots:
        for label, row_count, error_count in slot.series_counts():
            before = sums.get(label, (0, 0))
            sums[label] = (before[0] + row_count, before[1] + error_count)
    return sums


def _arms(slots: Sequence[page.Slot]) -> Iterator[Metric]:
    labels = ["model", "version", "arm"]
    rows = CounterMetricFamily("coppice_arm_rows", "rows answered by the arm", labels=labels)
    errors = CounterMetricFamily("coppice_arm_errors", "rows the arm failed on", labels=labels)
    for label, (row_count, error_count) in arm_counts(slots).items():
        values = [*label.split("/"), "", ""][:3]
        rows.add_metric(values, row_count)
        errors.add_metric(values, error_count)
    yield rows
    yield errors


def _workers(slots: Sequence[page.Slot]) -> Iterator[Metric]:
    now_us = time_ns() // 1000
    ready = GaugeMetricFamily("coppice_worker_ready", "1 while the worker is ready", labels=["worker"])
    silence = GaugeMetricFamily("coppice_worker_silence_seconds", "since the last heartbeat", labels=["worker"])
    release = GaugeMetricFamily("coppice_worker_release", "release served", labels=["worker"])
    opened = GaugeMetricFamily("coppice_worker_open_bundles", "bundles open in the worker", labels=["worker"])
    requests = CounterMetricFamily("coppice_worker_requests", "answers of the worker", labels=["worker"])
    for index, slot in enumerate(slots):
        ready.add_metric([str(index)], float(slot.state == page.READY))
        silence.add_metric([str(index)], max(0, now_us - slot.heartbeat_us) / 1e6)
        release.add_metric([str(index)], slot.serving)
        opened.add_metric([str(index)], slot.cells[page.OPEN_BUNDLES])
        requests.add_metric([str(index)], sum(int(slot.cells[cell]) for cell in REQUESTS.values()))
    yield from (ready, silence, release, opened, requests)


def _sync(board: boards.Board) -> Iterator[Metric]:
    for name, (help_text, cell) in SYNC.items():
        yield CounterMetricFamily(name, help_text, value=int(board.cells[cell]))
    silent_s = max(0, time_ns() // 1000 - int(board.cells[boards.HEARTBEAT_US])) / 1e6
    yield GaugeMetricFamily("coppice_sync_silence_seconds", "since the last heartbeat", value=silent_s)
    yield GaugeMetricFamily("coppice_sync_store_seen_timestamp_seconds", "when the release store was last reached",
                            value=int(board.cells[boards.STORE_SEEN_US]) / 1e6)  # fmt: skip
    generations = GaugeMetricFamily("coppice_generation", "routes generation that the host serves", labels=["model"])
    release = board.release(board.committed)
    for model, generation in release.generations.items() if release else ():
        generations.add_metric([model], generation)
    yield generations
