"""Publishing a change of routes: what the verbs of the command line and the admin API both do, and in the same words.

Each reads the newest generation, makes the next (`serving.changes`), checks it, and creates it. Whoever was faster wins;
the other is told, and has changed nothing. Run as a module this answers one request of the admin API, in a process of its
own, so that no worker ever loads the client of a store or a verifier of signatures:

    python -m serving.releasing < request.json         stdin: Request; stdout: Outcome
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import msgspec

from compile.bundle import read as read_bundle
from compile.errors import CompileError
from compile.trust import Trust
from serving import changes, routes
from serving.errors import GenerationTaken, NothingToServe, RoutesRefused, ServingError, StoreUnreachable
from serving.inspection import by_arm, refuse_other_inputs
from serving.routes import CHAMPION, Routes, Shadow
from serving.store import FolderStore, Store, open_store

Verb = Literal["show", "publish", "promote", "rollback", "ramp"]


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked for; each verb reads its own. `generation`: the newest that the asker knows of, 0: any."""

    arms: dict[str, str] = {}
    split: dict[str, float] = {}
    shadow: tuple[Shadow, ...] = ()
    keep_salt: bool = False
    arm: str = "challenger"
    to: int = 0
    shares: dict[str, float] = {}
    note: str = ""
    generation: int = 0
    dry_run: bool = False
    plan: dict[str, Any] | None = None  # of an experiment that begins: checked by `monitoring`, which asks for it


class Request(msgspec.Struct, frozen=True):
    store: str
    trust: str
    verb: Verb
    model: str
    by: str
    change: Change


class Outcome(msgspec.Struct, frozen=True):
    """`status` is HTTP's. `routes`: what is published now, or, of a dry run, would be."""

    status: int
    error: str = ""
    routes: Routes | None = None


def release(store: Store, verb: Verb, model: str, change: Change, *, trust: str, by: str) -> Routes:
    """Do it, unless it is a dry run; the generation made. Raises RoutesRefused (GenerationTaken for who was slower),
    NothingToServe, StoreUnreachable, or compile's errors for bundles that are not in order."""
    newest = max(store.generations(model), default=0)
    if change.generation and change.generation != newest:
        raise GenerationTaken(f"{model}: the newest generation is {newest}, not {change.generation}")
    now = routes.read(store, model, newest) if newest or verb != "publish" else None
    restores: int | None = None
    if now is None or verb == "publish":
        after = _published(now, model, change, by)
    elif verb == "promote":
        after = changes.promote(now, change.arm, note=change.note, by=by)
    elif verb == "ramp":
        after = changes.ramp(now, change.shares, note=change.note, by=by)
    elif verb == "rollback":
        restores = change.to or now.generation - 1
        if not restores:
            raise NothingToServe(f"{model}: generation 1 is the first: there is nothing to roll back to")
        after = changes.rollback(now, routes.read(store, model, restores), note=change.note, by=by)
    else:
        return now
    routes.check_next(store, after, restores=restores)
    _refuse_unfit(store, after, Trust.of(trust))
    if not change.dry_run:
        routes.publish(store, after, restores=restores)
    return after


def _published(now: Routes | None, model: str, change: Change, by: str) -> Routes:
    if change.keep_salt and now is None:
        raise RoutesRefused(f"{model}: has no salt to keep: it has no generation yet")
    return Routes(
        model=model,
        generation=(now.generation if now else 0) + 1,
        salt=now.salt if change.keep_salt and now else routes.new_salt(),
        slots=routes.split_slots(change.split or {CHAMPION: 100}),
        arms=change.arms,
        shadow=change.shadow,
        plan=change.plan,
        note=change.note,
        by=by,
        at=routes.stamp(),
    )


def _refuse_unfit(store: Store, after: Routes, trust: Trust) -> None:
    """What every server would refuse is refused here. Of S3, only where signatures have to be read anyway."""
    if not isinstance(store, FolderStore) and trust.keys_at is None:
        return
    with tempfile.TemporaryDirectory() as cache:
        paths = [store.fetch(digest, Path(cache), lambda: None) for digest in after.bundles]
        trust.admit(paths)
        refuse_other_inputs(by_arm(after, {path.name: read_bundle(path) for path in paths}))


def answer(request: Request) -> Outcome:
    """Never raises for what a request, a store or another publisher may do."""
    try:
        opened = open_store(request.store)
        made = release(opened, request.verb, request.model, request.change, trust=request.trust, by=request.by)
    except GenerationTaken as taken:
        return Outcome(409, str(taken))
    except StoreUnreachable as unreachable:
        return Outcome(503, str(unreachable))
    except NothingToServe as nothing:
        return Outcome(404, str(nothing))
    except (ServingError, CompileError) as refused:
        return Outcome(422, str(refused))
    return Outcome(200, routes=made)


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    sys.stdout.buffer.write(msgspec.json.encode(answer(asked)))
