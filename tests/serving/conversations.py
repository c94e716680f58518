"""Conversations with a server, as bytes on a socket: one corpus for every way of serving.

A conversation is a list of steps: bytes are sent, a number is a pause in seconds, HALF closes our sending side, SILENT (last)
leaves out the closing question. At its end a conversation asks for `/healthz` and reads until that is answered or the
connection is closed, so that "is it still open, and in step?" has an answer without waiting for a clock.
"""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass

from cases import mixed_body, mixed_rows

HALF = "half-close"
SILENT = "silent"
Step = bytes | float | str

BODIES = [mixed_body(row) for row in mixed_rows(20, 11)]
BODY = BODIES[0]
CLOSING_QUESTION = b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-last: 1\r\n\r\n"
ALIVE = b'{"status":"alive"}'


def post(body: bytes = BODY, *lines: bytes, path: bytes = b"/predict", version: bytes = b"1.1") -> bytes:
    """A scoring request, with whatever header lines are given besides."""
    head = [b"POST %b HTTP/%b" % (path, version), b"host: x", b"content-type: application/json"]
    return b"\r\n".join([*head, b"content-length: %d" % len(body), *lines, b"", body])


def bare(*lines: bytes, body: bytes = b"") -> bytes:
    """A request of exactly these lines."""
    return b"\r\n".join([*lines, b"", body])


def chunked(body: bytes = BODY, size: int = 16, *lines: bytes, trailers: bytes = b"", extension: bytes = b"") -> bytes:
    head = bare(b"POST /predict HTTP/1.1", b"host: x", b"transfer-encoding: chunked", *lines)
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    return head + chunks + b"0\r\n" + trailers + b"\r\n"


LENGTH = b"content-length: %d" % len(BODY)
POST_LINE = b"POST /predict HTTP/1.1"
GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
LOST = b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n"
TWO_HOSTS = bare(POST_LINE, b"host: x", b"host: y", LENGTH, body=BODY)
NOT_OURS = b"x-other: " + b"v" * 4000

