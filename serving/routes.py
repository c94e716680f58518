"""Who serves what: a frozen snapshot per model, and its append-only generations.

A generation is one file of a release store, written once:

    <store>/routes/<model>/<generation, 8 digits>.json

    {"format": 1, "model": "churn", "generation": 7, "salt": "<32 hex digits>",
     "slots": [[0, 5000, "champion"], [5000, 10000, "challenger"]],
     "arms": {"champion": "<bundle digest>", "challenger": "<bundle digest>"},
     "shadow": [{"name": "candidate", "bundle": "<bundle digest>", "sample": 0.25}],
     "plan": null, "note": "why", "by": "who", "at": "2026-01-31T12:00:00Z"}

Slots cover 0..10,000 without gap or overlap, in ascending order, and an arm may own several. The store creates the file
under its final name and whole, or fails if it exists (`serving.store`), so of two publishers one wins and the other raises
GenerationTaken; a reader never sees half a file. The highest number is the present generation. A rollback publishes
an older content under a newer number; nothing is ever edited or deleted.

Assignment: blake2b(unit, key=salt), 8 bytes, big-endian, scaled to 0..9,999. It depends on nothing else, so every worker
on every host agrees. A ramp keeps the salt and may give slots of the champion to another arm, never take one back:
`publish` refuses what would move a unit from one arm to another in the middle of an experiment. A rollback may: it puts
every unit back to where the older generation had it.

`plan` is the experiment that runs, as JSON: here its shape is checked (`name`, and `challengers` that are arms), by
`monitoring.plan` what it asks. As long as the salt stays, so does the plan.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import UTC, datetime
from typing import Any

import msgspec

from serving.errors import GenerationTaken, NothingToServe, RoutesRefused
from serving.store import Where, file_name, open_store

POINTS = 10_000
CHAMPION = "champion"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """Points lo <= point < hi belong to `arm`."""

    lo: int
    hi: int
    arm: str


class Shadow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle that is scored after the answer, for the share `sample` (0..1] of all requests, and never answers."""

    name: str
    bundle: str
    sample: float = 1.0


