"""What the routes of other servers' protocols share: one request, from its body to its answer, in that protocol's words.

A protocol says how a body becomes rows and how scores become a body (`Question`), and how a refusal is spelled (`Refuse`).
The rest is as at `/predict/batch`: bounded bodies, the schema's rules, the lanes, the log, the marks in the headers. A body
may be compressed (gzip, deflate), and so may an answer of `WORTH_BYTES` or more, where the sender accepts it.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Callable
from time import perf_counter_ns, time_ns

import msgspec
from fastapi import Request
from fastapi.responses import Response

from serving.answers import STATUS_OF, Answer, plain
from serving.errors import RequestRefused
from serving.heads import named_headers
from serving.live import Arm, Snapshot
from serving.many import Context, sane_id
from serving.question import Question, Read, answer_question
from serving.responses import AnswerResponse, told_length

logger = logging.getLogger("coppice")

WORTH_BYTES = 1024  # below this, compressing costs more than it saves
BROKEN = "internal error; the server's log has the cause"


Refuse = Callable[[int, str, bytes], Answer]
"""(status, message, request id) -> the refusal, as the protocol spells it"""


async def exchange(context: Context, request: Request, now: Snapshot, arm: Arm, read: Read, refuse: Refuse) -> Response:
    """The answer of `arm` to the request. Never raises."""
    arrived = perf_counter_ns()
    request_id = sane_id(context, named_headers(request.headers.raw)[0], time_ns() // 1000)
    try:
        with context.body(told_length(request)):
            answer = await _answer(context, request, now, arm, read, request_id, arrived)
    except RequestRefused as refused:
        answer = refuse(status_of(refused), refused.message, request_id)
    except Exception:  # endpoint edge: this request fails, its connection and its worker go on
        logger.exception("a request of many rows failed")
        answer = refuse(500, BROKEN, request_id)
    return AnswerResponse(answer)


def refuse_v2(status: int, message: str, request_id: bytes) -> Answer:
    """As v2 and KServe v1 spell it."""
    return plain(status, {"error": message}, request_id)


def status_of(refused: RequestRefused) -> int:
    """As at our own paths, but that a value against the schema is a 400: these protocols know no 422."""
    status = STATUS_OF[type(refused)]
    return 400 if status == 422 else status


def alone(arm: Arm) -> Arm:
    """The arm without the champion behind it: who asks for a version must not get another's answer."""
    return msgspec.structs.replace(arm, fallback=None)


def compressed(answer: Answer, accepted: str) -> Answer:
    """The answer in the first of gzip and deflate that an accept-encoding names, where that is worth it."""
    offers = [offer.partition(";") for offer in accepted.lower().split(",")]
    names = {name.strip() for name, _, weight in offers if weight.replace(" ", "") not in ("q=0", "q=0.0")}
    name = next((name for name in ("gzip", "deflate") if name in names), "")
    if not name or len(answer.body) < WORTH_BYTES:
        return answer
    body = gzip.compress(answer.body, 1, mtime=0) if name == "gzip" else zlib.compress(answer.body, 1)
    head = answer.head.replace(b"content-length: %d\r\n" % len(answer.body), b"content-length: %d\r\n" % len(body), 1)
    return Answer(answer.status, head + f"content-encoding: {name}\r\nvary: accept-encoding\r\n".encode(), body)


async def _answer(
    context: Context, request: Request, now: Snapshot, arm: Arm, read: Read, request_id: bytes, arrived: int
) -> Answer:
    _, unit, _, timeout, _ = named_headers(request.headers.raw)
    accepted = request.headers.get("accept-encoding", "")

    def read_it(body: bytes) -> Question:
        asked = read(body)
        return asked._replace(write=lambda many: compressed(asked.write(many), accepted))

    return await answer_question(
        context, request, now, arm, read_it, request_id=request_id, unit=unit, timeout=timeout, arrived=arrived
    )
