"""The whole way in one command: data to a served, logged, load-tested model, and what the log says of it.

Each step runs the very verb that a user would, and prints it. Wrong results end the demo with an error: a failed gate, an
answer that is not the trained model's, a failed request, books that do not balance, drift where there is none, none where
there is. Latency is a verdict, printed: it depends on the machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, sleep
from typing import Annotated, Any
from urllib.request import Request, urlopen

import typer

from monitoring.errors import MonitoringError

CHECKED_ROWS = 200
DRIFTED_S = 6
DIGEST = re.compile(r"^[0-9a-f]{64}$")


class DemoFailed(MonitoringError):
    exit_code = 1


@dataclass
class Findings:
    """The page of results: (what, value, where to look)."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, value: str, where: str | Path = "") -> None:
        self.lines.append((what, value, str(where)))

    def page(self) -> str:
        rows = [("result", "value", "where to look"), ("---", "---", "---"), *self.lines]
        widths = [max(len(row[n]) for row in rows) for n in range(2)]
        return "\n".join(f"| {a:<{widths[0]}} | {b:<{widths[1]}} | {c} |" for a, b, c in rows) + "\n"


@dataclass(frozen=True)
class Places:
    """Where this demo keeps its things, and the environment that tells the verbs so."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "releases"

    @property
    def traffic(self) -> Path:
        return self.folder / "traffic"

    @property
    def lake(self) -> Path:
        return self.folder / "lake"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COPPICE_")}
        return kept | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder.resolve() / 'mlflow.db'}",
            "COPPICE_STORE": str(self.store),
            "COPPICE_TRAFFIC": str(self.traffic),
        }


def demo(
    data: Annotated[
        Path | None, typer.Option(help="your own CSV or Parquet; default: the built-in churn world")
    ] = None,
    target: Annotated[str | None, typer.Option(help="the column to predict, with --data")] = None,
    folder: Annotated[Path, typer.Option(help="everything is made in here; emptied first")] = Path("var/demo"),
    rate: Annotated[float, typer.Option(help="requests per second")] = 1000.0,
    seconds: Annotated[int, typer.Option(min=3, help="length of the load")] = 30,
) -> None:
    """Train two models, prove and serve them, put load on them, and read the log: about two minutes.

    \b
        coppice demo
        coppice demo --data rows.csv --target churned
    """
    if data is not None and not target:
        raise MonitoringError("--target: name the column to predict")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    places, findings = Places(folder), Findings()
    began = perf_counter()
    name = data.name.split(".")[0] if data is not None else "churn"
    _train(places, findings, name, data, target)
    digests = _release(places, findings, name)
    calm, drifted = _rows(places, name, digests["champion"], own=data is not None)
    server = Server(places, name)
    try:
        findings.add("server ready", f"{server.ready_s:.2f} s, {server.workers} workers", server.log)
        checked = _check_answers(places, name, server.address, calm)
        findings.add("served = native library", f"{checked} rows, at most 1e-6 apart", f"{name}@champion")
        calm_window, calm_figures = _load(places, findings, server.address, calm, rate, seconds, "calm")
        drifted_window, drifted_figures = _load(places, findings, server.address, drifted, rate, DRIFTED_S, "drifted")
    finally:
        server.stop()
    asked = checked + calm_figures["requests"] + drifted_figures["requests"]
    _balance(places, findings, name, int(asked))
    _drift(places, findings, name, calm_window, "calm", expected=False)
    _drift(places, findings, name, drifted_window, "drifted", expected=True)
    findings.add("the whole demo", f"{perf_counter() - began:.0f} s", folder)
    page = findings.page()
    (folder / "results.md").write_text(page, encoding="utf-8")
    typer.echo(f"\n{page}\nThis page: {folder / 'results.md'}")


def _train(places: Places, findings: Findings, name: str, data: Path | None, target: str | None) -> None:
    for algorithm, alias in (("xgboost", "champion"), ("lightgbm", "challenger")):
        call = ["train", "--algorithm", algorithm, "--alias", alias]
        if data is not None:
            call += ["--data", str(data), "--target", str(target), "--name", name]
        if alias == "challenger":
            call += ["--schema-from", f"{name}@champion"]
        verb(places, call)
    listed = verb(places, ["models", "--json"], quiet=True).splitlines()
    for version in map(json.loads, reversed([line for line in listed if line.startswith("{")])):
        figures = f"accuracy {version['accuracy']}, AUC {version['roc_auc']} on the holdout"
        findings.add(
            f"{', '.join(version['aliases'])}: {version['algorithm']}",
            figures,
            f"{name}@{version['version']} in MLflow",
        )


def _release(places: Places, findings: Findings, name: str) -> dict[str, str]:
    from compile.bundle import read

    digests = {}
    for alias in ("champion", "challenger"):
        printed = verb(places, ["compile", f"{name}@{alias}"]).split()
        digests[alias] = printed[-1] if printed and DIGEST.match(printed[-1]) else ""
        if not digests[alias]:
            raise DemoFailed(f"coppice compile {name}@{alias} printed no digest")
        bundle = places.store / "bundles" / digests[alias]
        proofs = {form: sum(backend.parity.rows.values()) for form, backend in read(bundle).backends.items()}
        told = ", ".join(f"{form} {rows:,}" for form, rows in sorted(proofs.items()))
        findings.add(f"{alias} compiled", f"margins equal bit for bit: {told} rows", bundle)
    call = ["routes", "publish", name, "--split", "champion=50,challenger=50", "--note", "demo"]
    for alias, digest in digests.items():
        call += ["--arm", f"{alias}={digest}"]
    verb(places, [*call, "--shadow", f"candidate={digests['challenger']}:0.25"])
    return digests


def _rows(places: Places, name: str, champion: str, *, own: bool) -> tuple[Path, Path]:
    """Bodies to send: like the training data, and drifted. Of one's own table: the holdout, and its upper half by score."""
    calm, drifted = places.folder / "calm.jsonl", places.folder / "drifted.jsonl"
    if not own:
        verb(places, ["simulate", "--rows", "20000", "--seed", "1001", "--out", str(calm)])
        verb(places, ["simulate", "--rows", "5000", "--seed", "1002", "--covariate-drift", "1", "--out", str(drifted)])
        return calm, drifted
    import numpy as np
    import pandas as pd

    from compile.bundle import locate
    from compile.runtime import open_predictor
    from training.features import encode_frame
    from training.registry import download

    os.environ["MLFLOW_TRACKING_URI"] = places.environment["MLFLOW_TRACKING_URI"]
    shelf = download(f"{name}@champion")
    frame = pd.read_parquet(shelf.holdout)[list(shelf.schema.names)].sample(frac=1.0, random_state=0)
    scores = open_predictor(locate(places.store, champion)).score(encode_frame(shelf.schema, frame))[:, 0]
    for path, rows in ((calm, frame), (drifted, frame[scores > np.median(scores)])):
        records = json.loads(rows.to_json(orient="records", double_precision=15))
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return calm, drifted


