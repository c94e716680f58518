"""Charts draw what is there and nothing else: no NaN in a path, no text unescaped, nothing for nothing."""

from __future__ import annotations

import math
import re
from xml.dom import minidom

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.dashboard_charts import LARGEST, Line, Mark, heat, histogram, lines, shares, table

HOSTILE = '<script>alert("x")</script>&'
VALUES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


def draw(
    *drawn: Line, at: list[float] | None = None, level: float | None = None, marks: list[Mark] | None = None
) -> str:
    count = max((len(line.values) for line in drawn), default=0)
    return lines(
        HOSTILE,
        at if at is not None else [float(n) for n in range(count)],
        drawn,
        tell=lambda value: f"{value:.3g}",
        since_us=0,
        until_us=10,
        level=level,
        marks=marks or (),
    )


def well_formed(made: str) -> None:
    minidom.parseString(f"<x>{made}</x>")
    assert "<script" not in made
    for path in re.findall(r' d="([^"]*)"', made):
        assert not re.search("nan|inf", path), path
    assert " style=" not in made  # which the page's policy forbids


@given(st.lists(VALUES, max_size=12), st.lists(VALUES, max_size=12), VALUES)
def test_any_values_make_a_picture_or_none(
    values: list[float | None], edge: list[float | None], level: float | None
) -> None:
    band = [*edge, *[None] * len(values)][: len(values)]
    made = draw(
        Line(HOSTILE, values, low=band, high=band, dotted=True), level=level, marks=[Mark(3, HOSTILE), Mark(99, "")]
    )
    well_formed(made)
    seen = [value for value in [*values, *band] if value is not None and abs(value) <= LARGEST]
    assert ("nothing to draw" in made) == (not seen)


def test_a_gap_is_a_gap_and_one_point_a_dot() -> None:
    made = draw(Line("a", [1.0, 2.0, None, 4.0, math.nan, 6.0, 7.0]))
    assert len(re.findall(r'<path class="line c0', made)) == 3
    assert len(re.findall(r'<path class="dots', made)) == 1
    assert "last 7, lowest 1, highest 7" in made


def test_values_stand_at_their_place() -> None:
    made = draw(Line("a", [0.0, 10.0]), at=[0.0, 10.0])
    assert 'd="M0.0 100.00L1000.0 0.00"' in made


def test_huge_and_equal_values_have_a_scale() -> None:
    for values in ([1e300, -1e300], [5.0, 5.0], [0.0, 0.0], [1e-300, 2e-300], [1.7e308, -1.7e308]):
        well_formed(draw(Line("a", values)))


@pytest.mark.parametrize("known", [[], [0.5, 0.25, 0.25]])
def test_a_histogram_has_a_step_for_each_bin(known: list[float]) -> None:
    made = histogram(HOSTILE, (0.0, 1.0), [(HOSTILE, [0.0, 0.5, 0.5])], known)
    well_formed(made)
    (path,) = re.findall(r'<path class="line c0" d="([^"]*)"', made)
    assert path.count("H") == 3
    assert ("known" in made) == bool(known)
    assert "nothing to draw" in histogram("a", (0.0, 1.0), [("b", [0.0, math.nan])])
    assert "nothing to draw" in histogram("a", (0.0, 1.0), [])


def test_cells_and_shares_are_told_in_words_too() -> None:
    made = heat("Drift", [(HOSTILE, [(4, "drifted"), (None, HOSTILE)]), ("b", [])], ["then", "now"])
    well_formed(made)
    assert "1 of 2 windows drifted" in made
    assert "nothing to draw" in heat("Drift", [], [])
    told = shares("Arms", [("champion", 0.9), (HOSTILE, 0.1)])
    well_formed(told)
    assert "champion 90.0%" in told
    well_formed(table([HOSTILE], [[HOSTILE]], summary=HOSTILE))
