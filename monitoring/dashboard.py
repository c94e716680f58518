"""The dashboard: a server of its own that reads what the others wrote, and writes nothing but its summaries of the lake.

    /                      the page; its query says what is seen (`monitoring.dashboard_filters`)
    /api/panels            the panels' names
    /api/panels/<name>     one panel's numbers, with the same query: {"name", "title", "verdict", "tone", "source", "failed",
                           "since_us", "until_us", "bucket_us", "figures", "html"}; figures are told where the panel is made
    /cards/<digest>        a bundle's model card
    /healthz               200 while it runs

Two threads keep it fresh: one sums up the lake (`monitoring.summing`), one looks at servers' metrics. A page shows what is
known when it is asked for. Nobody is asked who they are: it listens on loopback unless told otherwise, and answers only to
names of the host that it listens on, so that no page of another site can read it through a visitor's browser.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from compile.bundle import DIGEST
from compile.errors import BundleRefused
from monitoring.dashboard_checks import drift, performance
from monitoring.dashboard_filters import Asked, QueryRefused, asked
from monitoring.dashboard_glance import glance
from monitoring.dashboard_history import History
from monitoring.dashboard_live import Live
from monitoring.dashboard_page import inside, page, refusal
from monitoring.dashboard_panels import TOLD, Make, Shown, Sources, show
from monitoring.dashboard_predictions import predictions
from monitoring.dashboard_release import arms, lineage
from monitoring.dashboard_releases import Releases
from monitoring.dashboard_traffic import errors, latency
from monitoring.summing import Summing
from serving.routes import CHAMPION

PANELS: dict[str, tuple[str, Make]] = {
    "glance": ("At a glance", glance),
    "predictions": ("Prediction distribution", predictions),
    "drift": ("Feature drift", drift),
    "performance": ("Performance over time", performance),
    "latency": ("Latency and throughput", latency),
    "errors": ("Error rates", errors),
    "arms": ("Arms and experiment", arms),
    "lineage": ("Model lineage", lineage),
}
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
ASSETS = {"dashboard.css": "text/css", "dashboard.js": "text/javascript", "icon.svg": "image/svg+xml"}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Places:
    """Where everything is. `hosts`: names that it may be asked by besides loopback's; `*`: by any."""

    lake: str = "var/lake"
    traffic: Path = Path("var/traffic")
    store: str = "var/releases"
    checks: Path = Path("var/checks")
    cache: Path = Path("var/dashboard")
    engine: str = "duckdb"
    servers: Sequence[str] = ()
    hosts: Sequence[str] = LOOPBACK
    every_s: float = 30.0


