"""The model card: six sections of Markdown, filled from the run; what figures can't say comes from the recipe.

Names and values that came with the data are written so that they can be nothing but text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from training.assessment import Assessment, Rival
from training.costs import Worth
from training.data import Dataset
from training.evaluation import Gate
from training.features import FeatureSchema
from training.intervals import Interval
from training.recipe import Recipe, Words
from training.segments import FAIRNESS, SHOWN

UNSAID = "_Not stated in the recipe. Say it there, under `[card]`, before others rely on this model._"
PICTURES = {
    "roc": "ROC curve",
    "calibration": "Calibration",
    "importance": "Importance of the features",
    "costs": "Cost by threshold",
}
MOST_CHARACTERS = 5000  # of a description in the registry
SPECIAL = re.compile(r"([\\`*\[\]<>#!|~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def write(
    name: str,
    recipe: Recipe,
    dataset: Dataset,
    schema: FeatureSchema,
    metrics: Mapping[str, float],
    gates: Sequence[Gate],
    sizes: Mapping[str, int],
    rounds: int,
    left_out: Sequence[str],
    assessed: Assessment,
) -> str:
    """`sizes`: rows by part (train, validation, holdout)."""
    share = dataset.positive.mean()
    missing = dataset.features[list(schema.names)].isna().mean()
    most_missing = [f"{code(str(column))} {part:.0%}" for column, part in missing.nlargest(3).items() if part > 0]
    return assembled(
        name,
        recipe.card,
        model=f"A {recipe.algorithm} binary classifier of {rounds} rounds over {schema.width} features. It answers the "
        f"probability that {code(dataset.target)} is {code(dataset.classes[1])}; above {assessed.threshold:g} that is "
        f"the prediction, otherwise {code(dataset.classes[0])}.",
        data=[
            f"{plain(dataset.source)}: {len(dataset.positive):,} rows, sha256 `{dataset.digest[:16]}`; {share:.1%} are "
            f"{code(dataset.classes[1])}. Stratified into {sizes['train']:,} to train, {sizes['validation']:,} to "
            f"validate{' and choose the threshold' if recipe.costs else ''}, {sizes['holdout']:,} held out."
            f"{' Fitted again on all but the latter.' if recipe.rounds.refit else ''}",
            "",
            f"{inputs(schema)}.",
            "",
            f"Left out as identifiers or constants: {', '.join(code(column) for column in left_out) or 'nothing'}. "
            f"Most often missing: {', '.join(most_missing) or 'nothing is'}.",
        ],
        figures=[
            f"On the {sizes['holdout']:,} rows held out, with {assessed.level:.0%} bootstrap intervals "
            f"({assessed.resamples:,} resamples):",
            "",
            "| metric | value | interval |",
            "|---|---|---|",
            *[_row(metric, found) for metric, found in assessed.figures.items()],
            f"| majority | {metrics['majority']:.4f} | |",
            "",
            *[f"- gate {plain(str(gate))}" for gate in gates],
            "",
            *[line for rival in assessed.rivals for line in _rival(rival)],
            *(_money(assessed.worth) if assessed.worth else []),
            *(_groups(assessed) if assessed.groups else []),
            *[
                f"![{title}]({picture}.png)\n"
                for picture, title in PICTURES.items()
                if picture != "costs" or assessed.worth
            ],
        ],
        limits=[
            "The figures hold for rows like the training data's: no figure here speaks for another time or population, "
            "and the intervals tell of the holdout's size alone.",
            "",
            *[f"- warning: {plain(warning)}" for warning in assessed.warnings],
            *[f"- {plain(note)}" for note in assessed.notes],
        ],
    )


def assembled(
    name: str, words: Words, *, model: str, data: Sequence[str], figures: Sequence[str], limits: Sequence[str]
) -> str:
    """The six sections of any task's card, from the lines of each that the run knows."""
    return "\n".join(
        [
            f"# Model card: {plain(name)}",
            "",
            "## Description",
            words.description or UNSAID,
            "",
            model,
            "",
            "## Intended use",
            words.intended_use or UNSAID,
            "",
            "## Training data",
            *data,
            "",
            "## Performance metrics",
            *figures,
            "## Limitations",
            words.limitations or UNSAID,
            "",
            *limits,
            "",
            "## Ethical considerations",
            words.ethical_considerations or UNSAID,
            "",
        ]
    )


