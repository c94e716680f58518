"""A worker's half of the two-phase flip: load what is offered beside what is served, say so, and flip when told to.

The board is looked at every `LOOK_S`, which costs two reads of memory. Bundles are opened and proved in a thread of their
own while requests are answered; the flip itself is an assignment for each model, within one callback of the loop, so no
request and no other worker's unit ever sees half of it. Whatever goes wrong is told in the worker's slot, and changes
nothing.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from serving import page
from serving.board import Board, Release
from serving.live import Loader, Prepared, Snapshot
from serving.served import Served

logger = logging.getLogger("coppice")

LOOK_S = 0.02
AGAIN_S = 1.0  # until a release that this worker alone could not load is tried once more


@dataclass(frozen=True, slots=True)
class Loaded:
    release: Release
    snapshots: dict[str, Snapshot]


class CannotLoad(Exception):
    """One model's generation: which, and why."""

    def __init__(self, model: str, generation: int, why: Exception) -> None:
        super().__init__(f"{model} {generation}: {why}")


class Flipper:
    def __init__(
        self,
        board: Board,
        slot: page.Slot,
        loader: Loader,
        served: Served,
        *,
        look_s: float = LOOK_S,
        again_s: float = AGAIN_S,
    ) -> None:
        self._look_s = look_s
        self._again_s = again_s
        self._board = board
        self._slot = slot
        self._loader = loader
        self._served = served
        self._pending: Loaded | None = None
        self._stuck_at = 0  # the committed release that could not be loaded
        self._thread = ThreadPoolExecutor(1, "loading")

    async def first(self) -> None:
        """Serve what is committed; returns when that is done. Raises what the loader does: there is nothing else."""
        while self._board.committed != self._served.release.number or not self._board.committed:
            release = self._board.release(self._board.committed)
            if release is None:
                await asyncio.sleep(self._look_s)
                continue
            try:
                loaded = await self._load(release)
            except CannotLoad as refused:
                raise refused.__cause__ or refused from None
            self._flip(loaded)

    async def follow(self) -> None:
        """For as long as the worker lives, also while it drains."""
        while True:
            await asyncio.sleep(self._look_s)
            try:
                await self._look()
            except Exception:  # this task must outlive any one release: what is live stays live
                logger.exception("following the board failed")
                await asyncio.sleep(self._again_s)

    async def _look(self) -> None:
        """What is committed comes first; but one that this worker can't load must not keep it from the next."""
        committed, offered = self._board.committed, self._board.offered
        behind = committed != self._served.release.number
        if behind and self._pending is not None and self._pending.release.number == committed:
            self._flip(self._pending)
        elif behind and committed != self._stuck_at:
            await self._catch_up(committed)
        elif offered and offered not in (self._slot.loaded, self._slot.failed):
            await self._prepare(offered)
        elif not offered and self._pending is not None:
            self._forget()
        elif not offered and behind:
            await asyncio.sleep(self._again_s)
            await self._catch_up(committed)

    async def _catch_up(self, committed: int) -> None:
        """Load what is committed; rare: for a worker that started between an offer and its commit, or could not load it."""
        await self._prepare(committed)
        loaded = self._pending is not None and self._pending.release.number == committed
        self._stuck_at = 0 if loaded else committed

    async def _prepare(self, number: int) -> None:
        self._forget()
        release = self._board.release(number)
        if release is None:
            return
        try:
            self._pending = await self._load(release)
        except CannotLoad as refused:
            logger.error("release %d stays out: %s", number, refused)
            self._slot.fail(number, str(refused))
        else:
            self._slot.loaded = number

    def _forget(self) -> None:
        self._pending = None
        self._slot.loaded = self._served.release.number

    def _flip(self, loaded: Loaded) -> None:
        self._served.flip(loaded.release, loaded.snapshots)
        self._pending = None
        self._slot.loaded = self._slot.serving = loaded.release.number

    async def _load(self, release: Release) -> Loaded:
        """What the release changes; the rest is shared with what is live. Raises CannotLoad."""
        snapshots = self._served.snapshots()
        live = {name: snapshot.routes.generation for name, snapshot in snapshots.items()}
        loop = asyncio.get_running_loop()
        loaded: dict[str, Snapshot] = {}
        for model, generation in release.generations.items():
            if live.get(model) == generation:
                loaded[model] = snapshots[model]
                continue
            try:
                prepared: Prepared = await loop.run_in_executor(self._thread, self._loader.prepare, model, generation)
                loaded[model] = self._loader.build(prepared)
            except Exception as refused:  # a damaged bundle can raise anything: recorded, and nobody flips
                raise CannotLoad(model, generation, refused) from refused
        return Loaded(release, loaded)
