"""What serving refuses, drawn as one tree.

    ServingError                  exit code 2 on the command line
    ├── SettingsRefused           an environment value or flag, named
    ├── RoutesRefused             a generation that must not be published
    │   └── GenerationTaken       another publisher was first: read again, then decide
    ├── NothingToServe            no routes or no bundle where the store was looked at
    ├── StoreUnreachable          the release store can't be read or written just now
    └── RequestRefused            a request, with the reason its sender is told
        ├── BodyMalformed         not JSON, or not a JSON object
        ├── BodyTooLarge          longer than the limit
        ├── ContentTypeRefused    a body of another kind
        ├── OverrideRefused       `x-arm` by who may not
        ├── FieldRefused          one named field is missing, of the wrong type or out of range
        ├── EntityUnknown         the view has no such entity, and the model no default
        ├── ViewMissing           the view can't be looked at just now
        ├── LookedUpElsewhere     no refusal to who can wait: the features come over the network
        ├── NotScored             a row that the model failed on, where the answer has no place to say which
        ├── NotWritten            outcomes that are not on disk: to be sent again
        └── Overloaded            the lane's queue is full
            ├── DeadlinePassed    the answer would come, or came, too late for its asker
            ├── LoopLate          the worker is behind
            └── AskerGone         nobody waits for the answer any more

Domain code raises these; `serving.answers` alone knows which HTTP status each becomes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self


class ServingError(Exception):
    exit_code = 2


class SettingsRefused(ServingError):
    pass


class RoutesRefused(ServingError):
    pass


class GenerationTaken(RoutesRefused):
    pass


class NothingToServe(ServingError):
    pass


class StoreUnreachable(ServingError):
    pass


class RequestRefused(ServingError):
    """`field` is the feature that caused the refusal, `row` the place of its row among many; None where no single one did."""

    def __init__(self, message: str, field: str | None = None, row: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.row = row

    def of_row(self, row: int) -> Self:
        """The same, of the row in that place."""
        return type(self)(f"row {row}: {self.message}", self.field, row)


class BodyMalformed(RequestRefused):
    pass


class BodyTooLarge(RequestRefused):
    @classmethod
    def over(cls, limit: int) -> BodyTooLarge:
        return cls(f"the body is longer than {limit} bytes")

    @classmethod
    def of_rows(cls, limit: int) -> BodyTooLarge:
        return cls(f"the request has more than {limit} rows; send them in several")


class ContentTypeRefused(RequestRefused):
    pass


class OverrideRefused(RequestRefused):
    pass


class FieldRefused(RequestRefused):
    pass


class EntityUnknown(RequestRefused):
    pass


class ViewMissing(RequestRefused):
    pass


Found = Callable[["bytes | ViewMissing | None"], None]
"""What the view has of the entity, None where it has none, or why it could not be asked."""


class LookedUpElsewhere(RequestRefused):
    """`ask` begins the look-up and tells later, on the loop's thread; `complete` makes the body of what was found."""

    ask: Callable[[Found], None]
    complete: Callable[[bytes | None], bytes]

    @classmethod
    def by(cls, ask: Callable[[Found], None]) -> LookedUpElsewhere:
        refused = cls("entity: a view in Redis is looked up for single requests, at the scoring paths alone", "entity")
        refused.ask = ask
        return refused


class NotScored(RequestRefused):
    pass


class NotWritten(RequestRefused):
    pass


class Overloaded(RequestRefused):
    pass


class DeadlinePassed(Overloaded):
    pass


class LoopLate(Overloaded):
    pass


class AskerGone(Overloaded):
    pass
