"""A native library answers as the booster does, bit for bit, is the same bytes wherever it is built, and is never another's."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import mixed_rows, train_mixed

from compile import elf, library_compiler
from compile.errors import CompilerFailed, ModelRefused
from compile.library import Library, build_library
from compile.library_engine import LibraryUnavailable, NativeLibrary
from compile.library_tree import GeneratedTree

TYPES = ["q", "q", "c", "c", "q", "q"]
LOW_BITS_ALL_ONES = [float(np.frombuffer(np.uint64(bits << 32 | 0xFFFFFFFF).tobytes())[0]) for bits in
                     (0x3FF00000, 0xBFE12345, 0x40590000, 0x00000000, 0x7FEFFFFF)]  # fmt: skip
TINY = [0.0, -0.0, 1e-35, -1e-35, float(np.float32(1e-35)), 1.0000001e-35, 1e-36, 5e-324, 1e-310, -1e-40, 1.2e-38]


@dataclass(frozen=True)
class Case:
    """A trained model, its library, and its own margins."""

    model: Any
    library: Library
    engine: NativeLibrary

    @property
    def is_xgboost(self) -> bool:
        return type(self.model).__module__.startswith("xgboost")

    def native(self, rows: np.ndarray) -> np.ndarray:
        if not self.is_xgboost:
            return np.asarray(self.model.predict(rows, raw_score=True)).reshape(len(rows), -1)
        import xgboost

        data = xgboost.DMatrix(rows, feature_types=self.model.feature_types, enable_categorical=True)
        return np.asarray(self.model.predict(data, output_margin=True), dtype=np.float64).reshape(len(rows), -1)


def checkpoint(model: Any) -> bytes:
    import treelite

    if type(model).__module__.startswith("xgboost"):
        return bytes(treelite.frontend.from_xgboost(model).serialize_bytes())
    return bytes(treelite.frontend.from_lightgbm(model).serialize_bytes())


def xgboost_base(model: Any) -> list[float]:
    """The float32 margins that XGBoost starts from; its logarithm is the C library's."""
    learner = json.loads(bytes(model.save_raw("json")))["learner"]
    given = [np.float32(part) for part in learner["learner_model_param"]["base_score"].strip("[]").split(",")]
    objective = learner["objective"]["name"]
    logf = ctypes.CDLL("libm.so.6").logf
    logf.restype, logf.argtypes = ctypes.c_float, [ctypes.c_float]
    if objective.startswith("binary:") or objective == "reg:logistic":
        return [-logf(float(np.float32(1) / p - np.float32(1))) for p in given]
    if objective in ("count:poisson", "reg:gamma", "reg:tweedie"):
        return [logf(float(p)) for p in given]
    return [float(p) for p in given]


def compiled(model: Any) -> Case:
    is_xgboost = type(model).__module__.startswith("xgboost")
    base = xgboost_base(model) if is_xgboost else None
    library = build_library(checkpoint(model), zero_snap=not is_xgboost, base=base)
    return Case(model, library, NativeLibrary(library.data, sha256=library.sha256))


def train_xgboost(trees: int = 12, *, labels: str = "binary", categorical: bool = True, **parameters: Any) -> Any:
    import xgboost

    rows = mixed_rows(1500, 3)
    types = TYPES if categorical else ["q"] * len(TYPES)
    data = xgboost.DMatrix(rows, targets(rows)[labels], feature_types=types, enable_categorical=True)
    return xgboost.train({"max_depth": 4, "max_cat_to_onehot": 1, "seed": 3} | parameters, data, trees)


def train_lightgbm(trees: int = 12, *, labels: str = "binary", wide: bool = False, **parameters: Any) -> Any:
    import lightgbm

    rows = mixed_rows(1500, 3)
    if wide:
        rows[:, 2] = np.random.default_rng(1).integers(0, 150, len(rows))
    settings = {"num_leaves": 9, "verbosity": -1, "seed": 3, "min_data_per_group": 5} | parameters
    data = lightgbm.Dataset(rows, targets(rows)[labels], categorical_feature=[2, 3], params=settings)
    return lightgbm.train(settings, data, trees)


