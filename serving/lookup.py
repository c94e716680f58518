"""`{"entity": {"customer_id": ...}}` in a scoring body: the entity's features, looked up in a materialised view.

A view's row is the body that the client could have sent (`training.view`), so a look-up puts one body in the place of
another, and what follows - rules, refusals, the log - is as for any. A model whose bundle names no view has its plain
decoder and pays nothing; a body of all features is decoded as it ever was, and needs no view.

    entity      exactly the one key that the bundle declares; text, or a whole number, which is its digits
    beside it   features that the bundle lets a request override, which then count; another feature is a 422, and what is
                no feature of the model is ignored, as ever
    unknown     404, naming the entity; or the bundle's default
    no view     503: none there, or one that lacks what the model reads

A file is looked at where it is asked for: when it was replaced, the next look-up opens the new one. What can't be opened,
or would not do, is told in the server's log once, and the one before serves on. Any thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from serving.decoding import Decode, refuse_odd
from serving.errors import EntityUnknown, FieldRefused, LookedUpElsewhere, ViewMissing
from training.features import FeatureSchema
from training.view import REDIS, Facts, Lookup, Mark, ViewFile, ViewRefused, mark_of, path_of

logger = logging.getLogger("coppice")

ENTITY = "entity"
MAX_ENTITY_LETTERS = 256

Complete = Callable[[bytes | None], bytes]
"""What the view has of the entity, or None -> the body that stands in the request's place. Raises RequestRefused."""

NOTHING: Mapping[str, msgspec.Raw] = {}


class _Alone(msgspec.Struct, forbid_unknown_fields=True):
    """A body that is decoded in full, with nothing in it that a parser may skip."""

    entity: dict[str, str | int]


_ALONE = msgspec.json.Decoder(_Alone)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NAMED = msgspec.json.Decoder(dict[str, str | int])


class Finder(Protocol):
    """A view."""

    def find(self, entity: str) -> bytes | None:
        """The entity's features as a body. Takes some µs. Raises ViewMissing; LookedUpElsewhere, where the view is remote."""


def looking_up(decode: Decode, schema: FeatureSchema, lookup: Lookup, finder: Finder) -> Decode:
    """The decoder of a bundle with a view: `decode` with the bodies of entities made whole before.

    Raises LookedUpElsewhere, for who can wait, where the view is remote.
    """
    features = frozenset(schema.names)
    allowed = frozenset(lookup.override)
    fallback = _default(schema, lookup)
    find, alone = finder.find, _ALONE.decode

    def decode_either(body: bytes) -> bytes:
        beside = NOTHING
        try:
            entity = _entity(alone(body).entity, lookup)  # -8 µs for the usual one (`python -m serving.lookup_bench`)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            try:
                fields = _FIELDS.decode(body)
                named = fields.pop(ENTITY, None)
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                return decode(body)  # it knows the words for what is wrong
            if named is None:
                return decode(body)
            refuse_odd(body)
            entity = _entity(_keys(bytes(named), lookup), lookup)
            beside = {name: value for name, value in fields.items() if name in features}
            refuse_undeclared(beside)

        def complete(found: bytes | None) -> bytes:
            found = fallback if found is None else found
            if found is None:
                raise EntityUnknown(f"{lookup.entity}: {entity!r} is not in the view {lookup.view}", lookup.entity)
            return _overridden(found, beside) if beside else found

        try:
            found = find(entity)
        except LookedUpElsewhere as elsewhere:
            elsewhere.complete = complete
            raise
        return decode(complete(found))

    def refuse_undeclared(beside: Mapping[str, msgspec.Raw]) -> None:
        for name in beside:
            if name not in allowed:
                words = f"{name}: is looked up by {lookup.entity}, and a request may not give it beside"
                raise FieldRefused(words, name)

    return decode_either


def finder_of(address: str, schema: FeatureSchema, lookup: Lookup) -> Finder:
    """What finds the bundle's entities in the views at that address: a folder, or Redis."""
    if address.startswith(REDIS):
        from serving.lookup_redis import RedisFinder

        return RedisFinder(address, lookup, misfit_of(schema, lookup))
    return FileFinder(Path(address), schema, lookup)


class FileFinder:
    """The view's file, opened when it is first asked for and again whenever another is in its place.

    8 µs, of which a look at the file's entry takes 2: `python -m serving.lookup_bench`.
    """

    def __init__(self, folder: Path, schema: FeatureSchema, lookup: Lookup) -> None:
        self._path = path_of(folder, lookup.view)
        self._refuse = misfit_of(schema, lookup)
        self._open: ViewFile | None = None
        self._refused_mark: Mark | None = None
        self._told = ""

    def find(self, entity: str) -> bytes | None:
        try:
            mark = mark_of(self._path)
            view = self._open
            if view is None or view.mark != mark:
                view = self._look_again(mark)
            return view.find(entity)
        except ViewRefused as refused:
            raise self._missing(refused) from None

    def _look_again(self, mark: Mark) -> ViewFile:
        """Raises ViewRefused where neither the new file nor one before it will do. One that is let go is closed with its last
        user: another thread may be reading in it."""
        if mark != self._refused_mark:
            try:
                view = ViewFile(self._path)
                self._refuse(view.facts)
            except ViewRefused as refused:
                logger.error("%s%s", refused, "; the view before it serves on" if self._open else "")
                self._refused_mark = mark
            else:
                logger.info("looking up in %s: %d rows as of %s", self._path, view.facts.rows, view.facts.as_of)
                self._open = view
        if self._open is None:
            raise ViewRefused(f"{self._path}: can't be used")
        return self._open

    def _missing(self, refused: ViewRefused) -> ViewMissing:
        if str(refused) != self._told:
            self._told = str(refused)
            logger.error("%s", refused)
        return ViewMissing(f"the view {self._path.stem} can't be read here just now")


def misfit_of(schema: FeatureSchema, lookup: Lookup) -> Callable[[Facts], None]:
    def refuse(facts: Facts) -> None:
        """Raises ViewRefused where the model could not be scored by that view."""
        if facts.entity != lookup.entity:
            raise ViewRefused(f"{facts.view}: is by {facts.entity!r}; the model looks up by {lookup.entity!r}")
        lacking = facts.lacks(schema)
        if lacking:
            raise ViewRefused(f"{facts.view}: lacks a feature that the model reads: {lacking}")

    return refuse


def _keys(named: bytes, lookup: Lookup) -> dict[str, str | int]:
    try:
        return _NAMED.decode(named)
    except msgspec.MsgspecError:
        raise FieldRefused(_like(lookup), ENTITY) from None


def _entity(keys: dict[str, str | int], lookup: Lookup) -> str:
    if keys.keys() != {lookup.entity}:
        raise FieldRefused(_like(lookup), ENTITY)
    entity = str(keys[lookup.entity])
    if len(entity) > MAX_ENTITY_LETTERS:
        raise FieldRefused(f"{ENTITY}: {lookup.entity} must have at most {MAX_ENTITY_LETTERS} letters", ENTITY)
    return entity


def _like(lookup: Lookup) -> str:
    return f'{ENTITY}: must be an object such as {{"{lookup.entity}": "..."}}, its value text or a whole number'


def _default(schema: FeatureSchema, lookup: Lookup) -> bytes | None:
    if lookup.default is None:
        return None
    return msgspec.json.encode({name: lookup.default.get(name) for name in schema.names})


def _overridden(found: bytes, beside: Mapping[str, msgspec.Raw]) -> bytes:
    return msgspec.json.encode(_FIELDS.decode(found) | dict(beside))
