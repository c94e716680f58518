"""What a worker serves now: one frozen snapshot per routes generation, built beside the old one and swapped whole.

A bundle is open once in a worker, however many generations name it: each `Opened` is counted by what uses it, and let go
when the last snapshot that does is gone. A snapshot is gone when the next one is live and no request holds it any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec

from compile.bundle import Manifest, locate
from compile.runtime import Predictor, open_predictor
from compile.trust import Trust
from serving import page
from serving.answers import Encode, Wording
from serving.cost import measure
from serving.decoding import Decode, decoder
from serving.inspection import refuse_other_inputs
from serving.lanes import Lane, Tally, finite_test
from serving.lookup import finder_of, looking_up
from serving.quick_rows import QuickRows
from serving.routes import CHAMPION, POINTS, Routes, read
from serving.segments import Role
from serving.settings import Settings
from serving.shadows import ShadowLane
from serving.store import local_folder
from serving.tasks import encoder, wording_of
from serving.traffic import Tag, TrafficLog


class Arm(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A bundle under the name by which the routes serve it. `fallback` answers where this arm fails."""

    name: str
    manifest: Manifest
    lane: Lane
    inline: bool
    tag: int
    put: Callable[..., None]  # the log's, for as many scores as the bundle has outputs
    finite: Callable[[Any], bool]
    encode: Encode
    words: Wording | None  # its answers as templates, where the bundle has one output
    rows_cell: int  # of the page: where its answered rows are counted
    errors_cell: int
    fallback: Arm | None = None


@dataclass(eq=False, slots=True)
class Opened:
    """A bundle that is open in this worker. `users`: the snapshots, or parts of them, that hold it."""

    predictor: Predictor
    lane: Lane
    users: int = 1


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Snapshot:
    """One generation, ready to serve. Never edited: a request may be holding it."""

    routes: Routes
    champion: Arm
    arms: tuple[Arm, ...]
    points: tuple[Arm, ...]  # the arm of each of the 10,000 points: one index replaces a search
    point_of: Callable[[bytes], int]
    shadows: tuple[ShadowLane, ...]
    decode: Decode
    quick: QuickRows | None  # its schema for C, where C takes it

    def offer_to_shadows(self, ts_us: int, request_id: bytes, unit: bytes, row: bytes, place: int = 0) -> None:
        for shadow in self.shadows:
            shadow.offer(ts_us, request_id, unit, row, place)

    def close(self) -> None:
        """Waits for the lanes' threads; for a snapshot that no request holds any more."""
        for shadow in self.shadows:
            shadow.lane.close()
        for arm in self.arms:
            arm.lane.close()


