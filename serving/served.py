"""Every model that a worker serves: one `Live` each, and the table of the paths that answer for them.

`/predict` and `/predict/ab` are the default model's; `/v1/models/<name>/predict` and `.../predict/ab` every model's. A
model keeps its scoring functions, and so its request ids, over all its generations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from serving.board import Release
from serving.live import Live, Snapshot
from serving.many import Context
from serving.scoring import Score

NOTHING = Release(0, "", {})


class Served:
    """Belongs to the loop's thread: between two of its callbacks, all models are of one release."""

    def __init__(
        self,
        scorer_of: Callable[[Live, bool], Score],
        on_paths: Callable[[Mapping[bytes, Score]], None],
        on_flip: Callable[[Mapping[bytes, tuple[Snapshot, bool]]], None],
        many: Context,
    ) -> None:
        """`scorer_of`(live, split) makes a path's scoring function; `on_paths` is told the table whenever it changes;
        before that `on_flip`, at each flip, what each path answers from and whether the split decides: rows that wait may
        still need the table they came by.
        """
        self.many = many
        self.release = NOTHING
        self.models: dict[str, Live] = {}
        self._scorer_of = scorer_of
        self._on_paths = on_paths
        self._on_flip = on_flip
        self._scores: dict[str, tuple[Score, Score]] = {}

    @property
    def default(self) -> Live | None:
        return self.models.get(self.release.default)

    def flip(self, release: Release, snapshots: Mapping[str, Snapshot]) -> None:
        """Serve this release from now on. What no request holds any more of the one before is let go."""
        before, self.release = self.release, release
        for name, snapshot in snapshots.items():
            if name in self.models:
                self.models[name].snapshot = snapshot
            else:
                self.models[name] = live = Live(snapshot)
                self._scores[name] = (self._scorer_of(live, False), self._scorer_of(live, True))
        for name in self.models.keys() - snapshots.keys():
            del self.models[name], self._scores[name]
        paths = self._paths()
        self._on_flip({path: (self.models[name].snapshot, split) for path, (name, split) in paths.items()})
        if (before.default, before.generations.keys()) != (release.default, release.generations.keys()):
            self._on_paths({path: self._scores[name][split] for path, (name, split) in paths.items()})

    def snapshots(self) -> dict[str, Snapshot]:
        return {name: live.snapshot for name, live in self.models.items()}

    def _paths(self) -> dict[bytes, tuple[str, bool]]:
        """path -> (model, does the experiment's split decide?)"""
        paths: dict[bytes, tuple[str, bool]] = {}
        for name in self._scores:
            paths[f"/v1/models/{name}/predict".encode()] = (name, False)
            paths[f"/v1/models/{name}/predict/ab".encode()] = (name, True)
        if self.release.default in self._scores:
            paths[b"/predict"], paths[b"/predict/ab"] = (self.release.default, False), (self.release.default, True)
        return paths
