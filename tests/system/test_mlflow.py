"""`/invocations` beside a real `mlflow models serve` of the same model: the same status, and the same numbers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from inprocess import route
from running import Running

from compile import build_bundle
from compile.bundle import publish
from training import recipe as recipes
from training import registry
from training.data import from_frame
from training.training import train

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations of MLflow and what it uses are not ours to mend

NAMES = ("a", "b", "c")
QUICK = "[rounds]\nmost = 30\npatience = 30\n"
LIBRARIES = ["xgboost", "lightgbm"] if os.environ.get("LAWS") == "full" else ["xgboost"]
ATOL = 4e-7  # of scores; margins are equal bit for bit
JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
ROWS = [[0.5, -1.25, 3.0], [1.0, 2.0, -0.75], [0.0, 0.125, 1.5]]
FRAME = pd.DataFrame(ROWS, columns=list(NAMES))
RECORDS = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
COLUMNS = {name: [row[place] for row in ROWS] for place, name in enumerate(NAMES)}


class Sent(NamedTuple):
    body: bytes
    kind: str = JSON


def said(**body: Any) -> Sent:
    return Sent(json.dumps(body).encode())


SPLIT = {"columns": list(NAMES), "data": ROWS}
PAYLOADS: dict[str, Sent] = {
    "split": said(dataframe_split=SPLIT),
    "split with an index": said(dataframe_split=SPLIT | {"index": [7, 8, 9]}),
    "split with columns in another order": said(
        dataframe_split={"columns": ["c", "a", "b"], "data": [[row[2], row[0], row[1]] for row in ROWS]}
    ),
    "split with one more column": said(
        dataframe_split={"columns": [*NAMES, "more"], "data": [[*row, 1.0] for row in ROWS]}
    ),
    "split with whole numbers": said(dataframe_split={"columns": list(NAMES), "data": [[1, 2, 3]]}),
    "split with null": said(dataframe_split={"columns": list(NAMES), "data": [[None, 2.5, 3.5], [1.5, 2.5, None]]}),
    "split with NaN": said(dataframe_split={"columns": list(NAMES), "data": [[float("nan"), 2.5, 3.5]]}),
    "split of one row": said(dataframe_split={"columns": list(NAMES), "data": ROWS[:1]}),
    "split as a list": said(dataframe_split=[SPLIT]),
    "split without data": said(dataframe_split={"columns": list(NAMES)}),
    "split with another key": said(dataframe_split=SPLIT | {"rows": []}),
    "split with a short row": said(dataframe_split={"columns": list(NAMES), "data": [[1.0, 2.0]]}),
    "split without a column": said(dataframe_split={"columns": ["a", "b"], "data": [[1.0, 2.0]]}),
    "split with an index too short": said(dataframe_split=SPLIT | {"index": [7]}),
    "split with text": said(dataframe_split={"columns": list(NAMES), "data": [["x", 2.0, 3.0]]}),
    "split with empty params": said(dataframe_split=SPLIT, params={}),
    "split with params": said(dataframe_split=SPLIT, params={"temperature": 0.5}),
    "split with params that are no object": said(dataframe_split=SPLIT, params=[1]),
    "split with params of null": said(dataframe_split=SPLIT, params=None),
    "instances with a signature name": said(instances=RECORDS, signature_name="x"),
    "records": said(dataframe_records=RECORDS),
    "records with one more field": said(dataframe_records=[record | {"more": 1} for record in RECORDS]),
    "records with null": said(dataframe_records=[*RECORDS, RECORDS[0] | {"b": None}]),
    "records as an object": said(dataframe_records=RECORDS[0]),
    "records without a field": said(dataframe_records=[{"a": 1.0, "b": 2.0}]),
    "records with text": said(dataframe_records=[RECORDS[0] | {"b": "x"}]),
    "instances as lists": said(instances=ROWS),
    "instances as objects": said(instances=RECORDS),
    "instances too narrow": said(instances=[[1.0, 2.0]]),
    "inputs as lists": said(inputs=ROWS),
    "inputs by name": said(inputs=COLUMNS),
    "inputs by name, one missing": said(inputs={"a": [1.0], "b": [2.0]}),
    "inputs of uneven lengths": said(inputs={"a": [1.0], "b": [2.0, 3.0], "c": [1.0]}),
    "inputs and instances": said(inputs=ROWS, instances=ROWS),
    "no format": said(rows=ROWS),
    "an empty object": Sent(b"{}"),
    "a list": Sent(json.dumps(ROWS).encode()),
    "no JSON": Sent(b'{"inputs": [[1, 2'),
    "an empty body": Sent(b""),
    "not UTF-8": Sent(b'{"inputs": "\xff"}'),
    "a string": Sent(b'"inputs"'),
    "CSV": Sent(FRAME.to_csv(index=False).encode(), CSV),
    "CSV with a charset": Sent(FRAME.to_csv(index=False).encode(), CSV + "; charset=utf-8"),
    "CSV with an empty cell": Sent(b"a,b,c\n1.5,,2.5\n", CSV),
    "CSV without a column": Sent(b"a,b\n1.5,2.5\n", CSV),
    "CSV with text": Sent(b"a,b,c\nx,1.5,2.5\n", CSV),
    "Parquet": Sent(FRAME.to_parquet(index=False), PARQUET),
    "not Parquet": Sent(b"PAR1", PARQUET),
    "plain text": Sent(b"1,2,3", "text/plain"),
    "another charset": Sent(json.dumps({"inputs": ROWS}).encode(), JSON + "; charset=latin-1"),
    "another parameter": Sent(json.dumps({"inputs": ROWS}).encode(), JSON + "; version=2"),
    "CSV without a header": Sent(b"0.5,-1.25,3.0\n", CSV),
}
OTHERWISE: dict[str, tuple[int, int]] = {
    # (ours, MLflow's)
    "CSV without a header": (200, 400),  # what SageMaker's clients send
    "instances as lists": (
        200,
        400,
    ),  # what KServe's clients send; MLflow takes names alone where the signature has some
    "inputs as lists": (200, 400),
}
MESSAGES = {
    "split as a list": "Invalid input. Dataframe split format must be a dictionary. Got list.",
    "records as an object": "Invalid input. Dataframe records format must be a list of records. Got dictionary.",
    "no JSON": "Invalid input. Ensure that input is a valid JSON formatted string.",
    "no format": "The input must be a JSON dictionary with exactly one of the input fields",
}


@pytest.fixture(scope="module", params=LIBRARIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model that `training` registered, and the store that serves it."""
    made = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made / 'mlflow.db'}")
        train(recipes.parse(f'algorithm = "{request.param}"\n{QUICK}'), from_frame(_frame(), "y"), name="numbers")
        shelf = registry.download("numbers")
        bundle = build_bundle(
            shelf.native, shelf.schema, shelf.rows, made / "built", name="numbers", version="1", classes=shelf.classes
        )
        route(made / "store", "numbers", {"champion": publish(bundle, made / "store")})
        yield made