@dataclass(slots=True)
class Live:
    """The one reference to the present snapshot. A swap is one assignment, on the event loop's thread."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Prepared:
    """A generation whose bundles are open and proved: all of the loading that takes long, done off the loop."""

    routes: Routes
    arms: dict[str, Opened]
    shadows: dict[str, Opened]
    decode: Decode
    quick: QuickRows | None


@dataclass(frozen=True, slots=True)
class Loader:
    """Builds snapshots: opens bundles (which proves them on their probe), measures them, gives each its lane."""

    settings: Settings
    log: TrafficLog
    slot: page.Slot
    loop: asyncio.AbstractEventLoop
    opened: dict[tuple[str, str], Opened] = field(default_factory=dict)  # by digest, and "served" or "shadow"
    lock: Lock = field(default_factory=Lock)  # of `opened`

    def load(self, model: str, generation: int | None = None) -> Snapshot:
        """`prepare` and `build` in one, on the loop's thread; `generation` None: the newest."""
        return self.build(self.prepare(model, generation))

    def prepare(self, model: str, generation: int | None) -> Prepared:
        """Any one thread. Raises NothingToServe, RoutesRefused or compile's BundleRefused; what is live stays as it is."""
        routes = read(self._folder(), model, generation)
        arms: dict[str, Opened] = {}
        shadows: dict[str, Opened] = {}
        try:
            for name in sorted(routes.arms, key=lambda name: name != CHAMPION):
                arms[name] = self._take(routes.arms[name], "served")
            for shadow in routes.shadow:
                shadows[shadow.name] = self._take(shadow.bundle, "shadow")
            manifests = {name: opened.predictor.manifest for name, opened in (arms | shadows).items()}
            refuse_other_inputs(manifests)
            champion = manifests[CHAMPION]
            return Prepared(routes, arms, shadows, self._decoder(champion), QuickRows.of(champion.schema))
        except BaseException:
            self.let_go(*arms.values(), *shadows.values())
            raise

    def build(self, prepared: Prepared) -> Snapshot:
        """On the loop's thread: what has been opened, as the hot path wants it."""
        routes = prepared.routes
        champion = self._arm(routes, CHAMPION, prepared.arms[CHAMPION], None)
        others = [self._arm(routes, name, prepared.arms[name], champion) for name in routes.arms if name != CHAMPION]
        arms = {arm.name: arm for arm in (champion, *others)}
        shadows = tuple(self._shadow(routes, s.name, prepared.shadows[s.name], s.sample) for s in routes.shadow)
        points: list[Arm] = []
        for slot in routes.slots:
            points += [arms[slot.arm]] * (slot.hi - slot.lo)
        snapshot = Snapshot(
            routes=routes,
            champion=champion,
            arms=tuple(arms.values()),
            points=tuple(points),
            point_of=point_finder(routes),
            shadows=shadows,
            decode=prepared.decode,
            quick=prepared.quick,
        )
        self._let_go_with(snapshot, *prepared.arms.values())
        return snapshot

    def _decoder(self, champion: Manifest) -> Decode:
        decode, lookup = decoder(champion.schema), champion.lookup
        if lookup is None:
            return decode
        finder = finder_of(self.settings.views, champion.schema, lookup)
        return looking_up(decode, champion.schema, lookup, finder)

    def let_go(self, *opened: Opened) -> None:
        """Close what has no user left. Its lane is idle: a row that waits in one holds its snapshot."""
        with self.lock:
            for one in opened:
                one.users -= 1
            idle = {key: one for key, one in self.opened.items() if not one.users}
            for key in idle:
                del self.opened[key]
            self.slot.cells[page.OPEN_BUNDLES] = len(self.opened)
        for one in idle.values():
            one.lane.close()

    def _let_go_with(self, holder: object, *opened: Opened) -> None:
        """When `holder` is gone. Not at exit, where the worker closes lanes in its own order."""
        weakref.finalize(holder, self._let_go_soon, *opened).atexit = False

    def _let_go_soon(self, *opened: Opened) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.let_go, *opened)

    def _take(self, bundle: str, role: Role) -> Opened:
        with self.lock:
            found = self.opened.get((bundle, role))
            if found is not None:
                found.users += 1
                return found
        opened = Opened(*self._open(bundle))  # outside: nobody else opens bundles, and requests must not wait for it
        with self.lock:
            self.opened[bundle, role] = opened
            self.slot.cells[page.OPEN_BUNDLES] = len(self.opened)
        return opened

    def _folder(self) -> Path:
        return local_folder(self.settings.store, self.settings.traffic)

    def _arm(self, routes: Routes, name: str, opened: Opened, champion: Arm | None) -> Arm:
        manifest, lane, predictor = opened.predictor.manifest, opened.lane, opened.predictor
        series = self.slot.series(f"{manifest.model}/{manifest.version}/{name}")
        return Arm(
            name=name,
            manifest=manifest,
            lane=lane,
            inline=lane.reason == "inline",
            tag=self._tag(routes, manifest, name, "served"),
            put=self.log.put_of(predictor.outputs),
            finite=finite_test(predictor.outputs),
            encode=encoder(manifest, arm=name, generation=routes.generation),
            words=wording_of(manifest, version=manifest.version, arm=name, generation=routes.generation),
            rows_cell=series,
            errors_cell=series + 1,
            fallback=champion and self._standing_in(routes, champion, name),
        )

    def _standing_in(self, routes: Routes, champion: Arm, failed: str) -> Arm:
        """The champion where that arm failed: its answers and its rows say so."""
        manifest, generation = champion.manifest, routes.generation
        encode = encoder(manifest, arm=CHAMPION, generation=generation, fallback_from=failed)
        tag = self._tag(routes, manifest, CHAMPION, "fallback")
        return msgspec.structs.replace(champion, encode=encode, tag=tag)

    def _shadow(self, routes: Routes, name: str, opened: Opened, sample: float) -> ShadowLane:
        tag, outputs = self._tag(routes, opened.predictor.manifest, name, "shadow"), opened.predictor.outputs
        shadow = ShadowLane(
            opened.lane, sample, tag, self.log.put_of(outputs), finite_test(outputs), self.slot, self.loop
        )
        self._let_go_with(shadow, opened)  # by itself: its rows wait longer than any request that holds the snapshot
        return shadow

    def _open(self, bundle: str) -> tuple[Predictor, Lane]:
        path = locate(self._folder(), bundle)
        Trust.of(self.settings.trust).require(path)
        predictor = open_predictor(path)
        lane = Lane(
            predictor,
            self.loop,
            cost=measure(predictor, predictor.probe_rows, self.settings.max_batch_rows),
            max_batch_rows=self.settings.max_batch_rows,
            max_queue_rows=self.settings.max_queue_rows,
            inline_budget_us=self.settings.inline_budget_us,
            tally=lane_tally(self.slot),
        )
        return predictor, lane

    def _tag(self, routes: Routes, manifest: Manifest, arm: str, role: Role) -> int:
        return self.log.register(
            Tag(
                model=manifest.model,
                version=manifest.version,
                arm=arm,
                generation=routes.generation,
                role=role,
                schema=manifest.schema.fingerprint,
            )
        )


def point_finder(routes: Routes) -> Callable[[bytes], int]:
    """`routes.point_of`, with the keyed hash state prepared once: 0.5 µs instead of 1.0 (`python -m serving.bench`)."""
    prepared = hashlib.blake2b(digest_size=8, key=bytes.fromhex(routes.salt)).copy
    as_int = int.from_bytes

    def point_of(unit: bytes) -> int:
        state = prepared()
        state.update(unit)
        return as_int(state.digest(), "big") * POINTS >> 64

    return point_of


def lane_tally(slot: page.Slot) -> Tally:
    cells = slot.cells
    dispatch = {"inline": page.DISPATCH_INLINE, "tick": page.DISPATCH_TICK, "busy": page.DISPATCH_BUSY}

    def tally(reason: str, rows: int, queue_us: int) -> None:
        cells[dispatch[reason]] += rows
        cells[page.BATCHES] += 1
        slot.observe_rows(rows)
        slot.observe(page.QUEUE_SECONDS, queue_us)

    return tally
