"""program(encoded row) == pipeline[:-1].transform(original row), bit for bit; what cannot be so is refused, with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.impute import KNNImputer, MissingIndicator, SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn.tree import DecisionTreeClassifier

from compile import program as programs
from compile.errors import ModelRefused
from compile.originals import original_frame, original_of
from compile.pipelines import original_input, unwrap
from training.features import Feature, FeatureSchema, decode_matrix

SCHEMA = FeatureSchema(
    (
        Feature(name="plan", kind="category", categories=("plus", "basic", "premium", "rare", "never seen")),
        Feature(name="age", kind="number"),
        Feature(name="region", kind="category", categories=("north", "east", "south"), unseen="other"),
        Feature(name="balance", kind="number"),
        Feature(name="autopay", kind="boolean"),
        Feature(name="visits", kind="number", missing=0.0),
        Feature(name="grade", kind="category", categories=("10", "20", "30"), missing="refuse", unseen="refuse"),
    )
)
NUMBERS = ["age", "balance", "visits"]
TEXTS = ["plan", "region"]
AWKWARD = [0.0, -0.0, 5e-324, -5e-324, 1e-310, 1e150, -1e150, 1 / 3, 1e-300]


def encoded(count: int, seed: int, awkward: bool = True) -> np.ndarray:
    """Rows as the server encodes them: awkward numbers, missing values, unseen categories."""
    rng = np.random.default_rng(seed)
    rows = np.column_stack(
        [
            rng.choice([0, 1, 2, 3] if not awkward else [0, 1, 2, 3, 4], count),
            rng.normal(40, 20, count).round(1),
            rng.integers(0, 3 + awkward, count),
            rng.normal(0, 1000, count),
            rng.integers(0, 2, count),
            rng.poisson(3, count),
            rng.integers(0, 3, count),
        ]
    ).astype(np.float64)
    for j in (1, 3, 5) if awkward else ():
        odd = rng.random(count) < 0.3
        rows[odd, j] = rng.choice(AWKWARD, int(odd.sum()))
    for j in (0, 1, 2, 3, 4):
        rows[rng.random(count) < 0.1, j] = np.nan
    return rows


def frame(count: int = 400, seed: int = 1, none: Any = np.nan) -> pd.DataFrame:
    """A training frame; its grade is a number, though the schema has it as text, and its columns are in another order."""
    raw = decode_matrix(SCHEMA, encoded(count, seed, awkward=False))
    table = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in raw.items()})
    table[TEXTS] = table[TEXTS].where(table[TEXTS].notna(), none)
    for name in NUMBERS:
        table[name] = table[name].astype(float)
    table["grade"] = table["grade"].astype(int)
    table["autopay"] = table["autopay"].astype(float)
    return table[["balance", "plan", "age", "autopay", "grade", "region", "visits"]]


def fitted(transform: Any, table: Any = None) -> Any:
    table = frame() if table is None else table
    labels = np.random.default_rng(0).integers(0, 2, len(table))
    pipeline = make_pipeline(transform, DecisionTreeClassifier(max_depth=2, random_state=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline.fit(table, labels)


def columns(*parts: Any, **settings: Any) -> ColumnTransformer:
    return ColumnTransformer(
        [(f"part{i}", *part) for i, part in enumerate(parts)], **{"sparse_threshold": 0, **settings}
    )


def onehot(**settings: Any) -> OneHotEncoder:
    return OneHotEncoder(**{"handle_unknown": "ignore", "sparse_output": False, **settings})


def ordinal(**settings: Any) -> OrdinalEncoder:
    return OrdinalEncoder(handle_unknown="use_encoded_value", **{"unknown_value": -1, **settings})


def full() -> FeatureUnion:
    return FeatureUnion([("scaled", StandardScaler()), ("missing", MissingIndicator(features="all"))])


SHAPES: dict[str, Callable[[], Any]] = {
    "imputer only": lambda: columns((SimpleImputer(), NUMBERS)),
    "imputers": lambda: columns(
        (SimpleImputer(strategy="median", add_indicator=True), ["age"]),
        (make_pipeline(SimpleImputer(strategy="most_frequent"), ordinal()), ["balance", "plan"]),
        (SimpleImputer(strategy="constant", fill_value=-1), ["autopay", "visits"]),
        (onehot(), ["region"]),
    ),
    "scalers": lambda: columns(
        (StandardScaler(), NUMBERS),
        (MinMaxScaler(), NUMBERS),
        (MinMaxScaler(feature_range=(-0.1, 0.3), clip=True), NUMBERS),
        (MaxAbsScaler(), NUMBERS),
        (RobustScaler(), NUMBERS),
        (StandardScaler(with_mean=False), NUMBERS),
        (RobustScaler(with_scaling=False), ["autopay"]),
    ),
    "one-hot": lambda: columns((onehot(), TEXTS)),
    "one-hot, first dropped": lambda: columns((onehot(drop="first"), TEXTS), (onehot(drop="if_binary"), ["autopay"])),
    "one-hot, infrequent": lambda: columns((onehot(min_frequency=0.2, handle_unknown="infrequent_if_exist"), TEXTS)),
    "one-hot, most frequent": lambda: columns((onehot(max_categories=3, handle_unknown="warn"), TEXTS)),
    "one-hot of numbers": lambda: columns((onehot(min_frequency=20), ["visits", "grade", "autopay"])),
    "ordinal": lambda: columns((ordinal(encoded_missing_value=-2), TEXTS)),
    "ordinal, unknown is missing": lambda: columns((ordinal(unknown_value=np.nan), [*TEXTS, "visits", "grade"])),
    "ordinal, then scaled": lambda: columns((make_pipeline(ordinal(), StandardScaler()), [*TEXTS, "visits"])),
    "target": lambda: columns((TargetEncoder(random_state=0), [*TEXTS, "grade", "visits"])),
    "mixed": lambda: columns(
        (make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()), NUMBERS),
        (make_pipeline(SimpleImputer(strategy="constant", fill_value="?"), onehot()), TEXTS),
        ("passthrough", ["autopay"]),
    ),
    "remainder passed": lambda: columns((onehot(), TEXTS), remainder="passthrough"),
    "remainder scaled": lambda: columns((onehot(), ["region"]), ("drop", ["plan"]), remainder=StandardScaler()),
    "selected": lambda: columns(
        (StandardScaler(), make_column_selector(dtype_include=float)),
        (onehot(), make_column_selector(pattern="plan|region")),
        (FunctionTransformer(), [False, False, True, False, True, False, False]),
        (MinMaxScaler(), slice("balance", "balance")),
        (MaxAbsScaler(), slice(-1, None)),
        (RobustScaler(), [0, 2]),
    ),
    "nested": lambda: make_pipeline(
        "passthrough",
        columns((make_pipeline("passthrough", SimpleImputer()), NUMBERS), (ordinal(), TEXTS)),
        columns((onehot(), [-1]), (MinMaxScaler(), [0, 1]), remainder="passthrough"),
        VarianceThreshold(0.01),
    ),
    "chosen": lambda: make_pipeline(
        columns((SimpleImputer(), NUMBERS), (ordinal(encoded_missing_value=-2), TEXTS)), SelectKBest(k=3)
    ),
    "union": lambda: columns((full(), NUMBERS)),
    "as frames": lambda: make_pipeline(
        columns((SimpleImputer(), NUMBERS), (onehot(), TEXTS)),
        columns((StandardScaler(), make_column_selector("part0"))),
    ).set_output(transform="pandas"),
    "integers": lambda: columns(
        (make_pipeline(ordinal(dtype=int, encoded_missing_value=-2), SimpleImputer(), onehot()), [*TEXTS, "visits"])
    ),
    "single precision": lambda: columns((onehot(dtype=np.float32), TEXTS), (ordinal(dtype=np.int8), ["visits"])),
    "two imputers": lambda: make_pipeline(
        columns((SimpleImputer(strategy="constant", fill_value=-999), NUMBERS)), SimpleImputer(missing_values=-999)
    ),
}


def bits(matrix: np.ndarray) -> np.ndarray:
    matrix = np.ascontiguousarray(matrix, dtype=np.float64)
    return np.where(np.isnan(matrix), np.nan, matrix).view(np.uint64)


def agree(pipeline: Any, schema: FeatureSchema, rows: np.ndarray) -> programs.Program:
    program, final = unwrap(pipeline, schema)
    assert program is not None
    assert final is pipeline[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pipeline[:-1].transform(original_input(pipeline, schema, rows))
    opened = programs.OpenProgram(programs.pack(program.from_json(program.to_json())))
    for answer in (programs.run(program, rows), opened.run(rows)):
        if hasattr(expected, "toarray"):  # a sparse matrix does not hold the sign of a zero
            np.testing.assert_array_equal(answer, expected.toarray())
        else:
            np.testing.assert_array_equal(bits(answer), bits(expected))
    return program


@pytest.mark.parametrize("shape", SHAPES)
def test_a_program_does_what_the_transforms_do(shape: str) -> None:
    agree(fitted(SHAPES[shape]()), SCHEMA, encoded(500, seed=2))


@pytest.mark.parametrize("shape", ["mixed", "ordinal", "target", "one-hot"])
def test_missing_text_may_be_none(shape: str) -> None:
    table = frame(none=None)
    assert any(value is None for value in table["plan"])
    agree(fitted(SHAPES[shape](), table), SCHEMA, encoded(300, seed=3))


def test_a_pipeline_trained_on_encoded_rows_reads_codes() -> None:
    rows = encoded(400, seed=4, awkward=False)
    shapes = (
        make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()),
        columns((onehot(), [0, 2, -1]), ("passthrough", slice(3, None))),
        ColumnTransformer([("all", MaxAbsScaler(), lambda table: [True] * table.shape[1])]),
    )
    for shape in shapes:
        agree(fitted(shape, rows), SCHEMA, encoded(300, seed=5))


def test_a_pipeline_trained_on_an_array_of_text_reads_text() -> None:
    table = frame().assign(grade=lambda t: t["grade"].astype(str))[list(SCHEMA.names)]
    shape = columns((onehot(), [0, 2, 6]), (SimpleImputer(), [1, 3, 5]))
    agree(fitted(shape, table.to_numpy()), SCHEMA, encoded(300, seed=6))


def test_pandas_categories_and_booleans_are_read_as_their_values() -> None:
    table = frame().astype({"plan": "category", "region": "category", "autopay": "boolean"})
    table["autopay"] = table["autopay"].fillna(False).astype(bool)
    shape = columns((onehot(), [*TEXTS, "autopay"]), (StandardScaler(), ["age", "autopay"]))
    agree(fitted(shape, table), SCHEMA, encoded(300, seed=7))


def test_columns_that_are_dropped_need_not_be_in_the_schema() -> None:
    table = frame().assign(customer=range(400))
    agree(fitted(columns((onehot(), TEXTS)), table), SCHEMA, encoded(50, seed=8))


def test_a_search_is_its_best_estimator() -> None:
    search = GridSearchCV(fitted(SHAPES["mixed"]()), {"decisiontreeclassifier__max_depth": [1]}, cv=2)
    search.fit(frame(), np.arange(400) % 2)
    program, final = unwrap(search, SCHEMA)
    assert program is not None
    assert final is search.best_estimator_[-1]


def test_what_is_no_pipeline_has_no_program_and_reads_the_schema_s_categories() -> None:
    tree = DecisionTreeClassifier()
    table = original_input(tree, SCHEMA, encoded(100, seed=10))
    assert isinstance(table, pd.DataFrame)
    pd.testing.assert_frame_equal(table, original_frame(SCHEMA, encoded(100, seed=10)))
    assert table["region"].cat.categories.tolist() == ["north", "east", "south", "<other>"]
    assert table["plan"].isna().equals(pd.Series(np.isnan(encoded(100, seed=10)[:, 0])))
    assert unwrap(tree, SCHEMA) == (None, tree)
    assert unwrap(Pipeline([("nothing", "passthrough"), ("tree", tree)]), SCHEMA) == (None, tree)


def test_a_large_one_hot_is_held_by_its_keys() -> None:
    names = tuple(f"shop {i:03}" for i in range(300))
    schema = FeatureSchema((Feature(name="shop", kind="category", categories=names),))
    program = agree(fitted(onehot(), pd.DataFrame({"shop": names})), schema, np.arange(-1, 300.0)[:, None] * [[1.0]])
    assert len(program.to_json()) < 300 * 150


def test_lightgbm_reads_the_zeros_of_a_sparse_matrix_as_zeros() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    model = lightgbm.LGBMClassifier(n_estimators=5, min_child_samples=5, verbosity=-1)
    shape = columns((OneHotEncoder(handle_unknown="ignore"), TEXTS), ("passthrough", NUMBERS), sparse_threshold=1)
    pipeline = Pipeline([("prepare", shape), ("model", model)]).fit(frame(), np.arange(400) % 2)
    assert shape.sparse_output_
    rows = encoded(300, seed=9)
    program = agree(pipeline, SCHEMA, rows)
    sparse = pipeline[:-1].transform(original_input(pipeline, SCHEMA, rows))
    dense = model.booster_.predict(programs.run(program, rows), raw_score=True)
    np.testing.assert_array_equal(dense, model.booster_.predict(sparse, raw_score=True))


def sparse_to_xgboost() -> Any:
    xgboost = pytest.importorskip("xgboost")
    pipeline = Pipeline([("prepare", onehot(sparse_output=True)), ("model", xgboost.XGBClassifier(n_estimators=2))])
    return pipeline.fit(frame()[TEXTS], np.arange(400) % 2)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "another transform": (
        lambda: fitted(make_pipeline(SimpleImputer(), PCA(2)), frame()[NUMBERS]),
        r"pca.*\(PCA\): is not",
    ),
    "quantiles": (
        lambda: fitted(columns((QuantileTransformer(n_quantiles=10), NUMBERS))),
        "part0.*QuantileTransformer",
    ),
    "another imputer": (lambda: fitted(columns((KNNImputer(), NUMBERS))), "KNNImputer"),
    "a function": (lambda: fitted(columns((FunctionTransformer(np.log1p), ["visits"]))), "calls a Python function"),
    "unknown raises": (
        lambda: fitted(columns((onehot(handle_unknown="error"), ["plan"]))),
        r"part0 \(OneHotEncoder\): raises on 'never seen' in plan: .*handle_unknown='ignore'",
    ),
    "an unseen one raises": (lambda: fitted(columns((OrdinalEncoder(), ["region"]))), "raises on '<other>' in region"),
    "another number raises": (lambda: fitted(columns((OrdinalEncoder(), ["visits"]))), "OrdinalEncoder.*visits"),
    "missing raises": (
        lambda: fitted(make_pipeline(SHAPES["scalers"](), SelectKBest(k=2)), frame().dropna()),
        "missing value in",
    ),
    "missing is new": (
        lambda: fitted(columns((MissingIndicator(), NUMBERS)), frame().assign(age=1.0)),
        r"MissingIndicator\): raises on a missing value in age: the schema must not let it through \(missing='refuse'",
    ),
    "text to the model": (
        lambda: Pipeline([("keep", FunctionTransformer().fit(frame()[TEXTS])), ("tree", DecisionTreeClassifier())]),
        "plan reaches the model as text; encode it",
    ),
    "a column too many": (
        lambda: fitted(columns((SimpleImputer(), ["income"])), frame().assign(income=1.0)),
        "'income', which",
    ),
    "another width": (lambda: fitted(SimpleImputer(), np.ones((9, 3))), "an array of 3 columns, the schema has 7"),
    "other categories": (
        lambda: fitted(columns((onehot(), ["plan"])), frame().assign(plan="gold")),
        "knows none of .* 'gold'",
    ),
    "single precision": (
        lambda: fitted(make_pipeline(columns((ordinal(dtype=np.float32), TEXTS)), StandardScaler())),
        "computes with float32",
    ),
    "sparse to XGBoost": (sparse_to_xgboost, "prepare: .*missing values to XGBClassifier.*sparse_output=False"),
    "sparse on the way": (
        lambda: fitted(make_pipeline(OneHotEncoder(handle_unknown="ignore"), MaxAbsScaler()), frame()[TEXTS]),
        "maxabsscaler: reads a sparse matrix",
    ),
    "sparse on one way of two": (
        lambda: fitted(
            FeatureUnion([("a", OneHotEncoder()), ("b", make_pipeline(OneHotEncoder(), MaxAbsScaler()))]),
            frame()[TEXTS],
        ),
        "b / maxabsscaler: reads a sparse matrix",
    ),
    "text for a number": (
        lambda: fitted(
            columns((make_pipeline(SimpleImputer(strategy="constant", fill_value="?"), ordinal()), ["plan", "age"])),
            frame().assign(age=frame()["age"].astype(str)),
        ),
        "age is a number in the schema, and text to this step|fills age, a number, with",
    ),
    "weights": (
        lambda: fitted(full().set_params(transformer_weights={"scaled": 2}), frame()[NUMBERS]),
        "transformer_weights",
    ),
    "not fitted": (lambda: make_pipeline(StandardScaler(), DecisionTreeClassifier()), "is not fitted"),
    "no model": (
        lambda: make_pipeline(SimpleImputer(), StandardScaler()).fit(frame()[NUMBERS]),
        "ends with a transform",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_understood_is_refused_by_name(why: str) -> None:
    make, reason = REFUSED[why]
    with pytest.raises(ModelRefused, match=reason):
        unwrap(make(), SCHEMA)


def test_a_schema_that_keeps_a_value_out_makes_the_encoder_acceptable() -> None:
    strict = columns((onehot(handle_unknown="error"), ["plan"]), (OrdinalEncoder(), ["region"]))
    plan = Feature(name="plan", kind="category", categories=("basic", "plus", "premium", "rare"))
    region = Feature(
        name="region", kind="category", categories=("north", "east", "south"), missing="refuse", unseen="refuse"
    )
    rows = np.array([[0.0, 2.0], [3.0, 0.0], [np.nan, 1.0]])
    agree(fitted(strict), FeatureSchema((plan, region)), rows)


def test_categories_that_can_be_read_in_two_ways_are_refused() -> None:
    grade = Feature(name="grade", kind="category", categories=("1", "2", "0"))
    with pytest.raises(ModelRefused, match="'1' may be any of"):
        original_of(grade, [1, "1"], none=False, coded=False)
    codes = np.array([[0.0], [1.0], [2.0]] * 5)
    with pytest.raises(ModelRefused, match="codes or categories"):
        unwrap(fitted(onehot(), codes), FeatureSchema((grade,)))
