"""`/predict/batch`: whatever the body, its rows get the answers that each would have got alone."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cases import MIXED, Release, mixed_body, mixed_rows
from inprocess import Failing, InProcess
from lanes_of import logged
from running import Running
from test_tables import ARROW, PARQUET, parquet, stream, text, with_dictionaries

from serving import page
from serving.cost import Cost
from training.features import decode_matrix

ROWS = mixed_rows(60, 8)
OBJECTS = [json.loads(mixed_body(row)) for row in ROWS]
COLUMNS = decode_matrix(MIXED, ROWS)
for feature in MIXED.features:
    if feature.kind == "category":
        COLUMNS[feature.name] = ["elsewhere" if value == "<other>" else value for value in COLUMNS[feature.name]]
TABLE = pa.table({name: pa.array(values) for name, values in COLUMNS.items()})
BODIES: dict[str, tuple[str, bytes]] = {
    "rows": ("application/json", json.dumps({"rows": OBJECTS}).encode()),
    "a list": ("application/json; charset=utf-8", json.dumps(OBJECTS).encode()),
    "columns": ("application/json", json.dumps({"columns": COLUMNS}).encode()),
    "csv": ("text/csv", text(TABLE)),
    "arrow": (ARROW, stream(TABLE, batch_rows=17)),
    "arrow with dictionaries": (ARROW, stream(with_dictionaries(TABLE))),
    "parquet": (PARQUET, parquet(TABLE)),
}


def own(answer: bytes) -> dict[str, Any]:
    """The fields of a single answer that are its row's own."""
    told: dict[str, Any] = json.loads(answer)
    return {name: value for name, value in told.items() if name not in ("model_version", "arm", "request_id")}


def test_every_kind_of_body_is_answered_as_row_by_row(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store)
    alone = [own(server.ask("/predict", json.dumps(row).encode())[2]) for row in OBJECTS]
    for name, (kind, body) in BODIES.items():
        for path in ("/predict/batch", "/v1/models/mixed/predict/batch"):
            headers = {"content-type": kind, "x-request-id": "mine"}
            status, got, told = server.ask(path, body, headers)
            assert status == 200, (name, told)
            answer = json.loads(told)
            assert answer.pop("predictions") == alone, name
            assert answer == {"failed": 0, "model_version": "1", "arm": "champion", "request_id": "mine"}
            assert (got["x-model-version"], got["x-arm"], got["x-request-id"]) == ("1", "champion", "mine")
            assert got["server-timing"].startswith("parse;dur=")
        columns = json.loads(server.ask("/predict/batch?answer=columns", body, {"content-type": kind})[2])["columns"]
        assert [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)] == alone
        status, got, told = server.ask("/predict/batch", body, {"content-type": kind, "accept": ARROW})
        assert got["content-type"] == ARROW
        assert pa.ipc.open_stream(io.BytesIO(told)).read_all().to_pylist() == alone


def test_a_split_is_by_the_field_of_the_unit(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, unit_field="customer")
    units: list[Any] = [f"unit-{n}" if n % 2 else n for n in range(len(OBJECTS))]
    objects = [row | {"customer": unit} for row, unit in zip(OBJECTS, units, strict=True)]
    alone = [json.loads(server.ask("/predict/ab", json.dumps(row).encode())[2]) for row in objects]
    for told in alone:
        del told["request_id"]
    assert {told["arm"] for told in alone} == {"champion", "challenger"}
    table = TABLE.append_column("customer", pa.array(list(map(str, units))))
    for kind, body in (
        ("application/json", json.dumps(objects).encode()),
        ("application/json", json.dumps({"columns": COLUMNS | {"customer": units}}).encode()),
        ("text/csv", text(table)),
        (ARROW, stream(table)),
        (PARQUET, parquet(table)),
    ):
        answer = json.loads(server.ask("/predict/batch?split=1", body, {"content-type": kind})[2])
        assert answer["predictions"] == alone
        assert "arm" not in answer
    by_header = json.loads(server.ask("/predict/batch?split=1", json.dumps(OBJECTS).encode(), {"x-unit": "unit-1"})[2])
    assert {told["arm"] for told in by_header["predictions"]} == {alone[1]["arm"]}
    assert server.ask("/predict/batch?split=1", b'[{"customer": [1]}]')[0] == 422
    for odd in (False, "unit", {"0": "unit"}, 7, units[:-1], [*units, 1]):
        body = json.dumps({"columns": COLUMNS | {"customer": odd}}).encode()
        assert server.ask("/predict/batch?split=1", body)[0] == 422, odd
        assert server.ask("/predict/batch", body)[0] == 200, (
            odd
        )  # the champion needs no unit: the column is not looked at


