"""The programs of a build, the C compiler above all, bounded: several at once, one deadline, their own words in the error.

A build works in a folder of its own and holds a lock on it. Killed half-way, it leaves that folder; the next build sees that
nobody holds the lock and removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compile.errors import CompilerFailed

PREFIX = "coppice-build-"
TOLD = 2_000  # characters of the compiler's complaint


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    process: subprocess.Popen[bytes]
    complaint: Path


@contextlib.contextmanager
def build_folder() -> Iterator[Path]:
    """An empty folder, gone afterwards whatever happened; what killed builds left is removed as well."""
    parent = Path(tempfile.gettempdir())
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=PREFIX))
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def find_compiler(name: str) -> tuple[str, str]:
    """(the program, what it says of its version)."""
    found = shutil.which(name)
    if found is None:
        raise CompilerFailed(
            f"{name}: no such C compiler on this machine; install one, or build on a machine that has it"
        )
    try:
        told = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=10, check=True, env=_environment()
        )
    except (OSError, subprocess.SubprocessError) as failed:
        raise CompilerFailed(f"{name}: does not tell its version: {failed}") from None
    return found, told.stdout.splitlines()[0]


def run_all(
    calls: Sequence[tuple[str, Sequence[str]]], folder: Path, *, deadline: float, done: Callable[[int], None]
) -> None:
    """Run the (name, command) pairs in `folder`, as many at a time as there are CPUs; `done(n)` after the nth.

    `deadline` is time.monotonic()'s. On any failure the others are killed, with all that they started.
    """
    waiting, running, finished = deque(calls), list[_Job](), 0
    try:
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                running.append(_start(*waiting.popleft(), folder))
            ended = [job for job in running if job.process.poll() is not None]
            for job in ended:
                running.remove(job)
                _check(job)
                finished += 1
                done(finished)
            if not ended:
                _wait(deadline, f"{finished} of {len(calls)}")
    finally:
        for job in running:
            _kill(job.process)


def _start(name: str, command: Sequence[str], folder: Path) -> _Job:
    complaint = folder / f"{name}.log"
    with complaint.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(folder),
            process_group=0,
        )
    return _Job(name, process, complaint)


def _check(job: _Job) -> None:
    if job.process.returncode == 0:
        return
    complaint = job.complaint.read_text(encoding="utf-8", errors="replace").strip()[-TOLD:]
    ended = f"exit code {job.process.returncode}" if job.process.returncode > 0 else f"signal {-job.process.returncode}"
    raise CompilerFailed(f"{job.name}: ended with {ended}: {complaint or '(it said nothing)'}")


def _wait(deadline: float, so_far: str) -> None:
    if time.monotonic() > deadline:
        raise CompilerFailed(f"not compiled in time ({so_far} units done); raise the limit or train fewer trees")
    time.sleep(0.005)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(folder: Path | None = None) -> dict[str, str]:
    """Nothing of the caller's that could change the output."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    return environment | {"TMPDIR": str(folder)} if folder is not None else environment


def _sweep(parent: Path) -> None:
    for folder in parent.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid() or time.time() - folder.stat().st_mtime < 60:
                continue  # younger ones may be about to be locked
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
