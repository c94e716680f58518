"""A view of a few people whose features change, and labels at the instants that matter."""

from __future__ import annotations

from typing import Any

import pandas as pd

DECLARED = """
[[views]]
name = "people"
entity = "id"
table = "people.csv"
time = "known"

[[views.features]]
name = "x"
kind = "number"
[[views.features]]
name = "plan"
kind = "category"
[[views.features]]
name = "pays"
kind = "boolean"
"""
PEOPLE = """id,known,x,plan,pays
007,2024-01-01T00:00:00Z,1.5,basic,true
007,2024-01-11T00:00:00Z,2.5,plus,false
8,2024-01-05T00:00:00Z,,,
c,2024-04-01T12:00:05.000001Z,4,plus,true
"""
LABELS = [  # (id, instant, what was known of x and plan, or None: nothing)
    ("007", "2024-01-01T00:00:00Z", (1.5, "basic")),  # at the very instant
    ("007", "2024-01-10T23:59:59.999999Z", (1.5, "basic")),
    ("007", "2024-01-11T00:00:00Z", (2.5, "plus")),
    ("007", "2023-12-31T23:59:59.999999Z", None),  # before anything was known
    ("8", "2024-01-04T00:00:00Z", None),
    ("8", "2024-01-06T00:00:00Z", None),  # known by then, and every feature missing
    ("nobody", "2024-01-06T00:00:00Z", None),
    ("c", "2024-04-01T12:00:05.000001Z", (4.0, "plus")),
    ("c", "2024-04-01T12:00:05Z", None),  # a microsecond before
    ("007", "2024-01-11T00:00:00Z", (2.5, "plus")),  # the same again: Feast answers once
]


def labels_of(rows: list[tuple[str, str, Any]]) -> pd.DataFrame:
    who, when, _ = zip(*rows, strict=True)
    return pd.DataFrame({"id": who, "at": when, "left": range(len(rows))})