def test_a_column_without_a_name_is_no_unit(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store)
    for odd in (False, [1]):
        body = json.dumps({"columns": COLUMNS | {"": odd}}).encode()
        assert server.ask("/predict/batch?split=1", body)[0] == 200


@pytest.mark.parametrize(
    ("path", "kind", "body", "status", "words"),
    [
        ("/predict/batch", "application/json", b"", 400, "not JSON"),
        ("/predict/batch", "application/json", b"{}", 400, "rows"),
        ("/predict/batch", "application/json", b'{"rows": [{}]}', 422, "row 0: age: the field is missing"),
        ("/predict/batch", "text/plain", b"x", 415, "text/csv"),
        ("/predict/batch", "text/csv", b"age\nx", 422, "row 0: age"),
        ("/predict/batch", ARROW, b"x", 400, "Arrow"),
        ("/predict/batch", PARQUET, b"x", 400, "Parquet"),
        ("/predict/batch?split=2", "application/json", b"[]", 400, "split"),
        ("/predict/batch?answer=xml", "application/json", b"[]", 400, "answer"),
        ("/v1/models/none/predict/batch", "application/json", b"[]", 404, "no model 'none'"),
        ("/predict/batch", "application/json", json.dumps(OBJECTS[:11] * 1).encode(), 413, "more than 10 rows"),
        ("/predict/batch", "application/json", b"[" + b" " * 20_000 + b"]", 413, "longer than 16384 bytes"),
        ("/predict/batch", "application/json", b"[]", 200, '"predictions":[]'),
    ],
)
def test_what_is_refused_says_why(
    path: str, kind: str, body: bytes, status: int, words: str, limited: InProcess
) -> None:
    got = limited.asgi(path, body, {"content-type": kind})
    assert (got[0], words in got[2].decode()) == (status, True), got


