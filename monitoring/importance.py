"""How much a model's predictions depend on each feature, asked of the bundle itself.

The model scores a sample of its reference, and again with one feature's values dealt out anew among the rows: how far the
scores move, on average, is the feature's weight. So every bundle has weights, whatever trained it and however old it is; they
speak of the model that serves, and need no labels. Of two features that say the same, a model may look at one alone.
"""

from __future__ import annotations

import numpy as np

from compile.runtime import Predictor
from monitoring.sides import Side

ROWS = 1_000


def importance(predictor: Predictor, reference: Side, *, seed: int = 0) -> dict[str, float]:
    """Each feature's share, in sum 1; all alike where the model answers every row the same."""
    names = predictor.manifest.schema.names
    sample = reference.sampled(ROWS, seed)
    rows = np.column_stack([sample.columns[name] for name in names])
    rng = np.random.default_rng(seed)
    scores = predictor.score(rows)
    moved = np.empty(len(names))
    for place in range(len(names)):
        dealt = rows.copy()
        rng.shuffle(dealt[:, place])
        moved[place] = np.abs(predictor.score(dealt) - scores).mean()
    total = moved.sum()
    shares = moved / total if np.isfinite(total) and total > 0 else np.full(len(names), 1 / len(names))
    return dict(zip(names, shares.tolist(), strict=True))
