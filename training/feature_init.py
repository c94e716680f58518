"""A new feature repository: declarations, tables and a recipe, for the built-in churn world or for a table of one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from training import feature_repo
from training.data import read_frame
from training.errors import DataRefused, RecipeRefused
from training.feature_tables import TIME, entity_text, instants
from training.features import Feature, InputRefused
from training.inference import infer_schema, tidy

LABELS, RECIPE = "labels.parquet", "recipe.toml"
REFERENCE = datetime(2024, 4, 1, tzinfo=UTC)  # of the churn world: events lie in the 90 days before it
ALWAYS = datetime(2000, 1, 1, tzinfo=UTC)
ENTITY = "customer_id"
MADE_OF_EVENTS = [
    "logins_30d",
    "days_since_login",
    "usage_gb_30d",
    "usage_trend",
    "support_calls_90d",
    "late_payments_90d",
]
TRANSFORMS = """
[[views.transforms]]
name = "logins_30d"
compute = "count"
where = { kind = "login" }
window_days = 30.0

[[views.transforms]]
name = "days_since_login"
compute = "recency"
where = { kind = "login" }
window_days = 90.0
digits = 1

[[views.transforms]]
name = "usage_30d"
compute = "sum"
column = "amount"
where = { kind = "usage" }
window_days = 30.0
hidden = true

[[views.transforms]]
name = "usage_before"
compute = "sum"
column = "amount"
where = { kind = "usage" }
window_days = 60.0
offset_days = 30.0
hidden = true

[[views.transforms]]
name = "usage_gb_30d"
compute = "sum"
column = "amount"
where = { kind = "usage" }
window_days = 30.0
digits = 2

[[views.transforms]]
name = "usage_trend"
compute = "ratio"
of = "usage_30d"
to = "usage_before"
times = 2.0                         # months against months: the window before is twice as long
at_most = 3.0
digits = 3

[[views.transforms]]
name = "support_calls_90d"
compute = "count"
where = { kind = "support_call" }
window_days = 90.0

