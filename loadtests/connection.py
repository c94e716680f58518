"""One HTTP/1.1 connection to the server, kept open: a request's bytes out, its answer's status and headers back.

Of what the answer may be, it knows what our servers send: a status line, headers, `content-length`. It costs a fifth of
what a full client does, so that one core can send some thousand requests a second and their times are the server's.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from gevent import socket

ANSWER_S = 10.0
LONGEST_HEAD = 1 << 16


class AnswerFailed(Exception):
    """No whole answer came: why."""


class Connection:
    """Not shared. After AnswerFailed, the next `ask` connects anew."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._to = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.host = parts.netloc
        self._socket: socket.socket | None = None

    def ask(self, request: bytes) -> tuple[int, bytes, int]:
        """(status, head, bytes of the body). Raises AnswerFailed."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._to, timeout=ANSWER_S)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(request)
            status, head, length = self._read(self._socket)
        except (OSError, ValueError, AnswerFailed) as failure:
            self.close()
            raise AnswerFailed(str(failure) or type(failure).__name__) from None
        if header(head, b"connection").lower() == b"close":
            self.close()
        return status, head, length

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @staticmethod
    def _read(from_: socket.socket) -> tuple[int, bytes, int]:
        got = b""
        while (end := got.find(b"\r\n\r\n")) < 0:
            more = from_.recv(1 << 16)
            if not more or len(got) > LONGEST_HEAD:
                raise AnswerFailed("the server closed the connection" if not more else "the answer's head has no end")
            got += more
        head = got[:end]
        length = int(header(head, b"content-length") or b"-1")
        if length < 0:
            raise AnswerFailed("the answer has no content-length")
        missing = length - (len(got) - end - 4)
        while missing > 0:
            more = from_.recv(min(missing, 1 << 20))
            if not more:
                raise AnswerFailed("the server closed the connection within an answer")
            missing -= len(more)
        return int(head.split(b" ", 2)[1]), head, length


def header(head: bytes, name: bytes) -> bytes:
    """Its value; empty where there is none. `name` is in small letters.

    >>> header(b"HTTP/1.1 200 OK\\r\\nX-Request-Id: 0A\\r\\ncontent-length: 2", b"x-request-id")
    b'0A'
    """
    begin = head.lower().find(b"\r\n" + name + b":")
    return head[begin + len(name) + 3 :].split(b"\r\n", 1)[0].strip() if begin >= 0 else b""
