"""The checks' history as a dashboard asks for it, again and again: a file is read anew only where it has changed."""

from __future__ import annotations

from pathlib import Path

from monitoring.checks import KINDS, Check, read
from monitoring.errors import MonitoringError


class History:
    """`name`: the folder's, for people. It may be absent."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, int], list[Check]]] = {}

    def read(self, kind: str, model: str | None = None) -> list[Check]:
        """Oldest first. Raises MonitoringError where the file can't be read."""
        path = self._folder / f"{kind}.jsonl"
        try:
            told = path.stat()
            state = (told.st_size, told.st_mtime_ns)
            known = self._known.get(kind)
            if known is None or known[0] != state:
                known = self._known[kind] = (state, read(self._folder, kind))
        except FileNotFoundError:
            return []
        except OSError as refused:
            raise MonitoringError(f"{path}: {refused.strerror}") from None
        return [check for check in known[1] if model in (None, check.model)]

    def models(self) -> set[str]:
        return {check.model for kind in KINDS for check in self.read(kind)}
