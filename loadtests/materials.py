"""What the benches serve and send: two small models behind a split, one large one, an expensive one; rows as JSON lines.

Trained and compiled through the command line, as a user would.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loadtests.servers import coppice, say

WIDTH, TREES, ROWS = 30, 300, 2_000
NAMES = [f"x{n:02d}" for n in range(WIDTH)]
SMALL = {
    "xgboost": "eta = 0.03, max_depth = 6",
    "lightgbm": "learning_rate = 0.03, num_leaves = 63, max_depth = 6",
}
LARGE_TREES = 1_500
SLOW_TREES = 4_000


def data(folder: Path) -> Path:
    """rows.csv, with its label, to train on, and rows.jsonl to send: the latter's path."""
    rng = np.random.default_rng(5)
    table = rng.normal(size=(20_000, WIDTH)).round(6)
    score = (
        table[:, :6].sum(1) + 2 * table[:, 6] * table[:, 7] + np.sin(3 * table[:, 8]) * 2 + rng.normal(size=len(table))
    )
    lines = [",".join([*NAMES, "label"])]
    lines += [",".join([*map(repr, row), str(int(at > 0))]) for row, at in zip(table.tolist(), score, strict=True)]
    (folder / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    rows = folder / "rows.jsonl"
    fresh = rng.normal(size=(ROWS, WIDTH)).round(6).tolist()
    rows.write_text("".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in fresh), encoding="utf-8")
    return rows


def small_models(folder: Path) -> dict[str, str]:
    """`bench`: an XGBoost champion and a LightGBM challenger, half each. The digests by library."""
    say("training and compiling the small models")
    digests: dict[str, str] = {}
    for algorithm, params in SMALL.items():
        options = ["--alias", algorithm, *(["--schema-from", "bench@xgboost"] if digests else [])]
        digests[algorithm] = _bundle(folder, "bench", algorithm, params, TREES, *options)
    publish(folder, "bench", digests)
    return digests


def publish(folder: Path, model: str, digests: dict[str, str], *options: str) -> None:
    arms = ["--arm", f"champion={digests['xgboost']}", "--arm", f"challenger={digests['lightgbm']}"]
    coppice(folder, "routes", "publish", model, *arms, "--split", "champion=50,challenger=50", *options)


def shadowed_store(folder: Path, digests: dict[str, str]) -> None:
    """`shadowed`: the same store, in which the challenger's bundle shadows every request as well."""
    shutil.copytree(folder / "var/releases", folder / "shadowed")
    publish(folder, "bench", digests, "--shadow", f"watcher={digests['lightgbm']}:1.0", "--store", "shadowed")


def one_body(folder: Path) -> Path:
    """The first row alone, in a file of its own: all that h2load sends."""
    body = folder / "body.json"
    body.write_text(data(folder).read_text(encoding="utf-8").split("\n", 1)[0], encoding="utf-8")
    return body


def large_model(folder: Path) -> None:
    """`large`: LightGBM, 1,500 trees of 31 leaves."""
    say(f"training and compiling the large model ({LARGE_TREES:,} trees of 31 leaves)")
    params = "learning_rate = 0.01, num_leaves = 31"
    digest = _bundle(folder, "large", "lightgbm", params, LARGE_TREES)
    coppice(folder, "routes", "publish", "large", "--arm", f"champion={digest}")


def slow_model(folder: Path) -> Path:
    """`slow`: LightGBM, 4,000 trees in ONNX Runtime, and the path of a row that takes milliseconds. Some minutes to make.

    Labels alternate along one feature whose values grow more frequent, so that each split takes the last value off: trees are
    chains of some hundred nodes, and a row of the first value passes all of them.
    """
    say(f"training and compiling the slow model ({SLOW_TREES:,} deep trees: some minutes)")
    rng = np.random.default_rng(6)
    step = np.repeat(np.arange(250), np.maximum(2, 1.025 ** np.arange(250)).round().astype(int))
    rng.shuffle(step)
    table = (rng.random((len(step), WIDTH)) < 0.5).astype(int)
    table[:, 0] = step
    lines = [",".join([*NAMES, "label"])]
    lines += [",".join(map(str, [*row, row[0] % 2])) for row in table.tolist()]
    (folder / "slow.csv").write_text("\n".join(lines), encoding="utf-8")
    body = folder / "slow.json"
    body.write_text(json.dumps(dict.fromkeys(NAMES, 0)), encoding="utf-8")
    params = "learning_rate = 0.0005, num_leaves = 255, min_data_in_leaf = 1"
    compiled = ("--backend", "onnx", "--no-cross-check")
    digest = _bundle(folder, "slow", "lightgbm", params, SLOW_TREES, data="slow.csv", compiled=compiled)
    coppice(folder, "routes", "publish", "slow", "--arm", f"champion={digest}")
    return body


def naive_model(folder: Path) -> None:
    """What the endpoints of `loadtests.peers.naive` read: XGBoost's own file."""
    from xgboost import XGBClassifier

    table = np.loadtxt(folder / "rows.csv", delimiter=",", skiprows=1)
    model = XGBClassifier(n_estimators=TREES, max_depth=6, learning_rate=0.03, n_jobs=1)
    model.fit(table[:, :-1], table[:, -1].astype(int)).save_model(folder / "naive.ubj")


def _bundle(
    folder: Path,
    model: str,
    algorithm: str,
    params: str,
    trees: int,
    *options: str,
    data: str = "rows.csv",
    compiled: Sequence[str] = (),
) -> str:
    path = folder / f"{model}-{algorithm}.toml"
    recipe = f'model = "{model}"\nalgorithm = "{algorithm}"\nparams = {{ {params} }}\n'
    path.write_text(recipe + f"rounds = {{ most = {trees}, patience = {trees} }}\n", encoding="utf-8")
    printed = coppice(folder, "train", str(path), "--data", data, "--target", "label", *options)
    kept = int(printed.split(" rounds kept")[0].split()[-1])
    if kept < 0.95 * trees:
        sys.exit(f"the {algorithm} model kept {kept} rounds of {trees}")
    version = next(line for line in reversed(printed.split("\n")) if line.startswith(f"{model}@"))
    return coppice(folder, "compile", version.strip(), *compiled).split()[-1]
