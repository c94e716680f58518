"""What a dashboard shows of releases: routes from the store, and of their bundles the manifest, card and reference.

Bundles never change, so what was read of one is kept. Where the store is in S3, bundles are read from the copy that a
server of this machine keeps of it (`<traffic>/releases`); where there is none, what they hold is not known here.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compile.bundle import CARD, REFERENCE, Manifest, load, locate, read
from compile.errors import BundleRefused
from monitoring.summaries import Edges
from monitoring.summing import nice_edges
from serving import routes
from serving.errors import NothingToServe, ServingError

KEPT = 64
MOST_GENERATIONS = 12
TAIL = 0.001  # of the reference's scores, on either side, which do not widen a histogram


@dataclass(frozen=True)
class Bundle:
    """`scores`: what the model said of its reference, the first of several outputs; None without a reference."""

    manifest: Manifest
    scores: npt.NDArray[np.float64] | None
    has_card: bool


class Releases:
    def __init__(self, store: str, traffic: Path) -> None:
        self.store = store
        self._bundles = traffic / "releases" if "://" in store else Path(store)
        self._bundle = lru_cache(KEPT)(self._read)

    def models(self) -> list[str]:
        """None where there is no store; raises ServingError where it can't be asked."""
        if "://" not in self.store and not Path(self.store).is_dir():
            return []
        return routes.models(self.store)

    def present(self, model: str) -> routes.Routes | None:
        """None where the model has no routes. Raises ServingError where they can't be read."""
        try:
            return routes.read(self.store, model)
        except NothingToServe:
            return None

    def history(self, model: str) -> list[routes.Routes]:
        """The newest generations, the newest first; those that can't be read are left out."""
        found = []
        for generation in routes.history(self.store, model)[-MOST_GENERATIONS:]:
            try:
                found.append(routes.read(self.store, model, generation))
            except ServingError:
                continue
        return found[::-1]

    def bundle(self, digest: str) -> Bundle:
        """Raises BundleRefused, naming the file."""
        return self._bundle(digest)

    def version(self, digest: str) -> str | None:
        try:
            return self.bundle(digest).manifest.version
        except BundleRefused:
            return None

    def card(self, digest: str) -> tuple[str, dict[str, bytes]] | None:
        """Markdown, and its pictures by name. None where the bundle has none. Raises BundleRefused."""
        from training.card_page import PICTURE

        folder = locate(self._bundles, digest)
        manifest = read(folder)
        if CARD not in manifest.files:
            return None
        text = load(folder, manifest, CARD).decode("utf-8", "replace")
        return text, {name: load(folder, manifest, name) for name in manifest.files if PICTURE.fullmatch(name)}

    def edges(self, model: str) -> Edges | None:
        """The bounds of the model's scores, as the champion's bundle tells them; None where it does not."""
        try:
            now = self.present(model) if model in self.models() else None
            known = self.bundle(now.arms[routes.CHAMPION]) if now else None
        except (ServingError, BundleRefused):
            return None
        if known is None:
            return None
        if known.manifest.task in ("binary", "multiclass", "multilabel"):
            return (0.0, 1.0)
        if known.scores is None or not len(known.scores):
            return None
        low, high = np.quantile(known.scores, [TAIL, 1 - TAIL])
        return nice_edges(float(low), float(high))

    def _read(self, digest: str) -> Bundle:
        folder = locate(self._bundles, digest)
        if not folder.is_dir():
            raise BundleRefused(f"{folder}: is not on this machine")
        manifest = read(folder)
        scores = _scores(load(folder, manifest, REFERENCE), manifest) if REFERENCE in manifest.files else None
        return Bundle(manifest, scores, CARD in manifest.files)


def _scores(encoded: bytes, manifest: Manifest) -> npt.NDArray[np.float64]:
    import pyarrow.parquet as pq

    names = pq.read_schema(io.BytesIO(encoded)).names
    first = f"prediction[{manifest.outputs[0]}]" if len(manifest.outputs) > 1 else "prediction"
    if first not in names:
        return np.array([])
    found = pq.read_table(io.BytesIO(encoded), columns=[first]).column(first).to_numpy()
    return np.asarray(found[np.isfinite(found)], np.float64)