class Routes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who serves what, right now. Never edited: a change is a new Routes under a higher generation."""

    format: int = 1
    model: str
    generation: int
    salt: str
    slots: tuple[Slot, ...]
    arms: dict[str, str]
    shadow: tuple[Shadow, ...] = ()
    plan: dict[str, Any] | None = None
    note: str = ""
    by: str = ""
    at: str = ""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def bundles(self) -> tuple[str, ...]:
        """The digests of all bundles that it names, arms first, each once."""
        return tuple(dict.fromkeys([*self.arms.values(), *(shadow.bundle for shadow in self.shadow)]))

    def point_of(self, unit: bytes) -> int:
        """0..9,999. Same unit and salt give the same point, in every worker on every host."""
        digest = hashlib.blake2b(unit, digest_size=8, key=bytes.fromhex(self.salt)).digest()
        return int.from_bytes(digest, "big") * POINTS >> 64

    def arm_for(self, unit: bytes) -> str:
        point = self.point_of(unit)
        return next(slot.arm for slot in self.slots if point < slot.hi)


def split_slots(shares: dict[str, float]) -> tuple[Slot, ...]:
    """Contiguous slots in proportion to `shares` (any positive scale: 50/50, 90/10, 0.9/0.1).

    >>> split_slots({"champion": 90, "challenger": 10})
    (Slot(lo=0, hi=9000, arm='champion'), Slot(lo=9000, hi=10000, arm='challenger'))
    """
    total = sum(shares.values())
    if not shares or min(shares.values()) < 0 or total <= 0:
        raise RoutesRefused(f"split: shares must be zero or more and not all zero, got {shares}")
    slots, lo, seen = [], 0, 0.0
    for arm, share in shares.items():
        seen += share
        hi = round(POINTS * seen / total)
        if hi > lo:
            slots.append(Slot(lo, hi, arm))
        lo = hi
    return tuple(slots)


def new_salt() -> str:
    """A fresh salt, for a new experiment. A ramp keeps the salt of the one before."""
    return secrets.token_hex(16)


def publish(store: Where, routes: Routes, *, restores: int | None = None) -> str:
    """Write `routes` as its generation; once this returns, the generation exists for good. Where it is, for people.

    Raises GenerationTaken if that number exists, RoutesRefused for what `check_next` refuses.
    """
    opened = open_store(store)
    check_next(opened, routes, restores=restores)
    return opened.create(routes.model, routes.generation, encode(routes))


def check_next(store: Where, routes: Routes, *, restores: int | None = None) -> None:
    """Whether `routes` may be published now. Raises GenerationTaken if that number exists, RoutesRefused if it would skip
    a number, names a bundle the store does not hold, or would move a unit between arms under an unchanged salt - unless
    it `restores`, whole, an older generation, whose units then are where they were.
    """
    opened = open_store(store)
    before = max(opened.generations(routes.model), default=0)
    if routes.generation <= before:
        raise GenerationTaken(f"{routes.model}: generation {routes.generation} exists already; the newest is {before}")
    if routes.generation != before + 1:
        raise RoutesRefused(f"{routes.model}: generation {routes.generation} would skip {before + 1}")
    for bundle in routes.bundles:
        if not opened.holds(bundle):
            raise RoutesRefused(f"{routes.model}: bundle {bundle} is not in {opened.name}/bundles; publish it first")
    if restores is not None:
        _refuse_unlike(read(opened, routes.model, restores), routes)
    elif before:
        _refuse_reassignment(read(opened, routes.model, before), routes)


def read(store: Where, model: str, generation: int | None = None) -> Routes:
    """The given generation, or the present one. Raises NothingToServe or RoutesRefused, naming the file."""
    opened = open_store(store)
    if generation is None:
        generation = max(opened.generations(model), default=0)
    path = f"{opened.name}/routes/{model}/{file_name(generation)}"
    content = opened.read(model, generation)
    if content is None:
        raise NothingToServe(f"{path}: no such generation; `coppice routes publish {model}` makes the first")
    try:
        routes = decode(content)
    except RoutesRefused as refused:
        raise RoutesRefused(f"{path}: {refused}") from None
    if (routes.model, routes.generation) != (model, generation):
        raise RoutesRefused(f"{path}: says it is {routes.model} generation {routes.generation}")
    return routes


def encode(routes: Routes) -> bytes:
    return msgspec.json.format(msgspec.json.encode(routes), indent=2) + b"\n"


def decode(content: bytes) -> Routes:
    """Raises RoutesRefused."""
    try:
        return msgspec.json.decode(content, type=Routes)
    except (msgspec.MsgspecError, RecursionError) as malformed:
        raise RoutesRefused(str(malformed)) from None


def history(store: Where, model: str) -> list[int]:
    """All generations of the model, ascending."""
    return open_store(store).generations(model)


def models(store: Where) -> list[str]:
    """Names of the models that have routes, sorted."""
    opened = open_store(store)
    return [name for name in opened.models() if opened.generations(name)]


def stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check(routes: Routes) -> None:
    if routes.format != 1:
        raise RoutesRefused(f"format: this version reads 1, got {routes.format}")
    if routes.generation < 1:
        raise RoutesRefused(f"generation: counts from 1, got {routes.generation}")
    if not re.fullmatch(r"([0-9a-f]{2}){1,64}", routes.salt):
        raise RoutesRefused("salt: must be 1 to 64 bytes as hex digits")
    if CHAMPION not in routes.arms:
        raise RoutesRefused(f"arms: there is no {CHAMPION!r}, which answers /predict")
    names = [routes.model, *routes.arms, *(shadow.name for shadow in routes.shadow)]
    for name in names:
        if not NAME.fullmatch(name):
            raise RoutesRefused(f"name: {name!r} must be letters, digits, '.', '_' or '-', at most 64")
    if len(set(names[1:])) != len(names) - 1:
        raise RoutesRefused("shadow: an arm and a shadow, or two shadows, share a name")
    for bundle in routes.bundles:
        if not DIGEST.fullmatch(bundle):
            raise RoutesRefused(f"arms: {bundle!r} is not a bundle digest (64 hex digits)")
    for shadow in routes.shadow:
        if not 0 < shadow.sample <= 1:
            raise RoutesRefused(f"shadow {shadow.name}: sample must be in (0, 1], got {shadow.sample}")
    if routes.plan is not None:
        _check_plan(routes.plan, routes.arms)
    edge = 0
    for slot in routes.slots:
        if slot.lo != edge or slot.hi <= slot.lo:
            raise RoutesRefused(f"slots: must cover 0..{POINTS} without gap or overlap; broken at {slot.lo}..{slot.hi}")
        if slot.arm not in routes.arms:
            raise RoutesRefused(f"slots: {slot.arm!r} is not one of the arms {sorted(routes.arms)}")
        edge = slot.hi
    if edge != POINTS:
        raise RoutesRefused(f"slots: must reach {POINTS}, end at {edge}")


def _check_plan(plan: dict[str, Any], arms: dict[str, str]) -> None:
    """Its shape alone: what it asks, and whether that makes sense, is not serving's to say."""
    name, challengers = plan.get("name"), plan.get("challengers")
    if not (isinstance(name, str) and name.strip()):
        raise RoutesRefused("plan: has no name")
    if not (isinstance(challengers, list) and challengers):
        raise RoutesRefused("plan: names no challengers")
    for challenger in challengers:
        if not isinstance(challenger, str) or challenger not in arms or challenger == CHAMPION:
            raise RoutesRefused(f"plan: challenger {challenger!r} is not one of the arms {sorted(arms)}")


def _refuse_unlike(older: Routes, routes: Routes) -> None:
    for name in ("salt", "slots", "arms", "shadow", "plan"):
        if getattr(older, name) != getattr(routes, name):
            raise RoutesRefused(f"{name}: is not that of generation {older.generation}, which is to be restored")


def _refuse_reassignment(before: Routes, after: Routes) -> None:
    """Under one salt a point may go from the champion to another arm; any other move breaks an experiment."""
    if before.salt != after.salt:
        return
    if before.plan is not None and after.plan not in (None, before.plan):
        raise RoutesRefused("plan: is never edited; another plan is another experiment, under a new salt")
    edges = sorted({slot.lo for slot in (*before.slots, *after.slots)})
    for point in edges:
        old = next(slot.arm for slot in before.slots if point < slot.hi)
        new = next(slot.arm for slot in after.slots if point < slot.hi)
        if old not in (CHAMPION, new):
            raise RoutesRefused(
                f"slots: point {point} would go from {old!r} to {new!r} under the same salt; a ramp only takes from "
                f"{CHAMPION!r}. Start a new experiment with a new salt instead"
            )
