"""links.apply == the library's own transformation of its own margins; C == its twin; hostile bytes are refused."""

from __future__ import annotations

import json
import re
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st
from sklearn import ensemble

from compile import links
from compile.errors import ModelRefused
from compile.links import Isotonic, Link, Platt, Temperature, apply, pack, predicted_class, width
from compile.links_slow import apply_slowly
from compile.objectives import LIGHTGBM, XGBOOST, base_margin, lightgbm_link, sklearn_link, xgboost_link

RNG = np.random.default_rng(5)
X = RNG.normal(size=(300, 4)).astype(np.float32).astype(np.float64)
VALUES = np.abs(X[:, 0] + RNG.normal(size=300)) + 0.1
LABELS = (VALUES > 1).astype(int)
CLASSES = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
EDGES = [0.0, -0.0, 1e-30, 16.6, -16.6, 88.6, 88.7, 88.72, 88.8, 104.0, 800.0, 3e38]
AWKWARD = np.array([*EDGES, *(-edge for edge in EDGES), *RNG.normal(size=576) * 9]).astype(np.float32).astype(float)


def targets(objective: str) -> np.ndarray:
    if objective.startswith("multi"):
        return CLASSES
    return LABELS if re.search("binary|logistic|rank|entropy", objective) else VALUES


def xgboost_model(objective: str, **options: Any) -> xgboost.Booster:
    """A booster whose one tree adds nothing, so that it answers the base margin alone, or the rows' own."""
    data = xgboost.DMatrix(X, targets(objective))
    if objective.startswith("rank"):
        data.set_group([100, 100, 100])
    if objective == "survival:aft":
        data.set_float_info("label_lower_bound", VALUES)
        data.set_float_info("label_upper_bound", VALUES)
    if objective == "reg:quantileerror":
        options["quantile_alpha"] = 0.3
    if objective.startswith("multi"):
        options["num_class"] = 3
    return xgboost.train({"objective": objective, "eta": 0, "nthread": 1, "verbosity": 0, **options}, data, 1)


@pytest.mark.parametrize("objective", XGBOOST)
def test_xgboost_scores_any_margin_so(objective: str) -> None:
    model = xgboost_model(objective)
    margins = AWKWARD.reshape(-1, 3 if objective.startswith("multi") else 1)
    rows = xgboost.DMatrix(np.zeros((len(margins), 4)), base_margin=margins)
    assert (model.predict(rows, output_margin=True).reshape(margins.shape) == margins).all()
    native = model.predict(rows).astype(np.float64)
    if objective == "multi:softmax":
        assert (predicted_class(margins) == native).all()
        return
    native = native.reshape(margins.shape)
    np.testing.assert_allclose(apply(xgboost_link(objective), margins), native, rtol=1e-6, atol=1e-6)
    assert (apply(xgboost_link(objective, single=True), margins) == native).all()


def test_the_first_of_equal_classes_is_predicted_as_by_xgboost() -> None:
    margins = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [0.0, 0.0, 0.0], [-1.0, 3.0, -1.0]])
    rows = xgboost.DMatrix(np.zeros((4, 4)), base_margin=margins)
    native = xgboost_model("multi:softmax").predict(rows)
    assert (predicted_class(margins) == native).all()
    assert (predicted_class(apply(xgboost_link("multi:softmax"), margins)) == native).all()


@pytest.mark.parametrize("objective", XGBOOST)
def test_a_base_score_has_xgboosts_own_margin(objective: str) -> None:
    fitted = [{}, *({"base_score": float(score)} for score in RNG.uniform(0.001, 0.999, size=8))]
    for options in fitted:
        model = xgboost_model(objective, **options)
        document = json.loads(bytes(model.save_raw("json")))
        texts = document["learner"]["learner_model_param"]["base_score"].strip("[]").split(",")
        native = model.predict(xgboost.DMatrix(X[:1]), output_margin=True).ravel()
        assert native.tolist() == [base_margin(objective, float(text)) for text in texts]


