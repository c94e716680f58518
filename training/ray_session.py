"""Ray for as long as a `with` lasts: one of our own on this machine, or the cluster at RAY_ADDRESS=HOST:PORT."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from training.errors import RecipeRefused

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}


@contextmanager
def connected(option: str, cpus: int | None = None) -> Iterator[str | None]:
    """The cluster's address, or None. `option` is what wants Ray; `cpus` of the one of our own, else the machine's.

    Raises RecipeRefused where Ray is not installed or not there. Ray is imported here, never when a module is.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    try:
        import ray
    except ImportError:
        raise RecipeRefused(f'{option}: needs the extra "ray": pip install "coppice[ray]"') from None
    cluster = os.environ.get("RAY_ADDRESS")
    if cluster and cluster.startswith("ray://"):
        raise RecipeRefused(
            "RAY_ADDRESS: give HOST:PORT, from a node of the cluster: by ray:// this process would leave here"
        )
    here = {} if cluster else {"include_dashboard": False, "num_cpus": cpus}
    try:
        ray.init(address=cluster or "local", log_to_driver=False, logging_level="ERROR", **here)
    except (ConnectionError, RuntimeError) as unreachable:
        raise RecipeRefused(f"Ray at {cluster or 'this machine'}: {str(unreachable).splitlines()[0]}") from None
    try:
        yield cluster
    finally:
        ray.shutdown()
