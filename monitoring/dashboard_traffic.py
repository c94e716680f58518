"""The panels of how it was served: how fast and how much was answered, and what failed.

    latency       {"whole": Latency, "series": [{"begin_us"} and Latency], "live": [...]}
                  Latency: rows, requests, rate (requests/s), p50_ms, p95_ms, p99_ms, mean_ms, max_ms, batch_rows (the mean)
    errors        {"whole": Errors, "series": [{"begin_us"} and Errors], "arms": [{"arm", "version", "shadow"} and Errors],
                  "servers": {"answers", "shed", "dropped": {reason: count}, "logged", "runs"} or null, "live": [...]}
                  Errors: rows, errors, error_rate, fallbacks, overrides
    live          {"url", "silent"} or {"url", "seconds", "requests", "rate", "errors", "shed", "dropped", "p50_ms", ...}

Times are of a row, from parsed to scored, fallbacks among them, shadows left out; live ones of a request, to the write of
its answer.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from monitoring import dashboard_words as say
from monitoring.dashboard_charts import Line, lines, table, time_told
from monitoring.dashboard_filters import Asked
from monitoring.dashboard_live import Now
from monitoring.dashboard_pages import Pages, read_pages
from monitoring.dashboard_panels import Figures, Nothing, Panel, Sources, facts
from monitoring.dashboard_seen import named, seen
from monitoring.latency_buckets import ERROR, quantiles_us
from monitoring.summary_frame import Frame, Sums
from monitoring.summing import Summary

QUANTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
BROKEN = 0.01  # share of errors from which on they are told as bad


def latency(sources: Sources, asked: Asked) -> Panel:
    now = sources.live.now(asked.model)
    try:
        found = seen(sources, asked)
    except Nothing as nothing:
        if not now:
            raise
        return Panel({"live": _live(now)}, _live_body(now) + f'<p class="empty">{nothing}</p>', "Live, from /metrics.")
    answering = _answering(found.frame)
    whole = _latency(answering.sums(), _whole_seconds(answering, asked))
    series = [
        {"begin_us": begin, **_latency(sums, _seconds(begin, sums, asked, found.summary))}
        for begin, sums in answering.by_time(asked.bucket_us)
    ]
    at, span = [each["begin_us"] + asked.bucket_us / 2 for each in series], _span(asked)
    quantiles = [
        Line(name, [each[f"{name}_ms"] for each in series], colour=n) for n, name in enumerate(("p50", "p95", "p99"))
    ]
    body = facts(
        {
            "p50": say.ms(whole["p50_ms"]),
            "p95": say.ms(whole["p95_ms"]),
            "p99": say.ms(whole["p99_ms"]),
            "slowest": say.ms(whole["max_ms"]),
            "requests": say.count(whole["requests"]),
            "on average": say.rate(whole["rate"]),
        }
    )
    body += lines("Time of a row, from parsed to scored", at, quantiles, tell=say.ms, **span)
    rates = [Line("requests/s", [each["rate"] for each in series], colour=3)]
    body += lines(f"Requests a second, by {say.length(asked.bucket_us)}", at, rates, tell=say.rate, **span)
    body += _live_body(now)
    rows = [
        [
            time_told(each["begin_us"]),
            say.count(each["requests"]),
            say.rate(each["rate"]),
            *(say.ms(each[q]) for q in QUANTILES),
        ]
        for each in reversed(series)
    ]
    body += table(["from (UTC)", "requests", "rate", "p50", "p95", "p99"], rows, summary="Numbers")
    source = f"{found.source} Quantiles are read from fixed buckets, and are within {ERROR:.1%} of the exact ones."
    return Panel({"whole": whole, "series": series, "live": _live(now), "error_bound": ERROR}, body, source)


def errors(sources: Sources, asked: Asked) -> Panel:
    now, pages = sources.live.now(asked.model), read_pages(sources.traffic)
    known = {"servers": pages.figures() if pages else None, "live": _live(now)}
    beside = _pages_body(pages)
    try:
        found = seen(sources, asked)
    except Nothing as nothing:
        if not pages:
            raise
        return Panel(known, beside + f'<p class="empty">{nothing}</p>', _pages_source(sources, pages))
    answering = _answering(found.frame)
    whole = _errors(answering.sums())
    series = [{"begin_us": begin, **_errors(sums)} for begin, sums in answering.by_time(asked.bucket_us)]
    arms = [
        {"arm": arm, "version": version, "shadow": shadow, **_errors(found.frame.of(arm, version, shadow).sums())}
        for arm, version, shadow in found.frame.arms()
    ]
    at = [each["begin_us"] + asked.bucket_us / 2 for each in series]
    drawn = [Line("rows that failed", [each["error_rate"] for each in series], colour=4)]
    body = facts(
        {
            "failed": say.share(whole["error_rate"]),
            "rows failed": say.count(whole["errors"]),
            "of rows": say.count(whole["rows"]),
            "fallbacks": say.count(whole["fallbacks"]),
            "overrides": say.count(whole["overrides"]),
        }
    )
    body += lines("Share of rows that failed", at, drawn, tell=say.share, **_span(asked))
    if len(arms) > 1:
        rows = [
            [named(each), *(say.count(each[name]) for name in ("rows", "errors")), say.share(each["error_rate"]),
             say.count(each["fallbacks"])]
            for each in arms
        ]  # fmt: skip
        body += table(["arm", "rows", "failed", "share", "fallbacks"], rows)
    body += beside
    rows = [
        [time_told(each["begin_us"]), *(say.count(each[name]) for name in ("rows", "errors", "fallbacks"))]
        for each in reversed(series)
    ]
    body += table(["from (UTC)", "rows", "failed", "fallbacks"], rows, summary="Numbers")
    broken = whole["error_rate"] is not None and whole["error_rate"] > BROKEN
    verdict = f"{say.share(whole['error_rate'])} failed"
    source = f"{found.source} {_pages_source(sources, pages)}"
    return Panel(
        {"whole": whole, "series": series, "arms": arms, **known}, body, source, verdict, "bad" if broken else "good"
    )


def answered(sources: Sources, asked: Asked) -> dict[tuple[str, str, bool], Figures]:
    """Of each arm, version and whether a shadow: its latency and its errors; nothing where nothing was served."""
    try:
        frame = seen(sources, asked).frame
    except Nothing:
        return {}
    found = {who: frame.of(*who).sums() for who in frame.arms()}
    seconds = _whole_seconds(frame, asked)
    return {who: {**_latency(sums, seconds), **_errors(sums)} for who, sums in found.items()}


def _answering(frame: Frame) -> Frame:
    return frame.pick(since_us=0, until_us=1 << 62, shadow=False)


def _latency(sums: Sums, seconds: float) -> Figures:
    found = zip(QUANTILES, quantiles_us(sums.latency, list(QUANTILES.values())), strict=True)
    timed = sums.timed
    return {
        "rows": sums.rows,
        "requests": sums.requests,
        "rate": sums.requests / seconds if seconds > 0 else None,
        **{name: None if us is None else min(us, sums.max_us) / 1000 for name, us in found},
        "mean_ms": sums.timed_us / timed / 1000 if timed else None,
        "max_ms": sums.max_us / 1000 if timed else None,
        "batch_rows": sums.batch_rows / timed if timed else None,
    }


def _errors(sums: Sums) -> Figures:
    return {
        "rows": sums.rows,
        "errors": sums.errors,
        "error_rate": sums.errors / sums.rows if sums.rows else None,
        "fallbacks": sums.fallbacks,
        "overrides": sums.overrides,
    }


def _whole_seconds(frame: Frame, asked: Asked) -> float:
    """From when there was traffic to the newest row: a lake that begins within the span has no part in what was before."""
    begin = max(int(frame.begin_us.min(initial=asked.until_us)), asked.since_us)
    return (min(int(frame.last_us.max(initial=0)), asked.until_us) - begin) / 1e6


def _seconds(begin: int, sums: Sums, asked: Asked, summary: Summary) -> float:
    """How long the stretch was; the one with the newest row goes no further than that."""
    end = min(begin + asked.bucket_us, asked.until_us)
    if sums.last_us >= summary.newest_us:
        end = min(end, max(sums.last_us, begin + 1_000_000))
    return (end - max(begin, asked.since_us)) / 1e6


def _span(asked: Asked) -> dict[str, Any]:
    return {"since_us": asked.since_us, "until_us": asked.until_us}


def _live(now: Sequence[Now]) -> list[Figures]:
    return [
        {"url": each.url, "silent": each.silent}
        if each.figures is None
        else {"url": each.url, "seconds": each.figures.seconds, "workers": each.workers, "ready": each.ready}
        | each.figures.found()
        for each in now
    ]


def _live_body(now: Sequence[Now]) -> str:
    parts = []
    for each in now:
        if each.figures is None:
            parts.append(table(["server", "now"], [[each.url, f"silent: {each.silent}"]]))
            continue
        told = each.figures.found()
        parts.append(f"<h3>Live: {html.escape(each.url)}</h3>")
        parts.append(
            facts(
                {
                    f"rate, last {each.figures.seconds:.0f} s": say.rate(told.get("rate")),
                    "p50": say.ms(told.get("p50_ms")),
                    "p95": say.ms(told.get("p95_ms")),
                    "p99": say.ms(told.get("p99_ms")),
                    "5xx": say.count(told["errors"]),
                    "shed": say.count(told["shed"]),
                    "workers ready": f"{each.ready} of {each.workers}",
                }
            )
        )
        if len(each.rates) > 1:
            at = [float(us) for us, _ in each.rates]
            line = Line("requests/s", [value for _, value in each.rates], colour=3)
            parts.append(
                lines("Requests a second, last minutes", at, [line], tell=say.rate, since_us=at[0], until_us=at[-1])
            )
    return "".join(parts)


def _pages_body(pages: Pages | None) -> str:
    if pages is None:
        return ""
    told = {f"shed: {reason}": say.count(count) for reason, count in pages.shed.items() if count}
    told |= {f"log dropped: {reason}": say.count(count) for reason, count in pages.dropped.items()}
    told |= {f"answers {kind}": say.count(count) for kind, count in pages.answers.items()}
    return f"<h3>All servers that logged here, since they began</h3>{facts(told)}"


def _pages_source(sources: Sources, pages: Pages | None) -> str:
    if pages is None:
        return f"No server has logged into {sources.traffic}: what was shed and dropped is not known here."
    return f"Shed and dropped: from the pages of {pages.runs} server runs in {sources.traffic}, of all models."