@pytest.fixture(scope="module")
def limited(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = InProcess(
        release.store, "mixed", tmp_path_factory.mktemp("limited") / "traffic", max_rows=10, max_batch_bytes=16384
    )
    yield made
    made.close()


def test_what_can_not_be_done_in_time_is_a_503(limited: InProcess) -> None:
    sent = {"content-type": "application/json", "x-request-timeout-ms": "1"}
    status, headers, told = limited.asgi("/predict/batch", json.dumps({"rows": [*OBJECTS[:2], {}]}).encode(), sent)
    assert status == 422, told  # what is wrong with it is told first
    lane = limited.live.snapshot.champion.lane
    lane.cost, measured = Cost(1e6, 0.0), lane.cost
    status, headers, told = limited.asgi("/predict/batch", json.dumps(OBJECTS[:5]).encode(), sent)
    lane.cost = measured
    assert (status, "retry-after" in {name.decode() for name, _ in headers}) == (503, True)
    assert "answered" in json.loads(told)["error"]  # ... by its deadline, or too late
    sent["x-request-timeout-ms"] = "soon"
    assert limited.asgi("/predict/batch", json.dumps(OBJECTS[:5]).encode(), sent)[0] == 400


def test_a_compressed_body_is_read_within_the_limit(release: Release, tmp_path: Path) -> None:
    asked = InProcess(release.store, "mixed", tmp_path / "traffic")
    body = json.dumps(OBJECTS).encode()
    plain = json.loads(asked.asgi("/predict/batch", body, {})[2])
    for encoding, sent in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        status, _, told = asked.asgi("/predict/batch", sent, {"content-encoding": encoding})
        assert (status, json.loads(told)["predictions"]) == (200, plain["predictions"])
    bomb = gzip.compress(b" " * (asked.served.many.max_bytes + 1))
    assert asked.asgi("/predict/batch", bomb, {"content-encoding": "gzip"})[0] == 413
    assert asked.asgi("/predict/batch", body, {"content-encoding": "gzip"})[0] == 400
    assert asked.asgi("/predict/batch", body, {"content-encoding": "br"})[0] == 415
    assert asked.served.many.held == 0
    asked.close()


def test_no_more_bodies_are_held_than_sixteen_of_the_largest(release: Release, tmp_path: Path) -> None:
    asked = InProcess(release.store, "mixed", tmp_path / "traffic")
    context = asked.served.many
    with contextlib.ExitStack() as held:
        for _ in range(16):
            held.enter_context(context.body(None))
        status, headers, _ = asked.asgi("/predict/batch", b"[]", {"content-length": "2"})
        assert (status, "retry-after" in {name.decode() for name, _ in headers}) == (503, True)
    assert asked.asgi("/predict/batch", b"[]", {})[0] == 200
    assert context.held == 0
    asked.close()


def test_a_row_that_fails_fails_in_its_place(release: Release, tmp_path: Path) -> None:
    class Selective(Failing):
        def bound(self, rows: np.ndarray, scores: np.ndarray) -> Callable[[int], None]:
            def run(count: int) -> None:
                if (rows[:count, 0] < 30).any():
                    raise RuntimeError("a row that this model can't take")
                scores[:count] = 0.25

            return run

    asked = InProcess(release.store, "mixed", tmp_path / "traffic")
    asked.replace_lane("champion", Selective(MIXED.width, 1, None))
    bad = [n for n, row in enumerate(ROWS) if row[0] < 30]
    body = json.dumps(OBJECTS).encode()
    status, _, told = asked.asgi("/predict/batch", body, {"x-request-id": "x"})
    answer = json.loads(told)
    assert (status, answer["failed"]) == (200, len(bad))
    assert [n for n, row in enumerate(answer["predictions"]) if "error" in row] == bad
    status, _, told = asked.asgi("/predict/batch", body, {"accept": ARROW})
    table = pa.ipc.open_stream(io.BytesIO(told)).read_all()
    assert [n for n, row in enumerate(table.to_pylist()) if row["probability"] is None] == bad
    status, _, told = asked.asgi("/predict/batch", json.dumps([OBJECTS[n] for n in bad]).encode(), {})
    assert (status, "none of these rows" in told.decode()) == (500, True)
    asked.close()
    assert len(logged(tmp_path / "traffic")) == 2 * len(ROWS) + len(bad)


def test_single_requests_are_answered_while_a_large_body_is(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, max_rows=50_000)
    large = json.dumps([OBJECTS[n % 60] for n in range(40_000)]).encode()
    assert len(large) > 4_000_000
    done: list[int] = []
    asking = threading.Thread(target=lambda: done.append(server.ask("/predict/batch", large)[0]))
    asking.start()
    answered = 0
    while asking.is_alive():
        assert server.ask("/predict", mixed_body(ROWS[0]))[0] == 200
        answered += 1
    assert done == [200]
    assert answered > 3
    cells = server.page().slots()[0].cells
    assert cells[page.ROWS] == 40_000 + answered
    assert cells[page.ROWS_DROPPED_FULL] == 0


def test_who_hangs_up_is_not_worked_for(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, max_rows=200_000, max_batch_bytes=1 << 26)
    body = json.dumps({"columns": {name: values * 3000 for name, values in COLUMNS.items()}}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as leaving:
        head = (
            f"POST /predict/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        leaving.sendall(head.encode() + b"\r\n\r\n" + body)
        cells = server.page().slots()[0].cells
        while not cells[page.ROWS]:
            time.sleep(0.001)
    deadline = time.monotonic() + 20
    while not cells[page.SHED_GONE]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert cells[page.SHED_GONE] + cells[page.ROWS] == 180_000
