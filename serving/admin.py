"""The admin API: routes are looked at and changed over HTTP, behind keys of their own. Off unless COPPICE_ADMIN_KEYS is set.

    GET  /v1/admin/routes/{model}                                   the present generation
    POST /v1/admin/routes/{model}/publish|promote|rollback|ramp     {"note": "why", ...}: the generation made (`Change`)

Keys come as `Authorization: Bearer KEY`; `serving.api_keys` says what COPPICE_ADMIN_KEYS may hold. What is done goes
through `serving.releasing`, in a process of its own; the log and the note's `by` have the key's name, never the key.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast, get_args

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response

from serving import page
from serving.admin_documentation import describe_admin
from serving.answers import plain
from serving.api_keys import Keys
from serving.releasing import Change, Outcome, Verb
from serving.releasing import Request as Asked
from serving.settings import Settings

logger = logging.getLogger("coppice")

TIMEOUT_S = 120.0
MOST_WAITING = 4
MAX_BODY_BYTES = 1 << 16
VERBS: tuple[str, ...] = get_args(Verb)


@dataclass(slots=True)
class Admin:
    """One worker's. A change takes half a second or more: one runs at a time, few wait, the next is told to come again."""

    settings: Settings
    slot: page.Slot
    keys: Keys
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0

    @classmethod
    def of(cls, settings: Settings, slot: page.Slot) -> Admin | None:
        return cls(settings, slot, Keys(settings.admin_keys, "COPPICE_ADMIN_KEYS")) if settings.admin_keys else None

    async def handle(self, request: Request, model: str, verb: Verb) -> Outcome:
        sent = _bearer(request)
        key = self.keys.who(sent)
        name = key.name if key else ""
        if key is None:
            outcome = Outcome(
                403 if sent else 401, "this needs a key of COPPICE_ADMIN_KEYS, as `authorization: Bearer KEY`"
            )
        else:
            outcome = await self._do(request, model, verb, f"admin key {name}")
        self.slot.cells[page.ADMIN_DONE if outcome.status == 200 else page.ADMIN_REFUSED] += 1
        generation = outcome.routes.generation if outcome.routes else "-"
        logger.info(
            "admin %s %.64r by %s: %d, generation %s %s", verb, model, name, outcome.status, generation, outcome.error
        )
        return outcome

    async def _do(self, request: Request, model: str, verb: Verb, by: str) -> Outcome:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return Outcome(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
        try:
            change = msgspec.json.decode(body or b"{}", type=Change)
        except (msgspec.MsgspecError, RecursionError) as malformed:
            return Outcome(400, str(malformed))
        if change.plan is not None:
            return Outcome(422, "plan: `coppice experiment start` checks a plan and publishes it")
        if self.waiting >= MOST_WAITING:
            return Outcome(503, f"{MOST_WAITING} changes are waiting already")
        asked = Asked(self.settings.store, self.settings.trust, verb, model, by, change)
        self.waiting += 1
        try:
            async with self.turn:
                return await _elsewhere(asked)
        finally:
            self.waiting -= 1


def add_admin(app: FastAPI, admin: Admin) -> None:
    def endpoint(verb: Verb) -> Callable[..., Awaitable[Response]]:
        async def asked(request: Request, model: str) -> Response:
            outcome = await admin.handle(request, model, verb)
            body: object = {"error": outcome.error} if outcome.error else msgspec.to_builtins(outcome.routes)
            answer = plain(outcome.status, body)
            asks = {"www-authenticate": "Bearer"} if outcome.status == 401 else {}
            return Response(answer.body, answer.status, dict(_texts(answer.header_pairs())) | asks)

        return asked

    for word in VERBS:
        verb = cast(Verb, word)
        path, method = "/v1/admin/routes/{model}", "GET"
        if verb != "show":
            path, method = f"{path}/{verb}", "POST"
        app.add_api_route(
            path, endpoint(verb), methods=[method], tags=["admin"], name=f"admin_{verb}", summary=f"{verb} routes",
            openapi_extra=describe_admin(verb),
        )  # fmt: skip


async def _elsewhere(asked: Asked) -> Outcome:
    """`serving.releasing` as a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = asyncio.subprocess.PIPE
    ran = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "serving.releasing", stdin=pipe, stdout=pipe, stderr=pipe, env=environment
    )
    try:
        out, err = await asyncio.wait_for(ran.communicate(msgspec.json.encode(asked)), TIMEOUT_S)
    except TimeoutError:
        ran.kill()
        await ran.wait()
        return Outcome(503, f"not done within {TIMEOUT_S:g} s; look at the routes before you ask again")
    if ran.returncode:
        logger.error("admin: %s", err.decode(errors="replace")[-2000:])
        return Outcome(500, "internal error; the server's log has the cause")
    return msgspec.json.decode(out, type=Outcome)


def _bearer(request: Request) -> bytes:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip().encode() if scheme.lower() == "bearer" else b""


def _texts(pairs: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in pairs]
