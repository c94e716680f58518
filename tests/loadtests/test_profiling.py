"""The profile's table adds up, and says when it does not; the servers that it compares answer."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from cases import Release

from loadtests import profiling
from loadtests.servers import serving, thread_cpu_s

OPTIONS = argparse.Namespace(rounds=3, seconds=1.0)
AT = dict(zip(profiling.PLACES, (8.0, 9.0, 9.5, 10.5, 12.5, 13.0, 14.0), strict=True))
WARM = {"score: the model": 1.0, "log: a row": 0.25}


@pytest.mark.parametrize(("loop_us", "met"), [(14.0, True), (15.0, True), (16.0, False), (12.0, False)])
def test_the_sum_is_held_to_what_was_measured(loop_us: float, met: bool) -> None:
    costs = profiling.Costs([loop_us, 1.0, 99.0], [0.5] * 3, {place: [us, 0.0, 99.0] for place, us in AT.items()})
    text, kept = profiling.page(costs, WARM, "py-spy is not installed", OPTIONS)
    assert kept == met
    assert "| together | 14.00 | 100% |" in text
    assert f"{'met' if met else 'MISSED'}: the steps add up to 14.00 µs" in text
    assert "| score: the model | 2.00 | 14% |" in text
    assert "| encode: the answer, and to count it | 0.25 |" in text
    assert "flame graph: py-spy is not installed" in text


def test_every_place_is_served(release: Release, tmp_path: Path) -> None:
    """The last of them answers a score, the others a constant; both after all of the way to their place."""
    cores = sorted(os.sched_getaffinity(0))
    body = b'{"age": 40, "balance": 1.5, "plan": "basic", "region": "east", "autopay": true, "visits": 2}'
    for plan in profiling.place_plans("mixed", 18761, str(release.store))[-3:]:
        with serving(plan, tmp_path, cores) as server:
            request = Request(server.address + "/predict/ab", body, {"content-type": "application/json"})
            with urlopen(request, timeout=10) as answer:
                assert answer.status == 200
                assert (b"probability" in answer.read()) == (plan.title == "whole")


def test_a_threads_cpu_time_is_its_own() -> None:
    before = thread_cpu_s(os.getpid())[os.getpid()]
    began = time.thread_time()
    while time.thread_time() - began < 0.1:
        pass
    assert thread_cpu_s(os.getpid())[os.getpid()] - before >= 0.05
