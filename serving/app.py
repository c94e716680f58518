"""The HTTP application: documentation, health, metrics, errors, and the slow twin of every scoring path.

`create` is given everything and reads nothing from the environment. The scoring routes here and the ones answered in
`serving.protocol` call the same function and write the same bytes; `COPPICE_HTTP=asgi` serves through these alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.admin import Admin, add_admin
from serving.answers import Answer, failed, plain
from serving.batch import add_batch
from serving.card_page import add_card
from serving.documentation import openapi_of
from serving.door import Door
from serving.edge import EdgeApp
from serving.feedback import add_feedback
from serving.heads import named_headers
from serving.invocations import PINGS, add_invocations
from serving.kserve_v1 import add_kserve_v1
from serving.live import Arm
from serving.oip import HEALTH, add_oip
from serving.outcomes import OutcomeLog
from serving.responses import AnswerResponse, no_model, read_body
from serving.served import Served

logger = logging.getLogger("coppice")

SCORING = ("/predict", "/predict/ab", "/v1/models/{model}/predict", "/v1/models/{model}/predict/ab")
UNCOUNTED = frozenset({"/healthz", "/readyz", "/metrics", *HEALTH, *PINGS})


@dataclass(frozen=True, slots=True)
class Health:
    """What the health and metrics routes ask; each a plain function over the shared page."""

    ready: Callable[[], tuple[bool, dict[str, Any]]]
    metrics: Callable[[], bytes]
    counted: Callable[[], Mapping[str, tuple[int, int]]] = dict


def create(
    served: Served,
    door: Door,
    health: Health,
    admin: Admin | None = None,
    outcomes: OutcomeLog | None = None,
    store: Path | None = None,
) -> ASGIApp:
    """The application of one worker. Every answer is counted and, while draining, says `connection: close`."""
    app = FastAPI(
        title="Coppice",
        summary="Gradient-boosted trees behind HTTP",
        redirect_slashes=False,
        openapi_url="/openapi.json",
        redoc_url=None,
    )
    for path in SCORING:
        app.add_api_route(path, _twin(path, door), methods=["POST"], name=path.strip("/"))
    _add_health(app, health)
    add_kserve_v1(app, served)  # before the models' own path, which matches this one's
    _add_models(app, served)
    add_batch(app, served)
    add_oip(app, served, health.ready, health.counted)
    add_invocations(app, served, health.ready)
    if outcomes is not None:
        add_feedback(app, outcomes, served.many)
    if store is not None:
        add_card(app, served, store)
    if admin is not None:
        add_admin(app, admin)
    _add_errors(app)
    app.openapi = lambda: openapi_of(app, served)  # type: ignore[method-assign]  # FastAPI's own way to extend it
    return Counted(EdgeApp(app, door.edge), door)


class Counted:
    """The outermost layer: what leaves through the application is counted as the protocol counts its own answers."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = perf_counter_ns()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                if scope["path"] not in UNCOUNTED:
                    self._door.on_answer(message["status"], (perf_counter_ns() - arrived) // 1000)
                if self._door.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, counted)


def _twin(path: str, door: Door) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        arrived = perf_counter_ns()
        score = door.endpoints.get(path.format(**request.path_params).encode())
        if score is None:
            raise HTTPException(404, no_model(request.path_params.get("model", "")))
        named = named_headers(request.headers.raw)
        body, received = await read_body(request, door.max_body_bytes)
        reply = _Reply()
        answer = door.admitted(score, body, received, named, arrived, reply)
        return AnswerResponse(answer or await reply.of(request))

    return endpoint


class _Reply:
    """Where a score that is not ready at once arrives. `disconnected` tells its lane that nobody waits any more."""

    since = 0

    def __init__(self) -> None:
        self.disconnected = False
        self._answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def __call__(self, answer: Answer) -> None:
        if not self._answered.done():  # done: uvicorn cancelled us
            self._answered.set_result(answer)

    async def of(self, request: Request) -> Answer:
        gone = asyncio.ensure_future(request.receive())  # the body is read: what comes next is the disconnection
        await asyncio.wait((gone, self._answered), return_when=asyncio.FIRST_COMPLETED)
        self.disconnected = not self._answered.done()
        gone.cancel()
        return self._answered.result() if self._answered.done() else failed()


def _add_health(app: FastAPI, health: Health) -> None:
    @app.get("/healthz", tags=["health"], summary="The process is alive")
    async def healthz() -> Response:
        return AnswerResponse(plain(200, {"status": "alive"}))

    @app.get(
        "/readyz",
        tags=["health"],
        summary="All workers serve the committed generation",
        responses={503: {"description": "not ready"}},
    )
    async def readyz() -> Response:
        ready, details = health.ready()
        return AnswerResponse(plain(200 if ready else 503, {"ready": ready, **details}))

    @app.get(
        "/metrics",
        tags=["health"],
        summary="Prometheus metrics of all workers",
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        return Response(health.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_models(app: FastAPI, served: Served) -> None:
    @app.get("/v1/models", tags=["models"], summary="The models served here")
    async def models() -> Response:
        return AnswerResponse(plain(200, {"models": sorted(served.models)}))

    @app.get(
        "/v1/models/{model}",
        tags=["models"],
        summary="What serves, and what it accepts",
        responses={404: {"description": "no such model is served here"}},
    )
    async def model(model: str) -> Response:
        if model not in served.models:
            raise HTTPException(404, no_model(model))
        now = served.models[model].snapshot
        champion = now.champion.manifest
        body = {
            "name": model,
            "ready": True,
            "version": champion.version,
            "generation": now.routes.generation,
            "task": champion.task,
            "outputs": champion.outputs,
            "classes": champion.classes,
            "threshold": champion.threshold,
            "arms": {arm.name: {"version": arm.manifest.version, "share": _share(arm, now.points)} for arm in now.arms},
            "shadow": [shadow.name for shadow in now.routes.shadow],
            "schema": msgspec.to_builtins(champion.schema),
            "fingerprint": champion.schema.fingerprint,
        }
        if champion.lookup is not None:
            body["lookup"] = msgspec.to_builtins(champion.lookup)
        return AnswerResponse(plain(200, body))


def _share(arm: Arm, points: tuple[Arm, ...]) -> float:
    return sum(owner is arm for owner in points) / len(points)


def _add_errors(app: FastAPI) -> None:
    """Every error is `{"error": ...}`; none carries a traceback."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        answer = plain(error.status_code, {"error": _explain(request, error)})
        response = AnswerResponse(answer)
        response.raw_headers += list(_raw(error.headers or {}))
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return AnswerResponse(
            plain(422, {"error": f"{first['loc'][-1]}: {first['msg']}", "field": str(first["loc"][-1])})
        )

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> Response:
        return AnswerResponse(failed())


def _explain(request: Request, error: HTTPException) -> str:
    if error.status_code == 404 and error.detail == "Not Found":
        return f"no such path: {request.url.path}; /docs lists them"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return f"{request.method} is not allowed on {request.url.path}; allowed: {allowed}"
    return str(error.detail)


def _raw(headers: Mapping[str, str]) -> Iterator[tuple[bytes, bytes]]:
    for name, value in headers.items():
        yield name.lower().encode("latin-1"), value.encode("latin-1")
