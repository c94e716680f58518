"""The profile's table adds up, and says when it does not; the floor that it stands on answers."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from loadtests import profiling
from loadtests.peers.floor import constant
from loadtests.servers import serving, thread_cpu_s

OPTIONS = argparse.Namespace(rounds=3, seconds=1.0)
STEPS = {"parse: x": 1.0, "score: x": 3.0, "the whole, bytes in to bytes out": 4.0}


@pytest.mark.parametrize(("loop_us", "met"), [(14.0, True), (15.0, True), (16.0, False), (12.0, False)])
def test_the_sum_is_held_to_what_was_measured(loop_us: float, met: bool) -> None:
    costs = profiling.Costs([loop_us, 1.0, 99.0], [10.0, 10.0, 10.0], [0.5, 0.5, 0.5])
    text, kept = profiling.page(costs, STEPS, "py-spy is not installed", OPTIONS)
    assert kept == met
    assert "| together | 14.00 | 100% |" in text
    assert f"{'met' if met else 'MISSED'}: the steps add up to 14.00 µs" in text
    assert "| score: x | 3.00 | 21% |" in text
    assert "flame graph: py-spy is not installed" in text


def test_the_floor_answers_so_many_bytes(tmp_path: Path) -> None:
    assert len(constant(420)) == 420
    cores = sorted(os.sched_getaffinity(0))
    with (
        serving(profiling.floor_plan(18769, 300), tmp_path, cores) as server,
        urlopen(server.address, timeout=10) as answer,
    ):
        assert answer.status == 200
        assert len(answer.read()) == int(answer.headers["content-length"]) > 200


def test_a_threads_cpu_time_is_its_own() -> None:
    before = thread_cpu_s(os.getpid())[os.getpid()]
    began = time.thread_time()
    while time.thread_time() - began < 0.1:
        pass
    assert thread_cpu_s(os.getpid())[os.getpid()] - before >= 0.05