def _frame() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    rows = rng.normal(0, 1, (1500, 3))
    labels = rows @ [1, -1, 0.5] + rows[:, 0] * rows[:, 1] > 0
    rows[rng.random(rows.shape) < 0.05] = np.nan
    return pd.DataFrame(rows, columns=list(NAMES)).assign(y=np.where(labels, "yes", "no"))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Iterator[int]:
    """The port of `mlflow models serve` of the registered version."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    call = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/numbers/1", "--env-manager", "local"]
    call += ["--port", str(port), "--host", "127.0.0.1", "--workers", "1"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(call, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while not _is_up(port):
            assert process.poll() is None, (folder / "mlflow.log").read_text(encoding="utf-8")
            assert time.monotonic() < deadline, (folder / "mlflow.log").read_text(encoding="utf-8")
            time.sleep(0.2)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its own group, of nobody else
        process.wait(20)


def test_every_payload_gets_the_status_and_the_numbers_of_mlflow(
    theirs: int, folder: Path, serve: Callable[..., Running]
) -> None:
    server = serve(folder / "store")
    differences = {}
    for name, sent in PAYLOADS.items():
        status, kind, told = _ask(server.port, sent)
        wanted_status, wanted_kind, wanted = _ask(theirs, sent)
        if (status, wanted_status) != OTHERWISE.get(name, (wanted_status, wanted_status)):
            differences[name] = (status, told[:300], wanted_status, wanted[:300])
        elif status == wanted_status == 200:
            np.testing.assert_allclose(_numbers(told), _numbers(wanted), rtol=0, atol=ATOL, err_msg=name)
        elif status == wanted_status:
            assert kind == wanted_kind, name
            if status == 400:
                assert {"error_code", "message"} <= json.loads(told).keys() & json.loads(wanted).keys(), name
            else:
                assert wanted.startswith(told), name
            assert MESSAGES.get(name, "") in told.decode(), name
            assert MESSAGES.get(name, "") in wanted.decode(), name
    assert not differences, json.dumps(differences, indent=1, default=str)
    for path in ("/ping", "/health", "/version"):
        assert _ask(server.port, None, path) == _ask(theirs, None, path), path


def test_mlflows_own_client_is_answered(folder: Path, serve: Callable[..., Running]) -> None:
    import mlflow
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    server = serve(folder / "store")
    client = ScoringServerClient("127.0.0.1", server.port)
    client.wait_server_ready()
    assert client.get_version() == mlflow.__version__
    shelf = registry.download("numbers")
    frame = FRAME.assign(b=[1.5, float("nan"), -2.0])
    wanted = shelf.probability(frame.to_numpy())
    np.testing.assert_allclose(client.invoke(frame).get_predictions()[0], wanted, rtol=0, atol=ATOL)
    np.testing.assert_allclose(client.invoke(frame.to_numpy()).get_predictions()[0], wanted, rtol=0, atol=ATOL)
    with pytest.raises(Exception, match="error code 400"):
        client.invoke(frame[["a", "b"]])


def test_sagemaker_may_ask_for_lines(folder: Path, serve: Callable[..., Running]) -> None:
    server = serve(folder / "store")
    asked = {"content-type": "text/csv", "accept": "text/csv", "x-amzn-sagemaker-target-variant": "ignored"}
    status, headers, told = server.ask("/invocations", b"0.5,-1.25,3.0\n1.0,2.0,-0.75", asked)
    assert (status, headers["content-type"]) == (200, "text/csv; charset=utf-8")
    numbers = json.loads(server.ask("/invocations", json.dumps({"inputs": ROWS[:2]}).encode())[2])["predictions"]
    assert [float(line) for line in told.splitlines()] == numbers
    single = [json.loads(server.ask("/predict", json.dumps(row).encode())[2])["probability"] for row in RECORDS[:2]]
    assert numbers == single


def _ask(port: int, sent: Sent | None, path: str = "/invocations") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        if sent is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, sent.body, {"content-type": sent.kind})
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read()
    finally:
        connection.close()


def _is_up(port: int) -> bool:
    try:
        return _ask(port, None, "/ping")[0] == 200
    except OSError:
        return False


def _numbers(answer: bytes) -> list[float]:
    told: list[float] = json.loads(answer)["predictions"]
    return told
