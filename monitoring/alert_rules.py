"""Alert rules: one TOML, validated, frozen. `monitoring/alerts.toml` is the one that comes along.

    repeat_after = "24h"      an alert that goes on is told again after this long; "0s": never

    [[rule]]                  every rule has a name of its own, and optionally severity = "warning" | "critical"
    kind = "drift"            measure = "verdict" | "prediction" | "weight" (with above = 0.3: drifted share of importance)
    kind = "performance"      measure = "verdict"; or "value" of one metric = "roc_auc", with any of below, above, drop_by
                              (drop_by: than the level of the check, or than baseline = 0.8)
    kind = "labels"           coverage_below = 0.5, of cohorts whose label window has closed, of least_rows
    kind = "lost_rows"        above = 0: rows dropped or lost by the traffic log
    kind = "latency"          quantile = 0.5 | 0.95 | 0.99, above_ms = 100, least_requests = 100
    kind = "error_rate"       above = 0.01, least_requests = 100
    kind = "shed_rate"        above = 0.01, least_requests = 100
    kind = "server"           a server that was named does not answer, or not all of its workers are ready
    kind = "stale"            check = "drift" | "performance" | "operations" | "traffic", after = "26h"

    [[deliver]]               none: the findings are printed and remembered, and the exit code says the rest
    name = "team"             of its own, like a rule's
    kind = "log" | "webhook" | "slack"
    url_env = "NAME"          the environment variable that has the address
    secret_env = "NAME"       of a webhook, optional: the one that has the key that signs
    timeout_s = 5, tries = 3, least = "warning" | "critical"

Of drift, performance and labels, `windows = 2` asks for that many windows running. Durations are a number and s, m, h or d.
"""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from monitoring.errors import MonitoringError, RulesRefused
from monitoring.times import length_us

Severity = Literal["warning", "critical"]
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", kw_only=True):
    """What every rule has."""

    name: str
    severity: Severity = "warning"

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)

    def wrong(self) -> str:
        """What is wrong beyond types; begins with the field. Empty: nothing."""
        return ""


class Drift(Rule, frozen=True, tag="drift"):
    measure: Literal["verdict", "prediction", "weight"] = "verdict"
    above: float | None = None
    windows: int = 1

    def wrong(self) -> str:
        if (self.measure == "weight") != (self.above is not None):
            return "above: goes with measure = 'weight', and that with it"
        return _share("above", self.above) or _positive("windows", self.windows)


class Performance(Rule, frozen=True, tag="performance"):
    """`drop_by`: the whole interval is worse by more than this than the baseline, or than the level that the check held."""

    measure: Literal["verdict", "value"] = "verdict"
    metric: str | None = None
    below: float | None = None
    above: float | None = None
    drop_by: float | None = None
    baseline: float | None = None
    windows: int = 1

    def wrong(self) -> str:
        bounds = [bound for bound in (self.below, self.above, self.drop_by) if bound is not None]
        if (self.measure == "value") != bool(bounds):
            return "measure: 'value' goes with below, above or drop_by, and they with it"
        if (self.measure == "value") != (self.metric is not None):
            return "metric: goes with measure = 'value', and that with it"
        if self.baseline is not None and self.drop_by is None:
            return "baseline: goes with drop_by"
        return _finite("below, above, drop_by", *bounds) or _positive("windows", self.windows)


class Labels(Rule, frozen=True, tag="labels"):
    coverage_below: float
    least_rows: int = 1
    windows: int = 1

    def wrong(self) -> str:
        return (
            _share("coverage_below", self.coverage_below)
            or _positive("least_rows", self.least_rows)
            or _positive("windows", self.windows)
        )


class LostRows(Rule, frozen=True, tag="lost_rows"):
    above: int = 0

    def wrong(self) -> str:
        return "above: is a count, 0 or more" if self.above < 0 else ""


class Latency(Rule, frozen=True, tag="latency"):
    above_ms: float
    quantile: float = 0.99
    least_requests: int = 1

    def wrong(self) -> str:
        if self.quantile not in (0.5, 0.95, 0.99):
            return f"quantile: {self.quantile:g} is none of 0.5, 0.95, 0.99"
        return _positive("above_ms", self.above_ms) or _positive("least_requests", self.least_requests)


class ErrorRate(Rule, frozen=True, tag="error_rate"):
    above: float
    least_requests: int = 1

    def wrong(self) -> str:
        return _share("above", self.above) or _positive("least_requests", self.least_requests)


