"""Features made of events: what a plain loop over the events says, and nothing that happened after the cut-off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import DataRefused, RecipeRefused
from training.transforms import Transform, compute, refuse_impossible

BEGIN = pd.Timestamp("2024-01-01T00:00:00Z")
KINDS = ("login", "usage", "call")
HOURS = st.integers(0, 40)  # few instants, so that events fall on cut-offs and on edges of windows
AMOUNTS = st.one_of(st.just(math.nan), st.integers(-3, 3).map(float))
EVENTS = st.lists(st.tuples(st.sampled_from("abc"), HOURS, st.sampled_from(KINDS), AMOUNTS), max_size=25)
CUTOFFS = st.lists(st.tuples(st.sampled_from("abcz"), HOURS), min_size=1, max_size=8)
TRANSFORMS = st.builds(
    Transform,
    name=st.just("made"),
    compute=st.sampled_from(("count", "sum", "mean", "min", "max")),
    column=st.just("amount"),
    where=st.sampled_from(({}, {"kind": "login"}, {"kind": ["usage", "call"]})),
    window_days=st.sampled_from((0.0, 1 / 24, 10 / 24)),
    offset_days=st.sampled_from((0.0, 1 / 24, 5 / 24)),
)


def events_of(rows: list[tuple[str, int, str, float]]) -> pd.DataFrame:
    who, hours, kinds, amounts = zip(*rows, strict=True) if rows else ((), (), (), ())
    times = BEGIN + pd.to_timedelta(list(hours), unit="h")
    return pd.DataFrame(
        {"who": list(who), "at": times, "kind": list(kinds), "amount": np.array(amounts, dtype=np.float64)}
    )


def cutoffs_of(rows: list[tuple[str, int]]) -> pd.DataFrame:
    who, hours = zip(*rows, strict=True)
    return pd.DataFrame({"who": list(who), "at": BEGIN + pd.to_timedelta(list(hours), unit="h")})


def by_hand(transform: Transform, rows: list[tuple[str, int, str, float]], who: str, cut: int) -> float:
    """One value, by looking at every event. Hours are whole, so comparisons are exact."""
    wanted = transform.where.get("kind", list(KINDS))
    latest = cut - round(transform.offset_days * 24)
    earliest = latest - round(transform.window_days * 24) if transform.window_days else -math.inf
    found = [row for row in rows if row[0] == who and row[2] in ([wanted] if isinstance(wanted, str) else wanted)]
    inside = [row for row in found if earliest < row[1] <= latest]
    if transform.compute == "recency":
        return (cut - max(row[1] for row in inside)) / 24 if inside else math.nan
    filled = [row[3] for row in inside if not math.isnan(row[3])]
    if transform.compute == "count":
        return float(len(filled) if transform.column else len(inside))
    if transform.compute == "sum":
        return float(sum(filled))
    if not filled:
        return math.nan
    return {"mean": sum(filled) / len(filled), "min": min(filled), "max": max(filled)}[transform.compute]


@given(rows=EVENTS, cuts=CUTOFFS, transform=TRANSFORMS)
def test_a_window_holds_what_a_loop_over_all_events_finds(
    rows: list[tuple[str, int, str, float]], cuts: list[tuple[str, int]], transform: Transform
) -> None:
    made = compute([transform], events_of(rows), "who", "at", cutoffs_of(cuts))["made"].to_numpy()
    assert np.array_equal(made, [by_hand(transform, rows, *cut) for cut in cuts], equal_nan=True)


@given(rows=EVENTS, cuts=CUTOFFS, window=st.sampled_from((0.0, 4 / 24)))
def test_counts_and_recency_need_no_column(
    rows: list[tuple[str, int, str, float]], cuts: list[tuple[str, int]], window: float
) -> None:
    transforms = [
        Transform(name="n", compute="count", window_days=window),
        Transform(name="days", compute="recency", window_days=window),
    ]
    made = compute(transforms, events_of(rows), "who", "at", cutoffs_of(cuts))
    for transform in transforms:
        expected = [by_hand(transform, rows, *cut) for cut in cuts]
        assert np.array_equal(made[transform.name].to_numpy(), expected, equal_nan=True)


@given(rows=EVENTS, later=EVENTS, cuts=CUTOFFS, transform=TRANSFORMS)
def test_what_happens_after_the_cutoff_changes_nothing(
    rows: list[tuple[str, int, str, float]], later: Any, cuts: list[tuple[str, int]], transform: Transform
) -> None:
    after = [(who, 41 + hours, kind, amount) for who, hours, kind, amount in later]
    before = compute([transform], events_of(rows), "who", "at", cutoffs_of(cuts))
    assert before.equals(compute([transform], events_of(rows + after), "who", "at", cutoffs_of(cuts)))


def test_the_instant_of_the_cutoff_counts_and_one_window_before_does_not() -> None:
    rows = [("a", 10, "login", 1.0), ("a", 34, "login", 2.0)]
    day = Transform(name="made", compute="sum", column="amount", window_days=1.0)
    made = compute([day], events_of(rows), "who", "at", cutoffs_of([("a", 10), ("a", 9), ("a", 34), ("a", 33)]))
    assert made["made"].tolist() == [1.0, 0.0, 2.0, 1.0]


def test_a_ratio_over_nothing_is_missing_and_is_finished_in_order() -> None:
    rows = [("a", 1, "usage", 7.0), ("a", 5, "login", 2.0), ("b", 5, "login", 2.0)]
    parts = [
        Transform(name="of", compute="sum", column="amount", where={"kind": "usage"}, hidden=True),
        Transform(name="to", compute="sum", column="amount", where={"kind": "login"}, hidden=True),
        Transform(name="plain", compute="ratio", of="of", to="to"),
        Transform(name="capped", compute="ratio", of="of", to="to", times=2.0, at_most=5.52, digits=1),
    ]
    made = compute(parts, events_of(rows), "who", "at", cutoffs_of([("a", 1), ("a", 5), ("b", 5), ("z", 5)]))
    assert list(made.columns) == ["plain", "capped"]
    assert np.array_equal(made["plain"], [math.nan, 3.5, 0.0, math.nan], equal_nan=True)
    assert np.array_equal(made["capped"], [math.nan, 5.5, 0.0, math.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"compute": "sum"}, "sum needs a column"),
        ({"compute": "recency", "column": "amount"}, "recency takes no column"),
        ({"compute": "ratio", "of": "x"}, "needs both"),
        ({"compute": "count", "to": "x", "of": "y"}, "belong to a ratio"),
        ({"compute": "ratio", "of": "x", "to": "y", "window_days": 3.0}, "no events of its own"),
        ({"compute": "count", "window_days": -1.0}, "must be 0 or more"),
        ({"compute": "count", "offset_days": math.nan}, "must be 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(declared: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeRefused, match=rf"transforms\.made: .*{words}"):
        Transform(name="made", **declared)


def test_parts_are_declared_above_and_columns_are_there() -> None:
    with pytest.raises(RecipeRefused, match=r"transforms\.a: 'b' is not declared above it"):
        refuse_impossible([Transform(name="a", compute="ratio", of="b", to="b")], "here")
    with pytest.raises(RecipeRefused, match=r"transforms\.a: is declared twice"):
        refuse_impossible([Transform(name="a", compute="count")] * 2, "here")
    for transform in (
        Transform(name="made", compute="sum", column="nothing"),
        Transform(name="made", compute="count", where={"nothing": "x"}),
    ):
        with pytest.raises(
            DataRefused, match=r"transforms\.made: the events have no column 'nothing'; they have who, at"
        ):
            compute([transform], events_of([]), "who", "at", cutoffs_of([("a", 1)]))