CONVERSATIONS: dict[str, list[Step]] = {
    # one request
    "a scoring request": [post()],
    "the split": [post(BODY, b"x-unit: customer 7", path=b"/predict/ab")],
    "an id of ours": [post(BODY, b"x-request-id: mine-1")],
    "a refused body": [post(b"{}")],
    "no body": [post(b"")],
    "no content-length": [bare(POST_LINE, b"host: x")],
    "no host": [bare(POST_LINE, LENGTH, body=BODY)],
    "two hosts": [TWO_HOSTS],
    "no content-type": [bare(POST_LINE, b"host: x", LENGTH, body=BODY)],
    "another content-type": [bare(POST_LINE, b"host: x", b"content-type: text/csv", LENGTH, body=BODY)],
    "a charset": [bare(POST_LINE, b"content-type: application/json; charset=utf-8", LENGTH, body=BODY)],
    "headers in capitals": [bare(POST_LINE, b"HOST: x", b"CONTENT-LENGTH: %d" % len(BODY), b"X-UNIT: a", body=BODY)],
    "a repeated x-unit": [post(BODY, b"x-unit: a", b"X-Unit: b", path=b"/predict/ab")],
    "an id with spaces": [post(BODY, b"x-request-id: a b")],
    "an empty header value": [post(BODY, b"x-other:")],
    "spaces around a value": [post(BODY, b"x-request-id:    mine   ")],
    "a tab in a value": [post(BODY, b"x-other: a\tb")],
    "latin-1 in a value": [post(BODY, b"x-other: \xe9")],
    "a long unit": [post(BODY, b"x-unit: " + b"u" * 300)],
    "a unit that is not ASCII": [post(BODY, b"x-unit: \xe9")],
    # targets and methods
    "a query string": [post(path=b"/predict?test_1=1&test_2=2")],
    "an empty query": [post(path=b"/predict?")],
    "a fragment": [post(path=b"/predict#here")],
    "an absolute target": [post(path=b"http://x/predict")],
    "an absolute target of another host": [post(BODY, b"x-unit: a", path=b"http://elsewhere:99/predict/ab")],
    "a target in escapes": [post(path=b"/%70redict")],
    "a trailing slash": [post(path=b"/predict/")],
    "two slashes": [post(path=b"//predict")],
    "dots in the target": [post(path=b"/v1/../predict")],
    "a target that is not ASCII": [post(path=b"/pr\xe9dict")],
    "a space in the target": [post(path=b"/pre dict")],
    "an asterisk": [bare(b"OPTIONS * HTTP/1.1", b"host: x")],
    "a relative target": [post(path=b"predict")],
    "GET on a scoring path": [bare(b"GET /predict HTTP/1.1", b"host: x")],
    "HEAD on a scoring path": [bare(b"HEAD /predict HTTP/1.1", b"host: x")],
    "HEAD with a body": [bare(b"HEAD /predict HTTP/1.1", b"host: x", LENGTH, body=BODY)],
    "HEAD on a health path": [bare(b"HEAD /healthz HTTP/1.1", b"host: x")],
    "OPTIONS on a scoring path": [bare(b"OPTIONS /predict HTTP/1.1", b"host: x")],
    "OPTIONS, asked for by a browser": [bare(b"OPTIONS /predict HTTP/1.1", b"host: x", b"origin: http://y")],
    "PUT with a body": [bare(b"PUT /predict HTTP/1.1", b"host: x", LENGTH, body=BODY)],
    "DELETE": [bare(b"DELETE /predict/ab HTTP/1.1", b"host: x")],
    "an unknown method": [bare(b"BREW /predict HTTP/1.1", b"host: x")],
    "a method in small letters": [bare(b"post /predict HTTP/1.1", b"host: x", LENGTH, body=BODY)],
    "CONNECT": [bare(b"CONNECT x:80 HTTP/1.1", b"host: x")],
    "an unknown path with a body": [post(path=b"/predikt")],
    # versions and keeping alive
    "HTTP/1.0": [post(version=b"1.0")],
    "HTTP/1.0, kept alive": [post(BODY, b"connection: keep-alive", version=b"1.0")],
    "HTTP/1.0, two at once": [post(BODY, b"connection: keep-alive", version=b"1.0") * 2],
    "HTTP/0.9": [b"GET /healthz\r\n\r\n"],
    "HTTP/2.0": [post(version=b"2.0")],
    "HTTP/1.2": [post(version=b"1.2")],
    "the preface of HTTP/2": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    "close": [post(BODY, b"connection: close")],
    "close, in capitals": [post(BODY, b"Connection: CLOSE")],
    "keep-alive, said": [post(BODY, b"connection: keep-alive")],
    "close and keep-alive": [post(BODY, b"connection: close, keep-alive")],
    "close, and another behind it": [post(BODY, b"connection: close") + post()],
    "close on a health path, and another": [GET.replace(b"host", b"connection: close\r\nhost") + post()],
    "close, refused": [post(b"{", b"connection: close")],
    "close, then garbage": [post(BODY, b"connection: close") + b"\x00\x01 garbage"],
    # pipelines
    "two at once": [post(BODIES[1]) + post(BODIES[2])],
    "twenty at once": [b"".join(map(post, BODIES))],
    "twenty at once, refused in turns": [b"".join(post(body) + post(b"[") for body in BODIES)],
    "health, then score": [GET + post()],
    "score, then health": [post() + GET],
    "each in turns": [(GET + post() + LOST + post(BODY, b"x-unit: a", path=b"/predict/ab")) * 5],
    "a query string between two": [post(BODIES[1]) + post(BODIES[2], path=b"/predict?x=1") + post(BODIES[3])],
    "HEAD between two": [post(BODIES[1]) + bare(b"HEAD /predict HTTP/1.1", b"host: x") + post(BODIES[2])],
    "chunks between two": [post(BODIES[1]) + chunked(BODIES[2]) + post(BODIES[3])],
    "one after another": [step for body in BODIES[:5] for step in (post(body), 0.005)],
    "a half, and the rest with the next": [(post() + post())[:300], 0.01, (post() + post())[300:]],
    "lines before a request": [b"\r\n\r\n" + post()],
    "lines between requests": [post() + b"\r\n" + post()],
    # bodies
    "chunked": [chunked()],
    "chunks of one byte": [chunked(BODY, 1)],
    "one chunk": [chunked(BODY, 10_000)],
    "chunks with an extension": [chunked(BODY, 16, extension=b";a=b")],
    "chunks with trailers that mean nothing": [chunked(BODY, 16, trailers=b"x-a: b\r\nx-c: d\r\n") + post()],
    "chunks in parts": [chunked()[:200], 0.01, chunked()[200:220], 0.01, chunked()[220:]],
    "chunk sizes in capitals": [chunked(BODY, 0xAB).replace(b"ab\r\n", b"AB\r\n", 1)],
    "no chunk but the last": [chunked(b"")],
    "a chunk size that is none": [bare(POST_LINE, b"transfer-encoding: chunked", body=b"zz\r\nabc\r\n0\r\n\r\n")],
    "a chunk longer than its size": [bare(POST_LINE, b"transfer-encoding: chunked", body=b"2\r\nabc\r\n0\r\n\r\n")],
    "a chunk size beyond 64 bits": [bare(POST_LINE, b"transfer-encoding: chunked", body=b"f" * 17 + b"\r\n")],
    "a body longer than the limit": [post(b" " * 70_000)],
    "a body longer than the limit, in chunks": [chunked(b" " * 70_000, 4096)],
    "a body at the limit": [post(BODY + b" " * (65_536 - len(BODY)))],
    "a body one above the limit": [post(BODY + b" " * (65_537 - len(BODY)))],
    "expect": [post(b"", b"expect: 100-continue").replace(b"length: 0", LENGTH[8:]), 0.1, BODY],
    "expect, and the body with it": [post(BODY, b"Expect: 100-Continue")],
    "expect something else": [post(BODY, b"expect: the-moon")],
    "expect behind another": [post() + post(BODY, b"expect: 100-continue")],
    # what smugglers send
    "two lengths that agree": [post(BODY, LENGTH)],
    "two lengths that differ": [post(BODY, b"content-length: 3")],
    "a list of lengths": [bare(POST_LINE, b"content-length: 3, 3", body=b"{} ")],
    "a length that is negative": [bare(POST_LINE, b"content-length: -1")],
    "a length with a plus": [bare(POST_LINE, b"content-length: +2", body=b"{}")],
    "a length in hexadecimal": [bare(POST_LINE, b"content-length: 0x2", body=b"{}")],
    "a length beyond 64 bits": [bare(POST_LINE, b"content-length: 99999999999999999999", body=b"{}")],
    "an empty length": [bare(POST_LINE, b"content-length:", body=b"")],
    "length and chunks": [chunked(BODY, 16, LENGTH)],
    "chunks and length": [bare(POST_LINE, b"content-length: 4", b"transfer-encoding: chunked", body=b"0\r\n\r\n")],
    "an encoding of its own": [bare(POST_LINE, b"transfer-encoding: gzip", body=BODY)],
    "chunked, and another": [bare(POST_LINE, b"transfer-encoding: chunked, gzip", body=b"0\r\n\r\n")],
    "chunked twice": [bare(POST_LINE, *[b"transfer-encoding: chunked"] * 2, body=b"0\r\n\r\n")],
    "chunked, misspelled": [bare(POST_LINE, b"transfer-encoding: xchunked", LENGTH, body=BODY)],
    "chunked with a vertical tab": [bare(POST_LINE, b"transfer-encoding: \x0bchunked", LENGTH, body=BODY)],
    "a space before the colon": [bare(POST_LINE, b"content-length : 2", body=b"{}")],
    "a header that goes on in the next line": [bare(POST_LINE, b"x-other: a", b" b", LENGTH, body=BODY)],
    "a first header that goes on": [bare(POST_LINE, b" x: y", LENGTH, body=BODY)],
    "a NUL in a value": [bare(POST_LINE, b"x-other: a\x00b", LENGTH, body=BODY)],
    "a NUL in a name": [bare(POST_LINE, b"x-o\x00: a", LENGTH, body=BODY)],
    "no colon": [bare(POST_LINE, b"x-other", LENGTH, body=BODY)],
    "bare line feeds": [post().replace(b"\r\n", b"\n")],
    "a bare carriage return": [bare(POST_LINE, b"x: a\rb", LENGTH, body=BODY)],
    "a request in a body": [post(post())],
    # garbage
    "garbage": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"],
    "garbage behind an answer": [post(), 0.05, b"\x00\x01\x02\r\n\r\n"],
    "an empty line alone": [b"\r\n"],
    # sizes
    "a header of 40 kB": [post(BODY, b"x-other: " + b"v" * 40_000)],
    "a hundred headers": [post(BODY, *[b"x-%d: v" % n for n in range(100)])],
    "a thousand headers": [post(BODY, *[b"x-%d: v" % n for n in range(1000)])],
    "a target of 30 kB": [post(path=b"/predict?" + b"q" * 30_000)],
    # partial conversations
    "half a request line": [b"POST /pre", 0.05, SILENT],
    "half a head": [post()[:60], 0.05, SILENT],
    "half a body": [post()[:-10], 0.05, SILENT],
    "half a body behind a whole one": [post() + post()[:-10], 0.05, SILENT],
    "nothing": [0.05, SILENT],
    "half-closed in a head": [post()[:60], HALF],
    "half-closed in a body": [post()[:-10], HALF],
    "half-closed before a word": [HALF],
    "half-closed after an answer": [post(), 0.1, HALF],
}
"""Those that every way of serving answers alike, but for the DIFFERENT."""