class ShedRate(Rule, frozen=True, tag="shed_rate"):
    above: float
    least_requests: int = 1

    def wrong(self) -> str:
        return _share("above", self.above) or _positive("least_requests", self.least_requests)


class Server(Rule, frozen=True, tag="server"):
    pass


class Stale(Rule, frozen=True, tag="stale"):
    check: Literal["drift", "performance", "operations", "traffic"]
    after: str

    def wrong(self) -> str:
        try:
            return "" if self.after_us else "after: is no time at all"
        except MonitoringError as wrong:
            return str(wrong)

    @property
    def after_us(self) -> int:
        return length_us("after", self.after)


class Delivery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where alerts are told. What is secret is in the environment, by name."""

    name: str
    kind: Literal["log", "webhook", "slack"]
    url_env: str | None = None
    secret_env: str | None = None
    timeout_s: float = 5.0
    tries: int = 3
    least: Severity = "warning"

    def wants(self, severity: str) -> bool:
        return severity == "critical" or self.least == "warning"

    def wrong(self) -> str:
        if (self.url_env is not None) == (self.kind == "log"):
            return "url_env: names the variable with the address, of a webhook or slack delivery and no other"
        if self.secret_env is not None and self.kind != "webhook":
            return "secret_env: is a webhook's alone"
        for field, value in (("url_env", self.url_env), ("secret_env", self.secret_env)):
            if value is not None and not NAME.match(value):
                return f"{field}: is no name of an environment variable (and the secret itself does not belong here)"
        if not 0 < self.timeout_s <= 60:
            return f"timeout_s: {self.timeout_s:g} is not above 0 and at most 60"
        return "" if 1 <= self.tries <= 10 else f"tries: {self.tries} is not 1 to 10"


AnyRule = Drift | Performance | Labels | LostRows | Latency | ErrorRate | ShedRate | Server | Stale


class Rules(msgspec.Struct, frozen=True):
    rules: tuple[AnyRule, ...]
    deliveries: tuple[Delivery, ...] = ()
    repeat_after_us: int = 0


def read(path: Path | None = None) -> Rules:
    """The rules of a file, or those that come along. Raises RulesRefused, naming file, rule and field."""
    if path is None:
        return parse((resources.files("monitoring") / "alerts.toml").read_text(encoding="utf-8"), "alerts.toml")
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as why:
        raise RulesRefused(f"--rules: {path}: {why}") from None


def parse(text: str, where: str = "rules") -> Rules:
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as why:
        raise RulesRefused(f"{where}: {why}") from None
    if unknown := set(given) - {"repeat_after", "rule", "deliver"}:
        raise RulesRefused(f"{where}: {min(unknown)}: unknown; there are repeat_after, [[rule]] and [[deliver]]")
    rules = _each(given.get("rule", []), "rule", AnyRule, where)
    if not rules:
        raise RulesRefused(f"{where}: has no [[rule]]")
    try:
        repeat_after_us = length_us("repeat_after", str(given.get("repeat_after", "24h")))
    except MonitoringError as wrong:
        raise RulesRefused(f"{where}: {wrong}") from None
    return Rules(tuple(rules), tuple(_each(given.get("deliver", []), "deliver", Delivery, where)), repeat_after_us)


def _each(tables: Any, what: str, kind: Any, where: str) -> list[Any]:
    """Converted one by one, so that an error names the one to blame."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RulesRefused(f"{where}: {what}: is written as [[{what}]] tables")
    made: list[Any] = []
    for number, table in enumerate(tables, 1):
        called = f"{where}: {what} {table.get('name', number)!r}"
        try:
            one = msgspec.convert(table, kind)
        except msgspec.ValidationError as why:
            raise RulesRefused(f"{called}: {str(why).replace(' - at `$.', ' - `')}") from None
        if wrong := one.wrong():
            raise RulesRefused(f"{called}: {wrong}")
        if not one.name or one.name in {other.name for other in made}:
            raise RulesRefused(f"{called}: name: must be its own, and not empty")
        made.append(one)
    return made


def _share(field: str, value: float | None) -> str:
    return "" if value is None or 0 <= value <= 1 else f"{field}: {value:g} is no share between 0 and 1"


def _positive(field: str, value: float) -> str:
    return "" if 0 < value < float("inf") else f"{field}: {value:g} is not above 0"


def _finite(field: str, *values: float) -> str:
    return "" if all(abs(value) < float("inf") for value in values) else f"{field}: must be finite"
