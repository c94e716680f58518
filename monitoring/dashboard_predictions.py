"""The panel of what the model said: how often which scores, of each arm, over what it said of its reference.

    predictions   {"edges", "arms": [{"arm", "version", "shadow", "rows", "counts": [40]}], "reference": {"version", "rows",
                  "counts"} or null}

Scores of a request's own arm, and of shadows, that did not fail; the first of a model of several outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compile.errors import BundleRefused
from monitoring import dashboard_words as say
from monitoring.dashboard_charts import histogram, table
from monitoring.dashboard_filters import Asked
from monitoring.dashboard_panels import Figures, Panel, Sources, facts
from monitoring.dashboard_seen import named, seen
from monitoring.summaries import BINS, Edges
from serving.errors import ServingError
from serving.routes import CHAMPION


def predictions(sources: Sources, asked: Asked) -> Panel:
    found = seen(sources, asked)
    arms = [
        {"arm": arm, "version": version, "shadow": shadow, "rows": int(counts.sum()), "counts": counts.tolist()}
        for arm, version, shadow in found.frame.arms()
        if (counts := found.frame.of(arm, version, shadow).sums().scores).any()
    ]
    known, lacking = _reference(sources, asked, found.edges)
    drawn = [(named(each), _shares(each["counts"])) for each in arms]
    told: Sequence[float] = _shares(known["counts"]) if known else ()
    step = (found.edges[1] - found.edges[0]) / BINS
    rows = [
        [
            f"{found.edges[0] + n * step:.4g}",
            *(say.share(row[n]) for _, row in drawn),
            *([say.share(told[n])] if known else []),
        ]
        for n in range(BINS)
    ]
    body = histogram("Share of scores by bin", found.edges, drawn, told)
    body += facts({named(each): f"{say.count(each['rows'])} rows" for each in arms})
    body += f'<p class="note">{lacking}</p>' if lacking else ""
    body += table(
        ["score from", *(name for name, _ in drawn), *(["reference"] if known else [])], rows, summary="Numbers"
    )
    source = found.source + (
        f" Reference: {known['rows']:,} rows kept from the training of version {known['version']}." if known else ""
    )
    return Panel({"edges": list(found.edges), "arms": arms, "reference": known}, body, source)


def _shares(counts: Sequence[int]) -> list[float]:
    whole = sum(counts)
    return [count / whole if whole else 0.0 for count in counts]


def _reference(sources: Sources, asked: Asked, edges: Edges) -> tuple[Figures | None, str]:
    """Of the bundle that serves the asked arm or version now, or the champion's; or why there is none."""
    try:
        now = sources.releases.present(asked.model)
        if now is None:
            return None, "No reference: the model has no routes in the release store."
        digest = now.arms.get(asked.arm or CHAMPION, now.arms[CHAMPION])
        if asked.version is not None:
            digest = next((each for each in now.bundles if sources.releases.version(each) == asked.version), digest)
        bundle = sources.releases.bundle(digest)
    except (ServingError, BundleRefused) as refused:
        return None, f"No reference: {refused}"
    if bundle.scores is None or not len(bundle.scores):
        return None, "No reference: the bundle holds none."
    places = ((bundle.scores - edges[0]) / (edges[1] - edges[0]) * BINS).clip(0, BINS - 1).astype(np.int64)
    counts = np.bincount(places, minlength=BINS).tolist()
    return {"version": bundle.manifest.version, "rows": len(bundle.scores), "counts": counts}, ""
