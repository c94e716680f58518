"""Telling people: an alert's event to a webhook, to Slack, or as a line of JSON on standard error.

A webhook gets the event as JSON (`Event`), with its id as `idempotency-key` and, where the delivery names a secret, the header
`x-coppice-signature: sha256=<HMAC-SHA256 of the body>`. Slack, and what is compatible with it, gets {"text": ...}.

Each try is bounded as a whole; a server that is away, slow, answers 5xx or 429 is tried again after a growing pause, or after
what its Retry-After asks for, as long as the run's time lasts. Any other answer that is not 2xx is not tried again in this run.
Addresses and keys come from the environment, and are in no error and no log.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

import msgspec

from monitoring.alert_rules import Delivery
from monitoring.errors import RulesRefused

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
LONGEST_HOLD_S = 3600.0
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class Event(msgspec.Struct, frozen=True):
    """What is told. `id` stays the same when it has to be sent again: whoever receives it twice can know."""

    id: str
    event: Literal["firing", "again", "resolved"]
    model: str
    rule: str
    kind: str
    severity: str
    subject: str
    reason: str
    since_us: int
    at_us: int
    value: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Told:
    """`failed`: why it was not delivered, "" if it was. `hold_s`: not to be asked before. `skip`: this event was at fault."""

    failed: str = ""
    hold_s: float = 0.0
    skip: bool = False


@dataclass(frozen=True)
class Address:
    """A delivery, with what the environment has of it."""

    to: Delivery
    url: str = ""
    secret: bytes = b""


def addresses(deliveries: tuple[Delivery, ...], environ: Mapping[str, str]) -> list[Address]:
    """Raises RulesRefused, naming the delivery and the variable, never what is in it."""
    return [_address(to, environ) for to in deliveries]


def _address(to: Delivery, environ: Mapping[str, str]) -> Address:
    import httpx

    if to.url_env is None:
        return Address(to)
    url = environ.get(to.url_env, "")
    try:
        sound = httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
    except (httpx.InvalidURL, TypeError, ValueError):
        sound = False
    if not sound:
        state = "has no http:// or https:// address" if url else "is not set"
        raise RulesRefused(f"deliver {to.name!r}: url_env: {to.url_env} {state}")
    secret = environ.get(to.secret_env, "") if to.secret_env else ""
    if to.secret_env and not secret:
        raise RulesRefused(f"deliver {to.name!r}: secret_env: {to.secret_env} is not set")
    return Address(to, url, secret.encode())


def deliver(address: Address, event: Event, *, until_s: float) -> Told:
    """Tells once, or says why not. `until_s`: time.monotonic() at which to give up for this run."""
    if address.to.kind == "log":
        print(msgspec.json.encode(event).decode(), file=sys.stderr, flush=True)
        return Told()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it tells the address, which is the secret
    body, headers = message(address, event)
    told = Told("no time was left in this run")
    for attempt in range(address.to.tries):
        left = until_s - time.monotonic()
        if left <= 0:
            return told
        told, again = asyncio.run(_post(address, body, headers, min(address.to.timeout_s, left)))
        pause = max(told.hold_s, min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S))
        if not again or attempt + 1 == address.to.tries or time.monotonic() + pause >= until_s:
            return told
        time.sleep(pause)
    return told


def message(address: Address, event: Event) -> tuple[bytes, dict[str, str]]:
    """Body and headers."""
    headers = {"content-type": "application/json"}
    if address.to.kind == "slack":
        return msgspec.json.encode({"text": slack_text(event)}), headers
    body = msgspec.json.encode(event)
    headers["idempotency-key"] = event.id
    if address.secret:
        headers["x-coppice-signature"] = "sha256=" + hmac.new(address.secret, body, hashlib.sha256).hexdigest()
    return body, headers


def slack_text(event: Event) -> str:
    """In Slack's own markup, in which three characters must be written otherwise.

    >>> slack_text(Event("1", "firing", "churn", "errors", "error_rate", "critical", "churn", "2% > 1%", 0, 0))
    '*firing* (critical) churn: errors - 2% &gt; 1%'
    """
    word = "still firing" if event.event == "again" else event.event
    subject = "" if event.subject == event.model else f" of {event.subject}"
    text = f"*{word}* ({event.severity}) {event.model}: {event.rule}{subject} - {event.reason}"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


async def _post(address: Address, body: bytes, headers: dict[str, str], timeout_s: float) -> tuple[Told, bool]:
    """What came of it, and whether to try again."""
    import httpx

    try:
        async with (
            httpx.AsyncClient(timeout=timeout_s) as client,
            asyncio.timeout(timeout_s),
            client.stream("POST", address.url, content=body, headers=headers) as answer,
        ):
            status, retry_after = answer.status_code, answer.headers.get("retry-after", "")
    except (TimeoutError, httpx.TimeoutException):
        return Told(f"no answer within {timeout_s:.3g} s"), True
    except (httpx.HTTPError, OSError) as why:
        return Told(f"could not be reached ({type(why).__name__})"), True
    if 200 <= status < 300:
        return Told(), False
    again = status in AGAIN
    return Told(f"answered {status}", _hold_s(retry_after) if again else 0.0, skip=not again), again


def _hold_s(retry_after: str) -> float:
    """Of seconds or an HTTP date; 0 for what is neither."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_HOLD_S) if seconds == seconds else 0.0
