"""The benchmarks print what they promise; how fast is theirs to say, not a test's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import Release

from compile import bench
from compile.measuring import fastest, feed, taken

ROOT = Path(__file__).parent.parent.parent


def coppice(*call: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coppice", *map(str, call)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_verb_measures_every_backend_with_every_batch(release: Release, tmp_path: Path) -> None:
    ran = coppice("bench", release.champion, "--seconds", "0.2", "--rounds", "2", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    measured = {(figure["batch"], figure["backend"]) for figure in told["figures"]}
    assert measured == {(batch, backend) for batch in (1, 8, 32, 128) for backend in ("treelite", "onnx")}
    # not that the median of the rounds' medians is below p99: a round that was held up has few calls, and that median
    assert all(0 < figure["lowest"] <= figure["median_us"] <= figure["highest"] for figure in told["figures"])
    assert all(figure["p99_us"] > 0 for figure in told["figures"])
    assert told["fastest"] in ("treelite", "onnx")
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "age,balance,plan,region,autopay,visits\n40,12.5,plus,east,true,3\n,,basic,,false,\n", encoding="utf-8"
    )
    ran = coppice("bench", release.champion, "--seconds", "0.1", "--rounds", "1", "--rows", rows)
    assert "fastest over all sizes here" in ran.stdout, ran.stderr
    assert "2 distinct rows" in ran.stdout


def test_runs_take_turns_and_all_see_the_same_rows() -> None:
    rows, buffer = np.arange(10.0).reshape(5, 2), np.zeros((2, 2))
    seen: dict[str, list[float]] = {"a": [], "b": []}
    runs = {name: lambda _, name=name: seen[name].append(buffer[0, 0]) for name in seen}
    samples = taken(runs, feed(rows, buffer), 2, rounds=3, most_s=10, most_calls=4)
    assert [len(turn) for turn in samples["a"]] == [4, 4, 4]
    assert seen["a"] == seen["b"]
    assert len(set(seen["a"])) == 5  # every row came


def test_the_fastest_is_so_for_one_row_first() -> None:
    assert fastest({"a": {"1": 1.0, "8": 9.0}, "b": {"1": 2.0, "8": 8.0}}) == "a"
    assert fastest({"a": {"1": 1.0, "8": 90.0}, "b": {"1": 1.1, "8": 8.0}}) == "b"


def test_the_benchmark_writes_its_page_and_says_the_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--small", "--rounds", "1", "--seconds", "0.05", "--out", str(tmp_path)])
    page = (tmp_path / "compile.md").read_text(encoding="utf-8")
    for part in ("native library", "usual ONNX", "treelite", "| native |", "onnx alone", "commit ", "compile.png"):
        assert part in page.replace("native (serves)", "native"), part
    assert (tmp_path / "compile.png").stat().st_size > 1000
    assert "slowest ratio to off-the-shelf: " in capsys.readouterr().out
