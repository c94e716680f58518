"""The built-in world: a telecom's customers, their events over time, and who leaves - with the truth known.

Each customer has a contract and habits; habits make events (logins, usage, support calls, late payments) over the 90 days
before a reference date; the features are aggregates of those events and the contract, with values missing as they are in
life. The probability of leaving is a known function of the features, so the best possible AUC is known too, and no model
may honestly beat it.

Knobs, all 0 by default: `covariate_drift` moves the inputs and leaves P(leave | inputs) alone; `concept_drift` does the
reverse; `label_delay_days` is the mean time until a label is known. `retained` plays the effect of a better model: who is
flagged is called, and of those who would have left some stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]

TARGET = "churned"
WINDOW_DAYS = 90
PLANS = ("basic", "plus", "premium")
CONTRACTS = ("monthly", "one_year", "two_years")
PAYMENTS = ("card", "direct_debit", "invoice", "wallet")
REGIONS = ("centre", "east", "north", "south", "west")
KINDS = ("login", "usage", "support_call", "late_payment")
PLAN_PRICE = np.array([25.0, 45.0, 80.0])


@dataclass(frozen=True)
class World:
    """`features` has a row for each customer; `churned` and `true_probability` belong to the same rows.

    `events`: customer, days_ago (0..90), kind (one of KINDS), amount (GB for usage, 0 otherwise).
    """

    features: pd.DataFrame
    churned: npt.NDArray[np.bool_]
    true_probability: Floats
    label_known_after_days: Floats
    events: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """The features with the target beside them: a training set."""
        return self.features.assign(**{TARGET: self.churned})

    @property
    def best_auc(self) -> float:
        return best_possible_auc(self.true_probability)


def simulate(
    rows: int,
    *,
    seed: int = 0,
    covariate_drift: float = 0.0,
    concept_drift: float = 0.0,
    label_delay_days: float = 0.0,
) -> World:
    """The same arguments give the same world."""
    rng = np.random.default_rng(seed)
    customers = _customers(rng, rows, covariate_drift)
    events = _events(rng, customers)
    features = _features(rng, customers, events)
    probability = leaving_probability(features, concept_drift=concept_drift)
    churned = rng.random(rows) < probability
    delay = rng.exponential(label_delay_days, rows) if label_delay_days else np.zeros(rows)
    return World(features, churned, probability, delay, events)


def best_possible_auc(probability: Floats) -> float:
    """The AUC of the true probabilities, in expectation over the labels.

    A pair ranks rightly when the one that leaves has the larger probability: sum over pairs of p_i (1 - p_j), ties half.
    NaN where there is no pair.
    """
    if len(probability) < 2:
        return float("nan")
    p = np.sort(probability)
    stays = np.cumsum(1 - p)
    below = stays - (1 - p) + 0.5 * (1 - p)
    own = p * (1 - p) * 0.5  # a customer is no pair with itself
    return float((p * below - own).sum() / (p.sum() * (1 - p).sum() - (p * (1 - p)).sum()))


def leaving_probability(features: pd.DataFrame, *, concept_drift: float = 0.0) -> Floats:
    """P(leave | features): the truth. Concept drift makes price matter more and loyalty less."""
    contract = features["contract"].map(dict(zip(CONTRACTS, (1.6, -1.4, -3.2), strict=True))).to_numpy(dtype=np.float64)
    price = (
        features["monthly_charge"] / features["plan"].map(dict(zip(PLANS, PLAN_PRICE, strict=True))) - 1
    ).to_numpy()
    calls = features["support_calls_90d"].to_numpy(dtype=np.float64)
    trend = features["usage_trend"].fillna(0.6).to_numpy()
    recency = features["days_since_login"].fillna(WINDOW_DAYS).to_numpy()
    satisfaction = features["satisfaction"].to_numpy()
    tenure = features["tenure_months"].to_numpy(dtype=np.float64)
    late = features["late_payments_90d"].to_numpy(dtype=np.float64)
    score = -3.3 + contract * (1 - 0.5 * concept_drift)
    score += 1.1 * np.minimum(calls, 4) * np.where(trend < 0.8, 1.5, 0.7)
    score += 9.0 * np.maximum(price, -0.1) * (1 + 2.0 * concept_drift)
    score += 3.2 * np.clip(1 - trend, -0.5, 1.0)
    score += 2.2 * (recency > 21) + 1.0 * np.minimum(late, 3)
    score += np.where(np.isnan(satisfaction), 0.0, 0.8 * (6 - np.nan_to_num(satisfaction)))
    score -= 1.2 * np.log1p(tenure / 12)
    score -= 1.5 * features["autopay"].fillna(False).to_numpy(dtype=bool)
    return np.asarray(1 / (1 + np.exp(-1.25 * score)))


def retained(world: World, scores: Floats, *, capacity: float = 0.2, save_rate: float = 0.4, seed: int = 0) -> Any:
    """Who stays if the `capacity` share with the highest scores is called: of the callers' leavers, `save_rate` stay.

    Better scores find more of those who would leave, so the retained share measures the model. bool, a row a customer.
    """
    rng = np.random.default_rng(seed)
    called = np.zeros(len(scores), dtype=bool)
    called[np.argsort(-scores, kind="stable")[: int(capacity * len(scores))]] = True
    saved = called & (rng.random(len(scores)) < save_rate)
    return ~world.churned | saved


def _customers(rng: np.random.Generator, rows: int, drift: float) -> pd.DataFrame:
    """Drift: a recruiting campaign for monthly contracts, a price rise, worse service."""
    monthly = np.clip(0.5 + 0.25 * drift, 0, 0.95)
    contract = rng.choice(CONTRACTS, rows, p=[monthly, (1 - monthly) * 0.6, (1 - monthly) * 0.4])
    plan = rng.choice(len(PLANS), rows, p=[0.45, 0.35, 0.2])
    tenure = np.ceil(rng.gamma(1.6, 18.0, rows) * (1 - 0.3 * min(drift, 2.0) / 2))
    charge = PLAN_PRICE[plan] * rng.normal(1 + 0.08 * drift, 0.12, rows).clip(0.6, 2.0)
    return pd.DataFrame(
        {
            "tenure_months": tenure,
            "plan": np.array(PLANS)[plan],
            "contract": contract,
            "payment": rng.choice(PAYMENTS, rows, p=[0.4, 0.3, 0.2, 0.1]),
            "region": rng.choice(REGIONS, rows),
            "monthly_charge": charge.round(2),
            "autopay": rng.random(rows) < 0.55,
            "senior": rng.random(rows) < 0.16,
            "engagement": rng.gamma(2.0, 0.5, rows) * (1 - 0.2 * min(drift, 3.0) / 3),
            "decline": rng.beta(1.2, 4.0, rows),
            "trouble": rng.gamma(0.7, 0.9, rows) * (1 + 0.5 * drift),
            "careless": rng.gamma(0.5, 0.6, rows),
        }
    )


def _events(rng: np.random.Generator, customers: pd.DataFrame) -> pd.DataFrame:
    """Poisson counts over the window; a declining customer's usage lies more in the past."""
    engagement = customers["engagement"].to_numpy()
    rates = {
        "login": 9.0 * engagement,
        "usage": 12.0 * engagement,
        "support_call": customers["trouble"].to_numpy(),
        "late_payment": customers["careless"].to_numpy(),
    }
    frames = []
    for number, kind in enumerate(KINDS):
        counts = rng.poisson(rates[kind])
        who = np.repeat(np.arange(len(customers)), counts)
        ago = WINDOW_DAYS * rng.random(len(who))
        if kind in ("login", "usage"):
            ago = WINDOW_DAYS * rng.random(len(who)) ** (1 - 0.85 * customers["decline"].to_numpy()[who])
        amount = rng.gamma(2.0, 1.5, len(who)) if kind == "usage" else np.zeros(len(who))
        frames.append(pd.DataFrame({"customer": who, "days_ago": ago, "kind": number, "amount": amount}))
    events = pd.concat(frames, ignore_index=True)
    return events.assign(kind=pd.Categorical.from_codes(events["kind"].to_numpy(), categories=pd.Index(KINDS)))


