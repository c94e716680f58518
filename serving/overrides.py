"""The header `x-arm`: a tester names the arm that answers. Only with an API key whose line says `override`.

Such a request sees the live snapshot with that arm in the champion's place, whatever the split: its rows, the champion's
where the arm fails among them, are logged under the role `override`, so that experiments, which read the role `served`,
leave them out; and shadows do not see it. The request holds the snapshot that the arms are of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from serving import page
from serving.answers import Answer
from serving.errors import RequestRefused
from serving.live import Arm, Live, Snapshot
from serving.scoring import Reply, Score
from serving.segments import Tag


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False, kw_only=True)
class Forced(Snapshot):
    """As the live one, but that one arm answers all."""

    base: Snapshot  # lanes are open as long as it is held


class Overrides:
    """One worker's; belongs to its loop's thread. Every `Score` that may be asked so is told by `learn`."""

    def __init__(self, scorer_of: Callable[[Live], Score], register: Callable[[Tag], int], slot: page.Slot) -> None:
        """`scorer_of` makes the scoring function of a champion's path."""
        self._scorer_of = scorer_of
        self._register = register
        self._cells = slot.cells
        self._lives: WeakKeyDictionary[Score, Live] = WeakKeyDictionary()
        self._stand_in: Live | None = None
        self._score: Score | None = None

    def learn(self, score: Score, live: Live) -> None:
        self._lives[score] = live

    def score_of(self, score: Score, arm: bytes) -> Score:
        """`score`, answered by that arm. Raises RequestRefused where the routes have no such arm."""
        forced = self._forced(self._lives[score].snapshot, arm.decode("latin-1"))
        self._cells[page.OVERRIDES] += 1
        if self._stand_in is None or self._score is None:
            self._stand_in = Live(forced)
            self._score = self._scorer_of(self._stand_in)
        stand_in, answer = self._stand_in, self._score

        def forced_score(
            body: bytes, request_id: bytes, unit: bytes, timeout: bytes, arrived: int, reply: Reply
        ) -> Answer | None:
            stand_in.snapshot = forced  # scoring looks at it once, before it returns
            try:
                return answer(body, request_id, unit, timeout, arrived, reply)
            finally:
                del stand_in.snapshot  # which would keep its bundles open

        return forced_score

    def _forced(self, now: Snapshot, name: str) -> Forced:
        found = [arm for arm in now.arms if arm.name == name]
        if not found:
            names = ", ".join(arm.name for arm in now.arms)
            raise RequestRefused(f"x-arm: {name[:64]!r} is no arm of {now.routes.model}; it has {names}")
        same: dict[str, Any] = {field.name: getattr(now, field.name) for field in fields(Snapshot)}
        return Forced(**(same | {"champion": self._marked(now, found[0]), "shadows": ()}), base=now)

    def _marked(self, now: Snapshot, arm: Arm) -> Arm:
        fallback = arm.fallback and self._marked(now, arm.fallback)
        tag = Tag(
            model=arm.manifest.model,
            version=arm.manifest.version,
            arm=arm.name,
            generation=now.routes.generation,
            role="override",
            schema=arm.manifest.schema.fingerprint,
        )
        return msgspec.structs.replace(arm, tag=self._register(tag), fallback=fallback)
