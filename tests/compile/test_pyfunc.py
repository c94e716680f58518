"""A compiled version is what MLflow's own ways to load it answer by: the same numbers as the bundle, from raw rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from compile import open_predictor
from training import recipe as recipes
from training import registry
from training.data import from_frame
from training.features import encode_frame
from training.inference import tidy
from training.simulator import TARGET, simulate
from training.training import train

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations of MLflow and what it uses are not ours to mend
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registered model's bundle, made by the command line; its folder has the registry, which is the present one."""
    folder = tmp_path_factory.mktemp("pyfunc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        recipe = recipes.parse('algorithm = "xgboost"\n[rounds]\nmost = 30\npatience = 30\n')
        train(recipe, from_frame(tidy(simulate(1500, seed=1).frame), TARGET), name="churn", aliases=("champion",))
        printed = coppice(folder, "compile", "churn@champion", "--backend", "treelite", "--no-cross-check")
        assert "models:/churn/1 answers by it" in printed
        yield folder / "var" / "releases" / "bundles" / printed.split()[-1]


def coppice(folder: Path, *call: str) -> str:
    command = [sys.executable, "-m", "coppice", *call]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert not ran.returncode, ran.stderr
    return ran.stdout


def loaded(reference: str = "models:/churn@champion") -> Any:
    import mlflow

    registry.connect()
    return mlflow.pyfunc.load_model(reference)


def raw_rows() -> pd.DataFrame:
    shelf = registry.download("churn@champion")
    return pd.read_parquet(shelf.holdout)


def test_it_answers_raw_rows_as_the_bundle_and_as_the_trained_model(compiled: Path) -> None:
    model, shelf, raw = loaded(), registry.download("churn@champion"), raw_rows()
    assert raw.select_dtypes("number").shape[1] < shelf.schema.width, "there are categories among the columns"
    predictor = open_predictor(compiled)
    encoded = encode_frame(shelf.schema, raw)
    got = model.predict(raw)  # with the target's column, which is passed over
    assert got.dtype == np.float64
    assert got.tolist() == predictor.score(encoded)[:, 0].tolist()
    np.testing.assert_allclose(got, shelf.probability(encoded), rtol=0, atol=4e-7)
    assert model.predict(raw.iloc[:1]).tolist() == got[:1].tolist()
    assert model.metadata.flavors["python_function"]["loader_module"] == "compile.pyfunc"


def test_missing_values_and_strangers_meet_the_schemas_rules(compiled: Path) -> None:
    model, raw = loaded(), raw_rows()
    predictor = open_predictor(compiled)
    for feature in predictor.manifest.schema.features:
        if feature.kind == "boolean" or feature.missing == "refuse":
            continue
        spoiled = raw.head(3).copy()
        spoiled[feature.name] = spoiled[feature.name].astype(object if feature.kind == "category" else float)
        spoiled.loc[spoiled.index[1], feature.name] = None
        if feature.kind == "category":
            spoiled.loc[spoiled.index[2], feature.name] = "never seen"
        wanted = predictor.score(encode_frame(predictor.manifest.schema, spoiled))[:, 0]
        assert model.predict(spoiled).tolist() == wanted.tolist(), feature.name
    with pytest.raises(Exception, match=predictor.manifest.schema.names[0]):
        model.predict(raw.drop(columns=predictor.manifest.schema.names[0]))


def test_the_native_model_is_still_there_and_compiling_again_changes_nothing(compiled: Path) -> None:
    import mlflow
    import xgboost

    raw, before = raw_rows(), loaded().predict(raw_rows())
    schema = open_predictor(compiled).manifest.schema
    registry.add_compiled(
        registry.resolve("churn@champion"), compiled, loader="compile.pyfunc", schema=schema, outputs=1
    )
    assert loaded().predict(raw).tolist() == before.tolist()
    native, shelf = mlflow.xgboost.load_model("models:/churn@champion"), registry.download("churn@champion")
    encoded = xgboost.DMatrix(encode_frame(shelf.schema, raw), feature_names=list(shelf.schema.names))
    np.testing.assert_allclose(native.predict(encoded), before, rtol=0, atol=4e-7)


def test_a_bundle_that_was_changed_in_the_registry_is_refused(compiled: Path) -> None:
    import mlflow

    client = registry.connect()
    source = client.get_model_version("churn", "1").source
    artifacts = Path(client.get_logged_model(source.removeprefix("models:/")).artifact_location.removeprefix("file://"))
    kept = artifacts / "bundles" / compiled.name / "model.flat"
    before = kept.read_bytes()
    kept.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(Exception, match=r"model\.flat"):
            mlflow.pyfunc.load_model("models:/churn@champion")
    finally:
        kept.write_bytes(before)


def test_mlflows_command_line_predicts_by_it(compiled: Path, tmp_path: Path) -> None:
    raw = raw_rows().head(5)
    names = open_predictor(compiled).manifest.schema.names
    sent = {"dataframe_split": json.loads(raw[list(names)].to_json(orient="split"))}
    (tmp_path / "rows.json").write_text(json.dumps(sent), encoding="utf-8")
    call = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "predict",
        "-m",
        "models:/churn@champion",
        "--env-manager",
        "local",
    ]
    call += ["-i", str(tmp_path / "rows.json"), "-o", str(tmp_path / "told.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run(call, env=environment, cwd=tmp_path, check=True, capture_output=True)
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert told["predictions"] == loaded().predict(raw).tolist()
