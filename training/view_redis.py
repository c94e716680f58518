"""A materialised view in Redis, format 1 (extra `redis`): `training.view` says what facts and rows are. A contract module.

    coppice:view:<name>                 string: JSON of `Pointer`: which generation is read, and its facts
    coppice:view:<name>:<generation>    hash: entity -> content

A writer fills a hash that nobody reads yet and that expires by itself should the writer die, then changes the pointer in one
transaction. The hash before it stays for `LEFT_S`, for readers that are still on their way to it. Readers ask for the
pointer and their rows in one round trip, and again where the pointer has changed.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from training.view import FORMAT, Facts, ViewRefused

LEFT_S = 3600
UNFINISHED_S = 86_400
AT_ONCE = 1000
TIMEOUT_S = 1.0


class Pointer(msgspec.Struct, frozen=True):
    generation: str
    facts: Facts


class RedisView:
    """One view, read. Not to be used by two threads at once."""

    def __init__(self, address: str, name: str) -> None:
        self.name = name
        self._redis = connect(address)
        self._pointer: Pointer | None = None
        self._content: bytes | None = None

    @property
    def facts(self) -> Facts | None:
        """Of what was found last. None where there was no such view."""
        return self._pointer.facts if self._pointer else None

    def find(self, entities: Sequence[str]) -> list[bytes | None]:
        """The content of each one's row. Raises ViewRefused: no such view, or no answer within a second."""
        found = self.look(entities)
        if self._pointer is None:
            raise ViewRefused(f"{key_of(self.name)}: there is no such view in Redis")
        return found

    def look(self, entities: Sequence[str] = ()) -> list[bytes | None]:
        """As `find`, without a word where there is no view."""
        from redis import RedisError

        try:
            while True:
                asked = self._redis.pipeline(transaction=False).get(key_of(self.name))
                if self._pointer is not None and entities:
                    asked.hmget(rows_of(self.name, self._pointer.generation), list(entities))
                content, *rows = asked.execute()
                if content == self._content:
                    return rows[0] if rows else []
                self._pointer = None if content is None else _decoded(content, self.name)
                self._content = content
        except RedisError as failure:
            raise ViewRefused(f"{self.name}: Redis: {failure}") from None


def write(address: str, facts: Facts, rows: Iterable[tuple[str, bytes]]) -> Facts:
    """Replace the view, whole or not at all; the facts with the number of rows. Raises ViewRefused."""
    from redis import RedisError

    redis, generation = connect(address), secrets.token_hex(8)
    hashed = rows_of(facts.view, generation)
    try:
        count, left = 0, iter(rows)
        while part := dict(islice(left, AT_ONCE)):
            count += len(part)
            redis.pipeline().hset(hashed, mapping=part).expire(hashed, UNFINISHED_S).execute()
        facts = msgspec.structs.replace(facts, rows=count)
        redis.transaction(lambda pipe: _point(pipe, Pointer(generation, facts)), key_of(facts.view))
    except RedisError as failure:
        raise ViewRefused(f"{facts.view}: Redis: {failure}") from None
    return facts


def present(address: str, name: str) -> Facts | None:
    """Of the view that is there now. Raises ViewRefused."""
    view = RedisView(address, name)
    view.look()
    return view.facts


def connect(address: str) -> Any:
    """A client. Its types say of every call that it may be asynchronous, and so tell a checker nothing."""
    try:
        from redis import ConnectionError, Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError:
        raise ViewRefused(f"{_shown(address)}: needs the package 'redis': pip install 'coppice[redis]'") from None
    try:
        again = Retry(NoBackoff(), 1, supported_errors=(ConnectionError,))  # one that was closed while idle, no more
        return Redis.from_url(address, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=again)
    except ValueError as wrong:
        raise ViewRefused(f"{_shown(address)}: {wrong}") from None


def key_of(view: str) -> str:
    return f"coppice:view:{view}"


def rows_of(view: str, generation: str) -> str:
    return f"{key_of(view)}:{generation}"


def _point(pipe: Any, pointer: Pointer) -> None:
    """In a transaction that begins anew where another writer was first."""
    name = pointer.facts.view
    before = pipe.get(key_of(name))
    pipe.multi()
    pipe.persist(rows_of(name, pointer.generation))
    pipe.set(key_of(name), msgspec.json.encode(pointer))
    if before is not None:
        pipe.expire(rows_of(name, _decoded(before, name).generation), LEFT_S)


def _decoded(content: bytes, name: str) -> Pointer:
    try:
        pointer = msgspec.json.decode(content, type=Pointer)
    except msgspec.MsgspecError as malformed:
        raise ViewRefused(f"{key_of(name)}: is no view ({malformed})") from None
    if pointer.facts.format != FORMAT:
        raise ViewRefused(f"{key_of(name)}: format {pointer.facts.format}; this version reads {FORMAT}")
    return pointer


def _shown(address: str) -> str:
    """Without what may be a password."""
    return (
        address.partition("://")[0]
        + "://"
        + address.rpartition("@")[2].removeprefix(address.partition("://")[0] + "://")
    )
