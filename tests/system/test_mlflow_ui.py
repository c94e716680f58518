"""MLflow's own pages, in a browser, over the store that our verbs fill: runs, nested trials, models with their aliases."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[2]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RECIPE = """algorithm = "xgboost"
model = "churn"
[data]
simulated_rows = 800
[rounds]
most = 20
[evaluation]
resamples = 100
[search]
folds = 2
[search.space]
max_depth = { low = 3, high = 6 }
"""
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore"),  # deprecations of MLflow and what it uses are not ours to mend
]


@dataclass(frozen=True)
class Pages:
    address: str
    folder: Path

    def text(self, path: str, wanted: str) -> str:
        """The page's text once its scripts have run; asked again while what is wanted is not there yet."""
        assert BROWSER is not None
        call = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={self.folder / 'browser'}"]
        call += ["--virtual-time-budget=30000", "--dump-dom", f"{self.address}/#{path}"]
        said = ""
        for _ in range(3):
            page = subprocess.run(call, capture_output=True, text=True, check=True, timeout=120).stdout
            bare = re.sub(r"<(script|style)[^>]*>.*?</\1>", " ", page, flags=re.DOTALL)
            said = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", bare))).replace("\xa0", " ")
            if wanted in said:
                break
        return said


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """MLflow's server over what `coppice tune` and `coppice models alias` wrote."""
    folder = tmp_path_factory.mktemp("ui")
    (folder / "quick.toml").write_text(RECIPE, encoding="utf-8")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    for call in (
        ["tune", "quick.toml", "--trials", "2", "--alias", "champion"],
        ["models", "alias", "churn@1", "candidate"],
    ):
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "coppice", *call],
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
        )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*serve, "--port", str(port), "--workers", "1"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, folder / "server.log")
        yield Pages(f"http://127.0.0.1:{port}", folder)
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # its own group, of nobody else
        server.wait(20)


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            with urlopen(address, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert server.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)


def test_the_store_opens_and_shows_runs_trials_and_aliased_models(pages: Pages) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{pages.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("coppice").experiment_id
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
    assert {"trial 0", "trial 1"} <= runs.keys()
    study = next(name for name in runs if name.startswith("tune"))

    said = pages.text(f"/experiments/{experiment}/runs", study)
    assert study in said
    said = pages.text(f"/experiments/{experiment}/runs/{runs[study]}", "trial 0")
    assert re.search(r"Child runs\W+trial [01]\W+trial [01]", said)
    assert "best.max_depth" in said
    said = pages.text("/models", "churn Version 1")
    assert "churn Version 1" in said
    assert re.search(r"@ ?(champion|candidate)", said)
    said = pages.text("/models/churn/versions/1", "Model card")
    assert "Model card: churn" in said
    assert "champion" in said
    assert "candidate" in said
