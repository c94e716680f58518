"""The listening sockets: one a worker on a port, or one for all of them under a name of the file system.

On a port each has SO_REUSEPORT, so that the kernel spreads connections evenly. The supervisor keeps them all open:
connections queued at a worker that died are served by its successor.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from serving.errors import SettingsRefused
from serving.settings import Settings

UNIX = "unix:"
BACKLOG = 4096


def listen(settings: Settings, workers: int) -> Sequence[socket.socket]:
    """Raises SettingsRefused where the address can't be had, or is another server's."""
    if settings.host.startswith(UNIX):
        first = _listen_unix(Path(settings.host.removeprefix(UNIX)))
        return [first, *(first.dup() for _ in range(workers - 1))]
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


def address_of(listener: socket.socket, *, tls: bool = False) -> str:
    if listener.family == socket.AF_UNIX:
        return f"{UNIX}{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{host}:{port}"


def forget(settings: Settings) -> None:
    """After the last worker: the name of a Unix socket goes with its server."""
    if settings.host.startswith(UNIX):
        with suppress(OSError):
            os.unlink(settings.host.removeprefix(UNIX))


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as refused:
        listener.close()
        raise SettingsRefused(f"COPPICE_HOST: can't listen on {path}: {refused.strerror or refused}") from None
    return listener


def _remove_stale(path: Path) -> None:
    """A socket that nobody listens on was left by a server that was killed. Anything else of that name stays."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # `bind` refuses it
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as look:
        if look.connect_ex(str(path)):
            path.unlink()


def _refuse_taken(listener: socket.socket, host: str, port: int) -> None:
    """SO_REUSEPORT would let a second server of the same user share the port in silence: look without it first."""
    with socket.socket(listener.family) as look:
        look.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            look.bind((host, port))
        except OSError as taken:
            raise SettingsRefused(f"COPPICE_PORT: can't listen on {host}:{port}: {taken.strerror}") from None
