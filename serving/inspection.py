"""Which generation of a model may be served: the newest whose routes, bundles and signatures are in order.

A generation that is not is refused with a reason, remembered, and looked at again after a while: what was being repaired,
or did not fit on the disk, may be good by then. Workers have the last word: they open and prove what passed here, and what
one of them can't load is refused too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from compile import bundle
from compile.bundle import Manifest
from compile.errors import CompileError
from compile.trust import Trust
from serving import routes
from serving.errors import RoutesRefused, StoreUnreachable
from serving.routes import CHAMPION, Routes
from serving.store import FolderStore, Store, file_name
from serving.tasks import refuse_other_answers

AGAIN_S = (5.0, 300.0)  # the first wait, doubled up to the second
LOOK_BACK = 20  # generations that are tried, newest first, before a model counts as having none
REMEMBERED = 256  # bundles that are not verified once more when another generation names them
TOLD_REFUSALS, TOLD_LETTERS = 8, 300


@dataclass(slots=True)
class Refusal:
    why: str
    tries: int
    again_at: float


class Inspector:
    """Belongs to the sync process. `on_refused` and `on_pulled` are called once for each refusal and each bundle fetched
    from afar, `beat` now and then in long work."""

    def __init__(
        self,
        store: Store,
        local: Path,
        trust: Trust,
        *,
        beat: Callable[[], None],
        on_refused: Callable[[], None],
        on_pulled: Callable[[], None],
    ) -> None:
        self._store = store
        self._local = local
        self._trust = trust
        self._beat = beat
        self._on_refused = on_refused
        self._on_pulled = on_pulled
        self._is_remote = not isinstance(store, FolderStore)
        self._good: dict[str, Manifest] = {}  # by digest: fetched, verified, admitted
        self._refused: dict[tuple[str, int], Refusal] = {}

    def best(self, model: str, newest: int, served: int) -> int:
        """The newest good generation above `served`, else `served`; 0 where there is neither. Raises StoreUnreachable."""
        for generation in range(newest, max(served, newest - LOOK_BACK), -1):
            refusal = self._refused.get((model, generation))
            if refusal is not None and monotonic() < refusal.again_at:
                continue
            try:
                self._inspect(model, generation)
            except StoreUnreachable:
                raise
            except (RoutesRefused, CompileError) as refused:
                self.refuse(model, generation, str(refused))
            except OSError as failure:  # of this host: its disk is full, most likely
                self.refuse(model, generation, f"{failure.filename or self._local}: {failure.strerror}")
            else:
                return generation
        return served

    def refuse(self, model: str, generation: int, why: str) -> None:
        before = self._refused.get((model, generation))
        tries = before.tries + 1 if before else 1
        wait = min(AGAIN_S[1], AGAIN_S[0] * 2.0 ** (tries - 1))
        self._refused[model, generation] = Refusal(why, tries, monotonic() + wait)
        self._good.clear()  # what it said of bundles is no longer to be relied on
        self._on_refused()

    def refusals(self, served: dict[str, int]) -> dict[str, str]:
        """Why generations newer than what is served are not, for people: the newest few. The rest is forgotten."""
        for model, generation in list(self._refused):
            if generation <= served.get(model, 0):
                del self._refused[model, generation]
        newest = sorted(self._refused, key=lambda key: -key[1])[:TOLD_REFUSALS]
        return {f"{model} {number}": self._refused[model, number].why[:TOLD_LETTERS] for model, number in newest}

    def reasons(self, model: str) -> list[str]:
        """Why each of its generations was refused, newest first; model empty: of all."""
        refused = sorted(self._refused, key=lambda key: -key[1])
        return [self._refused[key].why for key in refused if model in ("", key[0])]

    def _is_good(self, digest: str) -> bool:
        """Found good before, and still there: the local copy is tidied up now and then."""
        there = not self._is_remote or bundle.locate(self._local, digest).is_dir()
        return there and digest in self._good

    def _fetch(self, digest: str) -> Path:
        was_there = not self._is_remote or bundle.locate(self._local, digest).is_dir()
        path = self._store.fetch(digest, self._local, self._beat)
        if not was_there:
            self._on_pulled()
        return path

    def _inspect(self, model: str, generation: int) -> None:
        content = self._store.read(model, generation)
        name = f"{model}/{file_name(generation)}"
        if content is None:
            raise RoutesRefused(f"{name}: is not there")
        routed = routes.decode(content)
        if (routed.model, routed.generation) != (model, generation):
            raise RoutesRefused(f"{name}: says it is {routed.model} generation {routed.generation}")
        new = [self._fetch(digest) for digest in routed.bundles if not self._is_good(digest)]
        self._trust.admit(new)
        manifests = self._good | {path.name: bundle.read(path) for path in new}
        refuse_other_inputs(by_arm(routed, manifests))
        if self._is_remote:
            _keep(self._local / "routes" / name, content)
        self._good = manifests if len(manifests) <= REMEMBERED else {}


def by_arm(routed: Routes, manifests: dict[str, Manifest]) -> dict[str, Manifest]:
    shadows = {shadow.name: shadow.bundle for shadow in routed.shadow}
    return {name: manifests[digest] for name, digest in (routed.arms | shadows).items()}


def refuse_other_inputs(manifests: dict[str, Manifest]) -> None:
    """Arms and shadows of one generation take the champion's inputs and answer in its words. Raises RoutesRefused."""
    ours = manifests[CHAMPION].schema
    for name, manifest in manifests.items():
        refuse_other_answers(name, manifest, manifests[CHAMPION])
        if manifest.schema.fingerprint != ours.fingerprint:
            differing = ", ".join(sorted(set(manifest.schema.names) ^ set(ours.names)))
            raise RoutesRefused(
                f"{name}: takes other inputs than the champion ({differing or 'kinds or categories of the same features'}); "
                "serve it as another model"
            )


def _keep(path: Path, content: bytes) -> None:
    """A copy for the workers, whole or not there at all."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
