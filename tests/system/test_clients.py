"""The clients of other servers, unmodified, in an environment of their own (`make clients`): they must not tell us apart."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import MIXED, Release, mixed_rows
from inprocess import route
from running import Running

from compile import build_bundle
from compile.bundle import publish
from training.features import Feature, FeatureSchema, decode_matrix

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv-clients" / "bin" / "python"
NUMBERS = FeatureSchema(tuple(Feature(name=name, kind="number") for name in ("a", "b", "c", "d")))


@pytest.fixture(scope="module")
def store(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release's two arms of `mixed`, and `numbers`, a regression on numbers alone."""
    import xgboost

    folder = tmp_path_factory.mktemp("clients")
    published = folder / "store"
    subprocess.run(["cp", "-r", str(release.store), str(published)], check=True)
    rows = np.random.default_rng(3).normal(0, 1, (500, 4))
    booster = xgboost.train(
        {"objective": "reg:squarederror", "max_depth": 3}, xgboost.DMatrix(rows, rows @ [1, 2, -1, 0.5]), 20
    )
    bundle = build_bundle(booster, NUMBERS, rows, folder / "built", name="numbers", version="1")
    route(published, "numbers", {"champion": publish(bundle, published)})
    (folder / "facts.json").write_text(json.dumps(_facts(release, booster, rows[:40])), encoding="utf-8")
    return published


@pytest.fixture
def server(store: Path, serve: Callable[..., Running]) -> Running:
    return serve(store, model="mixed")


@pytest.mark.parametrize("script", ["triton.py", "kserve_both.py"])
def test_a_client_gets_what_it_would_from_its_own_server(script: str, store: Path, server: Running) -> None:
    run_client(script, str(server.port), str(store.parent / "facts.json"))


def test_raw_bytes_without_json_are_rows_of_the_one_tensor(store: Path, server: Running) -> None:
    facts = json.loads((store.parent / "facts.json").read_text(encoding="utf-8"))["numbers"]
    sent = {"inference-header-content-length": "0", "content-type": "application/octet-stream"}
    raw = np.array(facts["matrix"]).tobytes()
    status, headers, body = server.ask("/v2/models/numbers/infer", raw, sent)
    at = int(headers["inference-header-content-length"])
    (told,) = json.loads(body[:at])["outputs"]
    assert (status, told["shape"]) == (200, [len(facts["matrix"])])
    np.testing.assert_allclose(np.frombuffer(body[at:]), facts["prediction"], atol=1e-5)
    assert server.ask("/v2/models/numbers/infer", raw[:-1], sent)[0] == 400


def test_the_server_keeps_what_its_openapi_says(
    store: Path, serve: Callable[..., Running], tmp_path: Path, size: Callable[[int, int], int]
) -> None:
    keys = (
        tmp_path / "admin.keys"
    )  # so that the admin API is documented; nobody has the key, so that nothing is changed
    keys.write_text(f"{'0' * 64} nobody\n", encoding="utf-8")
    server = serve(store, model="mixed", admin_keys=keys)
    run_client("openapi.py", str(server.port), str(size(5, 100)))


def run_client(script: str, *arguments: str) -> str:
    assert CLIENTS.exists(), "the environment of the clients is missing: run `make clients`"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    call = [str(CLIENTS), str(ROOT / "tests" / "clients" / script), *arguments]
    with tempfile.TemporaryDirectory() as folder:  # where schemathesis leaves its notes
        done = subprocess.run(
            call, capture_output=True, text=True, timeout=200, env=environment, cwd=folder, check=False
        )
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-6000:]
    return done.stdout


def _facts(release: Release, numbers: Any, matrix: np.ndarray) -> dict[str, Any]:
    import xgboost

    rows = mixed_rows(300, 4)
    rows = rows[~np.isnan(rows).any(axis=1)]  # Triton's client has no null for text and booleans
    columns = decode_matrix(MIXED, rows)
    columns["region"] = ["elsewhere" if value == "<other>" else value for value in columns["region"]]
    data = xgboost.DMatrix(rows, feature_types=["q", "q", "c", "c", "q", "q"], enable_categorical=True)
    return {
        "mixed": {
            "columns": columns,
            "probability": release.natives["champion"].predict(data).tolist(),
            "challenger": release.natives["challenger"].predict(rows).tolist(),
        },
        "numbers": {"matrix": matrix.tolist(), "prediction": numbers.predict(xgboost.DMatrix(matrix)).tolist()},
    }
