"""Generations that monitoring asks for: by `serving.releasing`, in a process of its own, as the admin API does; and the
registry's aliases after them, by `coppice models sync`.

Of two that ask at once one is told that it was overtaken, and has changed nothing. Aliases are a projection of the routes:
they are remembered with the arms that they were set for, so that whoever comes after a process that was killed between the
two sets them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from monitoring.decisions import aliased, remember_aliases
from monitoring.errors import Overtaken, Unreleased
from serving.routes import Routes, read

TAKEN = 409
LONGEST_S = 300


class _Outcome(msgspec.Struct):
    status: int
    error: str = ""
    routes: Routes | None = None


def release(store: Path, trust: str, verb: str, model: str, by: str, **change: Any) -> Routes:
    """The generation made. `change`: fields of `serving.releasing.Change`. Raises Overtaken, or Unreleased with the reason."""
    asked = {"store": str(store), "trust": trust, "verb": verb, "model": model, "by": by, "change": change}
    ran = subprocess.run(
        [sys.executable, "-m", "serving.releasing"],
        input=msgspec.json.encode(asked),
        capture_output=True,
        timeout=LONGEST_S,
        check=False,
    )
    try:
        outcome = msgspec.json.decode(ran.stdout, type=_Outcome)
    except msgspec.MsgspecError:
        raise Unreleased(f"{model}: {verb} failed: {_last_line(ran.stderr)}") from None
    if outcome.status == TAKEN:
        raise Overtaken(outcome.error)
    if outcome.routes is None:
        raise Unreleased(outcome.error)
    return outcome.routes


def follow(store: Path, checks: Path, model: str) -> str | None:
    """Set the registry's aliases, unless they were set for these very arms, or there is no registry; a line for people."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path("var/mlflow.db").exists():
        return None
    now = read(store, model)
    if aliased(checks, model) == now.arms:
        return None
    call = [sys.executable, "-m", "coppice", "models", "sync", model, "--store", str(store)]
    try:
        ran = subprocess.run(call, capture_output=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired:
        return f"aliases are not set: no answer within {LONGEST_S} s; the next --apply sets them"
    if ran.returncode:
        return f"aliases are not set ({_last_line(ran.stderr)}); the next --apply sets them"
    remember_aliases(checks, model, now.generation, now.arms)
    return ran.stdout.decode(errors="replace").strip() or f"aliases are those of generation {now.generation}"


def _last_line(text: bytes) -> str:
    return (text.decode(errors="replace").strip() or "no reason was given").splitlines()[-1]
