"""A real market in time order, from CSV through the server and `/feedback` into the lake: what comes out is what happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monitoring import elec
from monitoring.elec import A_WEEK


@pytest.mark.filterwarnings("ignore")  # Evidently's own deprecations
def test_weeks_of_a_real_market_come_out_of_the_lake_as_they_were_answered(
    real_data: Callable[[str], Path], tmp_path: Path, size: Callable[[int, int], int]
) -> None:
    done = elec.replay(real_data("elec.csv"), tmp_path / "elec", rows=size(6_000, 20_000))
    weeks = elec.look(done)
    windows = weeks.arm.windows
    assert sum(window.rows for window in windows) == len(done.scores) == size(4_800, 16_000)
    for n, window in enumerate(windows):
        week = slice(n * A_WEEK, (n + 1) * A_WEEK)
        scores, high = done.scores[week], done.truth[week] == 1
        assert window.rows == window.labelled == len(scores)
        assert window.figures["roc_auc"].value == pytest.approx(roc_auc_score(high, scores), abs=1e-9)
        assert window.figures["accuracy"].value == pytest.approx(((scores > 0.5) == high).mean())
        estimate = window.estimate.figures["roc_auc"]
        assert estimate is not None
        assert 0.5 <= estimate <= 1
    assert windows[0].estimate.trust == "unverified"
    trusts = {window.estimate.trust for window in windows[1:]}
    assert trusts <= {"trusted", "not trusted"}
    assert "not trusted" in trusts  # for what a price means does change here
    whole = len(done.scores) // A_WEEK
    assert [check.since_us for check in weeks.drift] == [window.since_us for window in windows[:whole]]
    assert np.mean([check.verdict == "drift" for check in weeks.drift]) > 0.9  # no week is like a whole season
    picture = elec.picture(weeks)
    assert picture.startswith("<svg")
    assert picture.count('class="bar"') == whole
    told = elec.page(done, weeks, "elec.svg", "none")
    assert f"{whole} weeks of 336 rows" in told
    assert "of repeating the last label" in told
