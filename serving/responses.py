"""What every route of the application needs: a body read within its limit, an Answer as a response, a 404 that helps."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from fastapi import Request
from fastapi.responses import Response

from serving.answers import Answer
from serving.compressed import inflate
from serving.errors import BodyTooLarge


class AnswerResponse(Response):
    """Writes an Answer's own header lines, in their order."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(content=answer.body, status_code=answer.status)
        self.raw_headers = answer.header_pairs()


async def read_body(request: Request, limit: int) -> tuple[bytes, int]:
    """The body, and its length; no more than the limit of it is kept or, if it is longer, waited for."""
    chunks, received = [], 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            break
        chunks.append(chunk)
    return b"".join(chunks), received


def told_length(request: Request) -> str | None:
    """What the sender says of the body's length; None of one that will grow."""
    return None if "content-encoding" in request.headers else request.headers.get("content-length")


async def read_content(request: Request, limit: int, thread: Executor) -> bytes:
    """The body, inflated by `thread` where it is compressed. Raises BodyTooLarge, and what `inflate` does."""
    body, received = await read_body(request, limit)
    if received > limit:
        raise BodyTooLarge.over(limit)
    encoding = ", ".join(request.headers.getlist("content-encoding")).encode("latin-1")
    if not encoding:
        return body
    return await asyncio.get_running_loop().run_in_executor(thread, inflate, body, encoding, limit)


def no_model(name: str) -> str:
    """`name` empty: none was named, and there is no default."""
    which = f"no model {name!r} is served here" if name else "several models are served here and none is the default"
    return f"{which}; GET /v1/models lists them"
