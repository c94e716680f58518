"""Rows that stay on disk are fitted to as if they were in memory, all of them but those that judge; and memory stays small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from training import boosters, out_of_core, registry
from training import recipe as recipes
from training.errors import DataRefused, RecipeRefused
from training.features import encode_frame, infer
from training.parts import part_of
from training.splitting import split
from training.spooled import OnDisk, Spooled
from training.training import train

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations of MLflow and what it uses are not ours to mend
ROOT = Path(__file__).parents[2]
QUICK = "[rounds]\nmost = 12\npatience = 5\n"
LIBRARIES = pytest.mark.parametrize("algorithm", ["xgboost", "lightgbm"])


def table(rows: int, seed: int = 1) -> pd.DataFrame:
    """Some 60 values a column, so that bins are the values themselves, whoever makes them."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": rng.integers(0, 60, rows) / 8, "b": rng.integers(-30, 30, rows).astype(float)})
    frame["plan"] = rng.choice(["basic", "plus", "pro"], rows)
    frame["paid"] = rng.random(rows) < 0.5
    frame.loc[rng.random(rows) < 0.1, "a"] = np.nan
    score = frame["a"].fillna(3) + frame["b"] / 8 + 2 * (frame["plan"] == "pro") - frame["paid"]
    frame["y"] = np.where(score + rng.normal(0, 1, rows) > 4, "yes", "no")
    return frame


def written(frame: pd.DataFrame, folder: Path) -> Path:
    path = folder / "rows.parquet"
    frame.to_parquet(path, index=False, row_group_size=1000)
    return path


def recipe_of(algorithm: str, more: str = "") -> recipes.Recipe:
    return recipes.parse(f'algorithm = "{algorithm}"\n{more}{QUICK}')


@pytest.mark.parametrize(("algorithm", "pages"), [("xgboost", False), ("xgboost", True), ("lightgbm", False)])
@pytest.mark.parametrize("weights", ["equal", "balanced"])
def test_a_model_of_rows_on_disk_is_that_of_the_same_rows_in_memory(
    algorithm: str, pages: bool, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.spooled.BLOCK_BYTES", 8 * 4 * 700)  # blocks of 700 rows
    monkeypatch.setattr("training.spooled.PAGE_BYTES", 8 * 4 * 900)
    monkeypatch.setattr("training.spooled.QUANTISED_BYTES", 0 if pages else 1 << 30)
    recipe = recipe_of(algorithm, f'weights = "{weights}"\n')
    given = out_of_core.read(written(table(5000), tmp_path), "y", recipe, tmp_path)
    rows = {name: np.sort(part) for name, part in split(given.dataset, recipe).items()}
    schema = infer(given.dataset.features.iloc[rows["train"]])
    validation = part_of(given.dataset, schema, rows["validation"])
    fitted = [
        boosters.fit(recipe, schema, source, validation, lambda *_: None)
        for source in (part_of(given.dataset, schema, rows["train"]), given.fitting(schema, rows, lambda _: None))
    ]
    assert fitted[0].rounds == fitted[1].rounds
    asked = encode_frame(schema, given.dataset.features)
    answers = [boosters.probability(one.booster, schema, asked) for one in fitted]
    assert answers[0].tolist() == answers[1].tolist()


def test_every_row_is_fitted_to_but_those_that_judge(tmp_path: Path) -> None:
    """Each row is known by a number of its own."""
    frame = table(4000).assign(n=np.arange(4000.0))
    recipe = recipe_of("xgboost")
    given = out_of_core.read(written(frame, tmp_path), "y", recipe, tmp_path, rows=1000)
    assert given.rows == 4000
    assert len(given.dataset.labels) == 1000
    rows = split(given.dataset, recipe)
    schema = infer(given.dataset.features.iloc[rows["train"]])
    place = schema.names.index("n")
    fitting = given.fitting(schema, rows, lambda _: None)
    seen = np.concatenate([block[:, place] for _, block in fitting.rows.blocks()])
    judging = given.dataset.features["n"].iloc[np.concatenate([rows["validation"], rows["holdout"]])]
    assert sorted([*seen, *judging]) == list(range(4000))
    kept = frame.set_index("n")["y"]
    assert fitting.labels.tolist() == (kept.loc[seen] == "yes").tolist()
    pd.testing.assert_frame_equal(
        given.dataset.features, frame.drop(columns="y").iloc[given.sampled].reset_index(drop=True), check_dtype=False
    )


def test_blocks_and_places_are_the_rows_that_were_written(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 3))
    rows.tofile(tmp_path / "rows")
    spooled = Spooled(tmp_path / "rows", 1000, 3)
    assert np.array_equal(spooled.read(10, 5), rows[10:15])
    assert np.array_equal(spooled.read(998, 5), rows[998:])
    assert np.array_equal(np.concatenate([block for _, block in spooled.blocks()]), rows)
    from training.spooled import sequence

    found = sequence(spooled)
    assert len(found) == 1000
    assert np.array_equal(found[7], rows[7])
    assert np.array_equal(found[[3, 9, 500]], rows[[3, 9, 500]])
    assert np.array_equal(found[990:2000], rows[990:])
    assert OnDisk(spooled, np.zeros(1000)).queries.size == 0


