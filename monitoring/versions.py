"""The bundles behind a model's traffic: what each version that was ever routed is, and what it was trained on."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from compile.bundle import REFERENCE, Manifest, load, locate, read
from monitoring.ground import Ground
from serving import routes
from training.features import encode_frame


@dataclass(frozen=True)
class Version:
    manifest: Manifest
    folder: Path

    def ground(self) -> Ground | None:
        """None where the bundle holds no sample of its training rows."""
        if REFERENCE not in self.manifest.files:
            return None
        import pandas as pd

        frame = pd.read_parquet(io.BytesIO(load(self.folder, self.manifest, REFERENCE)))
        return Ground(self.manifest.schema, encode_frame(self.manifest.schema, frame))


def versions(store: Path, model: str, wanted: Collection[str]) -> dict[str, Version]:
    """Those of `wanted` whose bundle the store holds; of one that was compiled anew, what was routed last. Raises
    BundleRefused for a bundle that is spoiled."""
    found: dict[str, Version] = {}
    seen: set[str] = set()
    for generation in reversed(routes.history(store, model)):
        for digest in routes.read(store, model, generation).bundles:
            folder = locate(store, digest)
            if digest in seen or not folder.is_dir():
                continue
            seen.add(digest)
            manifest = read(folder)
            if manifest.version in wanted:
                found.setdefault(manifest.version, Version(manifest, folder))
        if len(found) == len(set(wanted)):
            break
    return found


def present(store: Path, model: str, known: dict[str, Version]) -> set[tuple[str, str]]:
    """(version, arm) of every arm that answers now."""
    now = routes.read(store, model)
    by_digest = {version.folder.name: name for name, version in known.items()}
    return {(by_digest[digest], arm) for arm, digest in now.arms.items() if digest in by_digest}
