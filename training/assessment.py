"""Everything measured on the holdout, with intervals: figures, groups, costs, and the comparison with what there was.

A new model is compared on the same rows, in pairs, with a model that knows the training rows' share of positives and no
more, and with the version that `champion` points at. Whether the champion never saw those rows is known only where it was
made from the same data, split and seed; where it was not, that is said, since the comparison then flatters the champion.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pandas as pd

from training import registry
from training.costs import Costs, Worth, amounts, decided, worth
from training.data import Dataset
from training.errors import NotRegistered
from training.evaluation import Gate
from training.features import InputRefused, encode_frame
from training.intervals import (
    BINS,
    Floats,
    Interval,
    Labels,
    bin_of,
    differences,
    figures,
    interval,
    intervals,
    judged,
    means,
)
from training.recipe import Recipe, flat
from training.segments import Gap, Group, by_group

FILE = "evaluation.json"
PRIOR = "prior"


class Rival(msgspec.Struct, frozen=True):
    """Ours minus theirs on the same rows. `clean`: neither model can have seen them."""

    name: str
    clean: bool
    differences: dict[str, Interval]
    saved_per_1000: Interval | None


class Bin(msgspec.Struct, frozen=True):
    rows: int
    said: float
    seen: float


class Cut(msgspec.Struct, frozen=True):
    """The figures at one threshold; `cost_per_1000` where the recipe has costs."""

    threshold: float
    selection_rate: float
    precision: float
    recall: float
    false_positive_rate: float
    accuracy: float
    cost_per_1000: float | None


class Assessment(msgspec.Struct, frozen=True):
    rows: int
    level: float
    resamples: int
    threshold: float
    figures: dict[str, Interval]
    worth: Worth | None
    groups: list[Group]
    gaps: list[Gap]
    calibration: list[Bin]
    cuts: list[Cut]
    rivals: list[Rival]
    warnings: list[str]
    notes: list[str]


def assess(
    recipe: Recipe,
    dataset: Dataset,
    holdout: pd.DataFrame,
    positive: Labels,
    probability: Floats,
    *,
    name: str,
    threshold: float,
    prior: float,
    warnings: list[str],
) -> Assessment:
    """`prior`: the share of positives among the training rows."""
    told, costs = recipe.evaluation, recipe.costs
    drawn = (told.resamples, told.level, recipe.seed)
    model = judged(positive, probability, threshold)
    amount = amounts(costs, holdout, dataset.source) if costs else np.ones(len(positive))
    groups, gaps = by_group(told, holdout, positive, probability, threshold, recipe.seed)
    answers: list[tuple[str, bool, Floats, float]] = [(PRIOR, True, np.full(len(positive), prior), threshold)]
    champion, notes = _champion(name, recipe, dataset, holdout)
    if champion:
        answers.append(champion)
    rivals = []
    for rival, clean, said, cut in answers:
        saved = None
        if costs:
            theirs = decided(costs, positive, said > cut, amount)
            saving = 1000 * (theirs - decided(costs, positive, probability > threshold, amount))[:, None]
            saved = interval(float(saving.mean()), means(saving, told.resamples, recipe.seed)[:, 0], told.level)
        rivals.append(Rival(rival, clean, differences(model, judged(positive, said, cut), *drawn), saved))
    return Assessment(
        rows=len(positive),
        level=told.level,
        resamples=told.resamples,
        threshold=threshold,
        figures=intervals(model, *drawn),
        worth=worth(
            costs,
            positive,
            probability,
            amount,
            threshold,
            count=told.resamples,
            level=told.level,
            seed=recipe.seed,
        )
        if costs
        else None,
        groups=groups,
        gaps=gaps,
        calibration=_bins(positive, probability),
        cuts=_cuts(costs, positive, probability, amount, threshold),
        rivals=rivals,
        warnings=warnings,
        notes=notes,
    )


def pays(worth: Worth) -> Gate:
    """Where there are costs and no gates: the model must save money against the better of nobody and everybody."""
    least = min(worth.saved_per_1000.value or 0.0, worth.saved_per_1000_against_all.value or 0.0)
    return Gate("saved per 1,000, against the better of treating nobody and everybody", least, 0.0, least > 0)


def metrics_of(assessed: Assessment) -> dict[str, float]:
    """As a run's metrics: the figures' ends, what `evaluate` does not give, differences, gaps and money."""
    named: dict[str, Interval] = {}
    for rival in assessed.rivals:
        short = "prior" if rival.name == PRIOR else "champion"
        named |= {f"vs_{short}.{name}": found for name, found in rival.differences.items()}
        if rival.saved_per_1000:
            named[f"vs_{short}.saved_per_1000"] = rival.saved_per_1000
    if assessed.worth:
        for field in ("cost_per_1000", "saved_per_1000", "saved_per_1000_against_all", "month"):
            found = getattr(assessed.worth, field)
            named |= {f"worth.{field}": found} if found else {}
    metrics = {"threshold": assessed.threshold, "warnings": float(len(assessed.warnings))}
    for name, found in (assessed.figures | named).items():
        for end, value in (("", found.value), ("_low", found.low), ("_high", found.high)):
            if value is not None:
                metrics[name + end] = value
    return metrics


def files(assessed: Assessment) -> dict[str, str]:
    """What goes beside the run's figures: all of it as JSON, its tables as CSV."""
    groups = [
        {"column": g.column, "value": g.value, "rows": g.rows, "positives": g.positives, **_flat(g.figures)}
        for g in assessed.groups
    ]
    return {
        FILE: msgspec.json.format(msgspec.json.encode(assessed, order="sorted")).decode(),
        "calibration.csv": _table([msgspec.structs.asdict(row) for row in assessed.calibration]),
        "thresholds.csv": _table([msgspec.structs.asdict(row) for row in assessed.cuts]),
    } | ({"segments.csv": _table(groups)} if groups else {})


