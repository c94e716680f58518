"""A worker's half of the flip: nothing changes before the commit, and nothing that can't be loaded changes anything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from serving.flip import Flipper
from serving.page import Page, Slot
from serving.served import Served


class Loads:
    """A loader of generations that are no more than their numbers; those in `bad` can't be loaded."""

    def __init__(self) -> None:
        self.bad: set[int] = set()
        self.asked: list[int] = []

    def prepare(self, model: str, generation: int) -> tuple[str, int]:
        self.asked.append(generation)
        if generation in self.bad:
            raise ValueError("spoiled")
        return model, generation

    def build(self, prepared: tuple[str, int]) -> Any:
        return SimpleNamespace(routes=SimpleNamespace(generation=prepared[1]))


class Host:
    def __init__(self, folder: Path) -> None:
        page = Page.create(folder / "a.page", 1)
        self.board, self.slot, self.loads = page.board, page.slot(0), Loads()
        self.paths: list[set[bytes]] = []
        self.served = Served(
            lambda live, split: (live, split), lambda paths: self.paths.append(set(paths)), lambda _: None, None
        )  # type: ignore[arg-type,return-value]
        self.flipper = Flipper(
            self.board,
            self.slot,
            self.loads,  # type: ignore[arg-type]
            self.served,
            look_s=0.002,
            again_s=0.02,
        )

    def generation(self, model: str = "m") -> int:
        return int(self.served.models[model].snapshot.routes.generation)

    async def until(self, claim: Callable[[Slot], bool]) -> None:
        for _ in range(400):
            if claim(self.slot):
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it did not come about")


def run(folder: Path, story: Callable[[Host], Awaitable[None]]) -> None:
    async def told() -> None:
        host = Host(folder)
        host.board.offer("m", {"m": 1})
        host.board.commit()
        await host.flipper.first()
        following = asyncio.create_task(host.flipper.follow())
        try:
            await story(host)
        finally:
            following.cancel()

    asyncio.run(told())


def test_it_loads_what_is_offered_and_flips_when_it_is_committed(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        assert (host.generation(), host.slot.serving, host.slot.loaded) == (1, 1, 1)
        host.board.offer("m", {"m": 2, "n": 7})
        await host.until(lambda slot: slot.loaded == 2)
        assert (host.generation(), host.slot.serving) == (1, 1)
        host.board.commit()
        await host.until(lambda slot: slot.serving == 2)
        assert (host.generation(), host.generation("n")) == (2, 7)
        assert host.paths[-1] >= {b"/predict", b"/v1/models/m/predict", b"/v1/models/n/predict/ab"}
        host.board.offer("m", {"m": 3, "n": 7})
        await host.until(lambda slot: slot.loaded == 3)
        assert host.loads.asked == [1, 2, 7, 3]  # what did not change is not loaded again
        assert len(host.paths) == 2

    run(tmp_path, story)


def test_what_is_withdrawn_is_forgotten_and_what_is_spoiled_is_told(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        host.board.offer("m", {"m": 2})
        await host.until(lambda slot: slot.loaded == 2)
        host.board.withdraw()
        await host.until(lambda slot: slot.loaded == 1)
        host.loads.bad.add(3)
        host.board.offer("m", {"m": 3})
        await host.until(lambda slot: slot.failed == 3)
        assert host.slot.failure == "m 3: spoiled"
        assert (host.slot.loaded, host.slot.serving, host.generation()) == (1, 1, 1)
        host.board.withdraw()
        host.board.offer("m", {"m": 4})
        host.board.commit()  # without waiting for it: it follows by itself
        await host.until(lambda slot: slot.serving == 4)
        assert host.generation() == 4

    run(tmp_path, story)


def test_a_worker_that_cannot_load_what_is_committed_still_loads_the_next(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        host.loads.bad.add(2)
        host.board.offer("m", {"m": 2})
        host.board.commit()
        await host.until(lambda slot: slot.failed == 2)
        assert host.generation() == 1
        host.board.offer("m", {"m": 3})
        await host.until(lambda slot: slot.loaded == 3)
        assert host.slot.serving == 1
        host.board.commit()
        await host.until(lambda slot: slot.serving == 3)

    run(tmp_path, story)


def test_it_tries_again_by_itself(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        host.loads.bad.add(2)
        host.board.offer("m", {"m": 2})
        host.board.commit()
        await host.until(lambda slot: slot.failed == 2)
        host.loads.bad.clear()
        await host.until(lambda slot: slot.serving == 2)

    run(tmp_path, story)
