"""The parent of the workers: starts them, restarts the dead and the hung, and stops them in order.

It imports what they need once and forks, so that a worker restarts in the time that its bundles take to load, and keeps
every worker's listening socket open itself, so that connections queued at a worker that died are served by its successor.
Each socket has SO_REUSEPORT: the kernel spreads connections evenly. It is single-threaded and waits for signals alone.

Should the supervisor itself die, its end of a pipe closes and the workers drain and stop as if told to.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from compile.bundle import locate
from compile.trust import Trust
from serving import page, routes, worker
from serving.errors import SettingsRefused
from serving.live import default_model
from serving.settings import Settings, cgroup_cpus

POLL_S = 0.1
HUNG_US = 10_000_000
BACKOFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_S = 30.0
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


@dataclass(slots=True)
class Child:
    """One place for a worker: its socket outlives each process that fills it."""

    index: int
    listener: socket.socket
    pid: int = 0
    started: float = 0.0
    failures: int = 0
    start_after: float = 0.0


@dataclass(slots=True)
class Supervisor:
    settings: Settings
    shared: page.Page
    page_path: Path
    children: list[Child]
    pipe: tuple[int, int] = field(default_factory=os.pipe)
    announced: bool = False

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit status: 0 after an orderly stop, 2 if no worker could serve."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for child in self.children:
            self._start(child)
        status = self._watch()
        return max(status, self._stop())

    def _watch(self) -> int:
        while True:
            received = signal.sigtimedwait(SIGNALS, POLL_S)
            if received is not None and received.si_signo != signal.SIGCHLD:
                return 0
            for child in self.children:
                status = self._look_after(child)
                if status:
                    return status
            self._announce()

    def _look_after(self, child: Child) -> int:
        if child.pid:
            code = _exit_code(child.pid)
            if code is None:
                self._end_if_hung(child)
                return 0
            if code == worker.EXIT_CANNOT_SERVE:
                child.pid = 0
                return 2
            self._bury(child, code)
        if not child.pid and time.monotonic() >= child.start_after:
            self._start(child)
        return 0

    def _bury(self, child: Child, code: int) -> None:
        """Its last facts go to the writers' record before a successor takes the slot."""
        self.shared.retire(child.index)
        steady = time.monotonic() - child.started > STEADY_S
        child.failures = 1 if steady else child.failures + 1
        wait = BACKOFF_S[min(child.failures - 1, len(BACKOFF_S) - 1)]
        _say(f"worker {child.index} (pid {child.pid}) {_how(code)}; restarting in {wait:g} s")
        child.pid = 0
        child.start_after = time.monotonic() + wait

    def _end_if_hung(self, child: Child) -> None:
        slot = self.shared.slot(child.index)
        silent_us = time.time_ns() // 1000 - slot.heartbeat_us
        if slot.state in (page.READY, page.DRAINING) and slot.pid == child.pid and silent_us > HUNG_US:
            _say(f"worker {child.index} (pid {child.pid}) has not beaten for {silent_us / 1e6:.0f} s; killing it")
            os.kill(child.pid, signal.SIGKILL)

    def _start(self, child: Child) -> None:
        gc.freeze()  # what was imported is shared with the children for good: no collection writes to its pages
        child.started = time.monotonic()
        child.pid = os.fork()
        if child.pid:
            return
        try:
            code = self._become_worker(child)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # not through the parent's own cleanup, which is the parent's to do

    def _become_worker(self, child: Child) -> int:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(self.pipe[1])
        for other in self.children:
            if other is not child:
                other.listener.close()
        return worker.main(self.settings, child.index, child.listener, self.page_path, self.pipe[0])

    def _announce(self) -> None:
        slots = [self.shared.slot(child.index) for child in self.children]
        if self.announced or any(slot.state != page.READY for slot in slots):
            return
        self.announced = True
        host, port = self.children[0].listener.getsockname()[:2]
        took = time.monotonic() - self.children[0].started
        _say(f"ready on http://{host}:{port} with {len(slots)} worker(s) after {took:.2f} s; docs at /docs")

    def _stop(self) -> int:
        """SIGTERM to all; whoever outlives the drain and the stop timeout is killed, which the status says."""
        living = [child for child in self.children if child.pid]
        for child in living:
            _kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + self.settings.drain_delay_s + 2 * self.settings.stop_timeout_s
        status = 0
        while living and time.monotonic() < deadline:
            signal.sigtimedwait(SIGNALS, POLL_S)
            for child in list(living):
                code = _exit_code(child.pid)
                if code is not None:
                    living.remove(child)
                    status = max(status, 0 if code == 0 else 1)
        for child in living:
            _say(f"worker {child.index} (pid {child.pid}) did not stop in time; killing it")
            _kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            status = 1
        for child in self.children:
            self.shared.retire(child.index)
            child.listener.close()
        return status


def run(settings: Settings) -> int:
    """Serve until told to stop; the exit status. Raises SettingsRefused where the address can't be had, BundleRefused
    where the routes name a bundle that COPPICE_TRUST does not let in."""
    _admit(settings)
    workers = settings.workers or cgroup_cpus()
    name = f"{socket.gethostname()[:24]}-{os.getpid()}-{secrets.token_hex(4)}"
    page_path = settings.traffic / "pages" / f"{name}.page"
    listeners = _listen(settings, workers)
    page_path.parent.mkdir(parents=True, exist_ok=True)
    shared = page.Page.create(page_path, workers)
    children = [Child(index, listener) for index, listener in enumerate(listeners)]
    return Supervisor(settings, shared, page_path, children).run()


def _admit(settings: Settings) -> None:
    """Verify what the routes name before a worker is started, which opens nothing else (`Trust.require`)."""
    trust = Trust.of(settings.trust)
    if trust.keys_at is not None:
        routed = routes.read(settings.store, default_model(settings))
        trust.admit([locate(settings.store, bundle) for bundle in routed.bundles])


def _listen(settings: Settings, workers: int) -> Sequence[socket.socket]:
    port = settings.port
    listeners: list[socket.socket] = []
    for _ in range(workers):
        listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not listeners:
            _refuse_taken(listener, settings.host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((settings.host, port))
        except OSError as taken:
            raise SettingsRefused(f"COPPICE_PORT: can't listen on {settings.host}:{port}: {taken.strerror}") from None
        listener.set_inheritable(True)
        port = listener.getsockname()[1]
        listeners.append(listener)
    return listeners


def _refuse_taken(listener: socket.socket, host: str, port: int) -> None:
    """SO_REUSEPORT would let a second server of the same user share the port in silence: look without it first."""
    family = listener.family
    with socket.socket(family) as look:
        look.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            look.bind((host, port))
        except OSError as taken:
            raise SettingsRefused(f"COPPICE_PORT: can't listen on {host}:{port}: {taken.strerror}") from None


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
