"""Every kind of model answers as its own library does, or is refused with a reason. No kind answers wrongly."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asked import asked
from judge import Verdict, compare, judge
from kind import Answers, Kind
from kinds import KINDS
from kinds_page import page
from teeth import FAULTS, Fault

THROUGH_ONNX = [
    f"{library}_{kind}"
    for library, kinds in {
        "xgb": ("binary", "squarederror", "codes", "softprob", "softprob_codes", "dart", "dart_multi", "dart_codes"),
        "lgb": ("binary", "regression", "codes", "multiclass", "codes_multi", "dart", "dart_multi", "codes_dart"),
    }.items()
    for kind in kinds
]
SPLITLESS = re.compile("leaf_only|gblinear|pca")  # no threshold in the schema's columns


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """HistGradientBoosting takes every core, which is slow for small models where others work too."""
    import sklearn.ensemble  # noqa: F401  # its OpenMP must be loaded to be limited
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> Iterator[dict[str, list[Verdict]]]:
    """Those of this run, by kind; written to --kinds at the end."""
    found: dict[str, list[Verdict]] = {}
    yield found
    path: Path | None = request.config.getoption("--kinds")
    if path is not None:
        command = "make kinds" if os.environ.get("LAWS") == "full" else "pytest tests/compile/test_kinds.py --kinds"
        path.write_text(page([seeds for seeds in found.values() if seeds], command), encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS, ids=[kind.id for kind in KINDS])
def test_a_kind_answers_as_its_library_or_is_refused(
    kind: Kind, size: Callable[[int, int], int], tmp_path: Path, verdicts: dict[str, list[Verdict]]
) -> None:
    seeds = verdicts.setdefault(kind.id, [])
    for seed in range(size(1, 4)):
        verdict = judge(kind, seed, tmp_path / str(seed), native=seed == 0 and bool(size(kind.id in THROUGH_ONNX, 1)))
        seeds.append(verdict)
        assert not verdict.wrong, "\n".join(verdict.wrong)
        assert verdict.thresholds or SPLITLESS.search(kind.id), "the judge found no threshold to ask at"
        if verdict.refused is not None:
            assert verdict.refused.strip(), "refused without a reason"
            assert kind.outcome != "served", f"must be served, was refused: {verdict.refused}"
            assert re.search(kind.reason, verdict.refused, re.IGNORECASE), verdict.refused
        else:
            assert kind.outcome != "refused", f"must be refused ({kind.reason}), was served by {verdict.backends}"
            assert verdict.backends
            assert kind.outcome == "either" or verdict.task == kind.task


def test_the_matrix_is_wide_and_most_of_it_is_served(verdicts: dict[str, list[Verdict]]) -> None:
    if len(verdicts) < len(KINDS):
        pytest.skip("a selection of kinds was run")
    assert len(KINDS) == len({kind.id for kind in KINDS}) >= 80
    wrong = [line for seeds in verdicts.values() for verdict in seeds for line in verdict.wrong]
    assert not wrong, "\n".join(wrong)
    served = [seeds for seeds in verdicts.values() if seeds and all(verdict.backends for verdict in seeds)]
    assert len(served) >= 70
    assert len(served) >= 0.875 * len(KINDS)


@pytest.mark.parametrize("id", THROUGH_ONNX)
def test_margins_through_onnx_are_equal_bit_for_bit(id: str, tmp_path: Path) -> None:
    verdict = judge(next(kind for kind in KINDS if kind.id == id), 1, tmp_path)
    assert not verdict.wrong, "\n".join(verdict.wrong)
    assert verdict.refused is None, verdict.refused
    assert verdict.margins_off["onnx"] == 0.0


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{fault.kind}-{fault.says}" for fault in FAULTS])
def test_the_rows_find_out_what_converters_do_wrong(fault: Fault) -> None:
    case = next(kind for kind in KINDS if kind.id == fault.kind).make(0)
    rows = asked(case, 0)[fault.found_by]
    assert (case.native(rows).scores != case.native(fault.alters(rows)).scores).any()


def test_the_judge_sees_one_ulp_in_one_row() -> None:
    kind = next(kind for kind in KINDS if kind.id == "xgb_softmax")
    case = kind.make(0)
    rows = asked(case, 0)["thresholds"]
    native = case.native(rows)

    class Shifted:
        """Answers as the native model does, but for one margin, score or class."""

        def __init__(self, part: str) -> None:
            self.part = part

        def margin(self, _: Any) -> Any:
            margins = np.array(native.margins)
            if self.part == "margin":
                margins[7, 1] = np.nextafter(np.float32(margins[7, 1]), np.float32(np.inf))
            return margins

        def score(self, _: Any) -> Any:
            scores = np.array(native.scores)
            if self.part == "score":
                scores[7, 1] += 2e-6
            return scores[:, :3] if self.part == "shape" else scores

        def bound(self, rows: Any, scores: Any) -> Callable[[int], None]:
            def run(count: int) -> None:
                scores[:count] = self.score(rows)[:count] + (self.part == "bound") * 1e-12

            return run

    expected = {"margin": "margin: 1 of", "score": "score: 1 of", "shape": "shape", "bound": "bound call", "": ""}
    for part, told in expected.items():
        verdict = Verdict(kind, 0)
        compare("", case, rows, native, Shifted(part), verdict, "onnx")
        assert bool(verdict.wrong) == bool(part), verdict.wrong
        assert told in "".join(verdict.wrong)
    verdict = Verdict(kind, 0)
    other = Answers(native.margins, native.scores, (np.array(native.labels) + 1) % 4)
    compare("", case, rows, other, Shifted(""), verdict, "onnx")
    assert "class:" in verdict.wrong[0]


def test_the_same_seed_gives_the_same_rows_and_answers() -> None:
    for kind in KINDS[::12]:
        one, two = kind.make(3), kind.make(3)
        first, second = asked(one, 3), asked(two, 3)
        for name, rows in first.items():
            assert rows.tobytes() == second[name].tobytes(), (kind.id, name)
            assert (one.native(rows).scores == two.native(rows).scores).all(), (kind.id, name)
