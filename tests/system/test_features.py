"""By entity, the whole way: init, apply, train, materialise, compile, serve; offline, online and logged values are one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
from lanes_of import logged
from running import Running

from compile.bundle import locate, read
from coppice import VERBS, _load
from training import feature_repo, feature_tables, registry
from training.features import decode_matrix, encode_frame
from training.view import ViewFile, path_of

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and its dependencies' deprecations are not ours to mend


@pytest.fixture
def coppice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The verbs in a folder of their own, in this process: each would import Feast or MLflow anew. Standard output."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        capsys.readouterr()
        verb = " ".join(words[:2]) if " ".join(words[:2]) in VERBS else words[0]
        _load(verb).main([*words[len(verb.split()) :]], standalone_mode=False)
        return capsys.readouterr().out

    return run


def quick(recipe: Path, *more: str) -> None:
    """Few rounds, and whatever else the test declares."""
    text = recipe.read_text(encoding="utf-8").replace("most = 2000", "most = 30")
    recipe.write_text("\n".join([text, *more]), encoding="utf-8")


def released(coppice: Callable[..., str], model: str) -> str:
    digest = coppice("compile", model, "--no-cross-check").split()[-1]
    coppice("routes", "publish", model, "--arm", f"champion={digest}")
    return digest


def test_churn_by_customer(coppice: Callable[..., str], serve: Callable[..., Running], tmp_path: Path) -> None:
    assert "recipe.toml" in coppice("features", "init", "--rows", "1200", "--seed", "4")
    features = tmp_path / "var" / "features"
    labels = pd.read_parquet(features / "labels.parquet")
    early = pd.DataFrame(
        {"customer_id": ["c000000"], "event_time": [pd.Timestamp("2020-01-01T00:00:00Z")], "churned": [True]}
    )
    pd.concat([labels, early]).to_parquet(features / "labels.parquet", index=False)
    assert "15 features, 1,200 of customer_id" in coppice("features", "apply")
    quick(features / "recipe.toml")
    told = coppice("train", "var/features/recipe.toml")
    assert "left out 1 of 1,201 labels: view churn knew nothing" in told
    assert "'c000000' at 2020-01-01" in told
    assert registry.download("churn").facts.source.endswith("1 of 1,201 labels left out")
    coppice("features", "materialize", "--as-of", "2024-04-01T00:00:00Z")
    assert "1,200 rows as of 2024-04-01" in coppice("features", "show")
    manifest = read(locate(tmp_path / "var" / "releases", released(coppice, "churn")))
    assert manifest.lookup is not None
    assert (manifest.lookup.view, manifest.lookup.entity) == ("churn", "customer_id")

    repository = feature_repo.load(features)
    table = feature_tables.read(repository, repository.view("churn"))
    offline = table[table["event_time"] == table["event_time"].max()].set_index("customer_id")
    online = ViewFile(path_of(tmp_path / "var" / "views", "churn"))
    assert list(online.entities()) == offline.index.tolist()
    server = serve(tmp_path / "var" / "releases", views=tmp_path / "var" / "views")
    shelf = registry.download("churn")
    picked = offline.index[:: len(offline) // 20].tolist()
    encoded = encode_frame(shelf.schema, offline.loc[picked])
    expected = shelf.probability(encoded)
    for name, row, probability in zip(picked, encoded, expected, strict=True):
        found = json.loads(online.find(name) or b"{}")
        given = {feature: values[0] for feature, values in decode_matrix(shelf.schema, row[None]).items()}
        assert {feature: found[feature] for feature in shelf.schema.names} == given
        status, _, answer = server.ask("/predict", json.dumps({"entity": {"customer_id": name}}).encode())
        assert status == 200
        assert abs(json.loads(answer)["probability"] - probability) <= 1e-6
    assert server.stop() == 0
    rows = sorted(logged(server.traffic), key=lambda one: one["seq"])
    assert np.array_equal([one["features"] for one in rows], encoded, equal_nan=True)


def test_telco_by_customer(
    coppice: Callable[..., str], serve: Callable[..., Running], tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    coppice(
        *("features", "init", "var/telco", "--data", str(real_data("telco_churn.csv"))),
        *("--entity", "customerID", "--target", "Churn"),
    )
    coppice("features", "apply", "var/telco")
    recipe = tmp_path / "var" / "telco" / "recipe.toml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace('# override = ["..."]', 'override = ["Contract"]'), encoding="utf-8")
    quick(recipe)
    coppice("train", str(recipe))
    coppice("features", "materialize", "var/telco", "--views", "var/views")
    released(coppice, "telco_churn")
    server = serve(tmp_path / "var" / "releases", views=tmp_path / "var" / "views", model="telco_churn")
    frame = pd.read_csv(real_data("telco_churn.csv")).set_index("customerID")
    shelf = registry.download("telco_churn")
    picked = [
        frame.index[0],
        *frame.index[frame["TotalCharges"].str.strip() == ""][:2],
    ]  # a new customer has no total yet
    chosen = frame.loc[picked].assign(TotalCharges=lambda rows: pd.to_numeric(rows["TotalCharges"], errors="coerce"))
    for contract in (None, "Two year"):
        asked = chosen if contract is None else chosen.assign(Contract=contract)
        expected = shelf.probability(encode_frame(shelf.schema, asked))
        for name, probability in zip(picked, expected, strict=True):
            body: dict[str, object] = {"entity": {"customerID": name}} | ({"Contract": contract} if contract else {})
            status, _, answer = server.ask("/predict", msgspec.json.encode(body))
            assert status == 200, answer
            assert abs(json.loads(answer)["probability"] - probability) <= 1e-6
    status, _, answer = server.ask("/predict", b'{"entity": {"customerID": "nobody"}}')
    assert (status, json.loads(answer)["field"]) == (404, "customerID")