def lightgbm_model(objective: str, **options: Any) -> Any:
    """A booster of three iterations whose leaves hold awkward values, as a model file may."""
    if objective.startswith("multiclass"):
        options["num_class"] = 3
    data = lightgbm.Dataset(X, CLASSES if objective.startswith("multiclass") else targets(objective))
    if "rank" in objective:
        data.set_group([100, 100, 100])
    parameters = {"objective": objective, "num_threads": 1, "verbosity": -1, "min_data_in_leaf": 5, **options}
    text = lightgbm.train(parameters, data, 3).model_to_string()
    values = iter(np.resize(AWKWARD, 20_000))

    def awkward(match: re.Match[str]) -> str:
        return "leaf_value=" + " ".join(repr(float(next(values))) for _ in match[1].split())

    text = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)  # they would tell where each tree ends
    return lightgbm.Booster(model_str=re.sub(r"^leaf_value=(.*)$", awkward, text, flags=re.MULTILINE))


FOREST = {"boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1}


@pytest.mark.parametrize("objective", [name for name in LIGHTGBM if name not in ("custom", "none")])
@pytest.mark.parametrize("options", [{}, {"reg_sqrt": True}, FOREST, {"sigmoid": 2.5}], ids=str)
def test_lightgbm_scores_its_margins_so_bit_for_bit(objective: str, options: dict[str, Any]) -> None:
    model = lightgbm_model(objective, **options)
    header = model.model_to_string().split("\nTree=")[0].splitlines()
    tokens = next(line.split("=")[1].split() for line in header if line.startswith("objective="))
    link = lightgbm_link(tokens, 3 if "average_output" in header else None)
    margins = model.predict(X, raw_score=True).reshape(len(X), -1)
    assert np.array_equal(apply(link, margins), model.predict(X).reshape(len(X), -1), equal_nan=True)


def test_a_custom_objective_has_the_identity() -> None:
    assert lightgbm_link([]) == lightgbm_link(["custom"]) == Link("identity")


def averaged(model: Any) -> np.ndarray:
    trees = (
        tree.predict_proba(X) if hasattr(tree, "predict_proba") else tree.predict(X).reshape(len(X), -1)
        for tree in model.estimators_
    )
    return np.asarray(sum(trees))


@pytest.mark.parametrize("kind", ["RandomForest", "ExtraTrees"])
def test_scikit_learns_forests_are_averaged_bit_for_bit(kind: str) -> None:
    for target in (LABELS, CLASSES):
        model = getattr(ensemble, kind + "Classifier")(7, max_depth=4, random_state=0).fit(X, target)
        native = model.predict_proba(X)
        link = sklearn_link(model)
        assert np.array_equal(apply(link, averaged(model)), native[:, 1:] if target is LABELS else native)
    both = np.stack([VALUES, X[:, 1]], axis=1)
    for target in (VALUES, both):
        model = getattr(ensemble, kind + "Regressor")(7, max_depth=4, random_state=0).fit(X, target)
        assert np.array_equal(apply(sklearn_link(model), averaged(model)), model.predict(X).reshape(len(X), -1))


@pytest.mark.parametrize(
    "model",
    [
        ensemble.GradientBoostingClassifier(n_estimators=3),
        ensemble.GradientBoostingClassifier(n_estimators=3, loss="exponential"),
        ensemble.HistGradientBoostingClassifier(max_iter=3),
    ],
    ids=str,
)
def test_scikit_learns_boosting_scores_its_margins_so(model: Any) -> None:
    for target in (LABELS, CLASSES)[: 1 if getattr(model, "loss", "") == "exponential" else 2]:
        native = model.fit(X, target).predict_proba(X)
        scores = apply(sklearn_link(model), model.decision_function(X).reshape(len(X), -1))
        np.testing.assert_allclose(scores, native[:, 1:] if target is LABELS else native, rtol=4 * 2**-52)


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "quantile", "poisson", "gamma"])
def test_scikit_learns_regressors_score_their_margins_so(loss: str) -> None:
    model = ensemble.HistGradientBoostingRegressor(loss=loss, quantile=0.4, max_iter=3).fit(X, VALUES)
    scores = apply(sklearn_link(model), model._raw_predict(X))
    np.testing.assert_allclose(scores[:, 0], model.predict(X), rtol=4 * 2**-52)


