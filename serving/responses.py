"""What every route of the application needs: a body read within its limit, an Answer as a response, a 404 that helps."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from serving.answers import Answer


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


def no_model(name: str) -> str:
    """`name` empty: none was named, and there is no default."""
    which = f"no model {name!r} is served here" if name else "several models are served here and none is the default"
    return f"{which}; GET /v1/models lists them"
