"""The sync process, one beside the workers: watches the release store and leads the host from release to release.

    look      at the store every `sync_s`; with growing, jittered pauses while it can't be reached
    inspect   what is new: bundles fetched and verified, signatures admitted, arms that take the same inputs
    offer     the newest good generation of every model, as one release on the board (`serving.board`)
    commit    once every worker that serves has loaded it; withdraw it, and refuse what was new, if one can't

What is wrong with a generation, or with the store, goes to the board's text and counters, and changes nothing else. Its
death changes nothing either: the workers serve on, and its successor takes up the board where it was left. It has no
business with requests, so it may take its time, and may load what no worker should: the client of S3.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic, time_ns
from types import FrameType
from typing import Any

from compile.errors import CompileError
from compile.trust import Trust
from serving import board as boards
from serving import page
from serving.board import Release
from serving.errors import NothingToServe, RoutesRefused, ServingError, StoreUnreachable
from serving.inspection import Inspector
from serving.routes import read
from serving.settings import Settings
from serving.store import FolderStore, Store, local_folder, open_store

EXIT_OK = 0
EXIT_CANNOT_SERVE = 3
TICK_S = 0.2  # at most between two beats
PENDING_TICK_S = 0.01
LOAD_TIMEOUT_S = 60.0
NO_WORKER_S = 5.0  # after which a release is committed though no worker is there to load it
MOST_BACKOFF_S = 30.0
STALE_US = 5_000_000


def main(settings: Settings, page_path: Path, alive: int) -> int:
    """Until SIGTERM, or until the supervisor's end of the pipe closes; the exit status."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the supervisor too, which sends SIGTERM
    shared = page.Page.open(page_path)
    shared.board.begin(os.getpid())
    try:
        sync = Sync(settings, open_store(settings.store), shared)
        if not shared.board.committed:
            sync.first()
        sync.tidy()
        sync.follow(alive)
    except (ServingError, CompileError) as refused:
        print(f"coppice: can't serve: {refused}", file=sys.stderr, flush=True)
        return EXIT_CANNOT_SERVE
    return EXIT_OK


