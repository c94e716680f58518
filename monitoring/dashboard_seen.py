"""What was served in the span that a visitor asks for: from the lake's summaries, or of a short span from the lake itself.

A span of at most `LONGEST_FINE_US` is seen by the minute. Where nothing was served, it says what would bring something.
"""

from __future__ import annotations

from dataclasses import dataclass

from monitoring import dashboard_words as say
from monitoring.dashboard_charts import time_told
from monitoring.dashboard_filters import Asked
from monitoring.dashboard_panels import Figures, Nothing, Sources
from monitoring.summaries import Edges
from monitoring.summary_frame import Frame
from monitoring.summing import Summary


@dataclass(frozen=True)
class Seen:
    """What was served in the asked span, of the asked arm and version."""

    frame: Frame
    edges: Edges
    summary: Summary
    source: str


def seen(sources: Sources, asked: Asked) -> Seen:
    """Raises Nothing, with what to do."""
    summary = sources.summing.summary(asked.model)
    if summary is None:
        raise Nothing(_why_none(sources, asked))
    whole = summary.frame
    if asked.fine:
        whole = sources.summing.fine(asked.model, asked.since_us, asked.until_us, summary.edges)
    since_us = 0 if asked.fine else asked.since_us  # its first minute may have begun before it
    frame = whole.pick(since_us=since_us, until_us=asked.until_us, arm=asked.arm, version=asked.version)
    if not len(frame):
        raise _nothing_then(summary, asked, summary.trouble or sources.summing.trouble)
    return Seen(frame, summary.edges, summary, _source(sources, asked, summary))


def named(each: Figures) -> str:
    """An arm for people."""
    return f"{each['arm']} (version {each['version']}{', shadow' if each['shadow'] else ''})"


def _why_none(sources: Sources, asked: Asked) -> str:
    summing = sources.summing
    if summing.trouble:
        return f"{summing.trouble}."
    if not summing.looked_us:
        return "The lake is being looked at for the first time; this page will show it in a moment."
    whom = f" of {asked.model}" if asked.model else ""
    return f"The lake {summing.lake} holds no traffic{whom} yet. Serve some, then run `coppice compact --lake {summing.lake}`."


def _nothing_then(summary: Summary, asked: Asked, trouble: str) -> Nothing:
    words = f"Nothing was served {'that fits the filters ' if asked.arm or asked.version else ''}in this window"
    if trouble:
        return Nothing(f"{words}, as far as the lake can be read: {trouble}.")
    if summary.waiting:
        return Nothing(
            f"{words}, as far as it was summed up: {summary.waiting:,} hours of the lake are still to be read."
        )
    newest = summary.newest_us
    until = time_told(newest + 60_000_000).replace(" ", "T")
    link = asked.query(window="day", since="", until=until)
    more = f' <a href="?{link.replace("&", "&amp;")}">Show the day before it</a>, or run <code>coppice compact</code>.'
    return Nothing(f"{words}. The newest row of the lake is of {time_told(newest)} UTC.", more)


def _source(sources: Sources, asked: Asked, summary: Summary) -> str:
    kind = "its rows" if asked.fine else f"its summaries of {summary.hours:,} hours"
    waiting = f"; {summary.waiting:,} hours are still to be summed up" if summary.waiting else ""
    wrong = summary.trouble or sources.summing.trouble
    trouble = f"; not all could be read: {wrong}" if wrong else ""
    return (
        f"{say.span(asked.since_us, asked.until_us)}, from the lake {sources.summing.lake}, {kind}{waiting}{trouble}. "
        f"Newest row: {time_told(summary.newest_us)}."
    )
