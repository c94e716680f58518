"""Several processes fit the booster that one would, of all rows; what one of them can't read ends the fit with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from training import boosters, fit_on_ray, out_of_core
from training import recipe as recipes
from training.errors import DataRefused, RecipeRefused
from training.features import encode_frame, infer
from training.parts import part_of
from training.splitting import split

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
RECIPE = recipes.parse('algorithm = "xgboost"\n[rounds]\nmost = 20\npatience = 20\n')


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with threadpool_limits(1):
        yield


def table(rows: int) -> pd.DataFrame:
    """Few values a column, so that bins are the values themselves, whoever makes them."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"a": rng.integers(0, 60, rows) / 8, "b": rng.integers(-30, 30, rows).astype(float)})
    frame["plan"] = rng.choice(["basic", "plus", "pro"], rows)
    score = frame["a"] + frame["b"] / 8 + 2 * (frame["plan"] == "pro") + rng.normal(0, 1, rows)
    frame["y"] = np.where(score > 4, "yes", "no")
    return frame


def written(frame: pd.DataFrame, folder: Path, rows: int = 700) -> Path:
    frame.to_parquet(folder / "rows.parquet", index=False, row_group_size=rows)
    return folder / "rows.parquet"


def test_two_workers_fit_what_one_process_does(tmp_path: Path) -> None:
    given = out_of_core.read(written(table(5000), tmp_path), "y", RECIPE, tmp_path, rows=2000)
    rows = split(given.dataset, RECIPE)
    schema = infer(given.dataset.features.iloc[rows["train"]])
    validation = part_of(given.dataset, schema, rows["validation"])
    alone = boosters.fit(RECIPE, schema, given.fitting(schema, rows, lambda _: None), validation, lambda *_: None)
    together = fit_on_ray.fit(RECIPE, schema, given, rows, validation, 2)
    assert together.rounds == alone.rounds
    np.testing.assert_allclose(together.curve, alone.curve, rtol=1e-4)
    asked = encode_frame(schema, given.dataset.features)
    np.testing.assert_allclose(
        boosters.probability(together.booster, schema, asked),
        boosters.probability(alone.booster, schema, asked),
        atol=2e-3,
    )


def test_a_worker_that_can_not_read_its_rows_ends_the_fit_with_its_reason(tmp_path: Path) -> None:
    frame = table(3000)
    frame.loc[2999, "y"] = "maybe"
    given = out_of_core.read(written(frame, tmp_path), "y", RECIPE, tmp_path, rows=500)
    rows = split(given.dataset, RECIPE)
    schema = infer(given.dataset.features.iloc[rows["train"]])
    with pytest.raises(DataRefused, match="'maybe' is none of the labels"):
        fit_on_ray.fit(RECIPE, schema, given, rows, part_of(given.dataset, schema, rows["validation"]), 2)


def test_the_workers_row_groups_are_all_rows_once(tmp_path: Path) -> None:
    frame = table(4000).assign(n=np.arange(4000.0))
    given = out_of_core.read(written(frame, tmp_path), "y", RECIPE, tmp_path, rows=1000)
    rows = split(given.dataset, RECIPE)
    schema = infer(given.dataset.features.iloc[rows["train"]])
    whole = given.fitting(schema, rows, lambda _: None)
    every = sorted(row for _, block in whole.rows.blocks() for row in block[:, schema.names.index("n")])
    seen: list[float] = []
    for number in range(3):
        groups = list(range(number, out_of_core.row_groups(given.path), 3))
        share = given.fitting(schema, rows, lambda _: None, groups=groups)
        assert len(share.labels) == len(share.rows) > 0
        seen += [row for _, block in share.rows.blocks() for row in block[:, schema.names.index("n")]]
    assert sorted(seen) == every


@pytest.mark.parametrize(
    ("recipe", "workers", "said"),
    [
        ('algorithm = "lightgbm"', 2, "lightgbm is fitted by one process"),
        ('algorithm = "xgboost"\ntask = "multiclass"', 2, "two classes or a regression"),
        ('algorithm = "xgboost"', 9, "has 2 row groups"),
    ],
)
def test_what_several_do_not_fit_is_refused_before_anything_is_read(
    recipe: str, workers: int, said: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeRefused, match=said):
        fit_on_ray.refuse_unfit(recipes.parse(recipe), written(table(300), tmp_path, 150), workers)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match=r"none\.parquet: there is no such file"):
        fit_on_ray.refuse_unfit(RECIPE, tmp_path / "none.parquet", 2)
