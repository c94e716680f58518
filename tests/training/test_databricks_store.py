"""Databricks behind our protocol, against a stand-in: the documented calls, and the same training sets and views as Feast's."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from databricks_fake import Client, FeatureLookup, Spark
from people import DECLARED, LABELS, PEOPLE, labels_of

from training import feature_repo, feature_store, feature_tables
from training.databricks_store import DatabricksStore
from training.errors import RecipeRefused, StoreRefused
from training.feature_repo import Repository, View
from training.feature_store import training_set
from training.view import ViewFile, path_of

AT = datetime(2024, 4, 1, 12, 0, 0, tzinfo=UTC)


class Made:
    def __init__(self, folder: Path, declared: str = DECLARED) -> None:
        self.folder = folder
        self.spark = Spark()
        self.client = Client(self.spark)
        (folder / "features.toml").write_text(f'store = "databricks"\nschema = "ml.dev"\n{declared}', encoding="utf-8")
        self.table(PEOPLE)

    def table(self, text: str) -> None:
        (self.folder / "people.csv").write_text(text, encoding="utf-8")

    def applied(self) -> tuple[Repository, View, DatabricksStore]:
        repository = feature_repo.load(self.folder)
        view = repository.view("people")
        feature_tables.make(repository, view)
        store = DatabricksStore(repository, self.client, self.spark, FeatureLookup)
        store.apply(repository.declared.views)
        return repository, view, store


def test_the_training_set_is_the_one_that_feast_makes(tmp_path: Path) -> None:
    _, view, store = Made(tmp_path).applied()
    made = training_set(store, view, labels_of(LABELS), "at", "labels")
    expected = [(place, *known) for place, (_, _, known) in enumerate(LABELS) if known]
    assert list(made.frame[["left", "x", "plan"]].itertuples(index=False, name=None)) == expected
    assert made.unknown == len(LABELS) - len(expected)
    assert made.frame["pays"].tolist() == [True, True, False, True, False]


def test_the_view_is_the_one_that_feast_makes(tmp_path: Path) -> None:
    repository, view, store = Made(tmp_path).applied()
    facts = feature_store.materialize(store, repository, view, AT, str(tmp_path / "views"))
    assert facts.rows == 2
    found = ViewFile(path_of(tmp_path / "views", "people"))
    assert found.find("007") == b'{"x":2.5,"plan":"plus","pays":false}'
    assert found.find("8") == b'{"x":null,"plan":null,"pays":null}'
    assert found.find("c") is None


def test_applied_again_the_table_is_what_is_declared_now(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.applied()
    before = made.spark.tables["ml.dev.people"]
    made.table(PEOPLE.replace("007,2024-01-11T00:00:00Z,2.5", "007,2024-01-12T00:00:00Z,3.5"))
    _, view, store = made.applied()
    after = made.spark.tables["ml.dev.people"]
    assert len(after) == len(before) == 4
    pairs = pd.DataFrame({"id": ["007", "007"], "event_time": pd.to_datetime(["2024-01-11", "2024-01-12"], utc=True)})
    assert store.as_of(view, pairs)["x"].tolist() == [1.5, 3.5]


def test_what_is_older_than_its_ttl_is_missing(tmp_path: Path) -> None:
    declared = DECLARED.replace('time = "known"', 'time = "known"\nttl_days = 10.0')
    repository, view, store = Made(tmp_path, declared).applied()
    pairs = pd.DataFrame({"id": ["007", "007"], "event_time": pd.to_datetime(["2024-01-21", "2024-01-22"], utc=True)})
    assert store.as_of(view, pairs)["x"].notna().tolist() == [True, False]
    assert feature_store.materialize(store, repository, view, AT, str(tmp_path / "views")).rows == 0


def test_what_the_client_refuses_is_told_with_the_tables_name(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.applied()
    fewer = DECLARED[: DECLARED.rindex("[[views.features]]")]
    (tmp_path / "features.toml").write_text(f'store = "databricks"\nschema = "ml.dev"\n{fewer}', encoding="utf-8")
    with pytest.raises(StoreRefused, match=r"ml\.dev\.people: Databricks: .*Could not find column\(s\) '\['pays'\]'"):
        made.applied()


def test_without_the_package_the_extra_is_named(tmp_path: Path) -> None:
    made = Made(tmp_path)
    with pytest.raises(StoreRefused, match=r"coppice\[databricks\]"):
        feature_store.opened(feature_repo.load(made.folder))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ('store = "databricks"', "needs catalog.schema"),
        ('store = "databricks"\nschema = "only"', "needs catalog.schema"),
        ('schema = "a.b"', "no other takes one"),
        ('store = "databricks"\nschema = "a.b"\nonline = "redis://h:1/0"', "online: is of Feast"),
    ],
)
def test_a_declaration_for_databricks_says_where(tmp_path: Path, head: str, words: str) -> None:
    (tmp_path / "features.toml").write_text(f"{head}\n{DECLARED}", encoding="utf-8")
    with pytest.raises(RecipeRefused, match=words):
        feature_repo.load(tmp_path)
