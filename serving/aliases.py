"""MLflow's aliases as a projection of the routes: `champion` and `challenger` point at the versions that are routed so.

Routes are the truth. After the command line changed them, the aliases follow where the registry can be reached; where it
can't, `coppice models sync` repairs them later. For the command line alone: no server ever asks the registry.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from compile.bundle import Manifest
from compile.bundle import read as read_bundle
from serving.errors import NothingToServe
from serving.routes import Routes, models, read
from serving.store import Store, open_store

FOLLOWED = ("champion", "challenger")


def sync_models(
    model: Annotated[str | None, typer.Argument(help="one model; default: every model that is routed")] = None,
    store: Annotated[str, typer.Option(envvar="COPPICE_STORE", help="release store")] = "var/releases",
) -> None:
    """Set the registry's aliases champion and challenger to the versions that the routes say.

    \b
        coppice models sync churn
    """
    opened = open_store(store)
    names = [model] if model else models(opened)
    if not names:
        raise NothingToServe(f"{opened.name}: no model has routes yet")
    for name in names:
        for line in project(opened, read(opened, name)):
            typer.echo(line)


def follow(store: Store, routed: Routes) -> None:
    """After a change: set the aliases, or say in one line why not. The change stands either way."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path("var/mlflow.db").exists():
        return  # there is no registry here, and asking would make one
    try:
        lines = project(store, routed)
    except Exception as failure:  # a registry fails in a hundred ways, none of which undoes the change
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        typer.echo(f"aliases are not set ({reason}); `coppice models sync {routed.model}` sets them", err=True)
    else:
        for line in lines:
            typer.echo(line)


def project(store: Store, routed: Routes) -> list[str]:
    """Make the aliases what the routes say; a line for each that was set or removed. Raises what the registry raises."""
    from training import registry

    lines = []
    wanted = _versions(store, routed)
    present = registry.aliases(routed.model)
    for name in FOLLOWED:
        if name in wanted and present.get(name) != wanted[name]:
            registry.alias(registry.resolve(f"{routed.model}@{wanted[name]}"), name)
            lines.append(f"{routed.model}@{name} is version {wanted[name]}")
        elif name not in wanted and name in present:
            registry.drop_alias(routed.model, name)
            lines.append(f"{routed.model}@{name} is no more")
    return lines


def _versions(store: Store, routed: Routes) -> dict[str, str]:
    """Version by alias, for the arms whose bundles are of the registered model of that name."""
    versions = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in FOLLOWED:
            if name in routed.arms:
                manifest: Manifest = read_bundle(store.fetch(routed.arms[name], Path(cache), lambda: None))
                if manifest.model == routed.model:
                    versions[name] = manifest.version
    return versions
