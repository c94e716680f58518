"""Listen, say where, and answer until SIGTERM or Ctrl-C."""

from __future__ import annotations

import socket

import typer
import uvicorn
from fastapi import FastAPI

from monitoring.errors import MonitoringError

STOP_S = 5  # for answers that are being made


def serve(app: FastAPI, host: str, port: int) -> None:
    """Raises MonitoringError where it can't listen there."""
    with _listener(host, port) as listener:
        taken = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=STOP_S)
        typer.echo(f"dashboard on http://{shown}:{taken}/")
        uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as refused:
        raise MonitoringError(f"--port: can't listen on {host}:{port}: {refused.strerror or refused}") from None