def create(places: Places) -> FastAPI:
    """The app; its threads run between its start and its stop."""
    releases = Releases(places.store, places.traffic)
    sources = Sources(
        summing=Summing(places.lake, places.engine, places.cache, releases.edges),
        releases=releases,
        live=Live(places.servers),
        checks=History(places.checks),
        traffic=places.traffic,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        threads = [
            threading.Thread(target=sources.summing.run, args=(places.every_s, stop), name="summing", daemon=True),
            threading.Thread(target=sources.live.run, args=(stop,), name="live", daemon=True),
        ]
        for thread in threads:
            thread.start()
        yield
        stop.set()  # a round that asks a large lake is not waited for: files appear whole, and the rest is memory

    app = FastAPI(
        title="Coppice dashboard", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json", lifespan=lifespan
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_allowed(places.hosts))
    _add_pages(app, sources)
    _add_assets(app)
    return app


def _allowed(hosts: Sequence[str]) -> list[str]:
    # Starlette compares what stands before the first colon: of [::1] a bracket
    return ["*"] if "*" in hosts else sorted({*LOOPBACK, "[", *hosts})


def _add_pages(app: FastAPI, sources: Sources) -> None:
    @app.get("/", response_class=HTMLResponse)
    def whole(request: Request) -> Response:
        try:
            wanted = _asked(request, sources)
        except QueryRefused as refused:
            return HTMLResponse(refusal(str(refused)), 422, HEADERS)
        shown = [_shown(name, sources, wanted) for name in PANELS]
        return HTMLResponse(page(wanted, shown, _choices(sources, wanted)), headers=HEADERS)

    @app.get("/api/panels")
    def listed() -> Response:
        told = {name: {"title": title, "address": f"api/panels/{name}"} for name, (title, _) in PANELS.items()}
        return JSONResponse(told, headers=HEADERS)

    @app.get("/api/panels/{name}")
    def one(name: str, request: Request) -> Response:
        if name not in PANELS:
            return _no(404, f"there is no panel {name[:40]!r}; there are {', '.join(PANELS)}")
        try:
            wanted = _asked(request, sources)
        except QueryRefused as refused:
            return _no(422, str(refused))
        return JSONResponse(_told(_shown(name, sources, wanted), wanted), headers=HEADERS)

    @app.get("/cards/{digest}", response_class=HTMLResponse)
    def card(digest: str) -> Response:
        from training.card_page import POLICY as CARD_POLICY
        from training.card_page import page as card_page

        try:
            found = sources.releases.card(digest) if DIGEST.fullmatch(digest) else None
        except BundleRefused as refused:
            return _no(404, str(refused))
        if found is None:
            return _no(404, "no bundle of that digest has a card")
        return HTMLResponse(card_page(*found), headers=HEADERS | {"content-security-policy": CARD_POLICY})


def _add_assets(app: FastAPI) -> None:
    held = {name: (Path(__file__).parent / name).read_bytes() for name in ASSETS}

    @app.get("/healthz")
    def alive() -> Response:
        return JSONResponse({"status": "running"}, headers=HEADERS)

    def asset(name: str) -> Any:
        headers = HEADERS | {"cache-control": "max-age=60"}
        return lambda: Response(held[name], headers=headers, media_type=ASSETS[name])

    for name in ASSETS:
        app.add_api_route(f"/{name}", asset(name), include_in_schema=False, response_class=Response)


def _asked(request: Request, sources: Sources) -> Asked:
    return asked(request.query_params.multi_items(), _models(sources), time_ns() // 1000)


def _models(sources: Sources) -> list[str]:
    """Of the lake, the store and the checks; what can't be asked now has none, and its panel says why."""
    found = set(sources.summing.models())
    for ask in (sources.releases.models, sources.checks.models):
        found |= set(_or_none(ask))
    return sorted(found)


def _or_none(ask: Any) -> Iterable[str]:
    try:
        told: Iterable[str] = ask()
        return told
    except TOLD:
        return ()


def _choices(sources: Sources, wanted: Asked) -> dict[str, list[str]]:
    """What the filters offer."""
    summary = sources.summing.summary(wanted.model)
    there = summary.frame.arms() if summary else []
    versions, names = {version for _, version, _ in there}, {arm for arm, _, _ in there}
    try:
        now = sources.releases.present(wanted.model) if wanted.model else None
    except TOLD:
        now = None
    names |= set(now.arms) if now else set()
    versions |= {version for digest in now.bundles if (version := sources.releases.version(digest))} if now else set()
    return {
        "models": _models(sources),
        "versions": sorted(versions, key=lambda version: (len(version), version), reverse=True),
        "arms": sorted(names, key=lambda name: (name != CHAMPION, name)),
    }


def _shown(name: str, sources: Sources, wanted: Asked) -> Shown:
    title, make = PANELS[name]
    return show(name, title, make, sources, wanted)


def _told(shown: Shown, wanted: Asked) -> dict[str, Any]:
    panel = shown.panel
    return {
        "name": shown.name,
        "title": shown.title,
        "verdict": panel.verdict,
        "tone": panel.tone,
        "source": panel.source,
        "failed": shown.failed,
        "since_us": wanted.since_us,
        "until_us": wanted.until_us,
        "bucket_us": wanted.bucket_us,
        "figures": panel.figures,
        "html": inside(shown),
    }


def _no(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status, HEADERS)
