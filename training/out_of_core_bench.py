"""Training from a Parquet file larger than the memory that the process may have: does it succeed, and what does it take?

    python -m training.out_of_core_bench [--rows 21000000] [--limit-mb 2048]

Writes a table of 30 numbers a row (21 million rows: 5 GB), then trains on it with `coppice train --out-of-core`, by each
library, in a control group of the kernel's that may not have more memory than the limit. Prints a page: seconds, the most
memory, and the holdout's figures. Disk: three times the table. Needs root.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np

from training.runs import git_commit

GROUPS = Path("/sys/fs/cgroup")
WIDTH = 30
BLOCK = 250_000
RECIPE = """algorithm = "{algorithm}"
model = "large"
[rounds]
most = {rounds}
patience = 10
[params]
max_depth = 6
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=21_000_000)
    parser.add_argument("--limit-mb", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, help="a file for the page, beside printing it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="coppice-bench-") as temporary:
        folder = Path(temporary)
        began = perf_counter()
        _write(folder / "rows.parquet", options.rows)
        size = (folder / "rows.parquet").stat().st_size
        print(
            f"  {options.rows:,} rows, {size / 1e9:.2f} GB, written in {perf_counter() - began:.0f} s", file=sys.stderr
        )
        lines = [
            "# Out of core",
            "",
            f"`python -m training.out_of_core_bench --rows {options.rows} --limit-mb {options.limit_mb} --rounds "
            f"{options.rounds}`, commit {git_commit()[:20]}, {os.cpu_count()} cores, Python {sys.version.split()[0]}. "
            f"A Parquet file of {options.rows:,} rows of {WIDTH} numbers, {size / 1e9:.2f} GB; the process may have "
            f"{options.limit_mb:,} MB.",
            "",
            "| library | exit | seconds | largest RSS, MB | accuracy | AUC |",
            "|---|---|---|---|---|---|",
        ]
        with _group(options.limit_mb << 20) as group:
            lines += [_row(folder, group, algorithm, options) for algorithm in ("xgboost", "lightgbm")]
    page = "\n".join([*lines, ""])
    if options.out:
        options.out.write_text(page, encoding="utf-8")
    print(page)


@contextmanager
def _group(limit: int) -> Iterator[Path]:
    """A control group whose processes have `limit` bytes in all; the pages of files that they read are given up first."""
    second = (GROUPS / "cgroup.controllers").exists()
    group = (GROUPS if second else GROUPS / "memory") / "coppice-bench"
    try:
        if second:
            (GROUPS / "cgroup.subtree_control").write_text("+memory", encoding="ascii")
        group.mkdir(exist_ok=True)
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(limit), encoding="ascii")
    except OSError as refused:
        sys.exit(f"memory can't be limited by the kernel's control groups ({refused}); this needs root")
    yield group
    group.rmdir()


def _write(path: Path, rows: int) -> None:
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    names = [f"x{n}" for n in range(WIDTH)]
    schema = pyarrow.schema([*((name, pyarrow.float64()) for name in names), ("y", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=["y"]) as writer:
        for first in range(0, rows, BLOCK):
            block = rng.normal(size=(min(BLOCK, rows - first), WIDTH))
            score = block[:, 0] + block[:, 1] * block[:, 2] + rng.normal(size=len(block)) / 2
            columns = [*block.T, np.where(score > 0, "yes", "no")]
            writer.write_table(pyarrow.table(dict(zip([*names, "y"], columns, strict=True)), schema=schema))


def _row(folder: Path, group: Path, algorithm: str, options: argparse.Namespace) -> str:
    (folder / "recipe.toml").write_text(RECIPE.format(algorithm=algorithm, rounds=options.rounds), encoding="utf-8")
    inside = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    call = [
        "sh",
        "-c",
        inside,
        "limited",
        sys.executable,
        "-m",
        "coppice",
        "train",
        "recipe.toml",
        "--data",
        "rows.parquet",
    ]
    call += ["--target", "y", "--out-of-core"]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "TMPDIR": str(folder),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }
    began = perf_counter()
    process = subprocess.Popen(
        call,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        print(line, end="", file=sys.stderr)
        printed += line
    _, status, used = os.wait4(process.pid, 0)
    told = [re.search(rf"^.* {name} +(0\.\d+)", printed, re.MULTILINE) for name in ("accuracy", "roc_auc")]
    figures = [found[1] if found else "-" for found in told]
    seconds = perf_counter() - began
    code = os.waitstatus_to_exitcode(status)
    return f"| {algorithm} | {code} | {seconds:.0f} | {used.ru_maxrss / 1024:,.0f} | {' | '.join(figures)} |"


if __name__ == "__main__":
    main()
