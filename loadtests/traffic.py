"""What is asked: single rows, the split, batches, outcomes, or a mix, one request after the other.

    single   POST /predict
    ab       POST /predict/ab for one of some thousand units; and, where a share is for feedback, POST /feedback
    batch    POST /predict/batch
    mixed    six in ten at the split, two to the champion, one a batch; and feedback

An outcome belongs to an answer that came before, so a request for feedback is made when one is at hand; until then the
split is asked instead, and the rate stays. Rows are of a file, or drawn from the schema that the server states. Locust's
greenlets share one `Traffic`; between two switches it is whole.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

DRAWN_ROWS = 5_000
UNITS = 5_000
MOST_AT_HAND = 10_000  # answers whose outcome is not told yet; older ones are forgotten
BATCHES = 50  # different ones
SINGLE, SPLIT, BATCH, FEEDBACK = "/predict", "/predict/ab", "/predict/batch", "/feedback"
MIXES = {"single": {SINGLE: 1}, "ab": {SPLIT: 1}, "batch": {BATCH: 1}, "mixed": {SPLIT: 6, SINGLE: 2, BATCH: 1}}


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    body: str
    unit: str = ""
    rows: int = 0  # scored, where it succeeds

    def laid_out(self, host: str) -> bytes:
        unit = f"x-unit: {self.unit}\r\n" if self.unit else ""
        content = self.body.encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{unit}"
        return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


class Traffic:
    """An endless row of requests. `sent` and `outcomes` count what succeeded: rows by path, and outcomes written."""

    def __init__(self, kind: str, rows: Sequence[str], *, batch_rows: int = 64, feedback: float = 0.0) -> None:
        self._rng = random.Random(0)
        mix = MIXES[kind]
        self._paths, self._weights = list(mix), list(itertools.accumulate(mix.values()))
        self._feedback = feedback if SPLIT in mix else 0.0
        self._rows = itertools.cycle(rows)
        self._batches = itertools.cycle(_batches(rows, batch_rows)) if BATCH in mix else iter(())
        self._batch_rows = batch_rows
        self._at_hand: deque[str] = deque(maxlen=MOST_AT_HAND)
        self.rows_answered: Counter[str] = Counter()
        self.outcomes_written = 0

    def next(self) -> Request:
        rng = self._rng
        if self._feedback and self._at_hand and rng.random() < self._feedback:
            told = {"request_id": self._at_hand.popleft(), "row": 0, "value": rng.random() < 0.5}
            return Request(FEEDBACK, json.dumps(told))
        path = self._paths[0] if len(self._paths) == 1 else rng.choices(self._paths, cum_weights=self._weights)[0]
        if path == BATCH:
            return Request(BATCH, next(self._batches), rows=self._batch_rows)
        unit = f"unit-{rng.randrange(UNITS)}" if path == SPLIT else ""
        return Request(path, next(self._rows), unit, rows=1)

    def answered(self, request: Request, request_id: str) -> None:
        """It succeeded, under that id."""
        if request.path == FEEDBACK:
            self.outcomes_written += 1
            return
        self.rows_answered[request.path] += request.rows
        if self._feedback and request.path == SPLIT and request_id:
            self._at_hand.append(request_id)


def succeeded(request: Request, status: int) -> bool:
    return status == (202 if request.path == FEEDBACK else 200)


def rows_of(path: str) -> list[str]:
    """The lines of a JSONL file."""
    rows = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows:
        raise SystemExit(f"--rows: {path} is empty")
    return rows


def drawn(host: str, model: str) -> list[str]:
    """Rows that the server says it accepts, the same for every run."""
    features = schema(host, model)
    rng = random.Random(0)
    return [json.dumps({f["name"]: _value(f, rng) for f in features}) for _ in range(DRAWN_ROWS)]


def schema(host: str, model: str) -> list[dict[str, Any]]:
    """The features that the server states for the model."""

    def get(path: str) -> Any:
        with urlopen(host + path, timeout=10) as answer:
            return json.load(answer)

    if not model:
        model = get("/v1/models")["models"][0]
    return list(get(f"/v1/models/{model}")["schema"]["features"])


def _batches(rows: Sequence[str], batch_rows: int) -> Iterator[str]:
    cycled = itertools.cycle(rows)
    for _ in range(BATCHES):
        yield '{"rows":[' + ",".join(itertools.islice(cycled, batch_rows)) + "]}"


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
