"""The dashboard in a real browser, over a real server's traffic: what it shows is what the queries say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest
from cases import MIXED, mixed_body, mixed_rows, train_mixed
from conftest import ROOT
from running import Running

from compile import build_bundle, open_predictor
from compile.bundle import publish
from loadtests.browser import Browser, Visit, browser, program
from monitoring import queries
from monitoring.checks import Check, append, read
from monitoring.dashboard import POLICY
from monitoring.dashboard_words import count, figure, ms, share
from monitoring.engine import open_engine
from monitoring.lake import HOUR_US
from monitoring.latency_buckets import ERROR
from monitoring.summaries import BINS
from serving import page, routes
from serving.traffic import Tag, TrafficLog
from training.features import decode_matrix

pytestmark = pytest.mark.skipif(program() is None, reason="needs a browser: apt-get install chromium")
ASKED, FAILED = 400, 7
PANELS = ("glance", "predictions", "drift", "performance", "latency", "errors", "arms", "lineage")
SERIES = "window=day"


@dataclass(frozen=True)
class Shown:
    address: str
    folder: Path
    browser: Browser

    def visit(self, query: str = "", **look: Any) -> Visit:
        return self.browser.visit(f"{self.address}?{query}", **look)

    def figures(self, name: str, query: str = SERIES) -> Any:
        with urlopen(f"{self.address}api/panels/{name}?{query}", timeout=20) as answer:
            told = json.load(answer)
        assert not told["failed"], told
        return told["figures"]


@contextmanager
def dashboard(folder: Path, *more: str) -> Iterator[str]:
    """`coppice dashboard` over the folder's lake, traffic, store and checks; its address."""
    call = [sys.executable, "-m", "coppice", "dashboard", "--port", "0", "--every", "1"]
    for place in ("lake", "traffic", "store", "checks", "cache"):
        call += [f"--{place}", place]
    log = folder / "dashboard.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COPPICE_")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*call, *more], cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 60
        while (ready := re.search(r"dashboard on (http://\S+)", log.read_text(encoding="utf-8"))) is None:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield ready[1]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM), log.read_text(encoding="utf-8")
        assert "Traceback" not in log.read_text(encoding="utf-8")


def wait_for(address: str, name: str, key: str, query: str = SERIES) -> None:
    """Until the panel has these figures."""
    deadline = time.monotonic() + 60
    while True:
        with urlopen(f"{address}api/panels/{name}?{query}", timeout=20) as answer:
            told = json.load(answer)
        if key in told["figures"] and "still to be" not in told["source"]:
            return
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


def publish_release(folder: Path) -> str:
    """One bundle with reference, card and lineage, in two arms and a shadow; the schema's fingerprint."""
    native, rows = train_mixed("xgboost", trees=8), mixed_rows(300, 1)
    bare = build_bundle(native, MIXED, rows, folder / "bare", name="mixed", version="1", cross_check=False)
    frame = pd.DataFrame(decode_matrix(MIXED, rows)).assign(prediction=open_predictor(bare).score(rows)[:, 0])
    frame.to_parquet(folder / "reference.parquet")
    digests = []
    for version in ("1", "2"):
        built = build_bundle(
            native, MIXED, rows, folder / "built", name="mixed", version=version, classes=("no", "yes"),
            reference=folder / "reference.parquet", card=f"# Model card: mixed {version}\n", cross_check=False,
            lineage={"run_id": f"run-{version}", "data_sha256": "ab" * 32, "git_commit": "abcdef0"},
        )  # fmt: skip
        digests.append(publish(built, folder / "store"))
    routes.publish(
        folder / "store",
        routes.Routes(
            model="mixed",
            generation=1,
            salt="00112233445566778899aabbccddeeff",
            slots=routes.split_slots({"champion": 75, "challenger": 25}),
            arms={"champion": digests[0], "challenger": digests[1]},
            shadow=(routes.Shadow(name="candidate", bundle=digests[1], sample=1.0),),
            note="first <ramp>",
            by="tests",
            at=routes.stamp(),
        ),
    )
    return MIXED.fingerprint


