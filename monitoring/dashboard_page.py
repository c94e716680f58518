"""The dashboard's page as HTML: all panels in it when it arrives, so that it needs no script to be read."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from monitoring.dashboard_charts import time_told
from monitoring.dashboard_filters import CUSTOM, Asked
from monitoring.dashboard_panels import Shown
from monitoring.dashboard_words import span

WINDOW_NAMES = {"hour": "last hour", "day": "last day", "week": "last week", "90d": "last 90 days", CUSTOM: "custom"}


def page(asked: Asked, shown: Sequence[Shown], choices: Mapping[str, Iterable[str]]) -> str:
    """`choices`: models, versions and arms that there are."""
    title = f"{asked.model} · Coppice" if asked.model else "Coppice"
    body = (
        f'<header class="top"><h1>{html.escape(asked.model or "No model yet")}</h1>{_form(asked, choices)}'
        f'<p id="state" role="status">{span(asked.since_us, asked.until_us)}.</p></header>'
        f"<main>{''.join(_section(each) for each in shown)}</main>"
        '<footer class="end">Times are UTC. The same numbers as JSON: <a href="api/panels">api/panels</a>.</footer>'
    )
    return _document(title, body)


def refusal(words: str) -> str:
    """For a query that is not in order."""
    told = f'<p class="trouble">{html.escape(words)}</p><p><a href="./">Start again</a></p>'
    head = '<header class="top"><h1>Not understood</h1></header>'
    return _document("Not understood · Coppice", f'{head}<main><section class="panel">{told}</section></main>')


def inside(shown: Shown) -> str:
    """What a panel's section holds; a refresh replaces it."""
    panel = shown.panel
    verdict = f'<p class="verdict {panel.tone}">{html.escape(panel.verdict)}</p>' if panel.verdict else ""
    source = f'<p class="source">{html.escape(panel.source)}</p>' if panel.source else ""
    return f"<header><h2>{html.escape(shown.title)}</h2>{verdict}</header>{panel.body}{source}"


def _section(shown: Shown) -> str:
    return f'<section class="panel" id="{shown.name}" aria-label="{html.escape(shown.title)}">{inside(shown)}</section>'


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<title>{html.escape(title)}</title><link rel="icon" href="icon.svg"><link rel="stylesheet" href="dashboard.css">'
        f'<script src="dashboard.js" defer></script></head>\n<body>{body}</body></html>\n'
    )


def _form(asked: Asked, choices: Mapping[str, Iterable[str]]) -> str:
    told = dict(asked.text)
    fields = _select("model", [(name, name) for name in choices["models"]], asked.model)
    for name in ("version", "arm"):
        known = dict.fromkeys([*choices[f"{name}s"], *([told[name]] if name in told else [])])
        fields += _select(name, [("", "all"), *((each, each) for each in known)], told.get(name, ""))
    fields += _select("window", list(WINDOW_NAMES.items()), asked.window)
    if asked.window == CUSTOM or "until" in told:
        custom = asked.window == CUSTOM
        for name, us in (("since", asked.since_us), ("until", asked.until_us)):
            if name == "until" or custom:
                value = told.get(name, time_told(us).replace(" ", "T"))
                fields += (
                    f'<label>{name} <input name="{name}" value="{html.escape(value)}" size="16" '
                    'placeholder="2026-01-31T09:30"></label>'
                )
    return f'<form method="get" action="./">{fields}<button>Show</button></form>'


def _select(name: str, options: Sequence[tuple[str, str]], chosen: str) -> str:
    listed = "".join(
        f'<option value="{html.escape(value)}"{" selected" if value == chosen else ""}>{html.escape(told)}</option>'
        for value, told in options
    )
    return f'<label>{name} <select name="{name}">{listed}</select></label>'
