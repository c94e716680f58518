"""The verb `coppice serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def serve(
    workers: Annotated[int | None, typer.Option(help="worker processes; 0: one for each CPU")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on, or unix:PATH")] = None,
    port: Annotated[int | None, typer.Option(help="port; 0 takes a free one and prints it")] = None,
    store: Annotated[str | None, typer.Option(help="release store: a folder or s3://bucket/prefix")] = None,
    traffic: Annotated[Path | None, typer.Option(help="folder of the traffic log")] = None,
    model: Annotated[str | None, typer.Option(help="model that /predict serves")] = None,
    http: Annotated[str | None, typer.Option(help="direct (fast) or asgi (through FastAPI)")] = None,
) -> None:
    """Serve the models that the store routes, until SIGTERM or Ctrl-C; SIGHUP restarts the workers one by one.

    Every flag is also an environment variable, COPPICE_ and its name; the README lists them all.

    \b
        coppice serve --workers 2 --port 8000
        curl -s localhost:8000/v1/models            what is served
        curl -s localhost:8000/predict -H 'content-type: application/json' -d @row.json
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # a worker is one core; set before any library counts the cores
    from serving import supervisor
    from serving.settings import Settings

    settings = Settings.from_env(
        workers=workers, host=host, port=port, store=store, traffic=traffic, model=model, http=http
    )
    raise typer.Exit(supervisor.run(settings))