def ask_for_scores(server: Running) -> None:
    told = []
    for n, row in enumerate(mixed_rows(ASKED, 5)):
        status, headers, _ = server.ask("/predict/ab", mixed_body(row))
        assert status == 200
        told.append({"request_id": headers["x-request-id"], "row": 0, "value": "yes" if n % 3 else "no"})
    assert server.ask("/predict", b'{"age": "old"}')[0] == 422
    assert server.ask("/feedback", json.dumps(told).encode())[0] == 202


def log_failures(traffic: Path, schema: str) -> None:
    """Rows that failed, in the log of a server of its own."""
    shared = page.Page.create(traffic / "pages" / "failing.page", 1)
    slot = shared.slot(0)
    slot.begin(2**22 + 1)
    log = TrafficLog(traffic, server="failing", worker=0, slot=slot)
    tag = log.register(Tag(model="mixed", version="2", arm="challenger", generation=1, role="served", schema=schema))
    row = mixed_rows(1, 3)[0].tobytes()
    for n in range(FAILED):
        log.put(tag, time.time_ns() // 1000, b"failed-%d" % n, 0, b"", row, float("nan"), 500, 1, 1, 1, 1)
    assert log.close(10)
    shared.retire(0)


def run_verb(folder: Path, *call: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COPPICE_")}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "coppice", *call],
        cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode in (0, 1), ran.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dashboard")


@pytest.fixture
def folder(tmp_path: Path, made: Path, serve: Callable[..., Running]) -> Path:
    """A release that was asked, told outcomes and stopped; the lake, and the looks of the real checks. A copy."""
    if not any(made.iterdir()):
        fill(made, serve)
    return shutil.copytree(made, tmp_path / "copy")


def fill(folder: Path, serve: Callable[..., Running]) -> None:
    schema = publish_release(folder)
    server = serve(folder / "store", traffic=folder / "traffic")
    ask_for_scores(server)
    server.stop()
    log_failures(folder / "traffic", schema)
    places = ["--lake", "lake", "--checks", "checks"]
    run_verb(folder, "compact", "--traffic", "traffic", "--lake", "lake")
    run_verb(folder, "drift", "mixed", "--store", "store", "--reports", "none", *places)
    run_verb(
        folder,
        "performance",
        "mixed",
        "--store",
        "store",
        "--label-window",
        "0s",
        "--every",
        "100",
        "--baseline",
        "0.4",
        *places,
    )
    run_verb(folder, "operations", "mixed", "--traffic", "traffic", *places)


def text(visit: Visit, panel: str) -> str:
    return str(visit.run(f"document.getElementById('{panel}').innerText"))


def fact(visit: Visit, panel: str, name: str) -> str:
    """The number under that name in the panel's first list of facts that has it."""
    script = (
        f"[...document.querySelectorAll('#{panel} .facts div')].find((each) => "
        f"each.querySelector('dt').textContent === {json.dumps(name)})?.querySelector('dd').textContent"
    )
    return str(visit.run(script))


def test_every_panel_shows_what_the_queries_say(folder: Path) -> None:
    with dashboard(folder) as address, browser(folder) as opened:
        wait_for(address, "latency", "whole")
        shown = Shown(address, folder, opened)
        for look in ({}, {"dark": True}, {"width": 360, "height": 740}, {"scripts": False}):
            visit = shown.visit(SERIES, **look)
            assert visit.problems == []
            assert all(asked.startswith(address) for asked in visit.asked), visit.asked
            if "scripts" not in look:
                assert visit.run("document.documentElement.scrollWidth <= window.innerWidth")
                visit.screenshot(folder / f"{'-'.join(map(str, look)) or 'light'}.png")
        visit = shown.visit(SERIES)
        _served_is_shown(visit, shown)
        _checks_are_shown(visit, shown)
        _releases_are_shown(visit, shown)
        assert shown.visit(f"{SERIES}&arm=challenger").run("document.title") == "mixed · Coppice"
        only = shown.figures("predictions", f"{SERIES}&arm=challenger&version=2")
        assert [(each["arm"], each["version"]) for each in only["arms"]] == [("challenger", "2")]
        for name in PANELS:
            assert "nothing" not in str(visit.run(f"document.querySelector('#{name} .verdict')?.textContent")), name


def _served_is_shown(visit: Visit, shown: Shown) -> None:
    engine = open_engine(shown.folder / "lake")
    rows = queries.operations(engine, "mixed", 1 << 60).to_pylist()
    assert sum(row["rows"] for row in rows) == ASKED + FAILED
    assert fact(visit, "errors", "rows failed") == count(sum(row["errors"] for row in rows)) == str(FAILED)
    assert fact(visit, "errors", "of rows") == count(ASKED + FAILED)
    assert fact(visit, "errors", "failed") == share(FAILED / (ASKED + FAILED))
    assert fact(visit, "errors", "answers 4xx") == "1"
    assert fact(visit, "errors", "log dropped: disk") == "0"
    assert fact(visit, "latency", "requests") == count(sum(row["requests"] for row in rows))
    assert fact(visit, "latency", "slowest") == ms(max(row["max_us"] for row in rows) / 1000)
    whole = shown.figures("latency")["whole"]
    assert fact(visit, "latency", "p95") == ms(whole["p95_ms"])
    for arm in ("champion", "challenger"):
        (row,) = [row for row in rows if row["arm"] == arm]
        (told,) = [each for each in shown.figures("arms")["arms"] if each["arm"] == arm]
        assert (told["rows"], told["errors"]) == (row["rows"], row["errors"])
        for name in ("p50", "p95", "p99"):
            assert abs(told[f"{name}_ms"] * 1000 - row[f"{name}_us"]) <= ERROR * row[f"{name}_us"] + 1e-6
        assert count(row["rows"]) in text(visit, "arms")
    scored = queries.score_histogram(engine, "mixed", (0.0, 1.0), BINS).to_pylist()
    found = shown.figures("predictions")
    for each in found["arms"]:
        if not each["shadow"]:
            counts = {row["bin"]: row["rows"] for row in scored if row["arm"] == each["arm"]}
            assert each["counts"] == [counts.get(n, 0) for n in range(BINS)]
            assert (
                fact(visit, "predictions", f"{each['arm']} (version {each['version']})")
                == f"{count(each['rows'])} rows"
            )
    (candidate,) = [each for each in found["arms"] if each["shadow"]]
    assert (candidate["arm"], 0 < candidate["rows"] <= ASKED) == ("candidate", True)
    assert found["reference"]["rows"] == 300
    hour = shown.figures("latency", "window=hour")
    assert hour["whole"]["rows"] == ASKED + FAILED
    assert len({each["begin_us"] // 60_000_000 for each in hour["series"]}) == len(hour["series"])


def _checks_are_shown(visit: Visit, shown: Shown) -> None:
    (drift,) = read(shown.folder / "checks", "drift", "mixed")
    assert visit.run("document.querySelector('#drift .verdict').textContent") == drift.verdict
    assert fact(visit, "drift", "its rows") == count(drift.found["window_rows"])
    for column in drift.found["columns"]:
        assert column["name"] in text(visit, "drift")
    looks = [
        check for check in read(shown.folder / "checks", "performance", "mixed") if check.found["arm"] == "champion"
    ]
    assert looks
    last = max(looks, key=lambda check: check.until_us).found
    value = last["figures"][last["metric"]]["value"]
    told = fact(visit, "performance", f"{last['metric']}, newest")
    assert told.startswith(figure(value)), (told, last)
    assert fact(visit, "performance", "labels") == share(last["coverage"])


def _releases_are_shown(visit: Visit, shown: Shown) -> None:
    present = routes.read(shown.folder / "store", "mixed")
    assert "generation 1" in text(visit, "arms")
    assert "75.0 %" in text(visit, "arms")
    assert "candidate" in text(visit, "arms")
    visit.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert "first <ramp>" in text(visit, "arms")
    for digest in present.bundles:
        assert digest in text(visit, "lineage")
    assert "run-1" in text(visit, "lineage")
    card = visit.run("document.querySelector('#lineage a').href")
    assert "mixed 1" in str(shown.browser.visit(card).run("document.body.innerText"))


def test_a_page_is_refreshed_in_place_and_live_servers_are_seen(folder: Path, serve: Callable[..., Running]) -> None:
    server = serve(folder / "store", traffic=folder / "more")
    with (
        dashboard(folder, "--server", f"http://127.0.0.1:{server.port}", "--server", "http://127.0.0.1:9") as address,
        browser(folder) as opened,
    ):
        wait_for(address, "latency", "whole")
        visit = opened.visit(f"{address}?{SERIES}")
        before = fact(visit, "latency", "requests")
        visit.run("document.querySelector('#latency details').open = true")
        for row in mixed_rows(20, 6):
            assert server.ask("/predict", mixed_body(row))[0] == 200
        server.stop()
        run_verb(folder, "compact", "--traffic", "more", "--lake", "lake")
        deadline = time.monotonic() + 30
        while fact(visit, "latency", "requests") != count(int(before) + 20):
            visit.run("refresh()")
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert visit.run("document.querySelector('#latency details').open") is True
        assert "silent" in text(visit, "latency")
        assert visit.problems == []


def test_without_any_data_it_says_what_to_run(tmp_path: Path) -> None:
    with dashboard(tmp_path) as address, browser(tmp_path) as opened:
        deadline = time.monotonic() + 30
        while "coppice compact" not in text(visit := opened.visit(address), "latency"):
            assert time.monotonic() < deadline
        assert visit.problems == []
        assert "coppice drift" in text(visit, "drift")
        assert "coppice performance" in text(visit, "performance")
        assert "coppice routes publish" in text(visit, "arms")
        assert opened.visit(address, width=360).run("document.documentElement.scrollWidth") == 360
        assert not (tmp_path / "lake").exists()
        _the_door_is_narrow(address)


def _the_door_is_narrow(address: str) -> None:
    """What is answered beside the page: the policy on everything, refusals by field, and no other host's name."""
    for path, status, words in (
        ("", 200, "At a glance"),
        ("api/panels", 200, "predictions"),
        ("api/panels/weather", 404, "there is no panel"),
        ("api/panels/drift?window=year", 422, "window:"),
        ("?modle=churn", 422, "modle:"),
        ("?model=%3Cscript%3E", 422, "&lt;script&gt;"),
        ("cards/" + "ab" * 32, 404, "abab"),
        ("cards/..%2f..%2fetc", 404, ""),
        ("healthz", 200, "running"),
        ("dashboard.css", 200, "prefers-color-scheme"),
        ("docs", 404, ""),
    ):
        told, headers, body = _get(address + path)
        assert (path, told) == (path, status)
        assert words in body
        if status == 200 or words:
            assert headers["content-security-policy"] == POLICY
    assert _get(address, host="evil.example")[0] == 400
    assert _get(address, method="POST")[0] == 405


def _get(url: str, host: str = "", method: str = "GET") -> tuple[int, dict[str, str], str]:
    asked = Request(url, method=method, headers={"host": host} if host else {})
    try:
        with urlopen(asked, timeout=20) as answer:
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
    except HTTPError as refused:
        return refused.code, {name.lower(): value for name, value in refused.headers.items()}, refused.read().decode()


def test_a_panel_that_fails_says_why_and_the_others_stay(folder: Path) -> None:
    now = time.time_ns() // 1000
    append(
        folder / "checks",
        Check("drift", "mixed", "1", now - HOUR_US, now, "drift", "odd", {"columns": [{"name": "a", "effect": "x"}]}),
    )
    (generation,) = (folder / "store" / "routes" / "mixed").iterdir()
    generation.write_bytes(b"{}")
    with dashboard(folder) as address:
        wait_for(address, "latency", "whole")
        told = json.loads(_get(f"{address}api/panels/arms?{SERIES}")[2])
        assert told["failed"]
        assert generation.name in told["html"]
        whole = _get(f"{address}?{SERIES}")
        assert whole[0] == 200
        assert "Share of rows that failed" in whole[2]
        assert "odd" in whole[2]


def test_scores_of_any_scale_have_edges() -> None:
    from monitoring.summing import nice_edges

    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = sorted(rng.normal(size=2) * 10.0 ** rng.integers(-6, 9))
        found = nice_edges(float(low), float(high))
        assert found[0] <= low < high <= found[1]
