"""Real tables, from CSV to answers over HTTP: as accurate as the library, and the same numbers on every row."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import Running

from compile import build_bundle
from compile.bundle import publish
from serving import routes
from training import recipe as recipes
from training import registry
from training.data import read_dataset, read_frame
from training.evaluation import evaluate
from training.features import encode_frame
from training.training import train

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and its dependencies' deprecations are not ours to mend


def released(name: str, algorithm: str, path: Path, target: str, store: Path) -> registry.Shelf:
    train(recipes.load(f"tabular-{algorithm}"), read_dataset(path, target), name=name)
    shelf = registry.download(name)
    with_reference = {"reference": shelf.reference, "card": shelf.card, "lineage": shelf.lineage}
    built = build_bundle(
        shelf.native,
        shelf.schema,
        shelf.rows,
        store.parent / "built",
        name=name,
        version=shelf.version,
        classes=shelf.classes,
        **with_reference,  # type: ignore[arg-type]  # three optional parts, each of its own type
    )
    digest = publish(built, store)
    slots = routes.split_slots({"champion": 100})
    salt, at = routes.new_salt(), routes.stamp()
    routes.publish(
        store,
        routes.Routes(
            model=name,
            generation=1,
            salt=salt,
            slots=slots,
            arms={"champion": digest},
            shadow=(),
            note="",
            by="tests",
            at=at,
        ),
    )
    return shelf


def served(server: Running, bodies: list[bytes]) -> np.ndarray:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    answers = []
    for body in bodies:
        connection.request("POST", "/predict", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
        assert answer.status == 200, (told, body)
        answers.append(told["probability"])
    connection.close()
    return np.array(answers)


@pytest.mark.parametrize("algorithm", ["xgboost", "lightgbm"])
def test_adult_is_served_as_accurately_as_it_was_trained(
    algorithm: str,
    real_data: Callable[[str], Path],
    serve: Callable[..., Running],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    shelf = released("adult", algorithm, real_data("adult_train.csv"), "income", tmp_path / "store")
    assert shelf.facts.metrics["accuracy"] > 0.865
    assert shelf.classes == ("<=50K", ">50K")
    server = serve(tmp_path / "store")
    frame = read_frame(real_data("adult_test.csv"))
    records = json.loads(frame[list(shelf.schema.names)].to_json(orient="records", double_precision=15))
    answers = served(server, [json.dumps(record).encode() for record in records])
    native = shelf.probability(encode_frame(shelf.schema, frame))
    assert len(answers) == 16_281
    assert np.abs(answers - native).max() <= 1e-6
    assert evaluate((frame["income"] == ">50K").to_numpy(), answers)["accuracy"] > 0.865


@pytest.mark.parametrize("algorithm", ["xgboost", "lightgbm"])
def test_telco_works_with_its_blanks_and_categories(
    algorithm: str,
    real_data: Callable[[str], Path],
    serve: Callable[..., Running],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    path = real_data("telco_churn.csv")
    shelf = released("telco", algorithm, path, "Churn", tmp_path / "store")
    assert shelf.facts.metrics["roc_auc"] > 0.84
    assert "customerID" not in shelf.schema.names
    kinds = {feature.name: feature.kind for feature in shelf.schema.features}
    assert kinds["TotalCharges"] == "number"
    frame = read_frame(path)
    assert frame["TotalCharges"].isna().sum() == 11
    server = serve(tmp_path / "store")
    records = json.loads(frame[list(shelf.schema.names)].to_json(orient="records", double_precision=15))
    answers = served(server, [json.dumps(record).encode() for record in records])
    assert np.abs(answers - shelf.probability(encode_frame(shelf.schema, frame))).max() <= 1e-6