FLOOD = [b"GET /healthz HTTP/1.1\r\nx-other: " + b"v" * 8_000_000, SILENT]
UPGRADE = [b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABk"]

DIFFERENT: dict[str, tuple[str, list[Step], list[int], str]] = {
    # title: (why we differ from uvicorn, the conversation, our statuses, how it ends)
    "an upgrade with a body": (
        "Java's client asks so for HTTP/2 by default; uvicorn loses the body",
        [post(BODY, *UPGRADE)],
        [200],
        "open",
    ),
    "an upgrade with a body behind it": (
        "uvicorn reads the body as the next request, which is a way to smuggle one",
        [post(BODY, *UPGRADE)[: -len(BODY)], 0.05, BODY],
        [200],
        "open",
    ),
    "an upgrade in chunks": (
        "as above",
        [chunked(BODY, 16, *UPGRADE)],
        [200],
        "open",
    ),
    "a request behind an upgrade": (
        "uvicorn loses it",
        [bare(b"GET /healthz HTTP/1.1", b"connection: upgrade", b"upgrade: websocket") + post()],
        [200, 200],
        "open",
    ),
    "trailers": (
        "uvicorn takes a trailer for a header, if the application did not look yet",
        [chunked(BODY, 16, trailers=b"x-unit: late\r\nx-request-id: late\r\n") + post()],
        [200, 200],
        "open",
    ),
    "half-closed behind a request": (
        "uvicorn drops the answer of who sends all and then waits; ours was written when the request was complete",
        [post(), HALF],
        [200],
        "closed",
    ),
    "garbage behind two requests": (
        "uvicorn's 400 overtakes the answers that are due and closes before them",
        [post() + post(BODIES[1]) + b"\x00\r\n\r\n"],
        [200, 200, 400],
        "closed",
    ),
    "more body than its length": ("as above", [post() + b"}}}"], [200, 400], "closed"),
    "garbage behind a slow one": (
        "as above",
        [GET + post() + b"\x00\r\n\r\n"],
        [200, 200, 400],
        "closed",
    ),
    "a head of 70 kB": (
        "uvicorn takes a head of any length, and so may be filled",
        [post(BODY, *[NOT_OURS] * 18)],
        [431],
        "closed",
    ),
    "a target of 70 kB": ("as above", [post(path=b"/predict?" + b"q" * 70_000)], [431], "closed"),
    "a head without end": ("as above", list(FLOOD), [431], "closed"),
    "a body of 24 times the limit": (
        "uvicorn reads on for ever; we tell, read on for 16 times the limit, then cut the line",
        [post(b" " * (24 * 65_536)), SILENT],
        [],
        "closed",
    ),
}


@dataclass(frozen=True)
class Heard:
    """What came back, ids and times taken out, and how it ended: "open" or "closed"."""

    said: bytes
    end: str

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in ANSWER.findall(self.said)]


ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def hold(port: int, steps: list[Step], quiet_s: float = 0.4, answers: int = 0) -> Heard:
    """The conversation, held with the server at `port`. `answers`: how many there will be to the steps, where that is known:
    then nothing is concluded from a silence.
    """
    silent = steps[-1] == SILENT
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for step in [step for step in steps if step != SILENT]:
                _take(connection, step)
            if not silent and HALF not in steps:
                connection.sendall(CLOSING_QUESTION)
        except (BrokenPipeError, ConnectionResetError):
            pass  # closed meanwhile: what was said before is read all the same
        waits = not silent and HALF not in steps
        return _listen(connection, quiet_s if silent else 10.0, waits=waits, answers=answers)


