"""Groups are what they say, gaps are between them, and a leak is pointed at by its column's name."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from training.checks import warnings_of
from training.errors import DataRefused
from training.segments import MISSING, OTHER, Evaluation, by_group, groups_of, refuse_unknown

RNG = np.random.default_rng(0)
LABELS = RNG.random(600) < 0.4
CLEAN = pd.DataFrame(
    {
        "measured": RNG.normal(size=600) + LABELS,
        "count": RNG.integers(0, 50, 600),
        "plan": RNG.choice(["a", "b", None], 600),
        "flag": RNG.random(600) < 0.5,
    }
)


def warned(frame: pd.DataFrame, labels: np.ndarray = LABELS) -> list[str]:
    return warnings_of(frame[:400], frame[400:], labels[:400], labels[400:])


def test_clean_data_draw_no_warning() -> None:
    assert warned(CLEAN) == []


@pytest.mark.parametrize(
    ("leak", "words"),
    [
        (LABELS.astype(int), "copy"),
        (~LABELS, "copy"),
        (np.where(LABELS, "paid", "gone"), "copy"),
        (LABELS + RNG.normal(size=600) * 0.27, "alone has an AUC"),
        (-LABELS.astype(float) - RNG.normal(size=600) * 0.27, "alone has an AUC"),
        (RNG.permutation(600), "name rows"),
        ([f"customer {n}" for n in range(600)], "name rows"),
    ],
)
def test_a_leak_is_named(leak: object, words: str) -> None:
    found = warned(CLEAN.assign(leaky=leak))
    assert len(found) == 1
    assert found[0].startswith("leaky: ")
    assert words in found[0]


def test_rows_on_both_sides_and_rows_with_both_labels_are_counted() -> None:
    twice = pd.concat([CLEAN[:400], CLEAN[:30], CLEAN[430:]], ignore_index=True)
    labels = np.r_[LABELS[:400], LABELS[:30], LABELS[430:]]
    assert any(sentence.startswith("30 of 200 holdout rows (15.0%)") for sentence in warned(twice, labels))
    labels[400:403] = ~labels[400:403]
    assert any(sentence.startswith("3 rows are there with both labels") for sentence in warned(twice, labels))


def test_groups_hold_every_row_once_and_their_figures_are_of_their_rows() -> None:
    said = np.clip(RNG.normal(0.4 + 0.2 * LABELS, 0.2), 0, 1)
    declared = Evaluation(segments=("plan", "flag", "measured"), resamples=100)
    groups, gaps = by_group(declared, CLEAN, LABELS, said, 0.5, 1)
    for column in declared.segments:
        assert sum(group.rows for group in groups if group.column == column) == 600
    assert len([group for group in groups if group.column == "measured"]) == 4
    assert {group.value for group in groups if group.column == "plan"} == {"a", "b", MISSING}
    for value in ("a", "b"):
        rows = (CLEAN["plan"] == value).to_numpy()
        group = next(group for group in groups if (group.column, group.value) == ("plan", value))
        assert group.figures["roc_auc"].value == pytest.approx(roc_auc_score(LABELS[rows], said[rows]))
        assert group.figures["selection_rate"].value == pytest.approx((said[rows] > 0.5).mean())
    gap = next(gap for gap in gaps if (gap.column, gap.rate) == ("flag", "recall"))
    by_hand = [(said[rows & LABELS] > 0.5).mean() for rows in (CLEAN["flag"].to_numpy(), ~CLEAN["flag"].to_numpy())]
    assert gap.gap.value == pytest.approx(abs(by_hand[0] - by_hand[1]))


def test_an_unfair_model_shows_a_gap_that_chance_does_not_explain() -> None:
    said = np.where(CLEAN["flag"], 0.9, RNG.random(600) * 0.55)
    _, gaps = by_group(Evaluation(segments=("flag",), resamples=200), CLEAN, LABELS, said, 0.5, 1)
    assert {gap.rate for gap in gaps} == {"selection_rate", "recall", "false_positive_rate"}
    assert all(gap.gap.low is not None and gap.gap.low > 0.7 and gap.highest == "True" for gap in gaps)


def test_rare_values_are_one_group_and_tiny_groups_make_no_gap() -> None:
    many = pd.Series([f"v{n // 2}" for n in range(80)])
    assert groups_of(many).value_counts()[OTHER] == 80 - 24
    few = pd.DataFrame({"who": ["a"] * 590 + ["b"] * 10})
    _, gaps = by_group(Evaluation(segments=("who",), resamples=100), few, LABELS, RNG.random(600), 0.5, 1)
    assert gaps == []
    with pytest.raises(DataRefused, match=r"rows.csv: has no column 'x', which evaluation.segments names"):
        refuse_unknown(Evaluation(segments=("x",)), few, "rows.csv")
