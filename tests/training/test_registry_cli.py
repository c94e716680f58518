"""What the registry's verbs say of two versions is what the versions are, and a bundle leads back to its data."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import coppice
from training import recipe as recipes
from training import registry
from training.data import from_frame
from training.errors import NotRegistered
from training.inference import tidy
from training.simulator import TARGET, simulate
from training.training import train

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations of MLflow and what it uses are not ours to mend


def said(*call: str) -> str:
    ran = CliRunner().invoke(coppice.app, ["models", *call])
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran.output


def test_two_versions_from_show_to_lineage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["coppice", "models"])  # by which the command line knows that a verb is called
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    frame = tidy(simulate(1500, seed=1).frame)
    text = 'algorithm = "xgboost"\n[rounds]\nmost = {}\npatience = 40\n[evaluation]\nresamples = 100\n'
    train(recipes.parse(text.format(20)), from_frame(frame, TARGET), name="churn", aliases=("champion",))
    fewer = from_frame(frame.drop(columns=["senior"]), TARGET)
    second = train(recipes.parse(text.format(10)), fewer, name="churn")

    told = json.loads(said("show", "churn@2", "--json"))
    assert told["metrics"] == pytest.approx(second.metrics)
    assert second.assessed
    auc = second.assessed.figures["roc_auc"]
    assert told["intervals"]["roc_auc"] == [auc.low, auc.high]
    assert auc.low < told["metrics"]["roc_auc"] < auc.high  # type: ignore[operator]
    assert str(auc) in said("show", "churn@2")
    assert registry.connect().get_model_version("churn", "2").description.startswith("# Model card: churn")

    differ = said("diff", "churn@champion", "churn@2")
    assert [line.split() for line in differ.splitlines() if line.startswith("input")] == [
        ["input", "senior", "boolean", "-"]
    ]
    assert ["rounds.most", "20", "10"] in [line.split() for line in differ.splitlines()]
    assert str(auc) in differ
    assert "the data differ" in differ
    assert said("diff", "churn@1", "churn@champion").splitlines()[1:] == ["no difference"]

    assert second.assessed.notes[0].startswith("not compared with churn@1: ")  # which reads a column that is not here
    for rows, clean in ((frame, True), (frame[:1400], False)):  # of other data, the champion may have seen the holdout
        other = train(recipes.parse(text.format(12)), from_frame(rows, TARGET), name="churn")
        assert other.assessed
        assert (other.assessed.rivals[1].name, other.assessed.rivals[1].clean) == ("churn@1", clean)

    registry.tag(registry.resolve("churn@2"), "bundle", "ab" * 32)
    traced = json.loads(said("lineage", "ababab", "--json"))
    assert (traced["version"], traced["data_sha256"]) == ("churn@2", fewer.digest)
    assert traced["recipe.rounds.most"] == "10"
    assert pd.read_parquet(registry.download("churn@2").holdout).shape[0] == 300
    with pytest.raises(NotRegistered, match="0 registered versions"):
        said("lineage", "abcdef")

    assert said("alias", "churn@2", "candidate") == "churn@candidate is version 2\n"
    assert registry.resolve("churn@candidate").version == "2"
    assert said("alias", "churn", "candidate", "--drop") == "churn@candidate is no more\n"
    for call, words in ((["churn", "candidate", "--drop"], "no such alias"), (["churn@1", "7"], "can't be an alias")):
        with pytest.raises(NotRegistered, match=words):
            said("alias", *call)
    assert said("list") == said()
