"""The materialised view, format 1: the newest features of each entity, for a server to look up. A contract module.

A view is the SQLite file `<name>.view` in a folder of views:

    facts   one row, `content`: JSON of `Facts`
    rows    `entity` text, primary key; `content`, text: one JSON object of the view's features, in their order - what
            `POST /predict` would be sent for this entity. Missing is null; an infinite number is 1e400 or -1e400, which
            JSON's grammar allows and every reader of ours takes for infinite

or, in Redis, what `training.view_redis` says. `coppice features materialize` alone writes one; it never changes, but is
replaced whole by a rename, so whoever has it open reads on in the old one, and a writer that dies leaves the old one in
place. The same facts and rows give the same bytes.

A `Lookup` says how a model's requests use a view. It is part of the bundle's manifest.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sqlite3
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock

import msgspec

from training.features import FeatureSchema, InputRefused, Kind, encode_value

FORMAT = 1
SUFFIX = ".view"
ABANDONED_S = 86_400
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
REDIS = ("redis://", "rediss://")  # how the address of views in Redis begins; any other is a folder
Value = float | str | bool | None
Mark = tuple[int, int, int]


class ViewRefused(Exception):
    """No view, or not one that this version or this model can read. Names the file, or the address."""

    exit_code = 2


class Lookup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a request may name an entity, `{"entity": {<entity>: ...}}`, in place of the features.

    override: features that such a request may give beside it, which then count. default: what an unknown entity's
    features are - null, where it does not name them; None: an unknown entity is refused.
    """

    view: str
    entity: str
    override: tuple[str, ...] = ()
    default: dict[str, Value] | None = None

    def refuse_misfit(self, schema: FeatureSchema) -> None:
        """Raises InputRefused, naming the feature that the schema lacks, or whose default it does not accept."""
        if not NAME.fullmatch(self.view):
            raise InputRefused("lookup.view", "must be letters, digits and _")
        if not self.entity:
            raise InputRefused("lookup.entity", "name what the view's rows are looked up by")
        features = {feature.name: feature for feature in schema.features}
        if "entity" in features:
            raise InputRefused("entity", "a model that is asked by entity can't have a feature of that name")
        for name in (*self.override, *(self.default or {})):
            if name not in features:
                raise InputRefused(name, "lookup: is no feature of this model")
        for name, feature in features.items() if self.default is not None else ():
            encode_value(feature, (self.default or {}).get(name))


class Facts(msgspec.Struct, frozen=True):
    """Of a whole view. `features`: kind by name, in order. `as_of`: no value is of a later instant (ISO 8601, UTC)."""

    view: str
    entity: str
    features: dict[str, Kind]
    as_of: str
    rows: int
    format: int = FORMAT

    def lacks(self, schema: FeatureSchema) -> str:
        """What a model of that schema misses in the view; empty: nothing."""
        for feature in schema.features:
            kind = self.features.get(feature.name)
            if kind != feature.kind:
                return f"{feature.name} ({'not there' if kind is None else f'a {kind} there, a {feature.kind} here'})"
        return ""


def path_of(folder: Path, view: str) -> Path:
    return folder / f"{view}{SUFFIX}"


def spell(features: Mapping[str, Kind], values: Mapping[str, object]) -> bytes:
    """A row's content. NaN is missing.

    >>> spell({"a": "number", "b": "category"}, {"b": "x", "a": float("-inf")})
    b'{"a":-1e400,"b":"x"}'
    """
    return msgspec.json.encode({name: _plain(kind, values.get(name)) for name, kind in features.items()})


def write(folder: Path, facts: Facts, rows: Iterable[tuple[str, bytes]]) -> Facts:
    """Replace the view, whole or not at all; the facts with the number of rows. `rows`: entities and their content."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    handle, draft = tempfile.mkstemp(dir=folder, prefix=".draft-", suffix=SUFFIX)
    os.close(handle)
    try:
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute("BEGIN")
            database.execute("CREATE TABLE facts (content TEXT NOT NULL)")
            database.execute("CREATE TABLE rows (entity TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID")
            database.executemany("INSERT INTO rows VALUES (?, ?)", ((name, row.decode()) for name, row in rows))
            (count,) = database.execute("SELECT count(*) FROM rows").fetchone()
            facts = msgspec.structs.replace(facts, rows=count)
            database.execute("INSERT INTO facts VALUES (?)", (msgspec.json.encode(facts).decode(),))
            database.execute("COMMIT")
        os.chmod(draft, 0o644)
        _sync(draft)
        os.replace(draft, path_of(folder, facts.view))
        _sync(folder)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return facts


class ViewFile:
    """One view's file, open. Any thread, one at a time is served."""

    def __init__(self, path: Path) -> None:
        """Raises ViewRefused."""
        self.path = path
        self.mark = mark_of(path)
        try:
            address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
            self._database = sqlite3.connect(address, uri=True, check_same_thread=False)
        except sqlite3.Error as refused:
            raise ViewRefused(f"{path}: {refused}") from None
        self._lock = Lock()
        weakref.finalize(self, self._database.close)
        try:
            (content,) = self._database.execute("SELECT content FROM facts").fetchone()
            self.facts = decode_facts(content, str(path))
            self._database.execute("PRAGMA mmap_size = 1073741824")
        except (sqlite3.Error, TypeError) as refused:
            self.close()
            raise ViewRefused(f"{path}: is no view ({refused})") from None
        except ViewRefused:
            self.close()
            raise
        self._find = self._database.cursor().execute

    def find(self, entity: str) -> bytes | None:
        """The content of the entity's row. Raises ViewRefused where the disk does not give it."""
        try:
            with self._lock:
                found = self._find("SELECT content FROM rows WHERE entity = ?", (entity,)).fetchone()
        except sqlite3.Error as refused:
            raise ViewRefused(f"{self.path}: {refused}") from None
        return None if found is None else found[0].encode()

    def entities(self) -> Iterator[str]:
        for (name,) in self._database.execute("SELECT entity FROM rows ORDER BY entity"):
            yield name

    def close(self) -> None:
        with self._lock:
            self._database.close()


def mark_of(path: Path) -> Mark:
    """What tells a file from the one that replaces it. Raises ViewRefused."""
    try:
        found = os.stat(path)
    except OSError as refused:
        raise ViewRefused(f"{path}: {refused.strerror}") from None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def decode_facts(content: str | bytes, where: str) -> Facts:
    try:
        facts = msgspec.json.decode(content, type=Facts)
    except msgspec.MsgspecError as malformed:
        raise ViewRefused(f"{where}: is no view ({malformed})") from None
    if facts.format != FORMAT:
        raise ViewRefused(f"{where}: format {facts.format}; this version reads {FORMAT}")
    return facts


def listed(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))


def _plain(kind: Kind, value: object) -> object:
    if kind != "number" or not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    if math.isinf(value):
        return msgspec.Raw(b"1e400" if value > 0 else b"-1e400")
    return value


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed left behind. One that takes a day is not expected."""
    for draft in folder.glob(f".draft-*{SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > ABANDONED_S:
                draft.unlink()


def _sync(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