def _features(rng: np.random.Generator, customers: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    rows = len(customers)
    who, ago = events["customer"].to_numpy(), events["days_ago"].to_numpy()
    kind, amount = events["kind"].cat.codes.to_numpy(), events["amount"].to_numpy()
    recent, usage, login = ago < 30, kind == 1, kind == 0
    last_login = np.full(rows, np.inf)
    np.minimum.at(last_login, who[login], ago[login])
    recent_usage = np.bincount(who[usage & recent], amount[usage & recent], rows)
    before = np.bincount(who[usage & ~recent], amount[usage & ~recent], rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        trend = np.where(before > 0, recent_usage / (before / 2), np.nan).clip(max=3.0)
    features = customers[
        ["tenure_months", "plan", "contract", "payment", "region", "monthly_charge", "autopay", "senior"]
    ].copy()
    features["logins_30d"] = np.bincount(who[login & recent], minlength=rows).astype(np.float64)
    features["days_since_login"] = np.where(np.isinf(last_login), np.nan, last_login).round(1)
    features["usage_gb_30d"] = recent_usage.round(2)
    features["usage_trend"] = trend.round(3)
    features["support_calls_90d"] = np.bincount(who[kind == 2], minlength=rows).astype(np.float64)
    features["late_payments_90d"] = np.bincount(who[kind == 3], minlength=rows).astype(np.float64)
    mood = 7.5 - 1.0 * customers["trouble"].to_numpy() + rng.normal(0, 1.5, rows)
    features["satisfaction"] = np.where(rng.random(rows) < 0.45, np.nan, mood.clip(0, 10).round())
    features["region"] = features["region"].where(rng.random(rows) > 0.02, None)
    return features