def test_an_isolation_forest_scores_its_depths_so() -> None:
    model = ensemble.IsolationForest(n_estimators=9, contamination=0.1, random_state=0).fit(X)
    depths = sum(
        model._decision_path_lengths[n][leaves] + model._average_path_length_per_tree[n][leaves] - 1.0
        for n, leaves in enumerate(tree.apply(X.astype(np.float32)) for tree in model.estimators_)
    )
    scores = apply(sklearn_link(model), np.reshape(depths, (-1, 1)))
    np.testing.assert_allclose(scores[:, 0], model.decision_function(X), rtol=0, atol=4 * 2**-53)


def test_what_is_unknown_is_refused_by_name() -> None:
    for refused, name in (
        (lambda: xgboost_link("reg:new"), "reg:new"),
        (lambda: base_margin("reg:new", 0.5), "reg:new"),
        (lambda: base_margin("binary:logistic", 1.0), "base_score=1.0"),
        (lambda: base_margin("count:poisson", -1.0), "base_score=-1.0"),
        (lambda: lightgbm_link(["new", "x:1"]), "new x:1"),
        (lambda: sklearn_link(ensemble.AdaBoostClassifier()), "AdaBoostClassifier"),
    ):
        with pytest.raises(ModelRefused, match=re.escape(name)):
            refused()


NUMBERS = st.floats(-50, 50)
KNOTS = st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=9)


@st.composite
def isotonics(draw: st.DrawFn) -> Isotonic:
    y_of = dict(draw(KNOTS))
    ascending = tuple(sorted(y_of))
    return Isotonic(ascending, tuple(y_of[x] for x in ascending), draw(st.booleans()))


@st.composite
def linked(draw: st.DrawFn) -> tuple[Link, np.ndarray]:
    """Any sound link with rows for it."""
    kind = draw(st.sampled_from(links.KINDS))
    groups = draw(st.sampled_from([1, 1, 2, 3, 9, 17, 300]))
    column = draw(st.none() | st.integers(0, groups - 1))
    kept = groups if column is None else 1
    single = kind in ("logistic", "softmax", "exp") and draw(st.booleans())
    tempered = st.builds(Temperature, NUMBERS, st.sampled_from(["logits", "probabilities"]), st.booleans())
    fold = tempered.map(lambda one: (one,))
    if kept != 2 and draw(st.booleans()):
        one = draw(st.builds(Platt, NUMBERS, NUMBERS) | isotonics())
        fold = st.just((one,) * kept)
    folds = tuple(draw(st.lists(fold, max_size=3)))
    if folds and len({type(fold[0]) is Temperature for fold in folds}) > 1:
        folds = folds[:1]
    link = Link(
        kind,
        sigmoid=draw(NUMBERS) if kind == "logistic" and not single else 1.0,
        divisor=1.0 if single else draw(st.floats(0.5, 50)),
        offset=draw(NUMBERS) if kind == "isolation" else 0.0,
        single=single,
        column=column,
        folds=folds,
    )
    pool = draw(st.lists(st.one_of(st.floats(-1e4, 1e4), st.sampled_from(AWKWARD[:24].tolist())), min_size=1))
    return link, np.resize(np.array(pool), (3, groups * max(1, len(folds))))


@given(case=linked())
def test_c_and_its_twin_answer_the_same_bits(case: tuple[Link, np.ndarray]) -> None:
    link, margins = case
    scores = apply(link, margins)
    assert scores.shape == (3, width(link, margins.shape[1]))
    assert np.array_equal(scores, apply_slowly(link, margins), equal_nan=True)
    for row in range(3):
        assert np.array_equal(apply(link, margins[row : row + 1]), scores[row : row + 1], equal_nan=True)


