"""Inflating is bounded, exact, and refuses what is not what it says."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.compressed import MOST_MEMBERS, inflate
from serving.errors import BodyMalformed, BodyTooLarge, ContentTypeRefused


def bare(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


@given(st.binary(max_size=2000), st.sampled_from([b"gzip", b"GZIP ", b"x-gzip", b"deflate", b"identity", b""]))
def test_what_was_compressed_comes_back(data: bytes, encoding: bytes) -> None:
    name = encoding.strip().lower()
    senders = {b"gzip": [gzip.compress], b"x-gzip": [gzip.compress], b"deflate": [zlib.compress, bare]}
    for compress in senders.get(name, [bytes]):
        sent = compress(data)
        assert inflate(sent, encoding, len(data)) == data
        if name in senders and data:
            with pytest.raises(BodyTooLarge, match=str(len(data) - 1)):
                inflate(sent, encoding, len(data) - 1)
            with pytest.raises(BodyMalformed):
                inflate(sent[:-1], encoding, len(data))
            with pytest.raises(BodyMalformed):
                inflate(sent + b"x", encoding, len(data))


@given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate"]))
def test_any_bytes_are_inflated_or_refused(data: bytes, encoding: bytes) -> None:
    with contextlib.suppress(BodyMalformed, BodyTooLarge):
        assert len(inflate(data, encoding, 1000)) <= 1000


def test_a_bomb_costs_the_limit() -> None:
    spaces = b" " * 100_000_000
    bombs = {b"gzip": gzip.compress(spaces), b"deflate": zlib.compress(spaces)}
    tracemalloc.start()
    for encoding, body in bombs.items():
        with pytest.raises(BodyTooLarge):
            inflate(body, encoding, 65_536)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_members_are_joined_and_counted() -> None:
    assert inflate(gzip.compress(b"{") + gzip.compress(b"}"), b"gzip", 10) == b"{}"
    assert inflate(gzip.compress(b"") * MOST_MEMBERS, b"gzip", 10) == b""
    with pytest.raises(BodyMalformed, match="follows"):
        inflate(gzip.compress(b"") * (MOST_MEMBERS + 1), b"gzip", 10)


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, gzip", b"compress", b"\xe9"])
def test_other_encodings_are_named(encoding: bytes) -> None:
    with pytest.raises(ContentTypeRefused, match="content-encoding"):
        inflate(b"{}", encoding, 10)
