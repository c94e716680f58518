"""Status line, date and server of an answer: laid out again only when uvicorn's once-a-second tick replaced the date."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from serving.heads import Headers


class LeadIn:
    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._headers: Headers = []
        self._laid_out: dict[int, bytes] = {}

    def of(self, status: int) -> bytes:
        if self._headers is not self._state.default_headers:
            self._headers = self._state.default_headers
            self._laid_out.clear()
        if status not in self._laid_out:
            lines = [name + b": " + value + b"\r\n" for name, value in self._headers]
            self._laid_out[status] = STATUS_LINE[status] + b"".join(lines)
        return self._laid_out[status]
