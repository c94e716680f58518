"""Deciders that are doubled, overtaken or killed leave one consistent state: no step is taken twice, no alias forgotten."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from time import time_ns
from typing import Any

import pytest
from cases import Release

from monitoring import publishing
from monitoring.acting import Phase, act
from monitoring.beginning import read_plan, start
from monitoring.checks import read as read_checks
from monitoring.compaction import compact
from monitoring.deciding import Places, apply, evaluate, log
from monitoring.errors import NoExperiment, NotReproduced, Overtaken, PlanRefused
from monitoring.evidence import Evidence
from monitoring.outcomes_import import import_outcomes
from monitoring.plan import CHAMPION, Plan, decode
from monitoring.verdict import HOUR_US, Judged, Seen, State, Verdict
from serving import page, routes
from serving.errors import RoutesRefused
from serving.traffic import Tag, TrafficLog

ROOT = Path(__file__).parents[2]
PLAN = """
name = "mixed 2 against 1"
unit = "customer"
metric = {name = "converted", kind = "proportion", better = "higher"}
n_star = 2000
no_difference = 0.01
label_window_hours = 1
min_days = 0
max_units = 100_000
ramp = [{share = 0.1, hours = 0}, {share = 0.3, hours = 0}, {share = 0.5, hours = 0, approval = true}]
"""


@pytest.fixture
def shop(release: Release, tmp_path: Path) -> Places:
    """The experiment has begun: generation 2."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "bundles").symlink_to(release.store / "bundles")
    (tmp_path / "plan.toml").write_text(PLAN, encoding="utf-8")
    now = routes.Routes(
        model="mixed", generation=1, salt=routes.new_salt(), at=routes.stamp(), slots=routes.split_slots({CHAMPION: 1}),
        arms={CHAMPION: release.digest("champion")},
    )  # fmt: skip
    routes.publish(store, now)
    begin(store, tmp_path, release)
    return Places(store, str(tmp_path / "lake"), tmp_path / "checks")


