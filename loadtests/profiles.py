"""A load profile: what is asked, how it arrives, and what must hold; one TOML file. This is the format:

    traffic = "ab"            # single | batch | ab | mixed: loadtests.traffic says what they ask
    arrivals = "constant"     # constant | poisson: open loops, on a schedule whatever the answers; closed: each user waits
    rate = 1000               # requests a second at level 1
    seconds = 60
    warm_s = 2                # at the beginning, not judged
    connections = 200         # most requests in flight; one that is due while all are busy is late
    batch_rows = 64           # rows of a batch
    feedback = 0.2            # share of the requests that tell what became of earlier answers, where traffic has such

    [[stages]]                # optional; without: level 1 throughout
    part = 0.5                # share of the time, in proportion to the other stages'
    level = 1.0               # times the rate; or [from, to]
    wave = 0.5                # optional: up and down by so much of the level, once
    judged = false            # optional: only told, as of a spike that is to be survived

    [bounds]                  # each optional
    p95_ms = 100
    p99_ms = 250
    achieved = 0.98           # answered in time, as a share of what was due
    failures = 0              # share of the requests
    recovery_s = 2            # after a stage that is not judged: until p95 is back below its bound
    knee = 800                # the highest stage whose p95 and share hold is at least at this rate; p95 is judged so alone

A name, or a value, that is none of these is refused by its name.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from loadtests.shapes import Shape, Stage

SHIPPED = Path(__file__).parent / "profiles"
TRAFFIC = ("single", "batch", "ab", "mixed")
ARRIVALS = ("constant", "poisson", "closed")


class ProfileRefused(Exception):
    """The file can't be read or says what a profile can't: one line, with the file and the field."""


@dataclass(frozen=True)
class Bounds:
    """None: not judged."""

    p95_ms: float | None = None
    p99_ms: float | None = None
    achieved: float | None = None
    failures: float | None = 0.0
    recovery_s: float | None = None
    knee: float | None = None


@dataclass(frozen=True)
class Profile:
    name: str
    traffic: str
    arrivals: str
    rate: float
    seconds: float
    warm_s: float
    connections: int
    batch_rows: int
    feedback: float
    shape: Shape
    bounds: Bounds

    @property
    def is_open(self) -> bool:
        return self.arrivals != "closed"


NUMBERS = {  # name: least, most, default
    "rate": (0.1, 1e6, 1000.0),
    "seconds": (0.5, 604_800, 60.0),
    "warm_s": (0, 3600, 2.0),
    "connections": (1, 10_000, 200),
    "batch_rows": (1, 100_000, 64),
    "feedback": (0, 0.5, 0.0),
}
OF_BOUNDS = {field.name: (1.0 if field.name in ("achieved", "failures") else 1e6) for field in fields(Bounds)}


def read(name: str, *, rate: float | None = None, seconds: float | None = None) -> Profile:
    """A shipped profile by its name, or a file; `rate` and `seconds` take the place of its own. Raises ProfileRefused."""
    path = Path(name) if name.endswith(".toml") else SHIPPED / f"{name}.toml"
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(found.stem for found in SHIPPED.glob("*.toml")))
        raise ProfileRefused(f"{name}: there is no such file, and of profiles there are {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as refused:
        raise ProfileRefused(f"{path}: {refused}") from None
    given = {"rate": rate, "seconds": seconds}
    return build(path.stem, str(path), told | {key: value for key, value in given.items() if value is not None})


def build(name: str, where: str, told: dict[str, Any]) -> Profile:
    """Of what a file says. Raises ProfileRefused, which names `where` and the field."""
    check = _Check(where)
    check.known("", told, {"traffic", "arrivals", "stages", "bounds", *NUMBERS})
    numbers = {key: check.number(key, told.get(key, d), low, high) for key, (low, high, d) in NUMBERS.items()}
    for key in ("connections", "batch_rows"):
        if numbers[key] != int(numbers[key]):
            raise check.wrong(key, "a whole number", told[key])
    if numbers["warm_s"] >= numbers["seconds"]:
        raise check.wrong("warm_s", "less than seconds", numbers["warm_s"])
    bounds = told.get("bounds", {})
    check.table("bounds", bounds)
    check.known("bounds.", bounds, set(OF_BOUNDS))
    return Profile(
        name=name,
        traffic=check.one_of("traffic", told.get("traffic"), TRAFFIC),
        arrivals=check.one_of("arrivals", told.get("arrivals", "constant"), ARRIVALS),
        rate=numbers["rate"],
        seconds=numbers["seconds"],
        warm_s=numbers["warm_s"],
        connections=int(numbers["connections"]),
        batch_rows=int(numbers["batch_rows"]),
        feedback=numbers["feedback"],
        shape=_shape(check, told.get("stages", [{}]), numbers["rate"], numbers["seconds"]),
        bounds=Bounds(**{key: check.number(f"bounds.{key}", v, 0, OF_BOUNDS[key]) for key, v in bounds.items()}),
    )


def _shape(check: _Check, told: Any, rate: float, seconds: float) -> Shape:
    if not isinstance(told, list) or not told:
        raise check.wrong("stages", "at least one [[stages]]", told)
    parts = []
    for n, stage in enumerate(told):
        check.table(f"stages[{n}]", stage)
        check.known(f"stages[{n}].", stage, {"part", "level", "wave", "judged"})
        parts.append(check.number(f"stages[{n}].part", stage.get("part", 1.0), 0.001, 1e6))
    stages: list[Stage] = []
    for n, stage in enumerate(told):
        begin_s = stages[-1].end_s if stages else 0.0
        level, judged = stage.get("level", 1.0), stage.get("judged", True)
        ends = level if isinstance(level, list) and len(level) == 2 else [level, level]
        low, high = (rate * check.number(f"stages[{n}].level", end, 0.001, 1000) for end in ends)
        wave = check.number(f"stages[{n}].wave", stage.get("wave", 0.0), 0, 0.99)
        if not isinstance(judged, bool):
            raise check.wrong(f"stages[{n}].judged", "true or false", judged)
        stages.append(Stage(begin_s, begin_s + seconds * parts[n] / sum(parts), low, high, wave, judged))
    return Shape(tuple(stages))


@dataclass(frozen=True)
class _Check:
    where: str

    def wrong(self, field: str, wanted: str, got: object) -> ProfileRefused:
        return ProfileRefused(f"{self.where}: {field} must be {wanted}, got {got!r}")

    def known(self, prefix: str, told: dict[str, Any], names: set[str]) -> None:
        for name in told:
            if name not in names:
                raise ProfileRefused(f"{self.where}: {prefix}{name} is no field; there are {', '.join(sorted(names))}")

    def table(self, field: str, value: object) -> None:
        if not isinstance(value, dict):
            raise self.wrong(field, "a table", value)

    def number(self, field: str, value: object, least: float, most: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.wrong(field, f"a number from {least:g} to {most:g}", value)
        return float(value)

    def one_of(self, field: str, value: object, known: tuple[str, ...]) -> str:
        if value not in known:
            raise self.wrong(field, f"one of {', '.join(known)}", value)
        return str(value)