def targets(rows: np.ndarray) -> dict[str, np.ndarray]:
    score = np.nan_to_num(rows[:, 0]) / 40 + np.sin(7 * np.nan_to_num(rows[:, 2])) + np.sin(rows[:, 3])
    return {
        "binary": (score > 1.2).astype(int),
        "classes": np.digitize(score, [0.5, 1.5]),
        "amount": 1000 + 250 * score + np.nan_to_num(rows[:, 1]) / 10,
        "count": np.maximum(0, np.round(score * 3)),
        "several": np.column_stack([score * 10 + 500, np.nan_to_num(rows[:, 1]), score - 7]),
    }


MODELS: dict[str, Callable[[], Any]] = {
    "xgb_binary": lambda: train_xgboost(objective="binary:logistic"),
    "xgb_onehot": lambda: train_xgboost(objective="binary:logistic", max_cat_to_onehot=100, scale_pos_weight=3),
    "xgb_multiclass": lambda: train_xgboost(4, labels="classes", objective="multi:softprob", num_class=3),
    "xgb_regression": lambda: train_xgboost(labels="amount", objective="reg:squarederror"),
    "xgb_poisson": lambda: train_xgboost(labels="count", objective="count:poisson"),
    "xgb_forest": lambda: train_xgboost(
        1, objective="binary:logistic", num_parallel_tree=7, subsample=0.6, learning_rate=1
    ),
    "xgb_dart": lambda: train_xgboost(objective="binary:logistic", booster="dart", rate_drop=0.5),
    "xgb_vector_leaves": lambda: train_xgboost(
        4, labels="several", categorical=False, objective="reg:squarederror", multi_strategy="multi_output_tree"
    ),
    "xgb_one_leaf": lambda: train_xgboost(2, objective="binary:logistic", max_depth=1, min_child_weight=1e9),
    "xgb_targets": lambda: train_xgboost(4, labels="several", objective="reg:squarederror"),
    "xgb_quantiles": lambda: train_xgboost(
        4, labels="amount", objective="reg:quantileerror", quantile_alpha=[0.1, 0.5, 0.9]
    ),
    "lgb_binary": lambda: train_lightgbm(objective="binary"),
    "lgb_categories": lambda: train_lightgbm(objective="binary", wide=True, max_cat_to_onehot=1),
    "lgb_multiclass": lambda: train_lightgbm(4, labels="classes", objective="multiclass", num_class=3),
    "lgb_regression": lambda: train_lightgbm(labels="amount", objective="regression"),
    "lgb_no_missing": lambda: train_lightgbm(objective="binary", use_missing=False),
    "lgb_dart": lambda: train_lightgbm(objective="binary", boosting="dart", drop_rate=0.5),
    "lgb_forest": lambda: train_lightgbm(
        objective="binary", boosting="rf", bagging_freq=1, bagging_fraction=0.6, feature_fraction=0.8
    ),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def case(request: pytest.FixtureRequest) -> Case:
    return compiled(MODELS[request.param]())


@pytest.fixture(scope="module")
def binary() -> Case:
    return compiled(train_mixed("lightgbm", 5))


def thresholds(model: Any) -> set[tuple[int, float]]:
    """(feature, threshold) of every numeric split, from the checkpoint."""
    import treelite

    loaded = treelite.Model.deserialize_bytes(checkpoint(model))
    found = set()
    for number in range(loaded.num_tree):
        tree = loaded.get_tree_accessor(number)
        for kind, feature, threshold in zip(
            tree.get_field("node_type"), tree.get_field("split_index"), tree.get_field("threshold"), strict=True
        ):
            if kind == 1:
                found.add((int(feature), float(threshold)))
    return found


def awkward(case: Case) -> np.ndarray:
    """Rows on each threshold and beside it, missing and odd categories, and numbers at the edges of both types."""
    base = mixed_rows(60, 9)
    largest = float(np.finfo(np.float32).max) if case.is_xgboost else 1e300
    changes = [(feature, value) for feature in range(6) for value in (np.nan, *TINY, largest, -largest)]
    changes += [(feature, value) for feature in (0, 1, 4, 5) for value in LOW_BITS_ALL_ONES if abs(value) <= largest]
    changes += [
        (feature, value) for feature in (2, 3) for value in (*range(70), 149, 150, 1.5, 1e6, 2.0**31, -1.0, -7.0)
    ]
    if not case.is_xgboost:
        changes += [(feature, value) for feature in (2, 3) for value in (-0.5, -0.999, 1e10, -1e10)]
    for feature, threshold in thresholds(case.model):
        with np.errstate(over="ignore"):
            single = np.float32(threshold)
            near = {threshold, np.nextafter(threshold, np.inf), np.nextafter(threshold, -np.inf), float(single)}
            near |= {float(np.nextafter(single, np.float32(side))) for side in (np.inf, -np.inf)}
        changes += [(feature, value) for value in near if abs(value) <= largest]
    rows = base[np.arange(len(changes)) % len(base)].copy()
    for row, (feature, value) in zip(rows, changes, strict=True):
        row[feature] = value
    return np.concatenate([mixed_rows(300, 5), rows, np.full((1, 6), np.nan)])


def imported(code: str) -> str:
    """What a clean interpreter prints that runs `code`."""
    root = Path(__file__).parent.parent.parent
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return ran.stdout


def fake_compiler(path: Path, body: str) -> str:
    path.write_text(f'#!/bin/sh\ncase "$1" in --version) echo "fake 1.0"; exit 0;; esac\n{body}\n', encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_margins_are_the_native_ones_bit_for_bit(case: Case) -> None:
    rows = awkward(case)
    differ = case.engine.margin(rows) != case.native(rows)
    assert not differ.any(), rows[differ.any(axis=1)][:3]


def test_a_row_answers_alike_in_any_batch(case: Case) -> None:
    rows = mixed_rows(130, 2)
    whole = case.engine.margin(rows)
    for count in (0, 1, 63, 64, 65, 130):
        assert (case.engine.margin(rows[:count]) == whole[:count]).all()
        for row_us in (0.0, 1e6):  # the GIL held, and released
            margins = np.full_like(whole, np.nan)
            case.engine.bound(rows, margins, row_us)(count)
            assert (margins[:count] == whole[:count]).all()
            assert np.isnan(margins[count:]).all()


def test_an_averaged_model_names_its_divisor() -> None:
    forest = compiled(train_lightgbm(5, objective="binary", boosting="rf", bagging_freq=1, bagging_fraction=0.6))
    assert forest.library.divisors == (5,)
    assert compiled(train_lightgbm(2, objective="binary")).library.divisors == (1,)


def test_the_checkpoints_base_is_used_where_none_is_given() -> None:
    model = train_xgboost(3, labels="amount", objective="reg:squarederror")
    library = build_library(checkpoint(model), zero_snap=False)
    assert library.base == tuple(xgboost_base(model))


def test_the_same_model_is_the_same_bytes_wherever_it_is_built(
    binary: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CPATH", str(tmp_path))
    again = build_library(checkpoint(binary.model), zero_snap=True)
    assert again == binary.library
    assert not list(tmp_path.iterdir())
    assert str(tmp_path).encode() not in again.data
    assert b"/tmp" not in again.data


def test_a_library_offers_one_function_needs_nothing_and_runs_nothing(binary: Case) -> None:
    made = elf.inspect(binary.library.data)
    assert made.exports == (binary.library.entry, f"{binary.library.entry}_shape")
    assert not made.needs
    assert not made.runs_when_opened
    assert binary.library.sha256 == hashlib.sha256(binary.library.data).hexdigest()


def test_two_libraries_do_not_meet_in_one_process(binary: Case) -> None:
    other = compiled(train_xgboost(3, objective="binary:logistic"))
    rows = mixed_rows(50, 4)
    for _ in range(2):
        assert (binary.engine.margin(rows) == binary.native(rows)).all()
        assert (other.engine.margin(rows) == other.native(rows)).all()


def test_a_file_replaced_under_the_same_name_is_the_new_model(binary: Case, tmp_path: Path) -> None:
    other = compiled(train_lightgbm(3, objective="binary"))
    path, rows = tmp_path / "model.so", mixed_rows(50, 4)
    opened = []
    for case in (binary, other, binary):
        path.with_suffix(".new").write_bytes(case.library.data)
        path.with_suffix(".new").rename(path)
        opened.append(NativeLibrary(path.read_bytes(), sha256=case.library.sha256))
        assert (opened[-1].margin(rows) == case.native(rows)).all()
    assert (opened[0].margin(rows) == binary.native(rows)).all()


def test_a_swapped_out_library_is_unloaded_and_its_place_is_not_mistaken(binary: Case) -> None:
    other = compiled(train_lightgbm(4, objective="binary"))
    rows, descriptors = mixed_rows(50, 4), len(os.listdir("/proc/self/fd"))
    for case in [binary, other] * 5:
        engine = NativeLibrary(case.library.data, sha256=case.library.sha256)
        run = engine.bound(rows, margins := np.empty((50, 1)), 1.0)
        del engine
        run(50)
        assert (margins == case.native(rows)).all()
        del run
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_many_threads_may_call_at_once(binary: Case) -> None:
    rows = mixed_rows(2000, 6)
    expected, wrong = binary.native(rows), list[bool]()

    def score() -> None:
        wrong.extend(bool((binary.engine.margin(rows) != expected).any()) for _ in range(20))

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 80
    assert not any(wrong)


def test_opening_and_scoring_loads_only_ctypes_and_numpy(binary: Case, tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(binary.library.data)
    loaded = imported(
        "import sys, numpy, pathlib; from compile.library_engine import NativeLibrary\n"
        f"library = NativeLibrary(pathlib.Path({str(tmp_path / 'model.so')!r}).read_bytes(), "
        f"sha256={binary.library.sha256!r})\n"
        "library.margin(numpy.zeros((3, 6)))\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert not set(loaded.split()) & {"scipy", "treelite", "tl2cgen", "xgboost", "lightgbm", "onnxruntime", "pandas"}


@pytest.mark.parametrize("cut", [0, 3, 63, 64, 200, -1])
def test_a_damaged_file_is_refused(binary: Case, cut: int) -> None:
    data = binary.library.data[:cut]
    with pytest.raises(ValueError, match="digest"):
        NativeLibrary(data, sha256=binary.library.sha256)
    with pytest.raises(ValueError, match=r"ELF|cut short|function"):
        NativeLibrary(data, sha256=hashlib.sha256(data).hexdigest())


def test_a_library_of_another_machine_is_unavailable_not_a_crash(binary: Case) -> None:
    data = bytearray(binary.library.data)
    data[18:20] = (22).to_bytes(2, "little")  # e_machine: S/390
    with pytest.raises(LibraryUnavailable, match="another machine"):
        NativeLibrary(bytes(data), sha256=hashlib.sha256(data).hexdigest())


def test_a_library_that_is_not_ours_is_refused() -> None:
    kernel = Path(elf.__file__).parent.glob("_kernel*.so")
    data = next(kernel).read_bytes()
    with pytest.raises(ValueError, match="one function"):
        NativeLibrary(data, sha256=hashlib.sha256(data).hexdigest())


def test_rows_of_another_shape_are_refused_not_read(binary: Case) -> None:
    rows, margins = np.zeros((4, 6)), np.zeros((4, 1))
    for unfit in (np.zeros((4, 5)), np.zeros((4, 6), dtype=np.float32), np.zeros((6, 4)).T, np.zeros(6)):
        with pytest.raises(ValueError, match="rows"):
            binary.engine.margin(unfit)
    with pytest.raises(ValueError, match="margins"):
        binary.engine.bound(rows, np.zeros((3, 1)), 1.0)
    with pytest.raises(ValueError, match="5 rows"):
        binary.engine.bound(rows, margins, 1.0)(5)


TREE = """
#include "header.h"

void predict_unit0(union Entry* data, float* result) {
  unsigned int tmp;
  if ( (data[1].missing != -1) && (data[1].fvalue < (float)19)) {
    result[0] += -0.5;
  } else {
    result[0] += 2;
  }
}
"""


def test_a_tree_is_written_so_that_nan_takes_the_splits_own_way() -> None:
    tree = GeneratedTree(TREE, "float", 0)
    assert (tree.splits, tree.leaves, tree.width, tree.groups) == (1, 2, 2, 1)
    assert tree.body.splitlines()[0] == "if (data[1] < 19.0f) {"
    assert "result[0] += 2.0f;" in tree.body
    left = TREE.replace("if ( (data[1].missing != -1) &&", "if (!(data[1].missing != -1) ||")
    assert GeneratedTree(left, "float", 0).body.splitlines()[0] == "if (!(data[1] >= 19.0f)) {"


@pytest.mark.parametrize(
    ("known", "unknown", "words"),
    [
        ("missing != -1", "missing != -2", "not known"),
        (") && (", ") || (", "not known"),
        ("data[1].fvalue", "data[0].fvalue", "not known"),
        ("(float)19", "(float)nan", "not known"),
        ("(float)19", "(double)19", "not known"),
        ("+= -0.5;", "+= -inf;", "not known"),
        ("+= -0.5;", "= -0.5;", "not known"),
        ("unsigned int tmp;", "system();", "not known"),
        ("(data[1].fvalue < (float)19)", "(1)", "infinite"),
    ],
)
def test_what_the_generator_is_not_known_to_write_is_refused(known: str, unknown: str, words: str) -> None:
    assert known in TREE
    with pytest.raises(ModelRefused, match=words):
        GeneratedTree(TREE.replace(known, unknown), "float", 0)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelRefused, match="treelite"):
        build_library(b"not a checkpoint", zero_snap=False)
    with pytest.raises(ModelRefused, match="2 for 1 groups"):
        build_library(checkpoint(train_lightgbm(2, objective="binary")), zero_snap=True, base=[0.0, 1.0])


def chain(depth: int) -> bytes:
    """The checkpoint of one tree that is a chain."""
    from treelite import model_builder as mb

    metadata = mb.Metadata(
        num_feature=1, task_type="kRegressor", average_tree_output=False, num_target=1, num_class=[1],
        leaf_vector_shape=(1, 1),
    )  # fmt: skip
    builder = mb.ModelBuilder(
        threshold_type="float64", leaf_output_type="float64", metadata=metadata,
        tree_annotation=mb.TreeAnnotation(num_tree=1, target_id=[0], class_id=[0]),
        postprocessor=mb.PostProcessorFunc(name="identity"), base_scores=[0.5],
    )  # fmt: skip
    builder.start_tree()
    for level in range(depth):
        builder.start_node(2 * level)
        builder.numerical_test(
            feature_id=0, threshold=-float(level), default_left=True, opname="<=",
            left_child_key=2 * level + 2, right_child_key=2 * level + 1,
        )  # fmt: skip
        builder.end_node()
        builder.start_node(2 * level + 1)
        builder.leaf(float(level))
        builder.end_node()
    builder.start_node(2 * depth)
    builder.leaf(-1.0)
    builder.end_node()
    builder.end_tree()
    return bytes(builder.commit().serialize_bytes())


def test_a_deep_tree_is_compiled_and_a_bottomless_one_refused() -> None:
    library = build_library(chain(200), zero_snap=False)
    engine = NativeLibrary(library.data, sha256=library.sha256)
    rows = np.array([[1.0], [0.0], [-5.5], [-1e9], [np.nan]])
    assert engine.margin(rows)[:, 0].tolist() == [0.5, 1.5, 6.5, -0.5, -0.5]
    with pytest.raises(ModelRefused, match="depth"):
        build_library(chain(1500), zero_snap=False)


def test_progress_is_told(binary: Case) -> None:
    told: list[str] = []
    build_library(checkpoint(binary.model), zero_snap=True, progress=told.append)
    assert "wrote 2 C units" in told[0]
    assert told[1:] == ["compiled 1 of 2 units", "compiled 2 of 2 units"]


def test_a_missing_compiler_is_one_clear_error(binary: Case) -> None:
    with pytest.raises(CompilerFailed, match="no-such-gcc: no such C compiler"):
        build_library(checkpoint(binary.model), zero_snap=True, compiler="no-such-gcc")


def test_a_failing_compiler_is_quoted_and_nothing_is_left(
    binary: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compiler = fake_compiler(tmp_path / "cc", "echo out of cheese >&2; exit 3")
    with pytest.raises(CompilerFailed, match="exit code 3: out of cheese"):
        build_library(checkpoint(binary.model), zero_snap=True, compiler=compiler)
    assert [path.name for path in tmp_path.iterdir()] == ["cc"]


def test_a_compiler_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path / "cc", "sleep 60 & echo $! > child; wait")
    with pytest.raises(CompilerFailed, match="not compiled in time"):
        library_compiler.run_all([("unit", [compiler])], tmp_path, deadline=time.monotonic() + 1.5, done=lambda _: None)
    state = Path(f"/proc/{(tmp_path / 'child').read_text(encoding='utf-8').strip()}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text(encoding="utf-8").split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import time; from compile.library_compiler import build_folder\n"
        "with build_folder() as folder:\n    print(folder, flush=True)\n    time.sleep(60)"
    )
    root = Path(__file__).parent.parent.parent
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    builder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert builder.stdout is not None
    left = Path(builder.stdout.readline().strip())
    os.utime(left, (0, 0))
    with library_compiler.build_folder():
        assert left.exists()  # its builder lives
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    builder.stdout.close()
    with library_compiler.build_folder() as folder:
        assert not left.exists()
        assert folder.exists()
    assert not folder.exists()
