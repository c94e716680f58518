"""A client for the scoring endpoints, synchronous and asynchronous, on HTTPX (extra `client`).

    with Client("http://localhost:8000") as client:
        answer = client.predict({"tenure_months": 3, "plan": "basic"}, unit="customer-17")
        answer["probability"], answer.arm
        client.predict_batch([{...}, {...}])["predictions"]
        client.feedback(answer.request_id, True)

A request that the server sheds (503, 429) or that found no open connection is sent again under the same request id, after
the time that `Retry-After` asks for, and within the deadline. So a row that was scored twice has one id in the log. What
the server refuses (4xx) is not sent again: `Refused` names the field. One client may be shared by threads, or by tasks.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

DONE = frozenset({200, 202})
AGAIN = frozenset({429, 502, 503, 504})
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0

Value = float | bool | str


class ClientError(Exception):
    """`Refused`, `Failed` or `Unavailable`; `request_id` finds the request in the server's log."""

    exit_code = 1

    def __init__(self, message: str, request_id: str) -> None:
        super().__init__(message)
        self.request_id = request_id


class Refused(ClientError):
    """The server does not accept the request: `status` (4xx), and `field` where one is to blame."""

    exit_code = 2

    def __init__(self, message: str, request_id: str, status: int, field: str | None) -> None:
        super().__init__(message, request_id)
        self.status = status
        self.field = field


class Failed(ClientError):
    """The server accepted the request and could not answer it (5xx but those of overload)."""


class Unavailable(ClientError):
    """No answer within the deadline: shed by the server each time, or not reached."""


class Answer(msgspec.Struct, frozen=True):
    """What was answered: `body` as the server wrote it, and whose answer it is."""

    body: dict[str, Any]
    request_id: str
    model_version: str
    arm: str
    generation: int
    attempts: int

    def __getitem__(self, name: str) -> Any:
        return self.body[name]


class _Conversation:
    """One request, whatever carries it: what to send, and after an answer or none, what to do."""

    def __init__(self, path: str, body: object, unit: str, key: str, deadline_s: float) -> None:
        self.path = path
        self.content = msgspec.json.encode(body)
        self.request_id = uuid.uuid4().hex
        self.headers = {"content-type": "application/json", "x-request-id": self.request_id}
        if unit:
            self.headers["x-unit"] = unit
        if key:
            self.headers["authorization"] = f"Bearer {key}"
        self._ends = time.monotonic() + deadline_s
        self._attempts = 0
        self._reason = "no answer"

    @property
    def left_s(self) -> float:
        """Of the deadline. Raises Unavailable where nothing is left."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise Unavailable(f"{self.path}: {self._reason}; {self._attempts} attempts", self.request_id)
        return left

    def answered(self, response: httpx.Response) -> Answer | float:
        """The answer, or how long to wait before the next attempt. Raises Refused or Failed."""
        self._attempts += 1
        body = _object(response.content)
        if response.status_code in DONE:
            headers = response.headers
            return Answer(
                body,
                self.request_id,
                headers.get("x-model-version", ""),
                headers.get("x-arm", ""),
                int(headers.get("x-routes-generation", 0)),
                self._attempts,
            )
        message = str(body.get("error", response.reason_phrase))
        if response.status_code in AGAIN:
            self._reason = f"{response.status_code}: {message}"
            return self._pause_s(response.headers.get("retry-after", ""))
        if response.status_code < 500:
            raise Refused(message, self.request_id, response.status_code, body.get("field"))
        raise Failed(message, self.request_id)

    def unreached(self, failure: httpx.TransportError) -> float:
        self._attempts += 1
        self._reason = f"{type(failure).__name__}: {failure}"
        return self._pause_s("")

    def _pause_s(self, asked: str) -> float:
        """Never past the deadline. Jittered, so that clients that were shed together do not come back together."""
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self._attempts - 1))
        wanted = float(asked) if asked.isdecimal() else 0.0
        return min(wanted + random.uniform(0.5, 1.0) * longest, max(0.0, self._ends - time.monotonic()))


class _Settings:
    def __init__(self, url: str, *, model: str = "", key: str = "", deadline_s: float = 10.0) -> None:
        """`model`: its name, or empty for the server's default one. `deadline_s`: of one call with all its attempts."""
        self._url = url.rstrip("/")
        self._prefix = f"/v1/models/{model}/predict" if model else "/predict"
        self._key = key
        self._deadline_s = deadline_s

    def _begin(self, fields: Mapping[str, object], unit: str, ab: bool) -> _Conversation:
        return self._about(self._prefix + ("/ab" if ab else ""), fields, unit)

    def _batch(self, rows: Sequence[Mapping[str, object]], unit: str, split: bool) -> _Conversation:
        return self._about(f"{self._prefix}/batch" + ("?split=1" if split else ""), {"rows": rows}, unit)

    def _about(self, path: str, body: object, unit: str = "") -> _Conversation:
        return _Conversation(path, body, unit, self._key, self._deadline_s)