def lines(assessed: Assessment) -> list[str]:
    """A short table for the terminal."""
    told = [f"{'holdout':20} {'value':>9}   {assessed.level:.0%} interval   ({assessed.rows:,} rows)"]
    told += [_line(name, found) for name, found in assessed.figures.items()]
    for rival in assessed.rivals:
        told += [
            _line(f"{metric} - {rival.name}", rival.differences[metric]) for metric in ("accuracy", "roc_auc", "brier")
        ]
        if not rival.clean:
            told.append(f"{rival.name} may have been trained on some of these rows, which flatters it")
    if assessed.worth:
        money = assessed.worth
        told.append(f"threshold {money.threshold:.4f}, which cost least on the validation rows; {money.currency}")
        told.append(_line("saved per 1,000", money.saved_per_1000, 1))
        told.append(_line("  against treating all", money.saved_per_1000_against_all, 1))
        if money.month:
            told.append(_line(f"a month of {money.volume_per_month:,.0f}", money.month, 0))
    told += [_line(f"gap {gap.rate} by {gap.column}", gap.gap) for gap in assessed.gaps]
    return told + assessed.notes + [f"warning: {warning}" for warning in assessed.warnings]


def _line(name: str, found: Interval, digits: int = 4) -> str:
    if found.value is None:
        return f"{name:28} not estimable"
    ends = "" if found.low is None or found.high is None else f"   {found.low:,.{digits}f} to {found.high:,.{digits}f}"
    return f"{name:28} {found.value:,.{digits}f}{ends}"


def _champion(
    name: str, recipe: Recipe, dataset: Dataset, holdout: pd.DataFrame
) -> tuple[tuple[str, bool, Floats, float] | None, list[str]]:
    """The registered champion's answers to these rows; or why there are none."""
    try:
        shelf = registry.download(f"{name}@champion")
    except NotRegistered:
        return None, []
    facts = shelf.facts
    if facts.classes != dataset.classes:
        return None, [f"not compared with {name}@{shelf.version}: its classes are {', '.join(facts.classes)}"]
    try:
        said = shelf.probability(encode_frame(shelf.schema, holdout))
    except InputRefused as refused:
        return None, [f"not compared with {name}@{shelf.version}: {refused}"]
    return (f"{name}@{shelf.version}", _same_split(facts, recipe, dataset), said, shelf.threshold), []


def _same_split(facts: registry.Facts, recipe: Recipe, dataset: Dataset) -> bool:
    ours = {key: value for key, value in flat(recipe).items() if key == "seed" or key.startswith("split.")}
    theirs = {key: value for key, value in facts.recipe.items() if key == "seed" or key.startswith("split.")}
    return facts.data_sha256 == dataset.digest and ours == theirs


def _bins(positive: Labels, probability: Floats) -> list[Bin]:
    bins = bin_of(probability)
    rows = [bins == number for number in range(BINS)]
    return [
        Bin(int(row.sum()), float(probability[row].mean()), float(positive[row].mean())) for row in rows if row.any()
    ]


def _cuts(costs: Costs | None, positive: Labels, probability: Floats, amount: Floats, chosen: float) -> list[Cut]:
    cuts = []
    for threshold in sorted({*(round(step / 20, 2) for step in range(1, 20)), chosen}):
        seen = figures(judged(positive, probability, threshold))
        cost = None
        if costs:
            cost = 1000 * float(decided(costs, positive, probability > threshold, amount).mean())
        cuts.append(
            Cut(
                threshold=threshold,
                selection_rate=seen["selection_rate"],
                precision=seen["precision"],
                recall=seen["recall"],
                false_positive_rate=seen["false_positive_rate"],
                accuracy=seen["accuracy"],
                cost_per_1000=cost,
            )
        )
    return cuts


def _flat(found: Mapping[str, Interval]) -> dict[str, float | None]:
    ends = (("", "value"), ("_low", "low"), ("_high", "high"))
    return {name + end: getattr(value, field) for name, value in found.items() for end, field in ends}


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
