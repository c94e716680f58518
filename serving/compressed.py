"""Compressed request bodies, inflated within a bound: a body of a thousand times its length costs no more than the limit.

`gzip` (and its old name `x-gzip`) and `deflate`, which is zlib's format by the standard and the bare stream by some
senders' habit; both are taken. One stream, whole: what follows it is no body, but for further members of gzip.
"""

from __future__ import annotations

import zlib

from serving.errors import BodyMalformed, BodyTooLarge, ContentTypeRefused

GZIP, ZLIB, BARE = 31, 15, -15  # as zlib's `wbits` has it
MOST_MEMBERS = 32  # each costs a look at all that follows it


def inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The body as it was before its `content-encoding`, of `limit` bytes at most.

    Raises ContentTypeRefused for an encoding that is none of ours, BodyTooLarge beyond the limit, BodyMalformed for
    what is not of the encoding that it says.

    >>> inflate(zlib.compress(b"{}"), b"deflate", 10)
    b'{}'
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return bytes(body)
    if name in (b"gzip", b"x-gzip"):
        return _inflated(body, GZIP, "gzip", limit)
    if name == b"deflate":
        return _inflated(body, ZLIB if _is_zlib(body) else BARE, "deflate", limit)
    raise ContentTypeRefused(f"content-encoding: must be gzip or deflate, got {encoding[:64].decode('latin-1')!r}")


def _inflated(body: bytes, wbits: int, name: str, limit: int) -> bytes:
    parts: list[bytes] = []
    left, rest = limit, body
    for _ in range(MOST_MEMBERS):
        stream = zlib.decompressobj(wbits)
        try:
            part = stream.decompress(rest, left + 1)
        except zlib.error as broken:
            raise BodyMalformed(f"content-encoding: the body is not {name}: {broken}") from None
        if len(part) > left:
            raise BodyTooLarge(f"the body inflates to more than {limit} bytes")
        if not stream.eof:
            raise BodyMalformed(f"content-encoding: the body ends within its {name} stream")
        parts.append(part)
        left -= len(part)
        rest = stream.unused_data
        if not rest:
            return b"".join(parts)
        if wbits != GZIP:
            break
    raise BodyMalformed(f"content-encoding: something follows the body's {name} stream")


def _is_zlib(body: bytes) -> bool:
    """By the check in its first two bytes, which a bare stream meets once in a thousand."""
    return len(body) >= 2 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
