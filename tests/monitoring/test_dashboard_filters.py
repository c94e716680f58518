"""A query is understood, or refused by the name of its field."""

from __future__ import annotations

import pytest

from monitoring.dashboard_filters import DAY_US, MOST_BUCKETS, Asked, QueryRefused, asked
from monitoring.lake import HOUR_US

NOW = 500_000 * HOUR_US + 1234
MODELS = ("churn", "fraud")


def ask(**query: str) -> Asked:
    return asked(query.items(), MODELS, NOW)


def test_without_a_query_it_is_the_first_models_last_day() -> None:
    found = ask()
    assert (found.model, found.window, found.version, found.arm) == ("churn", "day", None, None)
    assert found.until_us == NOW - 1234 + HOUR_US
    assert found.since_us == found.until_us - DAY_US - HOUR_US
    assert asked([], [], NOW).model == ""


def test_what_a_form_leaves_empty_is_not_given() -> None:
    assert ask(model="", version=" ", arm="", window="", since="", until="") == ask()


@pytest.mark.parametrize(("window", "length", "bucket"), [("hour", HOUR_US, 60_000_000), ("week", 7 * DAY_US, HOUR_US)])
def test_windows_end_now(window: str, length: int, bucket: int) -> None:
    found = ask(window=window)
    assert abs(found.until_us - NOW) < HOUR_US
    assert length <= found.until_us - found.since_us <= length + 2 * HOUR_US
    assert found.bucket_us == bucket


@pytest.mark.parametrize("days", [0.01, 0.2, 1, 8, 30, 90, 365])
def test_no_span_has_more_stretches_than_can_be_seen(days: float) -> None:
    found = Asked("churn", 0, round(days * DAY_US), "custom")
    assert days * DAY_US / found.bucket_us <= MOST_BUCKETS


def test_a_view_can_be_shared_and_changed() -> None:
    found = ask(model="fraud", window="custom", since="2026-01-01T00:00", until="2026-01-08T00:00", arm="champion")
    assert (found.until_us - found.since_us) == 7 * DAY_US
    assert found.query() == ("model=fraud&window=custom&since=2026-01-01T00%3A00&until=2026-01-08T00%3A00&arm=champion")
    assert found.query(arm="", window="day", since="") == "model=fraud&window=day&until=2026-01-08T00%3A00"
    assert ask(window="day", until="2026-01-08T00:00").until_us == found.until_us


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"window": "year"}, "window"),
        ({"window": "custom"}, "since"),
        ({"window": "custom", "since": "2026-02-01", "until": "2026-01-01"}, "since"),
        ({"window": "custom", "since": "2020-01-01", "until": "2026-01-01"}, "since"),
        ({"window": "custom", "since": "yesterday"}, "since"),
        ({"until": "0001-01-01"}, "until"),
        ({"until": "9999-12-31T23:59:59-23:00"}, "until"),
        ({"until": "1e9"}, "until"),
        ({"model": "nothing"}, "model"),
        ({"version": "<script>"}, "version"),
        ({"arm": "a" * 129}, "arm"),
        ({"modle": "churn"}, "modle"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(query: dict[str, str], field: str) -> None:
    with pytest.raises(QueryRefused, match=f"^{field}"):
        ask(**query)
    with pytest.raises(QueryRefused, match=r"^window: is given twice"):
        asked([("window", "day"), ("window", "week")], MODELS, NOW)