@LIBRARIES
def test_it_is_registered_and_judged_like_any(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    recipe = recipe_of(algorithm)
    given = out_of_core.read(written(table(6000), tmp_path), "y", recipe, tmp_path, rows=2000)
    told: list[str] = []
    trained = train(recipe, given.dataset, name="rows", on_disk=given, progress=told.append)
    assert trained.metrics["roc_auc"] > 0.85
    assert any("a sample of 6,000" in line for line in told)
    assert any(line.startswith("5,300 rows encoded on disk") for line in told)
    back = registry.download("rows@1")
    reference = pd.read_parquet(back.reference)
    assert np.array_equal(back.probability(encode_frame(back.schema, reference)), reference["prediction"].to_numpy())


def changed(rows: int, column: str, value: Any) -> pd.DataFrame:
    frame = table(rows)
    frame[column] = frame[column].astype(object)
    frame.loc[rows - 1, column] = value
    return frame


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("y", "maybe", "'maybe' is none of the labels of the sample: no, yes"),
        ("y", None, "1 rows of a block have no label"),
    ],
)
def test_what_does_not_fit_is_named(column: str, value: Any, said: str, tmp_path: Path) -> None:
    recipe = recipe_of("xgboost")
    path = written(changed(3000, column, value), tmp_path)
    given = out_of_core.read(path, "y", recipe, tmp_path, rows=500)
    rows = split(given.dataset, recipe)
    with pytest.raises(DataRefused, match=said):
        given.fitting(infer(given.dataset.features.iloc[rows["train"]]), rows, lambda _: None)


def test_text_is_a_number_throughout_or_the_column_is_named(tmp_path: Path) -> None:
    frame = table(3000)
    frame["a"] = frame["a"].map(lambda value: " " if np.isnan(value) else str(value))
    frame.loc[2999, "a"] = "much"
    recipe = recipe_of("xgboost")
    given = out_of_core.read(written(frame, tmp_path), "y", recipe, tmp_path, rows=500)
    rows = split(given.dataset, recipe)
    schema = infer(given.dataset.features.iloc[rows["train"]])
    assert schema.features[0].kind == "number"
    with pytest.raises(DataRefused, match=r"a: 'much' is no number"):
        given.fitting(schema, rows, lambda _: None)


@pytest.mark.parametrize(
    ("more", "named"), [('[split]\nby = "time"\n', "split.by"), ("[rounds]\nrefit = true\n", "rounds.refit")]
)
def test_a_recipe_that_needs_all_rows_at_once_is_refused(more: str, named: str, tmp_path: Path) -> None:
    recipe = recipes.parse(f'algorithm = "xgboost"\n{more}')
    with pytest.raises(RecipeRefused, match=named):
        out_of_core.read(written(table(300), tmp_path), "y", recipe, tmp_path)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,y\n1,yes\n", encoding="utf-8")
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    for name, said in (("rows.csv", "Parquet alone"), ("no.parquet", "no.parquet"), ("none.parquet", "no such file")):
        with pytest.raises(DataRefused, match=said):
            out_of_core.read(tmp_path / name, "y", recipe_of("xgboost"), tmp_path)


LIMITED_LIBRARIES = ["xgboost", "lightgbm"] if os.environ.get("LAWS") == "full" else ["xgboost"]
LIMITED = """
import resource, sys
from pathlib import Path
limit = int(sys.argv[1]) << 20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from training.cli import train
train(recipe=sys.argv[2], data=Path("rows.parquet"), target="y", alias=[], out_of_core=sys.argv[3] == "disk")
"""


@pytest.mark.parametrize("algorithm", LIMITED_LIBRARIES)
def test_it_succeeds_under_a_limit_of_memory_that_all_rows_would_break(algorithm: str, tmp_path: Path) -> None:
    """A process may have so many MB of data: too few for the rows as they are, and as training needs them."""
    rows, width, limit_mb = 800_000, 30, 800
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(rows, width)), columns=[f"x{n}" for n in range(width)])
    frame["y"] = np.where(frame["x0"] + frame["x1"] * frame["x2"] > 0, "yes", "no")
    frame.to_parquet(tmp_path / "rows.parquet", index=False, row_group_size=50_000, compression=None)
    (tmp_path / "quick.toml").write_text(
        f'algorithm = "{algorithm}"\nmodel = "rows"\n[rounds]\nmost = 3\npatience = 0\n[gates]\nmin_accuracy = 0.5\n',
        encoding="utf-8",
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}", "TMPDIR": str(tmp_path),
    }  # fmt: skip
    ran = {
        way: subprocess.run(
            [sys.executable, "-c", LIMITED, str(limit_mb), "quick.toml", way],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for way in ("disk", "memory")
    }
    assert ran["disk"].returncode == 0, ran["disk"].stdout[-2000:] + ran["disk"].stderr[-3000:]
    assert "rows@1" in ran["disk"].stdout
    assert ran["memory"].returncode != 0
    assert not list(tmp_path.glob("coppice-rows-*")), "what was spooled is gone"