class Client(_Settings):
    def __init__(self, url: str, *, model: str = "", key: str = "", deadline_s: float = 10.0) -> None:
        super().__init__(url, model=model, key=key, deadline_s=deadline_s)
        self._http = httpx.Client(base_url=self._url)

    def predict(self, fields: Mapping[str, object], *, unit: str = "", ab: bool = False) -> Answer:
        """Score one row. `ab`: the experiment's split answers, not the champion. Raises ClientError."""
        return self._converse(self._begin(fields, unit, ab))

    def predict_batch(self, rows: Sequence[Mapping[str, object]], *, unit: str = "", split: bool = False) -> Answer:
        """Score many rows in one request: `answer["predictions"]`, in their order. `split`: the experiment's arms answer,
        each row by its unit. Raises ClientError."""
        return self._converse(self._batch(rows, unit, split))

    def feedback(self, request_id: str, value: Value, *, row: int = 0, ts: float | None = None) -> None:
        """Tell what became of a scored row; returns when it is on the server's disk. Raises ClientError."""
        self.feedback_many([_outcome(request_id, value, row, ts)])

    def feedback_many(self, outcomes: Sequence[Mapping[str, object]]) -> None:
        """`feedback` of many at once, each as `/feedback` takes it: all are written, or none."""
        self._converse(self._about("/feedback", outcomes))

    def _converse(self, said: _Conversation) -> Answer:
        while True:
            try:
                response = self._http.post(said.path, content=said.content, headers=said.headers, timeout=said.left_s)
                outcome = said.answered(response)
            except httpx.TransportError as failure:
                outcome = said.unreached(failure)
            if isinstance(outcome, Answer):
                return outcome
            time.sleep(outcome)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncClient(_Settings):
    def __init__(self, url: str, *, model: str = "", key: str = "", deadline_s: float = 10.0) -> None:
        super().__init__(url, model=model, key=key, deadline_s=deadline_s)
        self._http = httpx.AsyncClient(base_url=self._url)

    async def predict(self, fields: Mapping[str, object], *, unit: str = "", ab: bool = False) -> Answer:
        """As `Client.predict`."""
        return await self._converse(self._begin(fields, unit, ab))

    async def predict_batch(
        self, rows: Sequence[Mapping[str, object]], *, unit: str = "", split: bool = False
    ) -> Answer:
        """As `Client.predict_batch`."""
        return await self._converse(self._batch(rows, unit, split))

    async def feedback(self, request_id: str, value: Value, *, row: int = 0, ts: float | None = None) -> None:
        """As `Client.feedback`."""
        await self.feedback_many([_outcome(request_id, value, row, ts)])

    async def feedback_many(self, outcomes: Sequence[Mapping[str, object]]) -> None:
        """As `Client.feedback_many`."""
        await self._converse(self._about("/feedback", outcomes))

    async def _converse(self, said: _Conversation) -> Answer:
        while True:
            try:
                response = await self._http.post(
                    said.path, content=said.content, headers=said.headers, timeout=said.left_s
                )
                outcome = said.answered(response)
            except httpx.TransportError as failure:
                outcome = said.unreached(failure)
            if isinstance(outcome, Answer):
                return outcome
            await asyncio.sleep(outcome)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


def _outcome(request_id: str, value: Value, row: int, ts: float | None) -> dict[str, object]:
    told: dict[str, object] = {"request_id": request_id, "value": value, "row": row}
    return told if ts is None else told | {"ts": ts}


def _object(content: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return body if isinstance(body, dict) else {}
