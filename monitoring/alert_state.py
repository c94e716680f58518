"""What `coppice alerts` remembers between runs, format 1: one JSON file a model, replaced as a whole.

    <checks>/alerts/<model>.json    the state below
    <checks>/alerts/<model>.lock    held by the run that is under way; others wait for it

    {"format": 1,
     "firing": {"errors|churn": {"since_us": ..., "told_us": ..., "times": 1, "event": {...}}},    by rule and subject
     "waiting": [{"event": {...}, "recorded": false, "to": ["team"]}],      in the order in which they happened
     "held": {"team": ...},                     time in µs before which a delivery asked not to be asked again
     "scrapes": {"http://host:8000": {...}},    the counters of each server, as last seen
     "traffic_us": ...,                         when a server had last scored rows of the model
     "given_up": 0}                             events that were never delivered, because more than MOST_WAITING were waiting

What is to be told is in `waiting` before anyone is told, and leaves it when it was: a run that is killed loses nothing, and the
next one goes on. Killed just after a receiver took an event and before that was written, the next run sends it once more,
under the same id.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from monitoring.deliveries import Event
from monitoring.errors import Busy, MonitoringError
from monitoring.scrapes import Scrape
from serving.routes import NAME

FORMAT = 1
MOST_WAITING = 1000


class Firing(msgspec.Struct, frozen=True):
    """An alert that goes on. `times` it was told; `event`: as told last."""

    since_us: int
    told_us: int
    times: int
    event: Event


class Waiting(msgspec.Struct, frozen=True):
    """An event with those who have not been told yet. `recorded`: it is among the checks."""

    event: Event
    to: tuple[str, ...]
    recorded: bool = False


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int = FORMAT
    firing: dict[str, Firing] = msgspec.field(default_factory=dict)
    waiting: tuple[Waiting, ...] = ()
    held: dict[str, int] = msgspec.field(default_factory=dict)
    scrapes: dict[str, Scrape] = msgspec.field(default_factory=dict)
    traffic_us: int | None = None
    given_up: int = 0


class StateFile:
    """The state of one model, held by this process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> State:
        """Raises MonitoringError, naming the file: what was told can't be guessed."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except (OSError, msgspec.DecodeError) as why:
            raise MonitoringError(f"{self._path}: {why}") from None
        if found.format != FORMAT:
            raise MonitoringError(f"{self._path}: of format {found.format}; this version reads {FORMAT}")
        return found

    def write(self, state: State) -> None:
        """On disk as a whole when it returns."""
        draft = self._path.with_suffix(".draft")
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(state))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def hold(checks: Path, model: str, *, wait_s: float) -> Iterator[StateFile]:
    """Alone with a model's state. Raises Busy after waiting `wait_s` for another run; a killed one holds nothing."""
    if not NAME.fullmatch(model):
        raise MonitoringError(f"{model!r} is no model's name")
    folder = checks / "alerts"
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with (folder / f"{model}.lock").open("ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(f"{lock.name}: held by another run of `coppice alerts {model}`") from None
                time.sleep(0.05)
        yield StateFile(folder / f"{model}.json")
