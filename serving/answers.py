"""Answers as bytes: the one place that knows which error is which HTTP status, and how a score is spelled.

An Answer leaves out what the connection adds (status line, date, `connection`), so the protocol and the FastAPI twin
write the same one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

import msgspec

from serving.errors import (
    AskerGone,
    BodyMalformed,
    BodyTooLarge,
    ContentTypeRefused,
    DeadlinePassed,
    EntityUnknown,
    FieldRefused,
    LookedUpElsewhere,
    LoopLate,
    NotScored,
    NotWritten,
    Overloaded,
    OverrideRefused,
    RequestRefused,
    ViewMissing,
)

STATUS_OF: dict[type[RequestRefused], int] = {
    AskerGone: 503,
    BodyMalformed: 400,
    BodyTooLarge: 413,
    ContentTypeRefused: 415,
    OverrideRefused: 403,
    FieldRefused: 422,
    EntityUnknown: 404,
    ViewMissing: 503,
    LookedUpElsewhere: 400,
    NotScored: 500,
    NotWritten: 503,
    Overloaded: 503,
    DeadlinePassed: 503,
    LoopLate: 503,
    RequestRefused: 400,
}
RETRY_AFTER_S = itertools.cycle((1, 2, 3))  # spread, so that those refused together don't come back together
MODEL_FAILED = "the model could not score this row; the server's log has the cause"
SCORE_NOT_FINITE = "the model's score of this row is infinite, which JSON cannot carry; the traffic log has it"


class Answer(msgspec.Struct, frozen=True, gc=False):
    """`head` is whole header lines, each ended by CRLF; `body` has the length that `head` says."""

    status: int
    head: bytes
    body: bytes

    def header_pairs(self) -> list[tuple[bytes, bytes]]:
        lines = self.head.split(b"\r\n")[:-1]
        return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


Encode = Callable[[Any, bytes, int, int, int], Answer]
"""(a row's finite scores as its lane gives them, request id, parse µs, queue µs, score µs) -> Answer"""
Spell = Callable[[Any], bytes]
"""A row's finite scores -> the beginning of a JSON object, `{` to its last own field."""


Choice = Literal["only", "above", "below"]
"""Which body is the answer: the only one; or the second, if the score is above or below the threshold."""


class Wording(NamedTuple):
    """The answers of a model of one output, as templates: all that does not vary by request is laid out here, once."""

    head: bytes  # of the body's length, the id, and parse, queue and score ms
    bodies: tuple[bytes, ...]  # each of the score and the id
    choice: Choice
    threshold: float


class Openings(NamedTuple):
    """What begins the answer of a model of one output, up to and with the place of its score."""

    bodies: tuple[bytes, ...]
    choice: Choice = "only"
    threshold: float = 0.0

    @classmethod
    def of(cls, texts: Sequence[bytes], choice: Choice = "only", threshold: float = 0.0) -> Openings:
        return cls(tuple(_escaped(text) + b"%b" for text in texts), choice, threshold)

    def spell(self, score: float) -> bytes:
        second = score > self.threshold if self.choice == "above" else score < self.threshold
        return self.bodies[self.choice != "only" and second] % repr(score).encode()


def wording(openings: Openings, *, version: str, arm: str, generation: int, fallback_from: str = "") -> Wording:
    head, tail = _layout(version, arm, generation, fallback_from)
    return Wording(head, tuple(body + tail for body in openings.bodies), openings.choice, openings.threshold)


def worded_encoder(words: Wording) -> Encode:
    """The encoder of one arm whose model has one output."""
    head, (first, *others), threshold = words.head, words.bodies, words.threshold
    second = others[0] if others else first

    def encode_above(score: float, request_id: bytes, parse_us: int, queue_us: int, score_us: int) -> Answer:
        body = (second if score > threshold else first) % (repr(score).encode(), request_id)
        return Answer(
            200, head % (len(body), request_id, _ms[parse_us], _ms[queue_us], _ms[score_us]), body
        )  # fmt: skip

    def encode_below(score: float, request_id: bytes, parse_us: int, queue_us: int, score_us: int) -> Answer:
        body = (second if score < threshold else first) % (repr(score).encode(), request_id)
        return Answer(
            200, head % (len(body), request_id, _ms[parse_us], _ms[queue_us], _ms[score_us]), body
        )  # fmt: skip

    return encode_below if words.choice == "below" else encode_above


def spelling_encoder(spell: Spell, *, version: str, arm: str, generation: int, fallback_from: str = "") -> Encode:
    """The encoder of one arm whose body begins as `spell` says."""
    head, tail = _layout(version, arm, generation, fallback_from)

    def encode(scores: Any, request_id: bytes, parse_us: int, queue_us: int, score_us: int) -> Answer:
        body = spell(scores) + tail % request_id
        return Answer(
            200, head % (len(body), request_id, _ms[parse_us], _ms[queue_us], _ms[score_us]), body
        )  # fmt: skip

    return encode


def _layout(version: str, arm: str, generation: int, fallback_from: str) -> tuple[bytes, bytes]:
    """(the header lines, the end of the body), to be filled in by request."""
    marks = f"x-model-version: {version}\r\nx-arm: {arm}\r\nx-routes-generation: {generation}\r\n"
    if fallback_from:
        marks += f"x-fallback-from: {fallback_from}\r\n"
    head = (
        b"content-length: %d\r\ncontent-type: application/json\r\nx-request-id: %b\r\n"
        + marks.replace("%", "%%").encode("latin-1")
        + b"server-timing: parse;dur=%b, queue;dur=%b, score;dur=%b\r\n"
    )
    tail = _escaped(b',"model_version":%b,"arm":%b,"request_id":"' % (spelled(version), spelled(arm))) + b'%b"}'
    return head, tail


def refusal(refused: RequestRefused, request_id: bytes) -> Answer:
    """What the sender of a refused request is told."""
    body: dict[str, str | int] = {"error": refused.message}
    if refused.field is not None:
        body["field"] = refused.field
    if refused.row is not None:
        body["row"] = refused.row
    return plain(STATUS_OF[type(refused)], body, request_id)


def model_failed(request_id: bytes) -> Answer:
    return plain(500, {"error": MODEL_FAILED}, request_id)


def score_not_finite(request_id: bytes) -> Answer:
    """The model did answer, with what JSON cannot carry. Never null or a cut number: that would be another answer."""
    return plain(500, {"error": SCORE_NOT_FINITE}, request_id)


def failed() -> Answer:
    """Our own mistake. Nothing of it leaves the house."""
    return plain(500, {"error": "internal error; the server's log has the cause"})


def plain(status: int, body: object, request_id: bytes = b"") -> Answer:
    """Any JSON answer that is not a score."""
    encoded = msgspec.json.encode(body)
    head = b"content-length: %d\r\ncontent-type: application/json\r\n" % len(encoded)
    if request_id:
        head += b"x-request-id: %b\r\n" % request_id
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        head += b"retry-after: %d\r\n" % next(RETRY_AFTER_S)
    return Answer(status, head, encoded)


class _Milliseconds(dict[int, bytes]):
    """µs -> ms as text, kept once spelled: formatting three floats cost 0.4 µs of every answer."""

    LIMIT = 10_000

    def __missing__(self, us: int) -> bytes:
        text = b"%d.%03d" % divmod(us, 1000)
        if len(self) < self.LIMIT:
            self[us] = text
        return text


_ms = _Milliseconds()


def spelled(text: str) -> bytes:
    """The text as JSON."""
    return msgspec.json.encode(text)


def _escaped(template: bytes) -> bytes:
    return template.replace(b"%", b"%%")
