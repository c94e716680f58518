"""Compiled forms beside the native library and the usual ONNX conversion: `make bench-compile`.

Three models, calls of 1, 8, 32 and 128 distinct rows, every way in turn within each round, one thread each, so that a busy
machine is busy for all of them. Our forms are timed through the call that serves. Then the time that compiling takes.
Writes loadtests/results/compile.md and a plot beside it.

    python -m compile.bench [--rounds 5] [--seconds 1.0] [--small]      (--small: tiny models, to see that it works)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.build import build_bundle, prove_model
from compile.candidates import NAMES
from compile.cross import off_the_shelf
from compile.measuring import BATCHES, Run, fastest, feed, machine, taken
from compile.runtime import Scorer
from training.features import Feature, FeatureSchema

Matrix = npt.NDArray[np.float64]

RESULTS = Path(__file__).parent.parent / "loadtests" / "results"
ROWS = 4_096  # distinct ones: more than a branch predictor learns
OTHERS = ("native library", "usual ONNX")
TOOLS = ("xgboost", "lightgbm", "onnxruntime", "onnxmltools", "treelite", "tl2cgen", "numpy")


@dataclass(frozen=True, slots=True)
class Trained:
    title: str
    library: str
    booster: Any
    schema: FeatureSchema
    rows: Matrix


@dataclass(frozen=True, slots=True)
class Cell:
    """µs of one call: the median over the rounds' medians, the lowest and the highest of those."""

    median: float
    lowest: float
    highest: float


Table = dict[int, dict[str, Cell]]  # by batch and way


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # before a library counts the cores
    began = perf_counter()

    def progress(text: str) -> None:
        print(f"  {perf_counter() - began:6.1f} s  {text}", flush=True)

    tables, chosen = {}, {}
    for model in _models(options.small, progress):
        proven = prove_model(
            model.booster, model.schema, model.rows[:2000], name="bench", version="1", backends=NAMES, cross_check=False
        )
        progress(f"{model.title}: proved {', '.join(proven.scorers)}")
        tables[model.title] = _timed(model, proven.scorers, options.rounds, options.seconds)
        chosen[model.title] = _chosen(tables[model.title], tuple(proven.scorers))
        progress(f"{model.title}: measured; {chosen[model.title]} serves")
    compiling = _compiling(options.small, progress)
    lines = _page(options, tables, chosen, compiling)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "compile.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _plot(tables, out / "compile.png")
    print("\n".join(lines[-4:]))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that each way has")
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure one batch size of one model, about")
    parser.add_argument("--small", action="store_true", help="tiny models: shows that it works, measures nothing")
    parser.add_argument("--out", default=str(RESULTS), help="folder of the page and the plot")
    return parser.parse_args(arguments)


def _models(small: bool, progress: Callable[[str], None]) -> list[Trained]:
    made = []
    for title, library, features, trees, size in (
        ("XGBoost, 100 trees of depth 6, 30 features", "xgboost", 30, 100, 6),
        ("XGBoost, 500 trees of depth 8, 100 features", "xgboost", 100, 500, 8),
        ("LightGBM, 1,500 trees of 31 leaves, 30 features", "lightgbm", 30, 1_500, 31),
    ):
        made.append(_train(title, library, features, *((6, 3) if small else (trees, size))))
        progress(f"trained {title}")
    return made


def _train(title: str, library: str, width: int, trees: int, size: int) -> Trained:
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(20_000, width))
    signal = np.sin(rows[:, :10]).sum(1) + rows[:, 10] * rows[:, 11] + rng.normal(size=len(rows))
    labels = (signal > 0).astype(int)
    booster: Any
    if library == "xgboost":
        import xgboost

        settings = {"objective": "binary:logistic", "max_depth": size, "eta": 0.05, "nthread": 2, "verbosity": 0}
        booster = xgboost.train(settings, xgboost.DMatrix(rows, labels), trees)
        booster.set_param({"nthread": 1})
    else:
        import lightgbm

        settings = {"objective": "binary", "num_leaves": size, "learning_rate": 0.05, "verbosity": -1}
        booster = lightgbm.train(settings, lightgbm.Dataset(rows, labels), trees)
    schema = FeatureSchema(tuple(Feature(name=f"x{j}", kind="number") for j in range(width)))
    return Trained(title, library, booster, schema, np.ascontiguousarray(rows[:ROWS]))


def _timed(model: Trained, scorers: dict[str, Scorer], rounds: int, seconds: float) -> Table:
    table: Table = {}
    for batch in BATCHES:
        buffer, single = np.zeros((batch, model.rows.shape[1])), np.zeros((batch, model.rows.shape[1]), np.float32)
        runs: dict[str, Run] = {
            name: scorer.bound(buffer, np.zeros((batch, scorer.outputs)), 5.0) for name, scorer in scorers.items()
        }
        runs |= _others(model, buffer, single)
        samples = taken(runs, feed(model.rows, buffer, single), batch, rounds=rounds, most_s=seconds, most_calls=1_000)
        medians = {name: [float(np.median(turn)) for turn in turns] for name, turns in samples.items()}
        table[batch] = {name: Cell(float(np.median(us)), min(us), max(us)) for name, us in medians.items()}
    return table


