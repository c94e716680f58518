"""Performance over time: closed cohorts alone, each row counted once, drops found and none invented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from joined import DAY_US, START_US, arms_of, joined, manifest_of

from compile.bundle import Manifest
from monitoring.cohorts import windows
from monitoring.errors import MonitoringError
from monitoring.labels import read_truth
from monitoring.performance import Arm, Asked, Performance, performance

DAYS = 8
A_DAY = 400


def binary_days(
    seed: int, *, worse_from: int = DAYS, days: int = DAYS, a_day: int = A_DAY, told: float = 1.0
) -> tuple[np.ndarray, list[Any], np.ndarray]:
    """(scores, outcomes, times): calibrated until the day `worse_from`, from when on labels are half noise."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.7, 0.9, days * a_day)
    day = np.arange(days * a_day) // a_day
    positive = np.where(
        (day >= worse_from) & (rng.random(len(day)) < 0.5), rng.random(len(day)) < 0.5, rng.random(len(day)) < scores
    )
    known = rng.random(len(day)) < told
    outcomes = [
        ("yes" if is_positive else "no") if is_known else None
        for is_positive, is_known in zip(positive, known, strict=True)
    ]
    within = np.tile(np.linspace(0, DAY_US - 1, a_day).astype(np.int64), days)
    return scores, outcomes, START_US + day * DAY_US + within


def asked(**changes: Any) -> Asked:
    given: dict[str, Any] = {"every": "day", "label_window_us": 0, "now_us": START_US + 1_000 * DAY_US}
    return Asked(**given | changes)


def found_in(table: pa.Table, manifests: dict[str, Manifest], asked: Asked) -> Performance:
    return performance("m", arms_of(table, manifests), manifests, asked)


def of_days(tiny: Path, days: tuple[np.ndarray, list[Any], np.ndarray], **changes: Any) -> Performance:
    scores, outcomes, ts_us = days
    return found_in(joined(scores, outcomes, ts_us=ts_us), {"1": manifest_of(tiny)}, asked(**changes))


def verdicts(arm: Arm) -> list[str]:
    return [window.verdict for window in arm.windows]


def test_a_drop_is_found_and_where_there_is_none_none_is(tiny: Path, size: Callable[[int, int], int]) -> None:
    worse = of_days(tiny, binary_days(0, worse_from=5))
    (arm,) = worse.arms
    assert verdicts(arm) == ["level"] * 3 + ["fine"] * 2 + ["drop"] * 3
    assert worse.verdict == "drop"
    assert "version 1, champion: roc_auc" in worse.reason
    assert arm.level_from == "first windows"
    assert [window.estimate.trust for window in arm.windows][:4] == ["unverified", "trusted", "trusted", "trusted"]
    assert arm.windows[-1].estimate.trust == "not trusted"
    trials = size(20, 300)
    counts = Counter(
        verdict for seed in range(trials) for verdict in verdicts(of_days(tiny, binary_days(100 + seed)).arms[0])
    )
    assert counts["level"] == 3 * trials
    assert counts["drop"] <= 0.01 * 5 * trials + 3 * (0.01 * 5 * trials) ** 0.5


def test_an_alarm_names_the_row_and_where_the_change_began(tiny: Path) -> None:
    (arm,) = of_days(tiny, binary_days(1, worse_from=10, days=20)).arms
    alarm = next(alarm for alarm in arm.alarms if alarm.detector == "page_hinkley")
    assert alarm.worse
    assert alarm.at_us >= START_US + 10 * DAY_US
    assert abs(alarm.since_us - (START_US + 10 * DAY_US)) < DAY_US