def begin(store: Path, folder: Path, release: Release) -> routes.Routes:
    arms = {"challenger": release.digest("challenger")}
    plan = read_plan(folder / "plan.toml")
    return start(store, "hashed", "mixed", plan, arms, note="", by="tests", now_us=time_ns() // 1000)


def traffic(shop: Places, folder: Path, units: int, *, better: bool, whose: str = "challenger") -> None:
    """Units that the present routes assign, and their outcomes as a file: one in five; if `better`, two of one arm's."""
    now = routes.read(shop.store, "mixed")
    logged = folder / f"traffic-{now.generation}"
    (logged / "pages").mkdir(parents=True)
    slot = page.Page.create(logged / "pages" / "s.page", 1).slot(0)
    slot.begin(2**22 + 1)
    log = TrafficLog(logged, server=f"s{now.generation}", worker=0, slot=slot, block_rows=500, max_blocks=1000)
    tags = {}
    for arm in now.arms:
        known = Tag(model="mixed", version="1", arm=arm, generation=now.generation, role="served", schema="s")
        tags[arm] = log.register(known)
    lines, at = [], time_ns() // 1000
    for n in range(units):
        unit = f"g{now.generation}-{n}"
        arm = now.arm_for(unit.encode())
        log.put(tags[arm], at, unit.encode(), 0, unit.encode(), b"", 0.5, 200, 1, 1, 1, 1)
        positive = n % 5 == 0 or (better and arm == whose and n % 5 == 1)
        lines.append(json.dumps({"request_id": unit, "value": positive}))
    assert log.close(20)
    compact(logged, shop.lake)
    (folder / f"outcomes-{now.generation}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert import_outcomes(folder / f"outcomes-{now.generation}.jsonl", shop.lake) == units


def call(shop: Places, *words: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "coppice", *words, "--store", str(shop.store)]
    known = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
    if words[:2] != ("experiment", "stop"):
        command += ["--lake", shop.lake, "--checks", str(shop.checks)]
    return subprocess.Popen(
        command, cwd=shop.store.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=known | {"PYTHONPATH": str(ROOT)} | environment, text=True, start_new_session=True,
    )  # fmt: skip


def release_by(verb: str, shop: Places, **change: Any) -> routes.Routes:
    return publishing.release(shop.store, "hashed", verb, "mixed", "tests", **change)


def later() -> int:
    return time_ns() // 1000 + 2 * HOUR_US


def newest(shop: Places) -> routes.Routes:
    return routes.read(shop.store, "mixed")


def test_of_two_deciders_one_acts_and_the_other_is_overtaken(shop: Places, tmp_path: Path) -> None:
    traffic(shop, tmp_path, 600, better=False)
    first, second = (evaluate(shop, "mixed", later()) for _ in range(2))
    for experiment, inputs, made in (first, second):
        assert made.action.verb == "ramp"
        log(shop, experiment, inputs, made)
    made_by_first = apply(shop, first[0], first[2], "first")
    assert made_by_first is not None
    with pytest.raises(Overtaken, match="newest generation is 3"):
        apply(shop, second[0], second[2], "second")
    assert newest(shop) == made_by_first
    assert len(read_checks(shop.checks, "decisions")) == 2
    log(shop, *first)
    assert len(read_checks(shop.checks, "decisions")) == 2  # the same inputs are remembered once


def test_deciders_at_once_promote_once(shop: Places, tmp_path: Path, release: Release) -> None:
    """Of processes that start together, whoever comes after the end finds no experiment, and none does more than one step."""
    traffic(shop, tmp_path, 6000, better=True)
    asked = ("decide", "mixed", "--apply", "--now-us", str(later()))
    running = [call(shop, *asked) for _ in range(3)]
    told = [(ran.communicate(timeout=120), ran.returncode) for ran in running]
    assert newest(shop).generation == 3, told
    assert newest(shop).arms == {CHAMPION: release.digest("challenger")}
    assert sum("mixed generation 3: promote" in said[0] for said, _ in told) == 1, told
    for (out, err), code in told:
        assert (code == 0 and ("generation 3" in out)) or (code == 2 and "no experiment runs" in err), told


@pytest.mark.filterwarnings("ignore")  # MLflow's deprecations are not ours to mend
def test_a_decider_killed_before_the_aliases_is_made_good_by_the_next(shop: Places, tmp_path: Path) -> None:
    traffic(shop, tmp_path, 6000, better=True)
    with socket.create_server(("127.0.0.1", 0)) as registry:  # one that takes connections, and never answers
        address = f"http://127.0.0.1:{registry.getsockname()[1]}"
        decider = call(shop, "decide", "mixed", "--apply", "--now-us", str(later()), MLFLOW_TRACKING_URI=address)
        deadline = time.monotonic() + 60
        while newest(shop).generation < 3:
            assert decider.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(decider.pid, signal.SIGKILL)
        decider.communicate()
    assert newest(shop).plan is None
    from training import registry as shelf

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        client = shelf.connect()
        client.create_registered_model("mixed")
        for _ in range(2):
            client.create_model_version("mixed", "nowhere")
        client.set_registered_model_alias("mixed", "champion", "1")
        out, err = call(shop, "decide", "mixed", "--apply", MLFLOW_TRACKING_URI=uri).communicate(timeout=120)
        assert "mixed@champion is version 2" in out, err
        assert "no experiment runs" in err
        assert shelf.aliases("mixed") == {"champion": "2"}
        out, _ = call(shop, "decide", "mixed", "--apply", MLFLOW_TRACKING_URI=uri).communicate(timeout=120)
        assert not out  # there is nothing left to do
    assert newest(shop).generation == 3


def test_a_worse_one_is_rolled_back_and_the_exit_code_says_so(shop: Places, tmp_path: Path, release: Release) -> None:
    traffic(shop, tmp_path, 6000, better=True, whose="control")
    decider = call(shop, "decide", "mixed", "--now-us", str(later()))
    out, err = decider.communicate(timeout=60)
    assert (decider.returncode, newest(shop).generation) == (10, 2), (out, err)  # looked at, and not acted upon
    decider = call(shop, "decide", "mixed", "--apply", "--now-us", str(later()))
    out, err = decider.communicate(timeout=60)
    assert decider.returncode == 10, (out, err)
    assert "mixed generation 3: roll back, decision " in out
    assert newest(shop).arms == {CHAMPION: release.digest("champion")}
    with pytest.raises(NoExperiment, match="cools down until"):
        begin(shop.store, tmp_path, release)


def test_a_file_of_outcomes_counts_once(shop: Places, tmp_path: Path) -> None:
    traffic(shop, tmp_path, 600, better=True)
    now_us = later()
    once = evaluate(shop, "mixed", now_us)
    file = tmp_path / "outcomes-2.jsonl"
    assert import_outcomes(file, shop.lake) is None
    turned = tmp_path / "again.jsonl"
    turned.write_text("\n".join(reversed(file.read_text(encoding="utf-8").splitlines())), encoding="utf-8")
    assert import_outcomes(turned, shop.lake) == 600
    assert evaluate(shop, "mixed", now_us) == once


def test_a_step_that_asks_for_approval_waits_for_it(shop: Places, tmp_path: Path) -> None:
    traffic(shop, tmp_path, 300, better=False)
    experiment, _, made = evaluate(shop, "mixed", later())
    apply(shop, experiment, made, "tests")
    experiment, _, made = evaluate(shop, "mixed", later())
    assert (made.action.verb, made.action.reason) == ("wait", "step 3 asks for --approve")
    assert apply(shop, experiment, made, "tests") is None
    experiment, _, made = evaluate(shop, "mixed", later(), approved=True)
    ramped = apply(shop, experiment, made, "tests")
    assert ramped is not None
    assert {slot.arm for slot in ramped.slots} == {"control", "challenger"}


def test_what_was_remembered_can_be_made_again_and_what_was_changed_is_told(shop: Places, tmp_path: Path) -> None:
    traffic(shop, tmp_path, 6000, better=True)
    experiment, inputs, made = evaluate(shop, "mixed", later())
    log(shop, experiment, inputs, made)
    out, err = call(shop, "decide", "mixed", "--recompute", made.id[:8]).communicate(timeout=60)
    assert "made again from its inputs: the same" in out, err
    assert "promote" in out
    from monitoring.decisions import recompute

    log_file = shop.checks / "decisions.jsonl"
    text = log_file.read_text(encoding="utf-8")
    for old, new, words in (
        ('"state": "winner"', '"state": "loser"', "from its inputs follows winner"),
        ('"in_two_arms": 0', '"in_two_arms": 1', "do not have the hash"),
        ('"started_us"', '"began_us"', "can't be read"),
    ):
        assert old in text
        log_file.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(NotReproduced, match=words):
            recompute(shop.checks, "mixed", made.id)


def test_the_report_says_in_plain_words_what_is_thought_and_why(shop: Places, tmp_path: Path, release: Release) -> None:
    traffic(shop, tmp_path, 3000, better=True)
    experiment, inputs, made = evaluate(shop, "mixed", later())
    log(shop, experiment, inputs, made)
    out, err = call(shop, "experiment", "report", "mixed", "--out", "report.html").communicate(timeout=60)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "It runs since" in text, (out, err)
    assert "<td>generation 2</td>" in text
    assert "10.00%, challenger 10.00%" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    call(shop, "experiment", "stop", "mixed", "--note", "the <orders> are lost").communicate(timeout=60)
    assert newest(shop).arms == {CHAMPION: release.digest("champion")}
    asked = ("experiment", "report", "mixed", "--out", "report.html", "--now-us", str(later()))
    out, err = call(shop, *asked).communicate(timeout=60)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "It ran from" in text, (out, err)
    assert "the &lt;orders&gt; are lost" in text
    assert f"Now {made.verdict.challengers[0].effect.estimate:+.4g} better" in text  # type: ignore[union-attr]
    assert 'class="band"' in text
    assert "The challenger is better than the champion" in text


def test_an_experiment_is_alone_and_its_plan_stays(shop: Places, tmp_path: Path, release: Release) -> None:
    with pytest.raises(NoExperiment, match="runs since generation 2"):
        begin(shop.store, tmp_path, release)
    now = newest(shop)
    assert now.plan is not None
    after = {"generation": 3, "at": routes.stamp()}
    import msgspec

    edited = msgspec.structs.replace(now, plan=now.plan | {"alpha": 0.2}, **after)
    with pytest.raises(RoutesRefused, match="plan: is never edited"):
        routes.publish(shop.store, edited)
    with pytest.raises(RoutesRefused, match="plan: challenger 'other' is not one of the arms"):
        msgspec.structs.replace(now, plan=now.plan | {"challengers": ["other"]}, **after)
    out, err = call(shop, "experiment", "status", "mixed").communicate(timeout=60)
    assert "holds no traffic of 'mixed'" in err, out
    ramped = release_by("ramp", shop, shares={"challenger": 25})
    assert ramped.plan == now.plan
    with pytest.raises(NoExperiment, match="generation 3 gives 'control' and the challengers unequal shares"):
        evaluate(shop, "mixed", later())


def test_a_plan_is_refused_by_its_file_and_field(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    for text, words in (
        (PLAN.replace("n_star = 2000", "n_star = 0"), "plan.toml: n_star: must be above 0"),
        (PLAN + "aplha = 0.1", "plan.toml: plan: .*aplha"),
        ("name =", "plan.toml: "),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(PlanRefused, match=words):
            read_plan(path)
    with pytest.raises(PlanRefused, match=r"nowhere.toml: No such file"):
        read_plan(tmp_path / "nowhere.toml")


def acted(state: State, phases: Sequence[float], seen: Seen, plan: Plan, now_h: float, **given: Any) -> str:
    verdict = Verdict(state, "why", plan.digest, "challenger" if state == "winner" else None, (Judged("c", state, ""),))
    marks = [Phase(name, round(hour * HOUR_US)) for name, hour in zip(seen.shares, phases, strict=True)]
    found = act(plan, marks, seen, verdict, round(now_h * HOUR_US), approved=given.get("approved", False))
    return f"{found.verb}: {found.reason}"


def test_each_state_has_its_act() -> None:
    plan = decode(
        {
            "name": "x",
            "unit": "u",
            "metric": {"name": "paid", "kind": "mean", "better": "higher"},
            "n_star": 10,
            "max_units": 9,
            "ramp": [{"share": 0.1, "hours": 5, "units": 20}, {"share": 0.5}],
            "approval": True,
        }
    )
    both = {CHAMPION: 0.1, "challenger": 0.1}
    units = {CHAMPION: 12, "challenger": 11}
    one = Seen({"a": both, "b": both}, {"a": units, "b": {CHAMPION: 12, "challenger": 8}}, {}, 0)
    two = Seen({"a": both, "b": both}, {"a": units, "b": {CHAMPION: 12, "challenger": 9}}, {}, 0, lost=Evidence())
    last = Seen({"a": {CHAMPION: 0.5, "challenger": 0.5}}, {}, {}, 0)
    for state, wanted in (
        ("invalid", "hold: invalid"), ("guardrail", "roll back: "), ("loser", "roll back: "), ("futile", "end: "),
        ("no difference", "end: "), ("no data", "wait: "), ("winner", "wait: winner: why; the plan asks for --approve"),
    ):  # fmt: skip
        assert acted(state, (1, 4), two, plan, 99.0).startswith(wanted), state  # type: ignore[arg-type]
    assert acted("winner", (1, 4), two, plan, 99.0, approved=True).startswith("promote: winner")
    for state in ("running", "insufficient"):
        assert acted(state, (1, 4), two, plan, 5.9) == "wait: step 1: 4.9 of 5 hours"  # type: ignore[arg-type]
        assert acted(state, (1, 4), one, plan, 6.0) == "wait: step 1: 19 of 20 units of challenger"  # type: ignore[arg-type]
        assert acted(state, (1, 4), two, plan, 6.0) == "ramp: step 1 is over: 50 % each"  # type: ignore[arg-type]
        assert acted(state, (1,), last, plan, 99.0) == "wait: the ramp's last step is reached"  # type: ignore[arg-type]
