"""What may become of a model's routes: promote, ramp, roll back. Each makes the next generation and publishes nothing.

promote    an arm's bundle becomes the champion, alone and under a new salt: the experiment is over
ramp       an arm grows to a share, out of the champion's slots, under the same salt: nobody else moves
rollback   the content of an older generation, salt and all, under the next number
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from serving.errors import NothingToServe, RoutesRefused
from serving.routes import CHAMPION, POINTS, Routes, Slot, new_salt, split_slots, stamp


def promote(now: Routes, arm: str, *, note: str, by: str) -> Routes:
    """Raises RoutesRefused where there is no such arm to promote. Shadows go on, unless the arm was one of them."""
    candidates = {name: bundle for name, bundle in now.arms.items() if name != CHAMPION}
    candidates |= {shadow.name: shadow.bundle for shadow in now.shadow}
    if arm not in candidates:
        known = ", ".join(sorted(candidates)) or "none"
        raise RoutesRefused(f"{now.model}: generation {now.generation} has no arm {arm!r} to promote (it has: {known})")
    return replace(
        _next(now, note or f"promote {arm}", by),
        salt=new_salt(),
        slots=split_slots({CHAMPION: 1}),
        arms={CHAMPION: candidates[arm]},
        shadow=tuple(shadow for shadow in now.shadow if shadow.name != arm),
        plan=None,
    )


def ramp(now: Routes, shares: Mapping[str, float], *, note: str, by: str) -> Routes:
    """`shares` in percent, by arm. Raises RoutesRefused for an arm that would shrink, or that the champion can't feed."""
    slots = now.slots
    for arm, share in shares.items():
        if arm == CHAMPION or arm not in now.arms:
            growing = ", ".join(sorted(now.arms.keys() - {CHAMPION})) or "none"
            raise RoutesRefused(f"{now.model}: {arm!r} is no arm that could grow (there are: {growing})")
        if not 0 <= share <= 100:
            raise RoutesRefused(f"{now.model}: {arm}={share:g} is not a share in percent")
        more = round(share * POINTS / 100) - _points(slots, arm)
        if more < 0:
            raise RoutesRefused(
                f"{now.model}: {arm} has {_points(slots, arm) / 100:g} % already; a ramp never takes from a growing arm. "
                "Roll back, or start anew with `coppice routes publish`"
            )
        if more > _points(slots, CHAMPION):
            raise RoutesRefused(
                f"{now.model}: {arm}={share:g} takes more than the {_points(slots, CHAMPION) / 100:g} % that the champion has"
            )
        slots = tuple(_joined(_handed_over(slots, arm, more)))
    if slots == now.slots:
        raise RoutesRefused(f"{now.model}: the shares are these already")
    told = ", ".join(f"{arm} to {share:g} %" for arm, share in shares.items())
    return replace(_next(now, note or f"ramp {told}", by), slots=slots)


def rollback(now: Routes, older: Routes, *, note: str, by: str) -> Routes:
    """To be published with `restores=older.generation`."""
    if older.generation >= now.generation:
        raise NothingToServe(f"{now.model}: generation {older.generation} is not older than {now.generation}")
    told = note or f"roll back to generation {older.generation}"
    return replace(older, generation=now.generation + 1, note=told, by=by, at=stamp())


def _next(now: Routes, note: str, by: str) -> Routes:
    return replace(now, generation=now.generation + 1, note=note, by=by, at=stamp())


def _points(slots: tuple[Slot, ...], arm: str) -> int:
    return sum(slot.hi - slot.lo for slot in slots if slot.arm == arm)


def _handed_over(slots: tuple[Slot, ...], arm: str, count: int) -> Iterator[Slot]:
    """The champion's last `count` points become the arm's. `slots` in ascending order, as are those given."""
    keep = _points(slots, CHAMPION) - count
    for slot in slots:
        if slot.arm != CHAMPION:
            yield slot
            continue
        edge = min(slot.hi, slot.lo + keep)
        keep -= edge - slot.lo
        if edge > slot.lo:
            yield Slot(slot.lo, edge, CHAMPION)
        if edge < slot.hi:
            yield Slot(edge, slot.hi, arm)


def _joined(slots: Iterator[Slot]) -> Iterator[Slot]:
    """Neighbours of one arm as one slot."""
    last = next(slots)
    for slot in slots:
        if slot.arm == last.arm:
            last = Slot(last.lo, slot.hi, last.arm)
        else:
            yield last
            last = slot
    yield last
