"""From a plan to a verdict to the next generation, over HTTP: the churn world asks a real server, outcomes come late and out
of order, and what is decided from them is what the world made true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from experiments import Shop, bundles
from running import Running

from monitoring.decisions import recompute
from monitoring.errors import NoExperiment
from monitoring.experiment import newest
from monitoring.plan import Metric, Step
from serving import routes

HALF = (Step(share=0.5),)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("experiment")
    return folder, bundles(folder)


@pytest.fixture
def open_shop(
    made: tuple[Path, dict[str, str]], tmp_path: Path, serve: Callable[..., Running]
) -> Callable[[str], Shop]:
    folder, digests = made
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "bundles").symlink_to(folder / "store" / "bundles")
    return lambda champion: Shop(tmp_path, serve, digests[champion])


def test_a_better_challenger_is_ramped_and_promoted_and_answers(
    open_shop: Callable[[str], Shop], made: tuple[Path, dict[str, str]]
) -> None:
    shop, (_, digests) = open_shop("poor"), made
    begun = shop.start(digests["good"])
    assert begun.arms == {"champion": digests["poor"], "control": digests["poor"], "challenger": digests["good"]}
    answered = Counter(shop.day(300))
    assert answered["champion"] > 200
    assert {"control", "challenger"} < set(answered)
    first = shop.decide()
    assert (first.verdict.state, first.action.verb) == ("insufficient", "ramp")
    assert shop.now().generation == begun.generation + 1
    assert "ramp, decision " + first.id in shop.now().note
    answered = Counter(shop.day(1600))
    assert set(answered) == {"control", "challenger"}
    shop.outcomes()
    second = shop.decide()
    assert (second.verdict.state, second.verdict.winner) == ("winner", "challenger")
    promoted = shop.now()
    assert promoted.arms == {"champion": digests["good"]}
    assert promoted.plan is None
    assert shop.predicts() == "3"
    for name in (first.id, second.id):
        assert recompute(shop.places.checks, "churn", name)[1].id == name
    with pytest.raises(NoExperiment, match="no experiment runs"):
        shop.decide()
    shop.start(digests["same"])  # after a promotion nothing cools down


def test_an_equal_one_ends_as_no_difference_and_the_champion_stays(
    open_shop: Callable[[str], Shop], made: tuple[Path, dict[str, str]]
) -> None:
    shop, (_, digests) = open_shop("poor"), made
    before = shop.now()
    shop.start(digests["same"], ramp=HALF)
    shop.day(1600)
    shop.outcomes()
    found = shop.decide()
    assert (found.verdict.state, found.action.verb) == ("no difference", "end")
    assert (shop.now().arms, shop.now().slots, shop.now().salt) == (before.arms, before.slots, before.salt)
    assert shop.predicts() == "1"
    with pytest.raises(NoExperiment, match="cools down until"):
        shop.start(digests["same"])


def test_a_worse_one_is_rolled_back(open_shop: Callable[[str], Shop], made: tuple[Path, dict[str, str]]) -> None:
    shop, (_, digests) = open_shop("good"), made
    shop.start(digests["poor"], ramp=HALF)
    shop.day(1600)
    shop.outcomes()
    found = shop.decide()
    assert (found.verdict.state, found.action.verb) == ("loser", "roll back")
    assert shop.now().arms == {"champion": digests["good"]}
    assert shop.predicts() == "3"


def test_one_that_fails_on_a_row_in_twenty_is_rolled_back_before_outcomes_come(
    open_shop: Callable[[str], Shop], made: tuple[Path, dict[str, str]]
) -> None:
    shop, (_, digests) = open_shop("sound"), made
    paid = Metric(name="paid", kind="mean", better="higher", cap=10.0)
    shop.start(digests["failing"], metric=paid, ramp=HALF, label_window_hours=24 * 30.0)
    answered = Counter(shop.day(900))
    assert answered["champion"] > 10  # fallbacks, since the split leaves the champion nothing
    found = shop.decide(hours=0.1)
    assert (found.verdict.state, found.action.verb) == ("guardrail", "roll back")
    assert "failed" in found.verdict.reason
    assert shop.now().arms == {"champion": digests["sound"]}


def test_a_broken_splitter_is_called_invalid_and_nobody_wins(
    open_shop: Callable[[str], Shop], made: tuple[Path, dict[str, str]]
) -> None:
    """Something before the server keeps every third of the challenger's units to itself."""
    shop, (_, digests) = open_shop("poor"), made
    shop.start(digests["good"], ramp=HALF)
    shop.day(2400, lost=lambda n, arm: arm == "challenger" and n % 3 == 0)
    shop.outcomes()
    generation = shop.now().generation
    found = shop.decide()
    assert (found.verdict.state, found.verdict.winner, found.action.verb) == ("invalid", None, "hold")
    assert "shares" in found.verdict.reason
    assert shop.now().generation == generation
    experiment = newest(shop.store, "churn")
    assert experiment is not None
    assert experiment.ended is None
    assert routes.history(shop.store, "churn") == [1, 2]
