"""Pictures of a model, for its run: where people would rather look than read."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from training.assessment import Assessment, Cut
from training.evaluation import Floats, Labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from training.boosters import Fitted

INK, FAINT = "#1b5e4b", "#b8c4be"


def pictures(labels: Labels, said: Floats, fitted: Fitted, assessed: Assessment | None) -> dict[str, Figure]:
    """Every picture of a run, by title. `assessed`: of a model of two classes."""
    drawn = {
        "importance": importance(fitted.importance),
        "learning": learning(fitted.curve, fitted.rounds),
    }
    if assessed:
        drawn["roc"] = roc(labels, said, assessed.figures["roc_auc"].value or 0.0)
        drawn["calibration"] = calibration(labels, said)
        if assessed.worth:
            drawn["costs"] = costs(assessed.cuts, assessed.threshold, assessed.worth.currency)
    return drawn


def png(figure: Figure) -> bytes:
    """The same figure gives the same bytes: nothing of the time or the library's version is written into them."""
    into = io.BytesIO()
    figure.savefig(into, format="png", dpi=80, metadata={"Software": None})
    return into.getvalue()


def costs(cuts: Sequence[Cut], threshold: float, currency: str) -> Figure:
    figure, axes = _figure("Cost per 1,000 decisions on the holdout", "threshold", currency or "cost")
    axes.plot([cut.threshold for cut in cuts], [cut.cost_per_1000 or 0.0 for cut in cuts], color=INK, marker="o")
    axes.axvline(threshold, color=FAINT, linestyle="--", label=f"served: {threshold:.3f}")
    axes.legend(loc="best", frameon=False)
    return figure


def roc(positive: Labels, probability: Floats, auc: float) -> Figure:
    from sklearn.metrics import roc_curve

    false_alarms, found, _ = roc_curve(positive, probability)
    figure, axes = _figure("ROC curve on the holdout", "false positive rate", "true positive rate")
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", label="guessing")
    axes.plot(false_alarms, found, color=INK, label=f"AUC {auc:.4f}")
    axes.legend(loc="lower right", frameon=False)
    return figure


def calibration(positive: Labels, probability: Floats) -> Figure:
    from sklearn.calibration import calibration_curve

    seen, said = calibration_curve(positive, probability, n_bins=10, strategy="quantile")
    figure, axes = _figure("Calibration on the holdout, ten equal groups", "predicted probability", "observed share")
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", label="perfect")
    axes.plot(said, seen, color=INK, marker="o", label="model")
    axes.legend(loc="upper left", frameon=False)
    return figure


def importance(shares: Mapping[str, float], most: int = 20, title: str = "Importance: share of total gain") -> Figure:
    top = sorted(shares.items(), key=lambda item: item[1])[-most:]
    figure, axes = _figure(title, "share", "")
    axes.barh([name for name, _ in top], [share for _, share in top], color=INK)
    return figure


def history(numbers: Sequence[int], losses: Sequence[float]) -> Figure:
    """`losses` of the trials that were finished."""
    figure, axes = _figure("The search: loss by trial", "trial", "cross-validated loss")
    best = [min(losses[: n + 1]) for n in range(len(losses))]
    axes.scatter(numbers, losses, color=FAINT, label="a trial")
    axes.step(numbers, best, where="post", color=INK, label="best so far")
    axes.legend(loc="upper right", frameon=False)
    return figure


def learning(curve: Sequence[float], rounds: int) -> Figure:
    figure, axes = _figure("Validation loss by round", "round", "loss")
    axes.plot(range(1, len(curve) + 1), curve, color=INK)
    axes.axvline(rounds, color=FAINT, linestyle="--", label=f"kept: {rounds} rounds")
    axes.legend(loc="upper right", frameon=False)
    return figure


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Without pyplot: no global state, no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
