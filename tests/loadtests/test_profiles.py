"""Load profiles and shapes: what is shipped can be read, what is wrong is named, arrivals are those of the rate."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import profiles
from loadtests.shapes import Shape, Stage

SHIPPED = sorted(path.stem for path in profiles.SHIPPED.glob("*.toml"))
levels = st.floats(0.5, 200)
stages = st.lists(st.tuples(st.floats(0.2, 5), levels, levels, st.floats(0, 0.9)), min_size=1, max_size=4)


def shape_of(parts: list[tuple[float, float, float, float]]) -> Shape:
    made: list[Stage] = []
    for seconds, low, high, wave in parts:
        begin = made[-1].end_s if made else 0.0
        made.append(Stage(begin, begin + seconds, low, high, wave))
    return Shape(tuple(made))


def test_the_shipped_profiles_are_those_of_the_makefile() -> None:
    assert SHIPPED == ["batch", "constant", "diurnal", "mixed", "ramp", "soak", "spike"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_follows_the_rate_and_time_it_is_given(name: str) -> None:
    own, other = profiles.read(name), profiles.read(name, rate=2 * profiles.read(name).rate, seconds=30)
    assert own.shape.seconds == pytest.approx(own.seconds)
    assert other.shape.seconds == pytest.approx(30)
    assert other.shape.arrivals / 30 == pytest.approx(2 * own.shape.arrivals / own.seconds)


@given(stages)
def test_even_arrivals_are_where_the_integral_of_the_rate_reaches_each_whole_number(
    parts: list[tuple[float, float, float, float]],
) -> None:
    shape = shape_of(parts)
    instants = list(shape.instants(None))
    assert instants == sorted(instants)
    assert abs(len(instants) - shape.arrivals) <= 1
    grid = np.linspace(0, shape.seconds, 20_001)
    counted = np.concatenate([[0], np.cumsum([shape.rate(at) for at in (grid[1:] + grid[:-1]) / 2]) * grid[1]])
    for n in range(0, len(instants), max(1, len(instants) // 20)):
        assert np.interp(instants[n], grid, counted) == pytest.approx(n, abs=0.05 + 1e-3 * n)


def test_poisson_arrivals_have_the_rate_and_the_spread_of_poisson() -> None:
    instants = np.array(list(Shape((Stage(0, 100, 200, 200),)).instants(random.Random(0))))
    gaps = np.diff(instants)
    assert len(instants) == pytest.approx(20_000, abs=5 * 20_000**0.5)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


GOOD = 'traffic = "ab"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("traffic = ", "Invalid value"),
        ("", "traffic must be one of single, batch, ab, mixed, got None"),
        ('traffic = "everything"', "traffic must be one of"),
        (GOOD + 'arrivals = "bursts"', "arrivals must be one of"),
        (GOOD + "rate = 0", "rate must be a number from 0.1"),
        (GOOD + "rate = nan", "rate must be a number"),
        (GOOD + "rate = true", "rate must be a number"),
        (GOOD + 'seconds = "60"', "seconds must be a number"),
        (GOOD + "seconds = 2\nwarm_s = 2", "warm_s must be less than seconds"),
        (GOOD + "connections = 1.5", "connections must be a whole number"),
        (GOOD + "conections = 5", "conections is no field"),
        (GOOD + "bounds = 5", "bounds must be a table"),
        (GOOD + "[bounds]\np95 = 100", "bounds.p95 is no field"),
        (GOOD + "[bounds]\nachieved = 98", "bounds.achieved must be a number from 0 to 1"),
        (GOOD + "stages = []", "stages must be at least one"),
        (GOOD + "[[stages]]\nlevel = 0", "stages[0].level must be a number"),
        (GOOD + "[[stages]]\n[[stages]]\nwave = 1.0", "stages[1].wave must be a number"),
        (GOOD + '[[stages]]\njudged = "no"', "stages[0].judged must be true or false"),
        (GOOD + "[[stages]]\nseconds = 3", "stages[0].seconds is no field"),
    ],
)
def test_a_wrong_profile_is_refused_by_file_and_field(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(profiles.ProfileRefused) as refused:
        profiles.read(str(path))
    assert words in str(refused.value)
    assert "mine.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_name_tells_those_that_there_are() -> None:
    with pytest.raises(profiles.ProfileRefused, match="batch, constant, diurnal"):
        profiles.read("nightly")
