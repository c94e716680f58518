"""`coppice routes` and `coppice models sync`, as a person at a shell has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import Release
from s3 import Bucket

from serving import routes
from serving.store import open_store

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def store(release: Release, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release.store, tmp_path / "var" / "releases"))


def coppice(folder: Path, *call: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("COPPICE_", "MLFLOW_T"))}
    return subprocess.run(
        [sys.executable, "-m", "coppice", *call],
        cwd=folder,
        env=given | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_release_from_ramp_to_rollback(store: Path, tmp_path: Path) -> None:
    def run(*call: str) -> str:
        ran = coppice(tmp_path, "routes", *call)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert "dry run" in run("ramp", "mixed", "challenger=60", "--dry-run")
    assert routes.history(store, "mixed") == [1]
    run("ramp", "mixed", "challenger=60", "--note", "so far so good")
    assert "  60.00 %" in run("show", "mixed")
    run("promote", "mixed")
    run("rollback", "mixed")
    assert routes.read(store, "mixed").slots == routes.read(store, "mixed", 2).slots
    run("rollback", "mixed", "--to", "1", "--note", "all the way")
    assert routes.read(store, "mixed").salt == routes.read(store, "mixed", 1).salt
    assert [line.split()[0] for line in run("history", "mixed").splitlines()] == ["1", "2", "3", "4", "5"]
    assert not (tmp_path / "var" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["ramp", "mixed", "challenger=25"], "never takes from a growing arm"),
        (["ramp", "mixed", "nobody=60"], "nobody"),
        (["ramp", "mixed", "challenger=600"], "600"),
        (["ramp", "mixed", "challenger=x"], "not a number"),
        (["promote", "mixed", "--arm", "nobody"], "it has: challenger"),
        (["rollback", "mixed"], "nothing to roll back to"),
        (["rollback", "mixed", "--to", "9"], "no such generation"),
        (["publish", "mixed", "--arm", "champion=" + "ab" * 32], "abab"),
        (["publish", "mixed", "--arm", "challenger=" + "ab" * 32], "champion"),
        (["history", "mixed", "--store", "nowhere/at/all.json"], ""),
    ],
)
def test_a_mistake_is_one_line_and_publishes_nothing(store: Path, tmp_path: Path, call: list[str], words: str) -> None:
    ran = coppice(tmp_path, "routes", *call)
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.splitlines()) == (ran.returncode != 0) == bool(words)
    assert routes.history(store, "mixed") == [1]


def test_of_two_publishers_at_once_one_wins_and_the_other_is_told(store: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COPPICE_")}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "coppice", "routes", "ramp", "mixed", f"challenger={share}"],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for share in (60, 60)
    ]
    told = [publisher.communicate()[1] for publisher in both]
    codes = sorted(publisher.returncode for publisher in both)
    assert codes == [0, 2], told
    assert routes.history(store, "mixed") == [1, 2]
    (line,) = [line for text in told for line in text.splitlines()]
    assert "generation 2" in line or "already" in line


def test_routes_and_bundles_go_to_s3(store: Path, tmp_path: Path, bucket: Bucket) -> None:
    routed = routes.read(store, "mixed")
    call = ["routes", "publish", "mixed", *(f"--arm={name}={digest}" for name, digest in routed.arms.items())]
    for _ in range(2):
        ran = coppice(tmp_path, *call, "--split", "champion=1,challenger=1", COPPICE_STORE=bucket.address)
        assert ran.returncode == 0, ran.stderr
    assert routes.history(bucket.address, "mixed") == [1, 2]
    assert all(open_store(bucket.address).holds(digest) for digest in routed.arms.values())
    assert routes.history(store, "mixed") == [1]


@pytest.mark.filterwarnings("ignore")  # MLflow's deprecations are not ours to mend
def test_aliases_follow_the_routes(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import registry

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = registry.connect()
    client.create_registered_model("mixed")
    for _ in range(2):
        run = client.create_run(client.get_experiment_by_name(registry.EXPERIMENT).experiment_id)
        client.create_model_version("mixed", f"runs:/{run.info.run_id}/model", run.info.run_id)
    client.set_registered_model_alias("mixed", "champion", "2")
    client.set_registered_model_alias("mixed", "staging", "1")

    ran = coppice(tmp_path, "models", "sync", MLFLOW_TRACKING_URI=uri)
    assert ran.returncode == 0, ran.stderr
    assert registry.aliases("mixed") == {"champion": "1", "challenger": "2", "staging": "1"}
    ran = coppice(tmp_path, "routes", "promote", "mixed", MLFLOW_TRACKING_URI=uri)
    assert ran.returncode == 0, ran.stderr
    assert registry.aliases("mixed") == {"champion": "2", "staging": "1"}
    ran = coppice(tmp_path, "routes", "rollback", "mixed", MLFLOW_TRACKING_URI="sqlite:////nowhere/mlflow.db")
    assert ran.returncode == 0
    assert "coppice models sync mixed" in ran.stderr
    assert routes.history(store, "mixed") == [1, 2, 3]
    assert "mixed@champion is version 1" in coppice(tmp_path, "models", "sync", "mixed", MLFLOW_TRACKING_URI=uri).stdout