def _others(model: Trained, buffer: Matrix, single: npt.NDArray[np.float32]) -> dict[str, Run]:
    """The library's quickest call, and its usual conversion; each on rows of the type that it likes best."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(off_the_shelf(model.booster, model.library), options)
    last, booster = [session.get_outputs()[-1].name], model.booster
    name = session.get_inputs()[0].name
    native: Run = lambda count: booster.predict(buffer[:count], num_threads=1)  # noqa: E731
    if model.library == "xgboost":
        native = lambda count: booster.inplace_predict(single[:count])  # noqa: E731
    return dict(zip(OTHERS, (native, lambda count: session.run(last, {name: single[:count]})), strict=True))


def _chosen(table: Table, ours: Sequence[str]) -> str:
    return fastest({name: {str(batch): cells[name].median for batch, cells in table.items()} for name in ours})


def _compiling(small: bool, progress: Callable[[str], None]) -> dict[str, float]:
    """Seconds of a whole build, from the booster to the written bundle, of 500 trees of depth 8."""
    model = _train("", "xgboost", 100, *((6, 3) if small else (500, 8)))
    found = {}
    for title, backends in (("onnx alone", ("onnx",)), ("treelite, onnx and native", NAMES)):
        with tempfile.TemporaryDirectory() as folder:
            began = perf_counter()
            build_bundle(
                model.booster, model.schema, model.rows, folder, name="bench", version="1", backends=backends,
                cross_check=False, progress=progress,
            )  # fmt: skip
            found[title] = perf_counter() - began
    return found


def _page(
    options: argparse.Namespace, tables: dict[str, Table], chosen: dict[str, str], compiling: dict[str, float]
) -> list[str]:
    command = f"python -m compile.bench --rounds {options.rounds} --seconds {options.seconds:g}"
    lines = [
        "# Compiled forms",
        "",
        f"`{command}{' --small' if options.small else ''}`, commit {_commit()}, {datetime.now(UTC):%Y-%m-%d}, {machine()}. "
        + ", ".join(f"{tool} {version(tool)}" for tool in TOOLS)
        + f". One thread each; {ROWS:,} distinct rows in turn; µs of a call, the median of {options.rounds} interleaved "
        "rounds, the lowest and highest round beside it. Ours through the call that serves, link included; the native library "
        "by `inplace_predict` or `Booster.predict`; the usual ONNX by onnxmltools and ONNX Runtime, float32.",
        "",
    ]
    worst = 0.0
    for title, table in tables.items():
        lines += [f"## {title}", "", "| way | " + " | ".join(f"{batch} rows" for batch in table) + " |"]
        lines.append("|---" * (len(table) + 1) + "|")
        for way in next(iter(table.values())):
            mark = " (serves)" if way == chosen[title] else ""
            lines.append(f"| {way}{mark} | " + " | ".join(_cell(cells[way]) for cells in table.values()) + " |")
        ratios = [cells[chosen[title]].median / cells["usual ONNX"].median for cells in table.values()]
        worst = max(worst, *ratios)
        lines += ["", "- to the usual ONNX: " + ", ".join(f"{ratio:.2f}" for ratio in ratios)]
        ratios = [cells[chosen[title]].median / cells["native library"].median for cells in table.values()]
        lines += ["- to the native library: " + ", ".join(f"{ratio:.3f}" for ratio in ratios), ""]
    lines += ["![µs a row](compile.png)", "", "## Compiling 500 trees of depth 8, 100 features", ""]
    lines += [f"- {title}: {seconds:.1f} s, gate and writing included" for title, seconds in compiling.items()]
    return [*lines, "", f"slowest ratio to off-the-shelf: {worst:.2f}"]


def _cell(cell: Cell) -> str:
    return f"{cell.median:,.1f} ({cell.lowest:,.1f} - {cell.highest:,.1f})"


def _plot(tables: dict[str, Table], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tables), figsize=(5 * len(tables), 4), sharey=True)
    for axis, (title, table) in zip(np.ravel(axes), tables.items(), strict=True):
        for way in next(iter(table.values())):
            us = [cells[way].median / batch for batch, cells in table.items()]
            axis.plot(list(table), us, marker="o", linestyle="--" if way in OTHERS else "-", label=way)
        axis.set(xscale="log", yscale="log", xlabel="rows in a call", title=title.replace(", ", "\n", 1))
        axis.set_xticks(list(table), [str(batch) for batch in table])
        axis.grid(alpha=0.3)
    np.ravel(axes)[0].set_ylabel("µs a row")
    np.ravel(axes)[-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _commit() -> str:
    """The commit of this checkout, `with changes` where it isn't clean."""

    def git(*arguments: str) -> str:
        call = ["git", "-C", str(RESULTS.parent.parent), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!loadtests/results")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (" with changes" if changed else "")


if __name__ == "__main__":
    main()