def _check_answers(places: Places, name: str, address: str, rows: Path) -> int:
    """Ask /predict and the native library the same rows."""
    import numpy as np

    from training.features import encode
    from training.registry import download

    os.environ["MLFLOW_TRACKING_URI"] = places.environment["MLFLOW_TRACKING_URI"]
    shelf = download(f"{name}@champion")
    bodies = rows.read_bytes().splitlines()[:CHECKED_ROWS]
    matrix = encode(shelf.schema, [json.loads(body) for body in bodies])
    native = shelf.probability(matrix)
    served = np.array([_ask(f"{address}/predict", body)["probability"] for body in bodies])
    worst = float(np.abs(native - served).max())
    if not worst <= 1e-6:
        raise DemoFailed(f"a served probability is {worst:g} from the native library's; 1e-6 was promised")
    return len(bodies)


def _ask(url: str, body: bytes) -> Any:
    request = Request(url, body, {"content-type": "application/json"})
    with urlopen(request, timeout=10) as answer:
        return json.load(answer)


class Server:
    """`coppice serve` as a process of its own, one worker a core, on a free port."""

    def __init__(self, places: Places, name: str) -> None:
        self.log = places.folder / "serve.log"
        call = [sys.executable, "-m", "coppice", "serve", "--model", name, "--port", "0"]
        say("coppice serve --model " + name)
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(call, env=places.environment, stderr=out, stdout=out)
        deadline = perf_counter() + 60
        while True:
            ready = re.search(
                r"ready on (\S+) with (\d+) worker\S* after ([\d.]+) s", self.log.read_text(encoding="utf-8")
            )
            if ready:
                self.address, self.workers, self.ready_s = ready[1], int(ready[2]), float(ready[3])
                return
            if self._process.poll() is not None or perf_counter() > deadline:
                self.stop()
                raise DemoFailed(f"the server did not become ready: {self.log.read_text(encoding='utf-8')[-500:]}")
            sleep(0.05)

    def stop(self) -> None:
        """SIGTERM, and the drain that follows."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        if self._process.wait(60) != 0:
            raise DemoFailed(f"the server exited with {self._process.returncode}: {self.log}")


def _load(
    places: Places, findings: Findings, address: str, rows: Path, rate: float, seconds: int, title: str
) -> tuple[tuple[str, str], dict[str, Any]]:
    """Locust at a constant rate through /predict/ab; the window it ran in, and its figures. Failed requests end the demo."""
    folder = places.folder / f"load-{title}"
    folder.mkdir()
    spec = find_spec("loadtests")
    assert spec is not None
    assert spec.submodule_search_locations
    script = Path(next(iter(spec.submodule_search_locations))) / "locustfile.py"
    since = datetime.now(UTC).isoformat()
    call = [sys.executable, "-m", "locust", "-f", str(script), "--headless", "--only-summary", "--host", address]
    call += ["--stop-timeout", "10"]  # requests in flight at the end are answered, and counted by both sides
    call += [
        "--users",
        "50",
        "--spawn-rate",
        "50",
        "--run-time",
        f"{seconds}s",
        "--rate",
        f"{rate:g}",
        "--rows",
        str(rows),
    ]
    call += [
        "--csv",
        str(folder / "locust"),
        "--html",
        str(folder / "report.html"),
        "--summary",
        str(folder / "summary.json"),
    ]
    say(f"locust: {rate:g} requests/s for {seconds} s through /predict/ab, {title} rows")
    ran = subprocess.run(
        call, env=places.environment, capture_output=True, text=True, timeout=seconds + 120, check=False
    )
    (folder / "locust.log").write_text(ran.stdout + ran.stderr, encoding="utf-8")
    if not (folder / "summary.json").exists():
        raise DemoFailed(f"Locust did not finish: {folder / 'locust.log'}: {ran.stderr[-500:]}")
    figures: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    latency = ", ".join(f"{q} {figures[f'{q}_ms']:.1f}" for q in ("p50", "p95", "p99"))
    verdict = "held" if not figures["broken"] else "; ".join(figures["broken"])
    typer.echo(
        f"    {figures['requests']:,} requests, {figures['failures']} failed, {figures['rate']:.0f}/s; {latency} ms"
    )
    findings.add(
        f"load, {title}", f"{figures['rate']:.0f} of {rate:g}/s, {figures['failures']} failed", folder / "report.html"
    )
    findings.add(f"latency, {title}", f"{latency} ms", folder / "summary.json")
    findings.add(f"service level (p95 < 100 ms), {title}", verdict, folder / "summary.json")
    if figures["failures"] or not figures["requests"]:
        raise DemoFailed(f"{figures['failures']} of {figures['requests']} requests failed: {folder / 'report.html'}")
    return (since, datetime.now(UTC).isoformat()), figures


def _balance(places: Places, findings: Findings, name: str, asked: int) -> None:
    import pyarrow.compute as pc

    from monitoring.lake import window
    from monitoring.reconcile import reconcile

    both = ["--traffic", str(places.traffic), "--lake", str(places.lake)]
    verb(places, ["compact", *both])
    verb(places, ["reconcile", *both])
    books = reconcile(places.traffic, places.lake)
    dropped, lost = books.total("dropped"), books.total("lost")
    told = f"{books.total('served'):,} = {books.total('logged'):,} + {dropped:,} + {lost:,}"
    findings.add("served = logged + dropped + lost", told, places.lake)
    if dropped or lost:
        raise DemoFailed(f"{dropped} rows dropped and {lost} lost without a crash")
    served = window(places.lake, name, columns=["seq"], where=pc.field("role") == "served").num_rows
    findings.add("requests sent = rows served in the lake", f"{asked:,} = {served:,}", places.lake)
    if served != asked:
        raise DemoFailed(f"{asked:,} requests were answered, the lake holds {served:,} served rows")


def _drift(places: Places, findings: Findings, name: str, span: tuple[str, str], title: str, *, expected: bool) -> None:
    out = places.folder / f"drift-{title}"
    call = ["drift", name, "--since", span[0], "--until", span[1], "--lake", str(places.lake), "--out", str(out)]
    call += ["--checks", str(places.folder / "checks")]
    verb(places, call, allowed=(0, 1))
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    findings.add(f"drift, {title} window", summary["verdict"], out / "report.html")
    if (summary["verdict"] == "drift") != expected:
        raise DemoFailed(f"the {title} window: {summary['verdict']}: {summary['reason']}")


def verb(places: Places, call: Sequence[str], *, quiet: bool = False, allowed: tuple[int, ...] = (0,)) -> str:
    """Run `coppice ...` as a user would; its output, which is passed on line by line unless quiet."""
    if not quiet:
        say("coppice " + " ".join(part if len(part) < 64 else part[:20] + "..." for part in call))
    full = [sys.executable, "-m", "coppice", *call]
    lines = []
    with subprocess.Popen(full, env=places.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if not quiet:
                typer.echo(f"  {line}", nl=False)
    if process.returncode not in allowed:
        raise DemoFailed(f"`coppice {' '.join(call)}` exited with {process.returncode}")
    return "".join(lines)


def say(text: str) -> None:
    typer.echo(f"\n$ {text}")