def _take(connection: socket.socket, step: Step) -> None:
    if isinstance(step, bytes):
        connection.sendall(step)
    elif step == HALF:
        connection.shutdown(socket.SHUT_WR)
    else:
        assert isinstance(step, float)
        time.sleep(step)


def _listen(connection: socket.socket, quiet_s: float, *, waits: bool, answers: int) -> Heard:
    received = b""
    connection.settimeout(quiet_s)
    while True:
        try:
            chunk = connection.recv(1 << 16)
        except TimeoutError:
            return Heard(normal(received), "open")
        except ConnectionResetError:
            return Heard(normal(received), "closed")
        if not chunk:
            return Heard(normal(received), "closed")
        received += chunk
        if not waits or not received.endswith(ALIVE):
            continue
        if len(ANSWER.findall(received)) > answers if answers else not _more(connection):
            return Heard(normal(received.rpartition(b"HTTP/1.1 ")[0]), "open")


def _more(connection: socket.socket) -> bool:
    """Does anything follow at once? An answer to `/healthz` may be another than the closing one."""
    connection.settimeout(0.05)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True  # that it is closed, which the next read finds
    finally:
        connection.settimeout(10)


def normal(said: bytes) -> bytes:
    """Ids, dates and times taken out; an uvicorn's plain 400 in our words."""
    for pattern, plain in (
        (rb"\r\ndate: [^\r]*", b"\r\ndate: -"),
        (rb"\r\nx-request-id: [0-9a-zA-Z]{28}\r", b"\r\nx-request-id: -\r"),
        (rb'"request_id":"[0-9a-zA-Z]{28}"', b'"request_id":"-"'),
        (rb"\r\nserver-timing: [^\r]*", b"\r\nserver-timing: -"),
    ):
        said = re.sub(pattern, plain, said)
    return said.replace(UVICORNS_400, OUR_400)


UVICORNS_400 = (
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\nconnection: close\r\n\r\n"
    b"Invalid HTTP request received."
)
OUR_400 = (
    b"content-length: 42\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    b'{"error":"Invalid HTTP request received."}'
)