@given(case=linked())
def test_a_link_survives_json(case: tuple[Link, np.ndarray]) -> None:
    link, margins = case
    again = msgspec.json.decode(msgspec.json.encode(link), type=Link)
    assert again == link
    assert pack(again, margins.shape[1]) == pack(link, margins.shape[1])


@given(case=linked(), seed=st.integers(0, 2**32 - 1))
def test_hostile_bytes_are_refused_or_harmless(case: tuple[Link, np.ndarray], seed: int) -> None:
    link, margins = case
    library, rng = links._library(), np.random.default_rng(seed)
    good = pack(link, margins.shape[1])
    bad = [good[: rng.integers(len(good))], good + b"\0" * 8, b"X" + good[1:]]
    for data in bad:
        assert not library.coppice_link_open(data, len(data))
    for _ in range(20):
        changed = bytearray(good)
        changed[rng.integers(8, min(len(good), 64 + 32 * rng.integers(3)))] = rng.choice([0, 1, 2, 7, 127, 128, 255])
        handle = library.coppice_link_open(bytes(changed), len(changed))
        if handle:
            rows = np.zeros((2, library.coppice_link_groups(handle)))
            scores = np.empty((2, library.coppice_link_width(handle)))
            library.coppice_link_apply(handle, 2, rows.ctypes.data, scores.ctypes.data)
            library.coppice_link_close(handle)


def test_a_plain_link_may_be_applied_in_place() -> None:
    library = links._library()
    for link, groups in ((Link("logistic"), 1), (Link("softmax"), 3), (Link("softmax", single=True), 3)):
        margins = AWKWARD.reshape(-1, groups).copy()
        expected = apply(link, margins)
        handle = library.coppice_link_open(pack(link, groups), len(pack(link, groups)))
        library.coppice_link_apply(handle, len(margins), margins.ctypes.data, margins.ctypes.data)
        library.coppice_link_close(handle)
        assert (margins == expected).all()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"kind":"cube"}', "kind"),
        ('{"kind":"exp","power":2}', "power"),
        ('{"kind":"exp","sigmoid":2}', "sigmoid"),
        ('{"kind":"exp","divisor":0}', "divisor"),
        ('{"kind":"exp","offset":1}', "offset"),
        ('{"kind":"hinge","single":true}', "single"),
        ('{"kind":"logistic","sigmoid":2,"single":true}', "single"),
        ('{"kind":"softmax","column":-1}', "column"),
        ('{"kind":"logistic","folds":[[]]}', "folds"),
        ('{"kind":"logistic","folds":[[{"method":"isotonic","x":[1,1],"y":[0,1]}]]}', "isotonic"),
        ('{"kind":"logistic","folds":[[{"method":"isotonic","x":[1],"y":[0,1]}]]}', "isotonic"),
        ('{"kind":"logistic","folds":[[{"method":"platt","a":1e999,"b":0}]]}', "out of range"),
    ],
)
def test_an_unsound_link_is_refused_and_the_field_named(text: str, field: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.json.decode(text, type=Link)


def test_numbers_that_json_cannot_carry_are_refused() -> None:
    for number in (float("nan"), float("inf")):
        for make in (
            lambda: Link("logistic", sigmoid=number),  # noqa: B023
            lambda: Link("identity", divisor=number),  # noqa: B023
            lambda: Link("identity", folds=((Platt(number, 0.0),),)),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=r"sigmoid|divisor|platt"):
                make()


def test_margins_that_do_not_fit_are_refused() -> None:
    platt = Platt(-1.0, 0.0)
    for link, groups in (
        (Link("softmax", column=3), 3),
        (Link("identity", folds=((platt,), (platt,))), 3),
        (Link("identity", folds=((platt,) * 3,)), 4),
        (Link("identity"), 0),
    ):
        with pytest.raises(ValueError, match=r"column|folds"):
            apply(link, np.zeros((2, groups)))


def test_no_rows_are_no_scores() -> None:
    assert apply(Link("softmax"), np.zeros((0, 3))).shape == (0, 3)
