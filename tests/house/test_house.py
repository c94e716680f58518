"""Rules of the house that a reviewer would otherwise have to remember."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("training", "compile", "serving", "monitoring", "loadtests")
HEAVY = [
    "xgboost",
    "lightgbm",
    "sklearn",
    "pandas",
    "scipy",
    "pyarrow",
    "treelite",
    "tl2cgen",
    "onnx",
    "mlflow",
    "evidently",
    "boto3",
    "feast",
    "redis",
    "model_signing",
    "sigstore",
    "cryptography",
    "requests",  # which the exporter of spans brings; of OpenTelemetry itself, FastAPI loads the API
]
# what is C is no Python module; Locust patches the interpreter; the naive peer reads a model when imported
NOT_IMPORTED = ("compile._kernel", "serving._quick", "loadtests.locustfile", "loadtests.peers.naive")
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")[
    :-1
]


def imported(code: str) -> set[str]:
    """Top-level modules that a clean interpreter has loaded after `code`."""
    full = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", full], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_nothing_that_was_built_here_is_tracked() -> None:
    """A link into one machine's folders breaks every other's set-up."""
    listed = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert not subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not [name for name in TRACKED if (ROOT / name).is_symlink()]


def test_the_server_loads_no_trainer() -> None:
    loaded = imported(
        "import serving.app, serving.worker, serving.supervisor, serving.sync, serving.cli, serving.routes_cli, "
        "compile.runtime, training.features"
    )
    assert not loaded & set(HEAVY)
    assert "fastapi" in loaded


def test_opening_and_scoring_a_bundle_loads_no_trainer(release: object) -> None:
    path = release.champion  # type: ignore[attr-defined]
    loaded = imported(f"from compile import open_predictor\np = open_predictor({str(path)!r})\np.score(p.probe_rows)")
    assert not loaded & set(HEAVY)


def test_help_imports_no_package() -> None:
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "coppice", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(re.findall(r"\| +([\w]+)", ran.stderr))
    assert not loaded & {*HEAVY, *PACKAGES, "fastapi", "numpy"}
    for verb in ("train", "compile", "serve", "drift", "demo"):
        assert verb in ran.stdout


@pytest.mark.parametrize(
    "verb",
    [
        *(
            "train",
            "tune",
            "models",
            "features",
            "simulate",
            "compile",
            "parity",
            "score",
            "bench",
            "verify",
            "inspect",
            "sign",
            "keys",
        ),
        *("routes", "serve", "predict", "compact", "outcomes", "reconcile", "drift", "performance"),
        *("operations", "alerts", "watch", "dashboard", "experiment", "decide", "demo"),
    ],
)
def test_every_verb_explains_itself(verb: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "coppice", verb, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "Usage" in ran.stdout


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        (["train", "--data", "nowhere.csv", "--target", "y"], 2, "nowhere.csv"),
        (["train", "no-such-recipe"], 2, "no-such-recipe"),
        (["tune", "no-such-recipe"], 2, "no-such-recipe"),
        (["tune", "tuned-xgboost", "--nested", "1"], 2, "--nested"),
        (["score", "nowhere", "rows.csv"], 2, "nowhere"),
        (["bench", "nowhere"], 2, "nowhere"),
        (["compile", "churn", "--backend", "fast"], 2, "--backend fast"),
        (["verify", "nowhere"], 2, "nowhere"),
        (["verify", "ab" * 32], 2, "abab"),
        (["inspect", "nowhere"], 2, "nowhere"),
        (["sign", "nowhere", "--key", "no-such-key"], 2, "no-such-key"),
        (["keys", "trust", "nowhere.pub"], 2, "nowhere.pub"),
        (["compile", "churn", "--key", "no-such-key"], 2, "no-such-key"),
        (["features", "apply", "nowhere"], 2, "coppice features init nowhere"),
        (["features", "init", "--entity", "id"], 2, "--data FILE"),
        (["features", "materialize", "--as-of", "noon"], 2, "--as-of: 'noon'"),
        (["routes", "show", "nothing"], 2, "nothing"),
        (["routes", "promote", "nothing"], 2, "nothing"),
        (["routes", "rollback", "nothing", "--store", "s3://"], 2, "bucket"),
        (["routes", "ramp", "nothing", "challenger"], 2, "NAME=VALUE"),
        (["models", "sync"], 2, "is no folder"),
        (["reconcile", "--traffic", "nowhere"], 2, "nowhere"),
        (["drift", "nothing"], 2, "nothing"),
        (["drift", "nothing", "--last", "soon"], 2, "--last: 'soon'"),
        (["operations", "nothing"], 2, "nothing"),
        (["watch", "nothing"], 2, "nothing"),
        (["decide", "nothing"], 2, "nothing"),
        (["decide", "nothing", "--recompute", "ab"], 2, "'ab'"),
        (["experiment", "start", "nothing", "nowhere.toml", "--arm", "challenger=1"], 2, "nowhere.toml"),
        (["experiment", "status", "nothing"], 2, "nothing"),
        (["watch", "churn", "--version", "1", "--cooldown", "a week"], 2, "--cooldown: 'a week'"),
        (["operations", "churn", "--every", "soon"], 2, "--every: 'soon'"),
        (["operations", "churn", "--server", "http://127.0.0.1:1"], 2, "http://127.0.0.1:1: no metrics"),
        (["alerts", "churn", "--rules", "nowhere.toml"], 2, "nowhere.toml"),
        (["alerts", "../churn"], 2, "../churn"),
        (["dashboard", "--server", "localhost"], 2, "--server"),
        (["dashboard", "--engine", "fast"], 2, "--engine"),
        (["demo", "--data", "rows.csv"], 2, "--target"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(call: list[str], code: int, words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coppice", *call]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr


def test_settings_and_the_readme_table_are_the_same() -> None:
    table = dict(
        re.findall(
            rf"^\| `({PREFIX}\w+)` \| ([^|]*) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    assert list(table) == [PREFIX + name.upper() for name in Settings.model_fields]
    for name, field in Settings.model_fields.items():
        default = str(field.default)
        assert default in table[PREFIX + name.upper()] or not default, name
    # fifteen knobs; and what is none: whom to trust, who may administer, how often the store is asked, callers' deadlines,
    # limits of requests of many rows, who may ask, what is told of it, the two files of TLS, and where entities are looked up
    assert len(Settings.model_fields) <= 27


def test_nothing_tells_of_a_machine_or_a_package_host() -> None:
    hosts = re.compile("files.pythonhosted" + r"\.org|--(extra-)?index-url|" + "/work" + "/|/" + "root" + "/")
    for name in TRACKED:
        path = ROOT / name
        if path.suffix in (".ubj", ".seg", ".view", ".out", ".png") or not path.is_file():
            continue
        found = hosts.search(path.read_text(encoding="utf-8"))
        assert found is None, (name, found)


def test_locks_hash_every_requirement() -> None:
    for lock in sorted((ROOT / "requirements").glob("*.txt")):
        entries = re.findall(
            r"^([\w.\[\]-]+)==\S+ \\\n    --hash=sha256:", lock.read_text(encoding="utf-8"), re.MULTILINE
        )
        pinned = re.findall(r"^[\w.\[\]-]+==", lock.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(entries) == len(pinned) > 0, lock.name


def test_examples_in_docstrings_run() -> None:
    for package in PACKAGES:
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if module.name in NOT_IMPORTED:
                continue
            failed, _ = doctest.testmod(importlib.import_module(module.name))
            assert failed == 0, module.name


def test_every_file_says_what_it_is_for_and_has_one_subject() -> None:
    for name in TRACKED:
        if name.endswith(".py") and name.split("/")[0] in PACKAGES:
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not text.strip() or text.startswith('"""'), name
            assert len(text.splitlines()) <= 360, name
