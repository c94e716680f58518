"""The v2 protocol beside `/predict`: tensors are answered as their rows alone; what is malformed is a 400 that says why."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import MIXED, Release, mixed_body, mixed_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inprocess import Failing, InProcess
from lanes_of import logged

from serving.predictions import outputs_of
from serving.tensors import BYTES, KINDS, from_bytes, from_json, to_bytes
from training.features import decode_matrix

LENGTH = "inference-header-content-length"
INFER = "/v2/models/mixed/infer"
DATATYPES = {"number": "FP64", "category": "BYTES", "boolean": "BOOL"}


@pytest.fixture
def server(release: Release, tmp_path: Path) -> Iterator[InProcess]:
    made = InProcess(release.store, "mixed", tmp_path / "traffic", max_rows=100, max_batch_bytes=16384)
    yield made
    made.close()


def tensors(rows: np.ndarray) -> list[dict[str, Any]]:
    columns = decode_matrix(MIXED, rows)
    return [
        {
            "name": feature.name,
            "datatype": DATATYPES[feature.kind],
            "shape": [len(rows)],
            "data": ["elsewhere" if value == "<other>" else value for value in columns[feature.name]],
        }
        for feature in MIXED.features
    ]


def infer(server: InProcess, body: object, headers: dict[str, str] | None = None, path: str = INFER) -> Any:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, told = server.asgi(path, sent, headers or {})
    return status, json.loads(told)


def test_tensors_are_scored_and_logged_as_their_rows_are(server: InProcess) -> None:
    rows = mixed_rows(60, 8)  # with missing values, which JSON spells null
    alone = [json.loads(server.asgi("/predict", mixed_body(row), {})[2]) for row in rows]
    status, told = infer(server, {"id": "7", "inputs": tensors(rows)}, {"x-request-id": "mine", "x-unit": "u"})
    assert (status, told["id"], told["model_name"], told["model_version"]) == (200, "7", "mixed", "1")
    outputs = {output["name"]: output["data"] for output in told["outputs"]}
    assert outputs["probability"] == [one["probability"] for one in alone]
    assert outputs["prediction"] == [one["prediction"] for one in alone]
    server.close()
    kept = [row for row in logged(server.traffic) if row["request_id"] == "mine"]
    assert len(kept) == 60


def test_a_version_that_fails_is_not_answered_by_another(server: InProcess) -> None:
    server.replace_lane("challenger", Failing(MIXED.width, 1, None))
    asked = {"inputs": tensors(mixed_rows(3, 1))}
    status, told = infer(server, asked, path="/v2/models/mixed/versions/2/infer")
    assert (status, "row 0" in told["error"]) == (500, True)
    assert infer(server, asked, path="/v2/models/mixed/versions/1/infer")[0] == 200


GOOD = tensors(np.nan_to_num(mixed_rows(2, 1)))


def changed(place: int, **fields: Any) -> dict[str, Any]:
    return {"inputs": [*GOOD[:place], GOOD[place] | fields, *GOOD[place + 1 :]]}


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"", {}, "not JSON"),
        (b"[]", {}, "not of the protocol"),
        (b'{"inputs": ' + b"[" * 5000, {}, "not of the protocol"),
        ({"inputs": []}, {}, "age: the column is missing"),
        ({"inputs": [*GOOD, GOOD[0]]}, {}, "an input is named twice"),
        ({"inputs": [*GOOD, GOOD[0] | {"name": "other"}]}, {}, "unexpected input 'other'"),
        ({"inputs": GOOD, "outputs": [{"name": "x"}]}, {}, "unexpected output 'x'"),
        ({"inputs": GOOD, "outputs": [{"name": "prediction"}] * 2}, {}, "an output is named twice"),
        ({"inputs": GOOD, "parameters": {"timeout": -1}}, {}, "timeout"),
        (changed(0, shape=[3]), {}, "age: the shape [3] does not fit the 2 elements"),
        (changed(0, shape=[-1, -2]), {}, "age: the shape must be"),
        (changed(0, shape=[1, 2]), {}, "age: the shape must be [n] or [n, 1]"),
        (changed(0, shape=[2, 1, 1]), {}, "age: the shape must be"),
        (changed(0, datatype="FP8"), {}, "unknown datatype 'FP8'"),
        (changed(0, data=["x", "y"]), {}, "age: the data is not of FP64"),
        (changed(0, data=[True, False]), {}, "age: the data is not of FP64"),
        (changed(0, datatype="INT8", data=[1, 1000]), {}, "age: a number is out of the range of INT8"),
        (changed(0, datatype="INT64", data=[1, None]), {}, "age: the data is not of INT64"),
        (changed(0, data=[1.0, 151.0]), {}, "row 1: age"),
        (changed(0, datatype="FP32", data=[1.0, 1e300]), {}, "row 1: age"),
        (changed(0, parameters={"binary_data_size": 16}), {}, "either data or"),
        (changed(2, datatype="FP64", data=[1.0, 2.0]), {}, "row 0: plan: must be a string"),
        (changed(4, datatype="INT8", data=[1, 0]), {}, "row 0: autopay: must be true or false"),
        ({"inputs": GOOD}, {LENGTH: "9999"}, LENGTH),
        ({"inputs": GOOD}, {LENGTH: "-1"}, LENGTH),
        ({"inputs": GOOD}, {LENGTH: "x"}, LENGTH),
        (b"abc", {LENGTH: "0"}, "raw bytes alone"),
        (json.dumps({"inputs": GOOD}).encode() + b"x", {LENGTH: str(len(json.dumps({"inputs": GOOD})))}, "1 bytes after"),
        (b"x", {"content-encoding": "gzip"}, "gzip stream"),
    ],
)  # fmt: skip
def test_what_is_malformed_says_why(body: object, headers: dict[str, str], words: str, server: InProcess) -> None:
    status, told = infer(server, body, headers)
    assert (status, words in told["error"]) == (400, True), told
    assert told.keys() == {"error"}


def test_what_is_too_much_is_refused_as_such(server: InProcess) -> None:
    assert infer(server, {"inputs": tensors(np.zeros((101, MIXED.width)))})[0] == 413
    assert infer(server, b" " * 16385)[0] == 413
    assert infer(server, {"inputs": GOOD}, {"content-encoding": "br"})[0] == 415
    assert infer(server, {"inputs": GOOD}, {"x-request-timeout-ms": "x"})[0] == 400
    assert infer(server, {"inputs": tensors(np.zeros((0, MIXED.width)))})[1]["outputs"][0]["data"] == []


@pytest.mark.parametrize("datatype", [*KINDS, BYTES])
def test_json_and_raw_bytes_mean_the_same(datatype: str) -> None:
    values: list[Any] = {"BOOL": [True, False, True, True], BYTES: ["", "ä", "b", "\x00"]}.get(datatype, [0, 1, 2, 100])
    if datatype.startswith("FP"):
        values = [0.1, -0.5, 1e4, 3.0]
    nested = [values[:2], values[2:]]
    raw = to_bytes(datatype, values)
    read = from_bytes("x", datatype, [4], memoryview(raw))
    for told in (values, nested):
        assert list(from_json("x", datatype, [2, 2], json.dumps(told).encode())) == list(read)
    if datatype == BYTES:
        assert raw == b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in values)


def in_bytes(body: dict[str, Any]) -> tuple[bytes, bytes]:
    """(JSON, raw bytes) of the same request."""
    parts, inputs = [], []
    for tensor in body["inputs"]:
        parts.append(to_bytes(tensor["datatype"], tensor["data"]))
        inputs.append({key: tensor[key] for key in ("name", "shape", "datatype")})
        inputs[-1]["parameters"] = {"binary_data_size": len(parts[-1])}
    return json.dumps(body | {"inputs": inputs}).encode(), b"".join(parts)


def test_lines_without_a_header_may_be_quoted(server: InProcess) -> None:
    row = {"age": 31.5, "balance": 2.0, "plan": "basic", "region": "no, where", "autopay": True, "visits": 3.0}
    wanted = json.loads(server.asgi("/predict", json.dumps(row).encode(), {})[2])["probability"]
    line = b'31.5,2.0,"basic","no, where",true,3.0\n'
    for body in (line, b",".join(name.encode() for name in row) + b"\r\n" + line):
        status, _, told = server.asgi("/invocations", body, {"content-type": "text/csv"})
        assert (status, json.loads(told)) == (200, {"predictions": [wanted]})


def test_sagemakers_path_takes_tensors_too(server: InProcess) -> None:
    rows = mixed_rows(200, 3)
    asked = {"inputs": tensors(rows[~np.isnan(rows).any(axis=1)][:5])}
    wanted = infer(server, asked)[1]["outputs"]
    sent = {"content-type": "application/json"}
    assert infer(server, asked, sent, "/invocations") == (200, infer(server, asked)[1])
    status, told = infer(server, {"inputs": [GOOD[0] | {"datatype": "FP8"}]}, sent, "/invocations")
    assert (status, told.keys()) == (400, {"error"})

    text, raw = in_bytes(asked | {"outputs": [{"name": "probability", "parameters": {"binary_data": True}}]})
    kind = "application/vnd.sagemaker-triton.binary+json;json-header-size="
    status, headers, body = server.asgi("/invocations", text + raw, {"content-type": f"{kind}{len(text)}"})
    at = int(dict(headers)[b"content-type"].decode().removeprefix(kind))
    assert (status, json.loads(body[:at])["model_name"]) == (200, "mixed")
    assert np.frombuffer(body[at:]).tolist() == wanted[1]["data"]
    for size in ("x", "-1", "99999", ""):
        status, told = infer(server, text + raw, {"content-type": kind + size}, "/invocations")
        assert (status, "json-header-size" in told["error"]) == (400, True)


def test_every_error_below_v2_is_of_the_protocol(server: InProcess) -> None:
    for path, body, status in (
        ("/v2/nothing", None, 404),
        ("/v2/models/none", None, 404),
        ("/v2/models/none/infer", b"{}", 404),
        ("/v2/models/mixed/versions/9/stats", None, 404),
        ("/v2/health/live", b"{}", 405),
        (INFER, None, 405),
        (INFER, b"{", 400),
        (INFER, b" " * 16385, 413),
        ("/v2/repository/models/mixed/unload", b"{}", 400),
    ):
        got, _, told = server.asgi(path, body, {})
        assert (got, json.loads(told).keys()) == (status, {"error"}), path


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)  # the server keeps nothing of a refusal
@given(data=st.data())
def test_no_damage_to_a_request_is_the_servers_fault(data: st.DataObject, server: InProcess) -> None:
    text, raw = in_bytes({"inputs": GOOD, "id": "x", "outputs": [{"name": "prediction"}]})
    kind = "application/vnd.sagemaker-triton.binary+json;json-header-size="
    path, sent, body = data.draw(
        st.sampled_from(
            [
                (INFER, {LENGTH: str(len(text))}, text + raw),
                (INFER, {}, json.dumps({"inputs": GOOD}).encode()),
                ("/invocations", {"content-type": f"{kind}{len(text)}"}, text + raw),
                ("/invocations", {"content-type": "text/csv"}, b'31.5,2,"basic",north,true,3\n'),
                ("/invocations", {}, b'{"inputs": {"age": [1], "balance": [2.5], "plan": ["basic"]}}'),
                ("/v1/models/mixed:predict", {}, b'{"instances": [[1.0, 2.0, "basic", "north", true, 3]]}'),
            ]
        )
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at, cut = data.draw(st.integers(0, len(body))), data.draw(st.integers(0, 8))
        body = body[:at] + data.draw(st.binary(max_size=8)) + body[at + cut :]
    assert server.asgi(path, body, sent)[0] in (200, 400, 413, 415), body


def test_what_is_not_ready_says_so_to_each_protocol(server: InProcess) -> None:
    at = ("/v2/health/ready", "/v2/models/mixed/ready", "/ping", "/health")
    assert {server.asgi(path, None, {})[0] for path in at} == {200}
    server.is_ready = False
    assert {server.asgi(path, None, {})[0] for path in at} == {503}
    assert server.asgi("/v2/health/live", None, {})[0] == 200
    assert json.loads(server.asgi("/v2/health/ready", None, {})[2])["ready"] is False


def test_the_outputs_of_a_task_are_its_answers(server: InProcess) -> None:
    manifest = server.live.snapshot.champion.manifest
    import msgspec

    def of(scores: list[list[float]], **facts: Any) -> dict[str, Any]:
        made = msgspec.structs.replace(manifest, **facts)
        return {output.name: output.of(np.array(scores)).tolist() for output in outputs_of(made)}

    assert of([[0.2, 0.5, 0.3]], task="multiclass", outputs=("a", "b", "c"), classes=("a", "b", "c")) == {
        "prediction": ["b"],
        "probabilities": [[0.2, 0.5, 0.3]],
    }
    assert of([[0.2, 0.7]], task="multilabel", outputs=("a", "b"), classes=(), threshold=0.5) == {
        "prediction": [[False, True]],
        "probabilities": [[0.2, 0.7]],
    }
    assert of([[1.5], [2.5]], task="regression", outputs=("y",), classes=()) == {"prediction": [1.5, 2.5]}
    assert of([[1.5, 2.5]], task="regression", outputs=("y", "z"), classes=()) == {"prediction": [[1.5, 2.5]]}
    assert of([[-0.1], [0.1]], task="outlier", outputs=("score",), classes=()) == {
        "prediction": ["outlier", "inlier"],
        "score": [-0.1, 0.1],
    }


def test_the_example_in_the_openapi_is_answered(server: InProcess) -> None:
    document = json.loads(server.asgi("/openapi.json", None, {})[2])
    body = document["paths"][INFER]["post"]["requestBody"]["content"]["application/json"]
    assert infer(server, body["example"])[0] == 200
