"""The verb of measuring: `coppice bench`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from compile.bundle import Manifest, Measured, measured
from compile.errors import BundleRefused
from compile.measuring import BATCHES, Samples, fastest, feed, machine, taken
from compile.rows_file import read_rows
from compile.runtime import Predictor, open_predictor

Matrix = npt.NDArray[np.float64]

DISTINCT = 4_096  # rows: a branch predictor learns a few hundred that come round again


@dataclass(frozen=True, slots=True)
class Figure:
    """µs. `lowest`, `highest`: of the rounds' medians. `built_us`: the median of a call when the bundle was built."""

    batch: int
    backend: str
    median_us: float
    p99_us: float
    row_us: float
    lowest: float
    highest: float
    built_us: float | None
    calls: int


def bench(
    bundle: Annotated[Path, typer.Argument(help="a bundle's folder, as var/releases/bundles/3f2a...")],
    rows: Annotated[Path | None, typer.Option(help="CSV of rows to score; default: the bundle's probe, mixed")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="turns that each backend has, one after the other")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="to measure for, about")] = 8.0,
    as_json: Annotated[bool, typer.Option("--json", help="figures for programs")] = False,
) -> None:
    """Measure on this host how fast each of a bundle's backends scores, by the very call that serves.

    Batches of 1, 8, 32 and 128 rows, all different: a row that is repeated teaches the processor its branches, and a tree looks
    three times as fast as it is. The backends take turns, so that a busy machine is busy for all of them.

    \b
        coppice bench var/releases/bundles/3f2a...
        coppice bench var/releases/bundles/3f2a... --rows rows.csv --json
    """
    predictors, unavailable = opened(bundle)
    first = next(iter(predictors.values()))
    matrix = mixed(first.probe_rows) if rows is None else read_rows(rows, first.manifest.schema)
    if not len(matrix):
        raise BundleRefused(f"{rows}: has no rows to score")
    told = measured(bundle)
    found = []
    for batch in BATCHES:
        found += figures(timed(predictors, matrix, batch, rounds, seconds / len(BATCHES)), batch, told)
        typer.echo(f"  measured calls of {batch} {'row' if batch == 1 else 'rows'}", err=True)
    if as_json:
        typer.echo(_json(bundle, len(matrix), rounds, found, unavailable, told))
    else:
        typer.echo("\n".join(_text(first.manifest, len(matrix), rounds, found, unavailable, told)))


def opened(path: Path) -> tuple[dict[str, Predictor], dict[str, str]]:
    """The bundle's backends that run here, and why the others don't. Raises BundleRefused where none does."""
    default = open_predictor(path)
    predictors, unavailable = {}, {}
    for name in default.manifest.backends:
        try:
            predictors[name] = open_predictor(path, name)
        except BundleRefused as reason:
            unavailable[name] = str(reason).removeprefix(f"{path}: ")
    return predictors, unavailable


def mixed(rows: Matrix, seed: int = 0) -> Matrix:
    """Distinct rows, each of whose values is that of some given row: enough of them that nothing learns them."""
    picked = np.random.default_rng(seed).integers(0, len(rows), (DISTINCT, rows.shape[1]))
    return np.ascontiguousarray(np.take_along_axis(rows, picked, axis=0))


def timed(predictors: dict[str, Predictor], rows: Matrix, batch: int, rounds: int, most_s: float) -> Samples:
    buffer = np.zeros((batch, rows.shape[1]))
    runs = {name: opened.bound(buffer, np.zeros((batch, opened.outputs))) for name, opened in predictors.items()}
    return taken(runs, feed(rows, buffer), batch, rounds=rounds, most_s=most_s, most_calls=2_000)


def figures(samples: Samples, batch: int, told: Measured | None) -> list[Figure]:
    """One for each backend, the fastest first."""
    found = []
    for name, turns in samples.items():
        calls = np.concatenate(turns)
        medians = [float(np.median(turn)) for turn in turns]
        median = float(np.median(medians))
        built = None if told is None else told.us.get(name, {}).get(str(batch))
        p99 = float(np.quantile(calls, 0.99))
        found.append(Figure(batch, name, median, p99, median / batch, min(medians), max(medians), built, len(calls)))
    return sorted(found, key=lambda figure: figure.median_us)


def _chosen_here(found: list[Figure]) -> str:
    names = {figure.backend for figure in found}
    return fastest({name: {str(f.batch): f.median_us for f in found if f.backend == name} for name in names})


def _text(
    manifest: Manifest,
    rows: int,
    rounds: int,
    found: list[Figure],
    unavailable: dict[str, str],
    told: Measured | None,
) -> list[str]:
    native = manifest.native
    heads = ("rows", "backend", "µs a call", "p99", "µs a row", "rounds, lowest - highest", "at the build")
    lines = [
        f"{manifest.model} {manifest.version}: {native.library} {native.version}, {native.trees} trees, "
        f"{manifest.schema.width} features",
        f"{machine()}; {rows:,} distinct rows, {rounds} rounds",
        "",
        "{:>5}  {:9}{:>12}{:>12}{:>12}  {:>24}{:>14}".format(*heads),
    ]
    previous = 0
    for figure in found:
        spread = f"{figure.lowest:,.2f} - {figure.highest:,.2f}"
        built = "" if figure.built_us is None else f"{figure.built_us:,.2f}"
        mark = "" if figure.batch == previous else "  fastest"
        lines.append(
            f"{figure.batch:5}  {figure.backend:9}{figure.median_us:12,.2f}{figure.p99_us:12,.2f}{figure.row_us:12,.2f}"
            f"  {spread:>24}{built:>14}{mark}"
        )
        previous = figure.batch
    lines += ["", *(f"{name}: {reason}" for name, reason in unavailable.items())]
    lines.append(f"fastest over all sizes here: {_chosen_here(found)}")
    if told is not None:
        lines.append(f"chosen at the build, and what serves: {told.chosen} ({told.machine or 'machine unknown'})")
    return lines


def _json(
    bundle: Path,
    rows: int,
    rounds: int,
    found: list[Figure],
    unavailable: dict[str, str],
    told: Measured | None,
) -> str:
    document = {
        "bundle": bundle.name,
        "machine": machine(),
        "rows": rows,
        "rounds": rounds,
        "figures": [asdict(figure) for figure in found],
        "fastest": _chosen_here(found),
        "unavailable": unavailable,
        "built": None if told is None else {"chosen": told.chosen, "machine": told.machine},
    }
    return json.dumps(document, indent=1)
