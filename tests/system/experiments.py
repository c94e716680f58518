"""The churn world as an experiment's units: they ask a real server, and what became of them comes late and out of order."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import time_ns
from typing import Any

import msgspec
import numpy as np
import xgboost
from running import Running

from compile import build_bundle
from compile.bundle import publish
from monitoring.beginning import start
from monitoring.compaction import compact
from monitoring.deciding import Places, apply, evaluate, log
from monitoring.decisions import Decision
from monitoring.plan import CHAMPION, Guardrail, Metric, Plan, Step
from monitoring.verdict import HOUR_US
from serving import routes
from training.features import Feature, FeatureSchema
from training.simulator import simulate

FAILED = Guardrail(metric=Metric(name="failed", kind="rare", better="lower"), margin=0.5, negligible=0.01)
NAMES = (
    "tenure_months", "monthly_charge", "logins_30d", "days_since_login", "usage_gb_30d", "usage_trend",
    "support_calls_90d", "late_payments_90d", "satisfaction",
)  # fmt: skip
SCHEMA = FeatureSchema(tuple(Feature(name=name, kind="number") for name in NAMES))
PLAN = Plan(
    name="is the second better",
    unit="customer",
    metric=Metric(name="brier", kind="mean", better="lower", cap=1.0),
    n_star=1500.0,
    no_difference=0.06,
    ramp=(Step(share=0.1, hours=1, units=20), Step(share=0.5, hours=1, units=100)),
    guardrails=(FAILED,),
    label_window_hours=1,
    min_days=0.05,
    max_units=20_000,
)


def world(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    made = simulate(rows, seed=seed)
    return made.features[list(NAMES)].to_numpy(np.float64), made.churned


def bundles(folder: Path) -> dict[str, str]:
    """Digests in `folder`/store, by what the model is like; `failing` answers infinity for one row in twenty."""
    rows, churned = world(3000, 1)
    made = {}
    for version, (name, trees) in enumerate((("poor", 1), ("same", 1), ("good", 40)), start=1):
        settings = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.05 if trees == 1 else 0.2, "nthread": 1}
        booster = xgboost.train(settings, xgboost.DMatrix(rows, churned.astype(int)), trees)
        made[name] = _bundle(booster, rows, folder, version, ("False", "True"))
    counting = {"objective": "count:poisson", "max_depth": 1, "nthread": 1}
    sound = xgboost.train(counting, xgboost.DMatrix(rows, churned.astype(int)), 1)
    made["sound"] = _bundle(sound, rows, folder, 4, None)
    made["failing"] = _bundle(_failing(sound, float(np.nanquantile(rows[:, 0], 0.95))), rows, folder, 5, None)
    return made


def _bundle(booster: Any, rows: np.ndarray, folder: Path, version: int, classes: Sequence[str] | None) -> str:
    built = build_bundle(
        booster, SCHEMA, rows[:100], folder / "built", name="churn", version=str(version), classes=classes,
        cross_check=False, backends=("treelite",),
    )  # fmt: skip
    return publish(built, folder / "store")


def _failing(booster: Any, above: float) -> Any:
    """The stump, with exp(1000) where the first feature is large."""
    model = json.loads(bytes(booster.save_raw("json")))
    tree = model["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["split_indices"][0], tree["split_conditions"][0] = 0, above
    leaf = tree["right_children"][0]
    tree["split_conditions"][leaf] = tree["base_weights"][leaf] = 1000.0
    failing = xgboost.Booster()
    failing.load_model(bytearray(json.dumps(model).encode()))
    return failing


@dataclass
class Shop:
    """A release store, a traffic folder, a lake, and days that pass."""

    folder: Path
    serve: Callable[..., Running]
    champion: str
    late: list[dict[str, Any]] = field(default_factory=list)
    told: dict[str, bool] = field(default_factory=dict)
    days: int = 0

    def __post_init__(self) -> None:
        self.store = self.folder / "store"
        self.places = Places(self.store, str(self.folder / "lake"), self.folder / "checks")
        self.publish({CHAMPION: self.champion})

    def publish(self, arms: dict[str, str], shadow: tuple[routes.Shadow, ...] = ()) -> None:
        history = routes.history(self.store, "churn")
        routes.publish(
            self.store,
            routes.Routes(
                model="churn", generation=len(history) + 1, salt=routes.new_salt(), arms=arms, at=routes.stamp(),
                slots=routes.split_slots({CHAMPION: 1}), shadow=shadow,
            ),
        )  # fmt: skip

    def start(self, challenger: str, **changes: Any) -> routes.Routes:
        plan = msgspec.structs.replace(PLAN, **changes)
        arms = {"challenger": challenger}
        return start(self.store, "hashed", "churn", plan, arms, note="", by="tests", now_us=time_ns() // 1000)

    def day(self, units: int, lost: Callable[[int, str], bool] = lambda _n, _arm: False) -> list[str]:
        """Units ask, half of the last day's outcomes and half of this one's come, shuffled; the arms that answered."""
        self.days += 1
        now = routes.read(self.store, "churn")
        server = self.serve(self.store, traffic=self.folder / "traffic")
        rows, churned = world(units, 100 + self.days)
        answered, told = [], []
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for n, (row, left) in enumerate(zip(rows.tolist(), churned.tolist(), strict=True)):
            unit = f"d{self.days}-{n}"
            if lost(n, now.arm_for(unit.encode())):
                continue
            body = json.dumps({k: None if v != v else v for k, v in zip(NAMES, row, strict=True)})
            headers = {"content-type": "application/json", "x-unit": unit, "x-request-id": unit}
            connection.request("POST", "/predict/ab", body, headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
            assert answer.status == 200, said
            answered.append(said["arm"])
            told.append({"request_id": unit, "value": left})
        connection.close()
        order = np.random.default_rng(self.days).permutation(len(told)).tolist()
        shuffled = [told[n] for n in order]
        half = len(shuffled) // 2
        sent, self.late = self.late + shuffled[:half], shuffled[half:]
        assert server.ask("/feedback", json.dumps(sent).encode())[0] == 202
        self.told |= {one["request_id"]: one["value"] for one in sent}
        self.close(server)
        return answered

    def close(self, server: Running) -> None:
        assert server.stop() == 0
        compact(server.traffic, self.places.lake)

    def outcomes(self) -> None:
        """Those that are late."""
        server = self.serve(self.store, traffic=self.folder / "traffic")
        assert server.ask("/feedback", json.dumps(self.late).encode())[0] == 202
        self.close(server)
        self.late = []

    def decide(self, hours: float = 2.0, *, act: bool = True, approved: bool = False) -> Decision:
        """As `coppice decide --apply` does, so many hours from now."""
        now_us = time_ns() // 1000 + round(hours * HOUR_US)
        experiment, inputs, made = evaluate(self.places, "churn", now_us, approved=approved)
        log(self.places, experiment, inputs, made)
        if act:
            apply(self.places, experiment, made, "tests")
        return made

    def now(self) -> routes.Routes:
        return routes.read(self.store, "churn")

    def predicts(self) -> str:
        """The version that answers at /predict."""
        server = self.serve(self.store, traffic=self.folder / "traffic")
        status, headers, _ = server.ask("/predict", json.dumps(dict.fromkeys(NAMES, 1.0)).encode())
        assert status == 200
        self.close(server)
        return headers["x-model-version"]
