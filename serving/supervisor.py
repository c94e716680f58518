"""The parent of all: the sync process and the workers. It starts them, restarts the dead and the hung, and stops them.

    start   shared page, listening sockets, sync process; once that has committed a first release, the workers
    serve   until SIGTERM or SIGINT; SIGHUP restarts the workers one after the other, then the sync process
    stop    the workers (`serving.worker` says how), then the sync process, then the sockets

It imports what they need once and forks, so that a worker restarts in the time that its bundles take to load. It is
single-threaded and waits for signals alone. Should it die itself, its end of a pipe closes and all others stop as if
told to.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from compile.trust import Trust
from serving import board, listening, page, sync, worker
from serving.settings import Settings, cgroup_cpus
from serving.tls import refuse_unusable

POLL_S = 0.1
HUNG_US = 10_000_000
SYNC_HUNG_US = 600_000_000  # a large bundle, a slow store, many signatures: nobody waits for it
BACKOFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_S = 30.0
ROLL_S = 120.0  # for a worker to drain and its successor to become ready, before rolling on is given up
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP}


@dataclass(slots=True)
class Child:
    """One place for a process. A worker's has a slot of the page and a socket that outlives whoever fills it."""

    name: str
    index: int = -1
    listener: socket.socket | None = None
    pid: int = 0
    started: float = 0.0
    failures: int = 0
    start_after: float = 0.0
    leaving: bool = False  # told to stop, and to be started again