[[views.transforms]]
name = "late_payments_90d"
compute = "count"
where = { kind = "late_payment" }
window_days = 90.0
"""


def churn(folder: Path, *, rows: int, seed: int) -> list[Path]:
    """The built-in world as tables: contracts, events, and who left in the 90 days after the reference date."""
    from training.simulator import TARGET, simulate

    world = simulate(rows, seed=seed)
    names = np.array([f"c{number:06d}" for number in range(rows)], dtype=object)
    contract = world.features.drop(columns=MADE_OF_EVENTS)
    begun = REFERENCE - pd.to_timedelta(90.0, unit="D")
    customers = contract.copy()
    customers[ENTITY], customers[TIME] = names, pd.Timestamp(begun)
    ago = pd.to_timedelta((world.events["days_ago"].to_numpy() * 86_400_000_000).astype(np.int64), unit="us")
    events = pd.DataFrame(
        {
            ENTITY: names[world.events["customer"].to_numpy()],
            TIME: pd.Timestamp(REFERENCE) - ago,
            "kind": world.events["kind"].astype(str).astype(object),
            "amount": world.events["amount"],
        }
    ).sort_values(TIME, ignore_index=True)
    labels = pd.DataFrame({ENTITY: names, TIME: pd.Timestamp(REFERENCE), TARGET: world.churned})
    kinds = {feature.name: feature for feature in infer_schema(tidy(contract)).features}
    text = _view("churn", ENTITY, f'table = "customers.parquet"\ntime = "{TIME}"\n', kinds)
    text += TRANSFORMS
    events_text = f'events = "events.parquet"\nevery_days = 7.0\nanchor = "{REFERENCE.isoformat()}"\n'
    text = text.replace("\n[[views.features]]", f"{events_text}\n[[views.features]]", 1)
    tables = {"customers.parquet": customers, "events.parquet": events, LABELS: labels}
    return _write(folder, text, tables, _recipe(folder, "churn", "churn", ENTITY, TARGET))


def own(folder: Path, data: Path, *, entity: str, target: str, time: str, view: str) -> list[Path]:
    """A table of one row an entity, or, with a `time` column, of one for each time that something became known."""
    frame = read_frame(data, as_is=[entity, *([time] if time else [])])
    for name, option in ((entity, "--entity"), (target, "--target"), (time, "--time")):
        if name and name not in frame.columns:
            raise DataRefused(f"{option}: {data} has no column {name!r}; it has {', '.join(map(str, frame.columns))}")
    if not time and frame[entity].duplicated().any():
        raise DataRefused(
            f"--time: {data}: some {entity} has several rows; name the column that says when each was known"
        )
    kept = {entity: entity_text(frame[entity], f"{data}: {entity}")}
    kept[TIME] = (
        instants(frame[time], f"{data}: {time}") if time else pd.Series(pd.Timestamp(ALWAYS), index=frame.index)
    )
    left = frame.drop(columns=[name for name in (entity, target, time) if name])
    try:
        schema = infer_schema(left)
    except InputRefused as refused:
        raise DataRefused(f"{data}: {refused}") from None
    unused = [str(name) for name in left.columns if name not in schema.names]
    note = f"# left out, as naming rows or having one value: {', '.join(unused)}\n" if unused else ""
    times = (
        f'time = "{time}"\n' if time else f'since = "{ALWAYS.isoformat()}"   # its values have no time of their own\n'
    )
    text = _view(
        view, entity, f"table = {json.dumps(str(data.resolve()))}\n{times}{note}", {f.name: f for f in schema.features}
    )
    tables = {LABELS: pd.concat([pd.DataFrame(kept), frame[[target]]], axis=1)} if target else {}
    return _write(folder, text, tables, _recipe(folder, view, view, entity, target) if target else "")


def _view(name: str, entity: str, source: str, features: Mapping[str, Feature]) -> str:
    columns = "".join(
        f"\n[[views.features]]\nname = {json.dumps(feature.name)}\nkind = {json.dumps(feature.kind)}\n"
        for feature in features.values()
    )
    head = '# What each key means: docs/features.md.\nstore = "feast"\n'
    return f'{head}\n[[views]]\nname = "{name}"\nentity = {json.dumps(entity)}\n{source}{columns}'


def _recipe(folder: Path, model: str, view: str, entity: str, target: str) -> str:
    return f"""# Train by entity: `coppice train {folder / RECIPE}`; ask the server by {{"entity": {{"{entity}": ...}}}}.
model = "{model}"
algorithm = "xgboost"

[data]
path = {json.dumps(str((folder / LABELS).resolve()))}
target = {json.dumps(target)}
features = {json.dumps(str(folder.resolve()))}
time = "{TIME}"

[lookup]
view = "{view}"
entity = {json.dumps(entity)}
# override = ["..."]                # features that a request may give beside the entity
# default = {{}}                      # what an unknown entity's features are; without it, such a request is a 404

[rounds]
most = 2000
patience = 50

[params]
eta = 0.05
max_depth = 5
min_child_weight = 3.0
subsample = 0.8
colsample_bytree = 0.7
"""


def _write(folder: Path, text: str, tables: Mapping[str, pd.DataFrame], recipe: str) -> list[Path]:
    """Never over a repository that is there: its declarations are somebody's work."""
    declared = folder / feature_repo.FILE
    if declared.exists():
        raise RecipeRefused(f"{declared}: is there already; give another folder, or remove it")
    feature_repo.parse(text, str(declared))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, frame in tables.items():
        frame.to_parquet(folder / name, index=False)
        written.append(folder / name)
    if recipe:
        (folder / RECIPE).write_text(recipe, encoding="utf-8")
        written.append(folder / RECIPE)
    declared.write_text(text, encoding="utf-8")  # last: what is there is whole
    return [*written, declared]