def test_only_rows_whose_label_window_closed_count_and_what_is_unlabelled_is_not_negative(tiny: Path) -> None:
    scores, outcomes, ts_us = binary_days(2, told=0.5)
    now = START_US + DAYS * DAY_US
    found = of_days(tiny, (scores, outcomes, ts_us), label_window_us=2 * DAY_US + DAY_US // 2, now_us=now)
    (arm,) = found.arms
    assert [window.open for window in arm.windows] == [0] * 5 + [A_DAY // 2, A_DAY, A_DAY]
    assert verdicts(arm)[-3:] == ["open"] * 3
    assert {window.figures["roc_auc"].value for window in arm.windows[-2:]} == {None}
    for window in arm.windows:
        assert window.rows == window.failed + window.not_finite + window.open + window.closed
    first = arm.windows[0]
    assert first.coverage == pytest.approx(0.5, abs=0.1)
    day = slice(0, A_DAY)
    known = np.array([outcome is not None for outcome in outcomes[day]])
    right = (scores[day] > 0.5) == np.array([outcome == "yes" for outcome in outcomes[day]])
    assert first.figures["accuracy"].value == pytest.approx(right[known].mean())
    assert arm.windows[-1].estimate.rows == A_DAY  # what labels can't say yet, the estimate does


def test_labels_that_came_after_a_window_ended_do_not_help_its_estimate(tiny: Path) -> None:
    (arm,) = of_days(tiny, binary_days(3), label_window_us=3 * DAY_US).arms
    checked = [window.estimate.checked_until_us for window in arm.windows]
    assert checked[:2] == [None] * 2
    assert checked[2] == START_US  # the very first row's label window closed as the third day ended
    for window, until in zip(arm.windows[2:], checked[2:], strict=True):
        assert until is not None
        assert until + 3 * DAY_US <= window.until_us


def test_failures_and_scores_that_are_no_numbers_count_apart(tiny: Path) -> None:
    scores, outcomes, ts_us = binary_days(4, days=1)
    scores[:7] = np.nan
    scores[7:10] = np.inf
    status = np.where(np.arange(len(scores)) < 5, 500, 200)
    table = joined(scores, outcomes, ts_us=ts_us, status=status)
    (window,) = found_in(table, {"1": manifest_of(tiny)}, asked()).arms[0].windows
    assert (window.failed, window.not_finite, window.closed) == (5, 5, A_DAY - 10)
    assert window.labelled == A_DAY - 10
    assert window.figures["accuracy"].value is not None


def test_arms_versions_and_shadows_are_told_apart_and_shadows_decide_nothing(tiny: Path) -> None:
    good, bad = binary_days(5), binary_days(6, worse_from=4)
    parts = [
        joined(good[0], good[1], ts_us=good[2]),
        joined(bad[0], bad[1], ts_us=bad[2], arm="candidate", role="shadow", version="2"),
    ]
    shuffled = pa.concat_tables(parts).take(np.random.default_rng(0).permutation(sum(map(len, parts))))
    manifests = {version: manifest_of(tiny, version=version) for version in ("1", "2")}
    found = found_in(shuffled, manifests, asked())
    assert [(arm.version, arm.arm, arm.role, arm.windows[-1].verdict) for arm in found.arms] == [
        ("1", "champion", "served", "fine"),
        ("2", "candidate", "shadow", "drop"),
    ]
    assert found.verdict == "fine"
    alone = found_in(parts[0], manifests, asked())
    assert found.arms[0] == alone.arms[0]  # neither order nor neighbours matter
    gone = found_in(parts[0], manifests, asked(present={("2", "champion")}))
    assert gone.verdict == "undecided"


def test_segments_are_read_from_the_encoded_rows(tiny: Path) -> None:
    scores, outcomes, ts_us = binary_days(7, days=3)
    rows = np.zeros((len(scores), 6))
    region = np.arange(len(scores)) % 6  # of four categories; 4 is the code of an unseen one, and here 5 is missing
    rows[:, 3] = np.where(region == 5, np.nan, region)
    outcomes = ["no" if region[n] == 1 and outcome == "yes" else outcome for n, outcome in enumerate(outcomes)]
    table = joined(scores, outcomes, ts_us=ts_us, features=rows)
    arm = found_in(table, {"1": manifest_of(tiny)}, asked(segments=("region", "autopay"))).arms[0]
    found = {segment.value: segment for segment in arm.windows[0].segments if segment.feature == "region"}
    assert set(found) == {"east", "north", "south", "west", "(other)", "(missing)"}
    assert found["north"].figures["roc_auc"].value is None  # no positive there
    assert sum(segment.labelled for segment in found.values()) == A_DAY
    assert [segment.value for segment in arm.windows[0].segments if segment.feature == "autopay"] == ["false"]
    for name, told in (("nothing", "no feature 'nothing'"), ("age", "age is a number")):
        with pytest.raises(MonitoringError, match=told):
            found_in(table, {"1": manifest_of(tiny)}, asked(segments=(name,)))


def test_labels_are_read_by_name_and_never_guessed() -> None:
    def read(task: Any, classes: tuple[str, ...], outcomes: list[Any]) -> tuple[list[float], dict[str, int]]:
        table = joined(np.zeros(len(outcomes)), outcomes)
        truth = read_truth(task, classes, table["value_number"], table["value_text"])
        assert truth.unknown.sum() == sum(truth.strange.values())
        return truth.value.tolist(), dict(truth.strange)

    nan = pytest.approx(float("nan"), nan_ok=True)
    assert read("binary", ("no", "yes"), ["yes", "no", True, 0, None, "Yes", 2, "maybe", "maybe"]) == (
        [1, 0, 1, 0, nan, nan, nan, nan, nan],
        {"Yes": 1, "maybe": 2, "2": 1},
    )
    assert read("binary", ("1", "2"), [1, 2, "2", True, 0]) == ([0, 1, 1, 0, nan], {"0": 1})
    assert read("multiclass", ("1.5", "2", "x"), [1.5, 2, "x", 3, "1.5", "y"]) == (
        [0, 1, 2, nan, 0, nan],
        {"3": 1, "y": 1},
    )
    assert read("multiclass", ("a", "b", "c"), [1, "c", True]) == ([nan, 2, nan], {"1": 2})
    assert read("regression", (), [1.5, True, "2"]) == ([1.5, 1, nan], {"2": 1})
    assert read("regression", (), []) == ([], {})
    with pytest.raises(MonitoringError, match="task ranking"):
        read("ranking", (), [1.0])


def test_unknown_labels_are_counted_and_shown(tiny: Path) -> None:
    scores, outcomes, ts_us = binary_days(8, days=1)
    outcomes[:30] = ["perhaps"] * 30
    (arm,) = of_days(tiny, (scores, outcomes, ts_us)).arms
    assert (arm.windows[0].unknown, arm.windows[0].labelled) == (30, A_DAY - 30)
    assert arm.strange == {"perhaps": 30}


def test_of_several_classes_and_of_a_regression(tiny: Path) -> None:
    rng = np.random.default_rng(9)
    scores = rng.dirichlet([0.4, 0.4, 0.4], 3_000)
    truth = (rng.random(3_000)[:, None] > scores.cumsum(axis=1)).sum(axis=1)
    names = ("ant", "bee", "cat")
    several = manifest_of(tiny, task="multiclass", classes=names, outputs=names)
    table = joined(scores, [names[code] for code in truth])
    (arm,) = found_in(table, {"1": several}, asked(every=1_000)).arms
    assert (arm.metric, verdicts(arm)) == ("accuracy", ["level", "fine", "fine"])
    assert arm.windows[-1].estimate.trust == "trusted"
    answer = rng.normal(0, 3, 4_000)
    truly = answer + rng.normal(0, 1, 4_000) * np.where(np.arange(4_000) < 3_000, 1, 2)
    values = manifest_of(tiny, task="regression", classes=(), outputs=("value",))
    table = joined(answer, truly.tolist())
    found = found_in(table, {"1": values}, asked(every=1_000))
    assert (found.arms[0].metric, verdicts(found.arms[0])) == ("mae", ["level", "fine", "fine", "drop"])
    assert any(alarm.worse for alarm in found.arms[0].alarms)
    with pytest.raises(MonitoringError, match="--metric: 'roc_auc' is not a metric of a regression"):
        found_in(table, {"1": values}, asked(metric="roc_auc"))


def test_a_level_may_be_given(tiny: Path) -> None:
    days = binary_days(10, days=2)
    assert of_days(tiny, days, level=0.99).verdict == "drop"
    assert of_days(tiny, days, level=0.5).verdict == "fine"
    assert of_days(tiny, days, level=0.99, margin=0.9).verdict == "fine"
    assert of_days(tiny, days, metric="log_loss", level=0.05).verdict == "drop"
    assert of_days(tiny, days).verdict == "undecided"  # no 1,000 rows for a level of its own


def test_one_class_alone_and_few_rows_are_not_estimable(tiny: Path) -> None:
    scores, outcomes, ts_us = binary_days(11)
    outcomes[-A_DAY:] = ["no"] * A_DAY
    outcomes[-2 * A_DAY : -A_DAY - 50] = [None] * (A_DAY - 50)
    arm = of_days(tiny, (scores, outcomes, ts_us)).arms[0]
    assert verdicts(arm)[-2:] == ["not estimable"] * 2
    assert "50 labelled rows" in arm.windows[-2].reason
    assert "roc_auc is not estimable" in arm.windows[-1].reason


def test_windows_are_of_the_calendar_or_of_rows() -> None:
    hour = 3_600_000_000
    ts_us = START_US + np.array([0, 5, hour - 1, hour, 5 * hour, 5 * hour, 5 * hour, 6 * hour])
    calendar = windows(ts_us, "hour")
    assert [(span.first, span.last) for span in calendar] == [(0, 3), (3, 4), (4, 7), (7, 8)]
    assert all(span.until_us - span.since_us == hour and span.since_us % hour == 0 for span in calendar)
    by_rows = windows(ts_us, 5)
    assert [(span.first, span.last, span.whole) for span in by_rows] == [(0, 7, True), (7, 8, False)]
    for span in by_rows:
        assert ((ts_us >= span.since_us) & (ts_us < span.until_us)).sum() == span.last - span.first
    assert windows(ts_us[:0], "day") == windows(ts_us[:0], 5) == []


def test_what_it_found_is_json_and_nothing_is_not_a_crash(tiny: Path) -> None:
    found = of_days(tiny, binary_days(12, days=2))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Performance) == found
    nothing = found_in(joined(np.array([]), []), {"1": manifest_of(tiny)}, asked())
    assert (nothing.verdict, nothing.arms) == ("undecided", ())
    scores = np.full(20, np.nan)
    hopeless = found_in(joined(scores, [None] * 20, status=np.full(20, 500)), {"1": manifest_of(tiny)}, asked())
    assert hopeless.arms[0].windows[0].failed == 20