@dataclass(slots=True)
class Supervisor:
    settings: Settings
    shared: page.Page
    page_path: Path
    workers: list[Child]
    sync: Child = field(default_factory=lambda: Child("sync process"))
    pipe: tuple[int, int] = field(default_factory=os.pipe)
    announced: bool = False
    rolling: list[Child] = field(default_factory=list)
    rolling_until: float = 0.0

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit status: 0 after an orderly stop, 2 if nothing could be served."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._start(self.sync)
        status = self._watch()
        return max(status, self._stop())

    def _watch(self) -> int:
        while True:
            received = signal.sigtimedwait(SIGNALS, POLL_S)
            number = received.si_signo if received is not None else signal.SIGCHLD
            if number in (signal.SIGTERM, signal.SIGINT):
                return 0
            if number == signal.SIGHUP:
                self._begin_rolling()
            for child in [self.sync, *self.workers]:
                status = self._look_after(child)
                if status:
                    return status
            self._announce()
            self._roll()

    def _look_after(self, child: Child) -> int:
        if child.pid:
            code = _exit_code(child.pid)
            if code is None:
                self._end_if_hung(child)
                return 0
            fatal = code == worker.EXIT_CANNOT_SERVE and not self.announced
            self._bury(child, code, quiet=fatal)
            if fatal:
                return 2  # it has said why, and would fail in the same way again
        has_work = child is self.sync or self.shared.board.committed
        if not child.pid and has_work and time.monotonic() >= child.start_after:
            self._start(child)
        return 0

    def _bury(self, child: Child, code: int, *, quiet: bool) -> None:
        """A worker's last facts go to the writers' record before a successor takes the slot."""
        if child.index >= 0:
            self.shared.retire(child.index)
            self.shared.slot(child.index).vacate()
        steady = child.leaving or time.monotonic() - child.started > STEADY_S
        child.failures = 1 if steady else child.failures + 1
        wait = BACKOFF_S[min(child.failures - 1, len(BACKOFF_S) - 1)]
        if not quiet and not (child.leaving and code == 0):
            _say(f"{child.name} (pid {child.pid}) {_how(code)}; restarting in {wait:g} s")
        child.pid, child.leaving = 0, False
        child.start_after = time.monotonic() + wait

    def _end_if_hung(self, child: Child) -> None:
        now_us = time.time_ns() // 1000
        if child is self.sync:
            cells = self.shared.board.cells
            silent_us = now_us - cells[board.HEARTBEAT_US] if cells[board.PID] == child.pid else 0
            hung = silent_us > SYNC_HUNG_US
        else:
            slot = self.shared.slot(child.index)
            silent_us = now_us - slot.heartbeat_us
            hung = slot.state in (page.READY, page.DRAINING) and slot.pid == child.pid and silent_us > HUNG_US
        if hung:
            _say(f"{child.name} (pid {child.pid}) has not beaten for {silent_us / 1e6:.0f} s; killing it")
            os.kill(child.pid, signal.SIGKILL)

    def _begin_rolling(self) -> None:
        _say("restarting one process after the other")
        self.rolling = [*self.workers, self.sync]
        self.rolling_until = 0.0

    def _roll(self) -> None:
        """One step of a rolling restart: the next leaves when all others are up and the one before is ready again."""
        if not self.rolling:
            return
        if all(self._is_up(child) for child in (self.sync, *self.workers)):
            child = self.rolling.pop(0)
            child.leaving = True
            _kill(child.pid, signal.SIGTERM)
            self.rolling_until = time.monotonic() + ROLL_S
            if not self.rolling:
                _say("the last one is restarting")
        elif self.rolling_until and time.monotonic() > self.rolling_until:
            _say(f"giving up the rolling restart: not all are ready again after {ROLL_S:g} s")
            self.rolling = []

    def _is_up(self, child: Child) -> bool:
        if not child.pid or child.leaving:
            return False
        if child is self.sync:
            return bool(self.shared.board.cells[board.PID] == child.pid)
        slot = self.shared.slot(child.index)
        return slot.state == page.READY and slot.pid == child.pid

    def _start(self, child: Child) -> None:
        gc.freeze()  # what was imported is shared with the children for good: no collection writes to its pages
        child.started = time.monotonic()
        child.pid = os.fork()
        if child.pid:
            return
        try:
            code = self._become_sync() if child is self.sync else self._become_worker(child)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # not through the parent's own cleanup, which is the parent's to do

    def _become_worker(self, child: Child) -> int:
        assert child.listener is not None
        self._shed(child)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return worker.main(self.settings, child.index, child.listener, self.page_path, self.pipe[0])

    def _become_sync(self) -> int:
        self._shed(self.sync)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return sync.main(self.settings, self.page_path, self.pipe[0])

    def _shed(self, child: Child) -> None:
        """In the child: what is the others'. SIGHUP is the supervisor's, also where a terminal sends it to all."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.close(self.pipe[1])
        for other in self.workers:
            if other is not child and other.listener is not None:
                other.listener.close()

    def _announce(self) -> None:
        slots = [self.shared.slot(child.index) for child in self.workers]
        if self.announced or any(slot.state != page.READY for slot in slots):
            return
        self.announced = True
        assert self.workers[0].listener is not None
        address = listening.address_of(self.workers[0].listener, tls=bool(self.settings.tls_cert))
        took = time.monotonic() - self.sync.started
        _say(f"ready on {address} with {len(slots)} worker(s) after {took:.2f} s; docs at /docs")

    def _stop(self) -> int:
        """SIGTERM to all; whoever outlives the drain and the stop timeout is killed, which the status says."""
        workers_s = self.settings.drain_delay_s + worker.GRACE_S + 2 * self.settings.stop_timeout_s
        status = self._end(self.workers, workers_s)
        status = max(status, self._end([self.sync], self.settings.stop_timeout_s))
        for child in self.workers:
            self.shared.retire(child.index)
            assert child.listener is not None
            child.listener.close()
        listening.forget(self.settings)
        return status

    def _end(self, children: list[Child], timeout_s: float) -> int:
        living = [child for child in children if child.pid]
        for child in living:
            _kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        status = 0
        while living and time.monotonic() < deadline:
            signal.sigtimedwait(SIGNALS, POLL_S)
            for child in list(living):
                code = _exit_code(child.pid)
                if code is not None:
                    living.remove(child)
                    status = max(status, 0 if code == 0 else 1)
        for child in living:
            _say(f"{child.name} (pid {child.pid}) did not stop in time; killing it")
            _kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            status = 1
        return status


def run(settings: Settings) -> int:
    """Serve until told to stop; the exit status. Raises SettingsRefused where address or certificate can't be had, KeyRefused
    where COPPICE_TRUST names no key."""
    Trust.of(settings.trust).fingerprints()
    refuse_unusable(settings)
    workers = settings.workers or cgroup_cpus()
    name = f"{socket.gethostname()[:24]}-{os.getpid()}-{secrets.token_hex(4)}"
    page_path = settings.traffic / "pages" / f"{name}.page"
    listeners = listening.listen(settings, workers)
    page_path.parent.mkdir(parents=True, exist_ok=True)
    shared = page.Page.create(page_path, workers)
    children = [Child(f"worker {index}", index, listener) for index, listener in enumerate(listeners)]
    return Supervisor(settings, shared, page_path, children).run()


def _exit_code(pid: int) -> int | None:
    """None while it runs; negative: the signal that ended it."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _say(text: str) -> None:
    print(f"coppice: {text}", file=sys.stderr, flush=True)
