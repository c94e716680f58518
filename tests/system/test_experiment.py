"""From a plan to a verdict to the next generation, over HTTP: the churn world asks a real server, outcomes come late and out
of order, and what is decided from them is what the world made true."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import time_ns

import numpy as np
import pytest
from experiments import Shop, bundles
from running import Running

from compile.bundle import read as read_bundle
from monitoring.decisions import recompute
from monitoring.engine import open_engine
from monitoring.errors import NoExperiment, TooLittleData
from monitoring.evidence import Interval, NotEstimable
from monitoring.experiment import newest
from monitoring.lake import window
from monitoring.plan import Metric, Step
from monitoring.shadowing import Asked, compare
from monitoring.verdict import HOUR_US
from serving import routes
from serving.routes import Shadow

ROOT = Path(__file__).parents[2]

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


def test_a_shadow_is_compared_on_the_same_rows(
    open_shop: Callable[[str], Shop], made: tuple[Path, dict[str, str]]
) -> None:
    shop, (folder, digests) = open_shop("poor"), made
    shop.publish({"champion": digests["poor"]}, (Shadow(name="candidate", bundle=digests["good"]),))
    assert set(shop.day(900)) == {"champion"}
    rows = window(shop.places.lake, "churn").to_pylist()
    scores = {row["request_id"]: row["score"] for row in rows if row["role"] == "shadow"}
    told = shop.told
    pairs = [(row["score"], scores[row["request_id"]], told.get(row["request_id"])) for row in rows
             if row["role"] == "served" and row["request_id"] in scores]  # fmt: skip
    champion, shadow = (read_bundle(folder / "store" / "bundles" / digests[name]) for name in ("poor", "good"))
    asked = Asked("candidate", "brier", 0, time_ns() // 1000 + HOUR_US, n_star=500.0)
    found = compare(open_engine(shop.places.lake), champion, shadow, asked)
    assert found.rows == len(pairs) > 300
    assert found.failed == 0
    assert found.agree == pytest.approx(np.mean([(ours > 0.5) == (theirs > 0.5) for ours, theirs, _ in pairs]))
    apart = np.array([theirs - ours for ours, theirs, _ in pairs])
    assert (found.mean_difference, found.spread) == pytest.approx((apart.mean(), apart.std()))
    assert found.largest == pytest.approx(np.abs(apart).max())
    gains = [(ours - left) ** 2 - (theirs - left) ** 2 for ours, theirs, left in pairs if left is not None]
    assert found.units == len(gains) > 100
    assert isinstance(found.gain, Interval)
    assert found.gain.estimate == pytest.approx(np.mean(gains))
    assert found.gain.lower > 0  # the better model, known before it answered anyone
    waiting = replace(asked, label_window_us=30 * 24 * HOUR_US)
    assert isinstance(compare(open_engine(shop.places.lake), champion, shadow, waiting).gain, NotEstimable)
    with pytest.raises(TooLittleData, match="'nobody'"):
        compare(open_engine(shop.places.lake), champion, shadow, replace(asked, shadow="nobody"))
    where = ("--store", str(shop.store), "--lake", shop.places.lake)
    ran = subprocess.run(
        [sys.executable, "-m", "coppice", "experiment", "shadow", "churn", *where],
        cwd=shop.folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"candidate: {len(pairs):,} rows beside the champion's" in ran.stdout, ran.stderr
    assert ran.stdout.rstrip().endswith("better")
