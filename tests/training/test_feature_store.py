"""Feast behind our protocol: what was known at an instant and no later, no label lost in silence, online as offline."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from people import DECLARED, LABELS, PEOPLE, labels_of

from training import feature_init, feature_repo, feature_store, feature_tables
from training import recipe as recipes
from training.errors import DataRefused, RecipeRefused, StoreRefused
from training.feature_repo import Repository, View
from training.feature_store import FeatureStore, training_set
from training.simulator import simulate
from training.view import ViewFile, ViewRefused, path_of

pytestmark = pytest.mark.filterwarnings("ignore")  # Feast's and its dependencies' deprecations are not ours to mend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("features")
    (made / "features.toml").write_text(DECLARED, encoding="utf-8")
    (made / "people.csv").write_text(PEOPLE, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def applied(folder: Path) -> tuple[Repository, View, FeatureStore]:
    repository = feature_repo.load(folder)
    view = repository.view("people")
    feature_tables.make(repository, view)
    store = feature_store.opened(repository)
    store.apply(repository.declared.views)
    return repository, view, store


def test_labels_get_what_was_known_then_and_the_rest_is_counted(applied: tuple[Repository, View, FeatureStore]) -> None:
    _, view, store = applied
    made = training_set(store, view, labels_of(LABELS), "at", "labels")
    expected = [(place, *known) for place, (_, _, known) in enumerate(LABELS) if known]
    assert list(made.frame[["left", "x", "plan"]].itertuples(index=False, name=None)) == expected
    assert made.unknown == len(LABELS) - len(expected) == 5
    assert made.example == "'007' at 2023-12-31T23:59:59.999999+00:00"
    assert list(made.frame.columns) == ["x", "plan", "pays", "left"]


def test_feasts_own_tools_find_what_was_applied(applied: tuple[Repository, View, FeatureStore]) -> None:
    import feast

    repository, view, _ = applied
    theirs = feast.FeatureStore(repo_path=str(repository.data)).get_feature_view("people")
    assert [field.name for field in theirs.features] == list(view.kinds)


def test_feast_alone_would_have_lost_labels(applied: tuple[Repository, View, FeatureStore]) -> None:
    """Why the answer is joined to the labels again: should Feast mend this, so much the better."""
    _, view, store = applied
    who, when = [row[0] for row in LABELS], [row[1] for row in LABELS]
    pairs = pd.DataFrame({"id": who, "event_time": pd.to_datetime(when, format="ISO8601", utc=True)})
    assert len(store.as_of(view, pairs)) < len(LABELS)


def test_online_is_offline_is_what_the_server_finds(
    applied: tuple[Repository, View, FeatureStore], tmp_path: Path
) -> None:
    repository, view, store = applied
    at = datetime(2024, 4, 1, 12, 0, 0, tzinfo=UTC)
    facts = feature_store.materialize(store, repository, view, at, str(tmp_path))
    assert facts.rows == 2  # of c nothing is known yet
    found = ViewFile(path_of(tmp_path, "people"))
    assert found.find("007") == b'{"x":2.5,"plan":"plus","pays":false}'
    assert found.find("8") == b'{"x":null,"plan":null,"pays":null}'
    assert found.find("c") is None
    before = path_of(tmp_path, "people").read_bytes()
    feature_store.materialize(store, repository, view, at, str(tmp_path))
    assert path_of(tmp_path, "people").read_bytes() == before
    later = datetime(2024, 4, 1, 12, 0, 5, 1, tzinfo=UTC)
    feature_store.materialize(store, repository, view, later, str(tmp_path))
    assert ViewFile(path_of(tmp_path, "people")).find("c") == b'{"x":4.0,"plan":"plus","pays":true}'
    with pytest.raises(ViewRefused, match=r"later than 2024-04-01T12:00:00\.000000"):
        feature_store.materialize(store, repository, view, at, str(tmp_path))
    with pytest.raises(StoreRefused, match="the online store knows 'c' of 2024-04-01T12:00:05"):
        feature_store.materialize(
            _With(store, ["007", "8", "c"]),
            repository,
            view,
            at,
            str(tmp_path / "other"),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(("at", "known"), [("2024-01-21T00:00:00Z", True), ("2024-01-21T00:00:00.000001Z", False)])
def test_at_the_edge_of_its_ttl_a_value_is_known_offline_as_online(tmp_path: Path, at: str, known: bool) -> None:
    declared = DECLARED.replace('time = "known"', 'time = "known"\nttl_days = 10.0')
    (tmp_path / "features.toml").write_text(declared, encoding="utf-8")
    (tmp_path / "people.csv").write_text(PEOPLE, encoding="utf-8")
    repository = feature_repo.load(tmp_path)
    view = repository.view("people")
    feature_tables.make(repository, view)
    store = feature_store.opened(repository)
    store.apply(repository.declared.views)
    made = training_set(store, view, labels_of([("007", at, None), ("nobody", at, None)]), "at", "labels")
    assert made.unknown == (1 if known else 2)
    feature_store.materialize(store, repository, view, datetime.fromisoformat(at), str(tmp_path / "views"))
    assert (ViewFile(path_of(tmp_path / "views", "people")).find("007") is not None) == known


def test_a_view_of_nobody_is_not_written(applied: tuple[Repository, View, FeatureStore], tmp_path: Path) -> None:
    repository, view, store = applied
    with pytest.raises(DataRefused, match="nothing was known of any id by 2023-06-01"):
        feature_store.materialize(store, repository, view, datetime(2023, 6, 1, tzinfo=UTC), str(tmp_path))
    assert not list(tmp_path.iterdir())


class _With:
    """The store, asked for more entities than are known by then."""

    def __init__(self, store: FeatureStore, entities: list[str]) -> None:
        self._store, self._entities = store, entities

    def latest(self, view: View, entities: Any, as_of: datetime) -> Iterator[Any]:  # noqa: ARG002
        return self._store.latest(view, self._entities, as_of)


def test_a_view_that_is_not_applied_as_declared_is_said_to_be_so(
    applied: tuple[Repository, View, FeatureStore], folder: Path
) -> None:
    _, view, store = applied
    unknown = View(name="unknown", entity="id", table="t", time="known", features=view.features)
    changed = View(name="people", entity="id", table="t", time="known", features=view.features[:1])
    for other in (unknown, changed):
        with pytest.raises(StoreRefused, match=f"{other.name}: Feast does not know it as declared: .*apply {folder}"):
            store.as_of(other, pd.DataFrame({"id": ["007"], "event_time": [pd.Timestamp("2024-01-01T00:00:00Z")]}))


def plain(column: pd.Series[Any]) -> list[object]:
    return column.astype(object).where(column.notna(), None).tolist()


def test_the_churn_view_at_the_reference_date_is_the_simulators_own_features(tmp_path: Path) -> None:
    feature_init.churn(tmp_path, rows=400, seed=3)
    repository = feature_repo.load(tmp_path)
    view = repository.view("churn")
    table = feature_tables.make(repository, view)
    world = simulate(400, seed=3).features
    newest = table[table["event_time"] == pd.Timestamp(feature_init.REFERENCE)].reset_index(drop=True)
    assert newest["customer_id"].tolist() == [f"c{n:06d}" for n in range(400)]
    assert set(view.kinds) == set(world.columns)
    for name in view.kinds:
        ours, theirs = newest[name], world[name]
        if name in ("usage_trend", "usage_gb_30d", "days_since_login"):  # rounded from sums of another order
            assert np.allclose(ours, theirs, atol=0.1 if name == "days_since_login" else 0.011, equal_nan=True), name
        else:
            assert plain(ours) == plain(theirs), name
    grid = sorted(table["event_time"].unique())
    assert len(grid) == 13
    assert (np.diff(grid) == np.timedelta64(7, "D")).all()
    early = table[table["event_time"] == grid[0]]
    assert early["logins_30d"].mean() < newest["logins_30d"].mean()  # less than 30 days have passed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('entity = "id"', "Object missing required field `entity`"),
        ('table = "people.csv"', "a table needs features"),
        ('time = "known"', "name the `time` column"),
        ('kind = "number"', "Object missing required field `kind`"),
    ],
)
def test_a_declaration_that_lacks_something_is_refused_by_file_and_key(tmp_path: Path, change: str, words: str) -> None:
    (tmp_path / "features.toml").write_text(DECLARED.replace(change, "", 1), encoding="utf-8")
    with pytest.raises(RecipeRefused, match=words) as refused:
        feature_repo.load(tmp_path)
    assert str(tmp_path / "features.toml") in str(refused.value)


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ('online = "mysql"', "neither sqlite nor redis"),
        ('store = "hopsworks"', "store"),
        ('colour = "red"', "colour"),
        ('project = "a b"', "project"),
    ],
)
def test_a_declaration_of_the_unknown_is_refused(tmp_path: Path, added: str, words: str) -> None:
    (tmp_path / "features.toml").write_text(f"{added}\n{DECLARED}", encoding="utf-8")
    with pytest.raises(RecipeRefused, match=words):
        feature_repo.load(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (",2024-01-01T00:00:00Z,1,basic,true", "people.csv: id: 1 rows have no entity"),
        ("9,yesterday,1,basic,true", "people.csv: known: 1 rows have no instant.*'yesterday'"),
        ("9,2024-01-01T00:00:00Z,much,basic,true", "people.csv: x: is declared a number"),
        ("9,2024-01-01T00:00:00Z,1,basic,perhaps", "people.csv: pays: is declared a boolean"),
        ("007,2024-01-01T00:00:00Z,1,basic,true", "1 rows tell another's instant anew: '007', 2024-01-01"),
    ],
)
def test_rows_that_can_not_be_taken_are_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "features.toml").write_text(DECLARED, encoding="utf-8")
    (tmp_path / "people.csv").write_text(PEOPLE + line + "\n", encoding="utf-8")
    repository = feature_repo.load(tmp_path)
    with pytest.raises(DataRefused, match=words):
        feature_tables.make(repository, repository.view("people"))
    assert not repository.table_of(repository.view("people")).exists()


def test_a_repository_of_ones_own_table_says_what_it_leaves_out(tmp_path: Path) -> None:
    rows = "".join(f"{n:03d},code{n},same,{n % 7},{n % 2}\n" for n in range(60))
    (tmp_path / "people.csv").write_text(f"id,code,one,x,bought\n{rows}", encoding="utf-8")
    folder = tmp_path / "made"
    written = feature_init.own(folder, tmp_path / "people.csv", entity="id", target="bought", time="", view="people")
    assert [path.name for path in written] == ["labels.parquet", "recipe.toml", "features.toml"]
    assert "# left out, as naming rows or having one value: code, one\n" in written[-1].read_text(encoding="utf-8")
    repository = feature_repo.load(folder)
    assert list(repository.view("").kinds) == ["x"]
    table = feature_tables.make(repository, repository.view(""))
    assert table["id"].tolist() == [f"{n:03d}" for n in range(60)]
    recipe = recipes.load(folder / "recipe.toml")
    assert recipe.lookup is not None
    assert (recipe.lookup.view, recipe.data.time) == ("people", "event_time")
    with pytest.raises(RecipeRefused, match="is there already"):
        feature_init.own(folder, tmp_path / "people.csv", entity="id", target="bought", time="", view="people")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"entity": "who"}, "--entity: .* has no column 'who'; it has id, "),
        ({"target": "gone"}, "--target: .* has no column 'gone'"),
        ({"time": "when"}, "--time: .* has no column 'when'"),
        ({"entity": "x"}, "--time: .* some x has several rows"),
        ({"view": "2 people"}, "a view's name must be letters"),
    ],
)
def test_a_repository_that_can_not_be_made_leaves_nothing(tmp_path: Path, given: dict[str, str], words: str) -> None:
    (tmp_path / "people.csv").write_text("id,x,y,bought\na,1,2,0\nb,1,3,1\n", encoding="utf-8")
    asked = {"entity": "id", "target": "bought", "time": "", "view": "people"} | given
    with pytest.raises((DataRefused, RecipeRefused), match=words):
        feature_init.own(tmp_path / "made", tmp_path / "people.csv", **asked)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('[data]\nfeatures = "f"', "data.features: needs data.path"),
        ('[lookup]\nview = "v"', "entity"),
        ('[lookup]\nview = "v"\nentity = "id"\ncolour = 1', "colour"),
    ],
)
def test_a_recipe_says_all_that_a_training_set_needs(table: str, words: str) -> None:
    with pytest.raises(RecipeRefused, match=words):
        recipes.parse(f'algorithm = "xgboost"\n{table}')


@pytest.mark.usefixtures("applied")
@pytest.mark.parametrize(("by", "column"), [("time", "at"), ("group", "id")])
def test_a_recipe_may_split_by_the_labels_instant_or_by_the_entity(
    folder: Path, tmp_path: Path, by: str, column: str
) -> None:
    who, hours = ["007", "8"] * 40, range(80)
    instants = pd.Timestamp("2024-02-01T00:00:00Z") + pd.to_timedelta(list(hours), unit="h")
    labels = pd.DataFrame({"id": who, "at": instants, "left": [n % 3 == 0 for n in hours]})
    labels = labels[labels["id"] == "007"] if by == "time" else labels
    labels.to_parquet(tmp_path / "labels.parquet", index=False)
    text = f"""
        algorithm = "xgboost"
        data = {{ path = "labels.parquet", target = "left", features = "{folder}", time = "at" }}
        lookup = {{ view = "people", entity = "id" }}
        split = {{ by = "{by}", column = "{column}" }}
    """
    told: list[str] = []
    made = feature_store.dataset(recipes.parse(text), tmp_path / "labels.parquet", "left", None, told.append)
    assert list(made.features.columns) == ["x", "plan", "pays", column]
    if by == "group":  # of 8 nothing but missing values is known
        assert set(made.features["id"]) == {"007"}
        assert "left out 40 of 80 labels" in told[0]
    else:
        assert pd.to_datetime(made.features["at"], utc=True).tolist() == labels["at"].tolist()
        assert not told
