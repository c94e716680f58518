"""What a worker serves now: one frozen snapshot per routes generation, built beside the old one and swapped whole."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from compile.bundle import Manifest, locate
from compile.runtime import Predictor, open_predictor
from compile.trust import Trust
from serving import page
from serving.answers import Encode
from serving.decoding import Decode, decoder
from serving.errors import NothingToServe, RoutesRefused
from serving.lanes import Lane, Scored, Tally, finite_test, measure
from serving.routes import CHAMPION, POINTS, Routes, models, read
from serving.segments import Role
from serving.settings import Settings
from serving.tasks import encoder, refuse_other_answers
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
    rows_cell: int  # of the page: where its answered rows are counted
    errors_cell: int
    fallback: Arm | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One generation, ready to serve. Never edited: a request may be holding it."""

    routes: Routes
    champion: Arm
    arms: tuple[Arm, ...]
    points: tuple[Arm, ...]  # the arm of each of the 10,000 points: one index replaces a search
    point_of: Callable[[bytes], int]
    shadows: tuple[ShadowLane, ...]
    decode: Decode

    def offer_to_shadows(self, ts_us: int, request_id: bytes, unit: bytes, row: bytes) -> None:
        for shadow in self.shadows:
            shadow.offer(ts_us, request_id, unit, row)

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


class ShadowLane:
    """Scores a sample of the answered rows on a bundle that never answers; the first thing shed.

    Rows wait at most `HOLD_S`, so that scoring never runs between a request and its answer, and go through a lane of
    their own; more than `LIMIT` waiting rows are dropped and counted.
    """

    HOLD_S = 0.002
    LIMIT = 1024
    SLICE = 32  # rows scored in one go on the loop: what keeps a cheap shadow from delaying an answer

    def __init__(
        self,
        lane: Lane,
        sample: float,
        tag: int,
        put: Callable[..., None],
        finite: Callable[[Any], bool],
        slot: page.Slot,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.lane = lane
        self._sample = sample
        self._tag = tag
        self._put = put
        self._finite = finite
        self._cells = slot.cells
        self._loop = loop
        self._waiting: list[tuple[int, bytes, bytes, bytes]] = []

    def offer(self, ts_us: int, request_id: bytes, unit: bytes, row: bytes) -> None:
        if self._sample < 1 and random.random() >= self._sample:
            return
        if len(self._waiting) + self.lane.depth >= self.LIMIT:
            self._cells[page.SHADOW_SHED] += 1
            return
        if not self._waiting:
            self._loop.call_later(self.HOLD_S, self._drain)
        self._waiting.append((ts_us, request_id, unit, row))

    def drain_now(self) -> None:
        while self._waiting:
            self._drain()

    def _drain(self) -> None:
        rows = self._waiting[: self.SLICE]
        del self._waiting[: self.SLICE]
        for ts_us, request_id, unit, row in rows:
            self._score(ts_us, request_id, unit, row)
        if self._waiting:
            self._loop.call_soon(self._drain)

    def _score(self, ts_us: int, request_id: bytes, unit: bytes, row: bytes) -> None:
        def done(scored: Scored | None) -> None:
            assert scored is not None, "a shadow row has no deadline and no asker"
            value, queue_us, score_us, rows = scored
            status = 200 if self._finite(value) else 500
            self._put(self._tag, ts_us, request_id, 0, unit, row, value, status, 0, queue_us, score_us, rows)

        self.lane.submit(row, done)


def default_model(settings: Settings) -> str:
    """The model that `/predict` serves: the one configured, or the only one routed. Raises NothingToServe."""
    if settings.model:
        return settings.model
    routed = models(settings.store)
    if len(routed) == 1:
        return routed[0]
    if not routed:
        raise NothingToServe(
            f"{settings.store}: no model has routes yet. `coppice train`, `coppice compile NAME@champion`, then "
            "`coppice routes publish NAME --arm champion=DIGEST` make one"
        )
    raise NothingToServe(f"{settings.store}: routes several models ({', '.join(routed)}); name one by COPPICE_MODEL")


@dataclass(frozen=True, slots=True)
class Loader:
    """Builds snapshots: opens bundles (which proves them on their probe), measures them, gives each its lane."""

    settings: Settings
    log: TrafficLog
    slot: page.Slot
    loop: asyncio.AbstractEventLoop

    def load(self, model: str, generation: int | None = None) -> Snapshot:
        """Raises NothingToServe, RoutesRefused or compile's BundleRefused; what is live stays as it is."""
        routes = read(self.settings.store, model, generation)
        champion = self._arm(routes, CHAMPION, None)
        others = [self._arm(routes, name, champion) for name in routes.arms if name != CHAMPION]
        arms = {arm.name: arm for arm in (champion, *others)}
        shadows = tuple(self._shadow(routes, s.name, s.bundle, s.sample, champion) for s in routes.shadow)
        return Snapshot(
            routes=routes,
            champion=champion,
            arms=tuple(arms.values()),
            points=tuple(arms[slot.arm] for slot in routes.slots for _ in range(slot.lo, slot.hi)),
            point_of=point_finder(routes),
            shadows=shadows,
            decode=decoder(champion.manifest.schema),
        )

    def _arm(self, routes: Routes, name: str, champion: Arm | None) -> Arm:
        predictor, lane = self._open(routes.arms[name])
        manifest = predictor.manifest
        if champion is not None:
            _refuse_other_inputs(name, manifest, champion.manifest)
            refuse_other_answers(name, manifest, champion.manifest)
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
            rows_cell=series,
            errors_cell=series + 1,
            fallback=champion,
        )

    def _shadow(self, routes: Routes, name: str, bundle: str, sample: float, champion: Arm) -> ShadowLane:
        predictor, lane = self._open(bundle)
        _refuse_other_inputs(name, predictor.manifest, champion.manifest)
        refuse_other_answers(name, predictor.manifest, champion.manifest)
        tag = self._tag(routes, predictor.manifest, name, "shadow")
        put, finite = self.log.put_of(predictor.outputs), finite_test(predictor.outputs)
        return ShadowLane(lane, sample, tag, put, finite, self.slot, self.loop)

    def _open(self, bundle: str) -> tuple[Predictor, Lane]:
        path = locate(self.settings.store, bundle)
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


def _refuse_other_inputs(name: str, manifest: Manifest, champion: Manifest) -> None:
    if manifest.schema.fingerprint != champion.schema.fingerprint:
        theirs, ours = set(manifest.schema.names), set(champion.schema.names)
        differing = ", ".join(sorted(theirs ^ ours)) or "kinds or categories of the same features"
        raise RoutesRefused(f"{name}: takes other inputs than the champion ({differing}); serve it as another model")