def inputs(schema: FeatureSchema) -> str:
    named = ", ".join(f"{code(feature.name)} ({feature.kind})" for feature in schema.features)
    return f"Inputs (contract `{schema.fingerprint[:16]}`): {named}"


def shortened(text: str) -> str:
    """The card as a registry's description, which has a limit; cut at a line's end, and then it says so."""
    if len(text) <= MOST_CHARACTERS:
        return text
    rest = "\n\n_Cut here: the whole card is in the run's artifacts and in the bundle._\n"
    return text[: text.rindex("\n", 0, MOST_CHARACTERS - len(rest))] + rest


def plain(text: str) -> str:
    """Any text as one line of Markdown that reads as it stands."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Any text as a code span, in a table too; the two signs that would end one are replaced by their likes."""
    return "`" + " ".join(text.split()).replace("`", "ˋ").replace("|", "¦") + "`"


def _row(name: str, found: Interval, digits: int = 4) -> str:
    if found.value is None:
        return f"| {name} | not estimable | |"
    ends = (
        f"{found.low:,.{digits}f} to {found.high:,.{digits}f}"
        if found.low is not None and found.high is not None
        else ""
    )
    return f"| {name} | {found.value:,.{digits}f} | {ends} |"


def _rival(rival: Rival) -> list[str]:
    theirs = "a model that knows the share of positives alone" if rival.name == "prior" else code(rival.name)
    unclean = "" if rival.clean else " It may have been trained on some of these rows, which flatters it."
    saved = [_row("saved_per_1000", rival.saved_per_1000, 1)] if rival.saved_per_1000 else []
    shown = ("accuracy", "roc_auc", "log_loss", "brier")
    return [
        f"Minus {theirs}, on the same rows, in pairs.{unclean}",
        "",
        "| metric | difference | interval |",
        "|---|---|---|",
        *[_row(metric, rival.differences[metric]) for metric in shown],
        *saved,
        "",
    ]


def _money(worth: Worth) -> list[str]:
    month = (
        [_row(f"revenue impact, a month of {worth.volume_per_month:,.0f} decisions", worth.month, 0)]
        if worth.month
        else []
    )
    return [
        f"At the threshold {worth.threshold:.4f}, which cost least on the validation rows"
        f"{', in ' + plain(worth.currency) if worth.currency else ''}:",
        "",
        "| money | value | interval |",
        "|---|---|---|",
        _row("cost per 1,000 decisions", worth.cost_per_1000, 1),
        _row("saved per 1,000, against doing nothing", worth.saved_per_1000, 1),
        _row("saved per 1,000, against treating all", worth.saved_per_1000_against_all, 1),
        _row("saved per 1,000, against the threshold 0.5", worth.saved_per_1000_against_half, 1),
        *month,
        "",
    ]


def _groups(assessed: Assessment) -> list[str]:
    lines = [f"| column | group | rows | {' | '.join(SHOWN)} |", "|---" * (3 + len(SHOWN)) + "|"]
    for group in assessed.groups:
        cells = " | ".join(str(group.figures[name]) for name in SHOWN)
        lines.append(f"| {code(group.column)} | {code(group.value)} | {group.rows:,} | {cells} |")
    lines += ["", "| column | gap in | size | lowest | highest |", "|---|---|---|---|---|"]
    for gap in assessed.gaps:
        lines.append(
            f"| {code(gap.column)} | {FAIRNESS[gap.rate]} | {gap.gap} | {code(gap.lowest)} | {code(gap.highest)} |"
        )
    return [*lines, ""]
