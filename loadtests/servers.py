"""Servers to be measured: started on cores of their own, looked at from outside (/proc and /metrics), and stopped.

Coppice is asked through its command line and HTTP alone. Everything lives in one temporary folder.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from urllib.error import URLError
from urllib.request import urlopen

HERE = Path(__file__).parent
START_S, STOP_S = 60.0, 60.0


@dataclass(frozen=True)
class Plan:
    """A server to start: `command` without its port; `path` answers once it is ready."""

    title: str
    command: Sequence[str]
    port: int
    path: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    title: str
    address: str
    process: subprocess.Popen[bytes]
    ready_s: float
    ours: bool

    @property
    def pid(self) -> int:
        return self.process.pid


def coppice_plan(title: str, port: int, model: str, *flags: str, **settings: str) -> Plan:
    """`coppice serve` of one model with its log in a folder of its own. `settings`: as of the environment, in lower case."""
    command = [sys.executable, "-m", "coppice", "serve", "--model", model, *flags]
    named = {f"COPPICE_{name.upper()}": value for name, value in settings.items()}
    return Plan(title, command, port, "/readyz", named | {"COPPICE_TRAFFIC": f"var/traffic-{port}"})


@contextmanager
def serving(plan: Plan, folder: Path, cores: Sequence[int]) -> Iterator[Server]:
    say(f"starting {plan.title}")
    address = f"http://127.0.0.1:{plan.port}"
    with socket.socket() as look:
        if look.connect_ex(("127.0.0.1", plan.port)) == 0:
            sys.exit(f"{plan.title}: another server answers on port {plan.port}; stop it first")
    log_path = folder / f"{plan.port}.log"
    with log_path.open("wb") as log:
        began = perf_counter()
        pinned = ["taskset", "-c", ",".join(map(str, cores)), *plan.command, "--port", str(plan.port)]
        environment = clean_environment() | {"BENCH_MODEL": str(folder / "naive.ubj")} | dict(plan.settings)
        process = subprocess.Popen(pinned, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        while not _answers(address + plan.path):
            if process.poll() is not None or perf_counter() - began > START_S:
                sys.exit(f"{plan.title} did not start: {log_path.read_text(encoding='utf-8')[-1000:]}")
            sleep(0.02)
        yield Server(plan.title, address, process, perf_counter() - began, plan.path == "/readyz")
    finally:
        process.terminate()
        process.wait(STOP_S)


def coppice(folder: Path, *call: str) -> str:
    """What the verb printed; exits with what it complained of."""
    command = [sys.executable, "-m", "coppice", *call]
    ran = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"{shlex.join(command)}: {ran.stderr}")
    return ran.stdout


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COPPICE_", "MLFLOW_"))}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return kept | threads | {"PYTHONPATH": str(HERE.parent)}


# Looked at from outside


def workers_of(server: Server) -> list[int]:
    """The processes that answer: Coppice's workers, in the order of their slots; of another server, itself."""
    if not server.ours:
        return [server.pid]
    with urlopen(server.address + "/readyz", timeout=10) as answer:
        return [int(worker["pid"]) for worker in json.load(answer)["workers"]]


def served_by_worker(server: Server) -> list[float]:
    """Requests answered so far by each worker, by Coppice's own count."""
    if not server.ours:
        return []
    return [value for name, value in metrics(server).items() if name.startswith("coppice_worker_requests_total{")]


def cpu_s(server: Server) -> float:
    """CPU seconds that the processes that answer have taken so far."""
    return sum(process_cpu_s(pid) for pid in workers_of(server))


def process_cpu_s(pid: int) -> float:
    return _stat_cpu_s(f"/proc/{pid}/stat")


def thread_cpu_s(pid: int) -> dict[int, float]:
    """CPU seconds by thread; the main thread's number is the process's."""
    return {int(name): _stat_cpu_s(f"/proc/{pid}/task/{name}/stat") for name in os.listdir(f"/proc/{pid}/task")}


def _stat_cpu_s(path: str) -> float:
    fields = _read(path).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def rss_mb(pid: int) -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", _read(f"/proc/{pid}/status"), re.MULTILINE)
    return int(found[1]) / 1024 if found else float("nan")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def metrics(server: Server) -> dict[str, float]:
    """Every sample of /metrics by its name and labels, as written."""
    with urlopen(server.address + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    pairs = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def two_cores(who: str) -> list[int]:
    """The cores that there are; the first is the server's, the second the client's. Exits where there is one alone."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit(f"{who} needs two cores: one for the server, one for the load")
    return cores


def commit() -> str:
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=HERE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def machine() -> str:
    model = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    processor = model[1] if model else platform.processor()
    return f"{os.cpu_count()} x {processor}, Linux {platform.release()}, Python {platform.python_version()}"


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def _read(path: str) -> str:
    """Empty where the process is gone."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1):
            return True
    except (URLError, OSError) as refused:
        return getattr(refused, "code", 503) not in (503,)
