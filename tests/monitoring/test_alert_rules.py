"""Rules are refused by the name of the rule and the field; the ones that come along are in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from monitoring import alert_rules
from monitoring.alert_rules import parse, read
from monitoring.errors import RulesRefused

LATENCY = '[[rule]]\nname = "slow"\nkind = "latency"\n'


def test_the_rules_that_come_along_have_every_kind() -> None:
    rules = read()
    told = {rule.kind for rule in rules.rules}
    documented = set(re.findall(r'kind = "(\w+)"', (alert_rules.__doc__ or "").split("[[deliver]]")[0]))
    assert told == documented
    assert [to.kind for to in rules.deliveries] == ["log"]
    assert rules.repeat_after_us == 24 * 3600 * 1_000_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no [[rule]]"),
        ("rule = 1", "rule: is written as"),
        ("[rule]\nname = 'x'", "rule: is written as"),
        ("[[rule", "rules: "),
        ("x = 1\n" + LATENCY, "x: unknown"),
        (LATENCY, "rule 'slow': Object missing required field `above_ms`"),
        (LATENCY + "above_ms = 0", "rule 'slow': above_ms"),
        (LATENCY + "above_ms = nan", "rule 'slow': above_ms"),
        (LATENCY + "above_ms = 1\nabove = 2", "rule 'slow': Object contains unknown field `above`"),
        (LATENCY + 'above_ms = "1"', "rule 'slow': Expected `float`, got `str` - `above_ms`"),
        (LATENCY + "above_ms = 1\nquantile = 0.9", "rule 'slow': quantile: 0.9"),
        (LATENCY + "above_ms = 1\nleast_requests = 0", "rule 'slow': least_requests"),
        (LATENCY + 'above_ms = 1\nseverity = "loud"', "rule 'slow': Invalid enum value 'loud' - `severity`"),
        (2 * (LATENCY + "above_ms = 1\n"), "rule 'slow': name: must be its own"),
        ('[[rule]]\nkind = "server"', "rule 1: Object missing required field `name`"),
        ('[[rule]]\nname = "x"\nkind = "weather"', "rule 'x': Invalid value 'weather' - `kind`"),
        ('[[rule]]\nname = "x"\nkind = "drift"\nmeasure = "weight"', "rule 'x': above: goes with"),
        ('[[rule]]\nname = "x"\nkind = "drift"\nwindows = 0', "rule 'x': windows"),
        ('[[rule]]\nname = "x"\nkind = "performance"\nmeasure = "value"', "rule 'x': measure: 'value'"),
        ('[[rule]]\nname = "x"\nkind = "performance"\nmeasure = "value"\nbelow = 0.7', "rule 'x': metric: goes with"),
        ('[[rule]]\nname = "x"\nkind = "labels"\ncoverage_below = 50', "rule 'x': coverage_below: 50"),
        ('[[rule]]\nname = "x"\nkind = "lost_rows"\nabove = -1', "rule 'x': above"),
        ('[[rule]]\nname = "x"\nkind = "error_rate"\nabove = 1.5', "rule 'x': above: 1.5"),
        ('[[rule]]\nname = "x"\nkind = "stale"\ncheck = "drift"\nafter = "soon"', "rule 'x': after: 'soon'"),
        (LATENCY + "above_ms = 1\n[[deliver]]\nname = 'w'\nkind = 'webhook'", "deliver 'w': url_env"),
        (LATENCY + "above_ms = 1\n[[deliver]]\nname = 'l'\nkind = 'log'\nsecret_env = 'X'", "deliver 'l': secret_env"),
        (
            LATENCY + "above_ms = 1\n[[deliver]]\nname = 's'\nkind = 'slack'\nurl_env = 'U'\ntries = 0",
            "deliver 's': tries",
        ),
        (
            LATENCY + "above_ms = 1\n[[deliver]]\nname = 's'\nkind = 'slack'\nurl_env = 'U'\ntimeout_s = 600",
            "deliver 's': timeout_s",
        ),
        ('repeat_after = "x"\n' + LATENCY + "above_ms = 1", "repeat_after: 'x'"),
    ],
)
def test_what_is_not_in_order_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(RulesRefused, match=re.escape(words)):
        parse(text)


def test_a_secret_written_into_the_file_is_refused_and_not_repeated() -> None:
    text = (
        LATENCY + "above_ms = 1\n[[deliver]]\nname = 's'\nkind = 'slack'\nurl_env = 'https://hooks.example/T0/SECRET'"
    )
    with pytest.raises(RulesRefused, match="deliver 's': url_env: is no name of an environment variable") as refused:
        parse(text)
    assert "SECRET" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RulesRefused, match=r"nowhere\.toml"):
        read(tmp_path / "nowhere.toml")