class Sync:
    def __init__(self, settings: Settings, store: Store, shared: page.Page) -> None:
        self._settings = settings
        self._store = store
        self._board = shared.board
        self._slots = shared.slots()
        self._local = local_folder(settings.store, settings.traffic)
        self._inspector = self._inspector_of(store)
        self._newest: dict[str, int] = {}
        self._failures = 0
        self._unreachable = ""
        self._offered_at = monotonic()
        self._said: dict[str, Any] = {}

    def first(self) -> None:
        """Commit a first release, for workers that serve nothing yet. Raises what stands in the way of one.

        While S3 can't be reached, the local copy of what was served last is as good.
        """
        try:
            generations = self._wanted({})
        except StoreUnreachable as unreachable:
            if isinstance(self._store, FolderStore):
                raise
            self._unreachable = str(unreachable)
            generations = self._wanted_offline()
        default = self._settings.model or (next(iter(generations)) if len(generations) == 1 else "")
        if default not in generations and (default or not generations):
            raise self._nothing(default)
        self._board.offer(default, generations)
        self._board.commit()
        self._tell()

    def follow(self, alive: int) -> None:
        """Look, inspect, offer, commit, until the other end of `alive` closes."""
        look_at = 0.0
        while True:
            self._board.beat()
            if self._board.offered:
                self._progress()
            elif monotonic() >= look_at:
                look_at = monotonic() + self._look()
            wait = PENDING_TICK_S if self._board.offered else min(TICK_S, max(0.0, look_at - monotonic()))
            if select.select([alive], [], [], wait)[0]:
                return

    def _look(self) -> float:
        """Offer what is new; seconds until the next look."""
        cells, committed = self._board.cells, self._committed()
        cells[boards.LOOKS] += 1
        try:
            generations = self._wanted(committed.generations)
        except StoreUnreachable as unreachable:
            cells[boards.LOOKS_FAILED] += 1
            self._failures += 1
            self._unreachable = str(unreachable)
            self._tell()
            longest = min(MOST_BACKOFF_S, self._settings.sync_s * 2.0 ** min(self._failures, 16))
            return max(self._settings.sync_s, longest * random.uniform(0.5, 1.0))
        self._failures, self._unreachable = 0, ""
        cells[boards.STORE_SEEN_US] = time_ns() // 1000
        if committed.default and committed.default not in generations:
            generations[committed.default] = committed.generations[committed.default]  # it never disappears
        if generations and generations != committed.generations:
            self._offer(committed.default, generations)
        self._tell()
        return self._settings.sync_s

    def _offer(self, default: str, generations: dict[str, int]) -> None:
        try:
            self._board.offer(default, generations)
        except boards.BoardFull as full:
            for model in generations.keys() - self._committed().generations.keys():
                self._inspector.refuse(model, generations[model], str(full))
        self._offered_at = monotonic()

    def _progress(self) -> None:
        """Of the release that is pending: commit it, withdraw it, or wait."""
        number, waited = self._board.offered, monotonic() - self._offered_at
        serving = [slot for slot in self._slots if _serves(slot)]
        failed = [slot for slot in serving if slot.failed == number]
        if failed:
            what, _, why = failed[0].failure.partition(": ")
            model, _, generation = what.partition(" ")
            self._withdraw({model: int(generation)}, why)
        elif all(slot.loaded == number for slot in serving) and (serving or waited > NO_WORKER_S):
            self._board.commit()
            self._tell()
            self.tidy()
        elif waited > LOAD_TIMEOUT_S:
            offered = self._board.release(number)
            before = self._committed().generations
            new = {m: g for m, g in offered.generations.items() if before.get(m) != g} if offered else {}
            self._withdraw(new, f"not every worker loaded it within {LOAD_TIMEOUT_S:g} s")

    def tidy(self) -> None:
        """The local copy of what is in S3 must not fill the disk."""
        if isinstance(self._store, FolderStore):
            return
        from serving.store_s3 import tidy

        served: set[str] = set()
        with suppress(ServingError, OSError):  # what can't be read is not tidied up after
            for model, generation in self._committed().generations.items():
                served |= set(read(self._local, model, generation).bundles)
            tidy(self._local, served)

    def _withdraw(self, refused: dict[str, int], why: str) -> None:
        self._board.withdraw()
        for model, generation in refused.items():
            self._inspector.refuse(model, generation, why)
        self._tell()

    def _wanted(self, served: dict[str, int]) -> dict[str, int]:
        """The newest good generation of every model that the store routes. Raises StoreUnreachable."""
        wanted = {}
        for model in self._store.models():
            self._newest[model] = self._store.newest(model, self._newest.get(model, 0))
            generation = self._inspector.best(model, self._newest[model], served.get(model, 0))
            if generation:
                wanted[model] = generation
        return wanted

    def _wanted_offline(self) -> dict[str, int]:
        """As `_wanted`, of the local copy."""
        store, inspector = self._store, self._inspector
        self._store = FolderStore(self._local)
        self._inspector = self._inspector_of(self._store)
        try:
            return self._wanted({})
        except StoreUnreachable:
            raise StoreUnreachable(self._unreachable) from None
        finally:
            self._store, self._inspector = store, inspector
            self._newest.clear()

    def _nothing(self, default: str) -> ServingError:
        reasons = self._inspector.reasons(default)
        if reasons:
            return RoutesRefused(reasons[0])
        if default:
            return NothingToServe(f"{self._store.name}: no model {default!r} has routes, which COPPICE_MODEL names")
        return NothingToServe(
            f"{self._unreachable or self._store.name}: no model has routes yet. `coppice train`, "
            "`coppice compile NAME@champion`, then `coppice routes publish NAME --arm champion=DIGEST` make one"
        )

    def _committed(self) -> Release:
        release = self._board.release(self._board.committed)
        assert release is not None, "what is committed is never overwritten"
        return release

    def _inspector_of(self, store: Store) -> Inspector:
        trust = Trust.of(self._settings.trust)
        return Inspector(
            store,
            self._local,
            trust,
            beat=self._board.beat,
            on_refused=partial(self._count, boards.REFUSED),
            on_pulled=partial(self._count, boards.BUNDLES_PULLED),
        )

    def _count(self, cell: int) -> None:
        self._board.cells[cell] += 1

    def _tell(self) -> None:
        refused = self._inspector.refusals(self._committed().generations)
        said = {
            "store": f"unreachable: {self._unreachable[:500]}" if self._unreachable else "reached",
            "refused": refused,
        }
        if said != self._said:
            self._board.tell(said)
            self._said = said
            for what, why in refused.items():
                print(f"coppice: {what} is not served: {why}", file=sys.stderr, flush=True)


def _serves(slot: page.Slot) -> bool:
    """Whether a flip must wait for this worker. One that starts loads what is committed by itself."""
    beats = time_ns() // 1000 - slot.heartbeat_us < STALE_US
    return slot.state in (page.STARTING, page.READY) and slot.loaded > 0 and beats


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(EXIT_OK)
