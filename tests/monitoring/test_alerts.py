"""An alert is told once when it begins and once when it ends, whatever is down, slow, killed or run twice."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receivers import Receiver, receiver

from monitoring import alert_rules, checks
from monitoring.alert_findings import Finding
from monitoring.alert_state import State, Waiting, hold
from monitoring.alerts import Outcome, run, turn
from monitoring.checks import Check
from monitoring.deliveries import Event
from monitoring.errors import Busy, MonitoringError, RulesRefused

ROOT = Path(__file__).parent.parent.parent
HOUR_US = 3_600_000_000
RULES = """
repeat_after = "24h"
[[rule]]
name = "drift"
kind = "drift"
"""
HOOK = """
[[deliver]]
name = "hook"
kind = "webhook"
url_env = "HOOK_URL"
secret_env = "HOOK_SECRET"
timeout_s = 0.5
tries = 2
"""
SLACK = '[[deliver]]\nname = "team"\nkind = "slack"\nurl_env = "SLACK_URL"\ntries = 1\nleast = "critical"\n'
SECRET = "s3cr3t"


def found(folder: Path, verdict: str, hour: int = 1) -> None:
    window = ((hour - 1) * HOUR_US, hour * HOUR_US)
    checks.append(folder, Check("drift", "churn", "1", *window, verdict, "tenure & <plan>", {}, hour * HOUR_US))


def once(folder: Path, to: Receiver, *, rules: str = RULES + HOOK, hour: float = 1, **more: Any) -> Outcome:
    environ = {"HOOK_URL": to.url(f"/{SECRET}"), "HOOK_SECRET": SECRET, "SLACK_URL": to.url(f"/slack/{SECRET}")}
    now = round(hour * HOUR_US)
    return run("churn", alert_rules.parse(rules), folder, environ=environ, now_us=now, **more)


def told(to: Receiver) -> list[str]:
    return [json.loads(body)["event"] for body in to.bodies]


def test_an_alert_is_told_once_again_after_a_while_and_once_when_it_ends(tmp_path: Path) -> None:
    with receiver() as hook:
        found(tmp_path, "no drift")
        assert once(tmp_path, hook).firing == ()
        found(tmp_path, "drift", 2)
        for hour in (2, 3, 25.9):
            assert len(once(tmp_path, hook, hour=hour).firing) == 1
        assert told(hook) == ["firing"]
        once(tmp_path, hook, hour=26)
        once(tmp_path, hook, hour=27)
        assert told(hook) == ["firing", "again"]
        found(tmp_path, "too little data", 28)
        assert len(once(tmp_path, hook, hour=28).firing) == 1, "nothing is known, so nothing has changed"
        found(tmp_path, "no drift", 29)
        for _ in range(2):
            assert once(tmp_path, hook, hour=29).firing == ()
        assert told(hook) == ["firing", "again", "resolved"]
        found(tmp_path, "drift", 30)
        once(tmp_path, hook, hour=30)
    assert told(hook) == ["firing", "again", "resolved", "firing"]
    ids = [json.loads(body)["id"] for body in hook.bodies]
    assert len(set(ids)) == 4
    remembered = checks.read(tmp_path, "alerts", "churn")
    assert [check.verdict for check in remembered] == told(hook)
    assert [check.found["id"] for check in remembered] == ids
    assert remembered[2].since_us == 2 * HOUR_US
    assert remembered[2].until_us == 29 * HOUR_US


def test_a_webhook_is_signed_and_slack_is_told_in_its_own_markup(tmp_path: Path) -> None:
    found(tmp_path, "drift")
    with receiver() as to:
        once(tmp_path, to, rules=RULES + 'severity = "critical"\n' + HOOK + SLACK)
    (hook, slack), headers = to.bodies, to.headers[0]
    assert headers["x-coppice-signature"] == "sha256=" + hmac.new(SECRET.encode(), hook, hashlib.sha256).hexdigest()
    assert headers["idempotency-key"] == json.loads(hook)["id"]
    assert json.loads(slack) == {"text": "*firing* (critical) churn: drift of version 1 - tenure &amp; &lt;plan&gt;"}


def test_a_delivery_may_want_what_is_critical_alone(tmp_path: Path) -> None:
    found(tmp_path, "drift")
    with receiver() as to:
        outcome = once(tmp_path, to, rules=RULES + SLACK)
    assert to.bodies == []
    assert outcome.waiting == 0
    assert len(outcome.firing) == 1


@pytest.mark.parametrize("fault", ["down", "slow", "500", "429", "302", "404"])
def test_what_could_not_be_delivered_is_kept_and_told_by_the_next_run(fault: str, tmp_path: Path) -> None:
    found(tmp_path, "drift")
    with receiver() as to:
        if fault == "slow":
            to.slow_s = 1.0
        elif fault != "down":
            to.answers = 2 * [(int(fault), {"location": to.url("/elsewhere")})]
        if fault != "down":
            outcome = once(tmp_path, to)
    if fault == "down":
        outcome = once(tmp_path, to)
    assert outcome.waiting == 1
    why = {"down": "could not be reached", "slow": "no answer within 0.5 s"}.get(fault, f"answered {fault}")
    assert outcome.failed["hook"].startswith(why)
    slow_ids = {json.loads(body)["id"] for body in to.bodies}
    found(tmp_path, "no drift", 2)
    with receiver() as well:
        outcome = once(tmp_path, well, hour=2)
        once(tmp_path, well, hour=3)
    assert told(well) == ["firing", "resolved"], "in the order in which they happened"
    assert (outcome.waiting, outcome.failed) == (0, {})
    assert slow_ids <= {json.loads(body)["id"] for body in well.bodies}, "told twice is told under the same id"
    assert len(checks.read(tmp_path, "alerts")) == 2


def test_a_try_that_fails_is_followed_by_another_in_the_same_run(tmp_path: Path) -> None:
    found(tmp_path, "drift")
    with receiver() as to:
        to.answers = [(503, {})]
        assert once(tmp_path, to).failed == {}
    assert told(to) == ["firing"]


def test_retry_after_is_heeded_by_this_run_and_by_the_next(tmp_path: Path) -> None:
    found(tmp_path, "drift")
    with receiver() as to:
        to.answers = [(429, {"retry-after": "1"})]
        began = time.monotonic()
        assert once(tmp_path, to).failed == {}
        assert time.monotonic() - began >= 1
        found(tmp_path, "no drift", 2)
        to.answers = [(429, {"retry-after": "600"})]
        assert once(tmp_path, to, hour=2).failed == {"hook": "answered 429"}
        assert once(tmp_path, to, hour=2).failed == {"hook": "asked not to be asked again yet"}
        assert told(to) == ["firing"]


def test_one_delivery_that_is_away_keeps_no_other_waiting(tmp_path: Path) -> None:
    found(tmp_path, "drift")
    rules = RULES + 'severity = "critical"\n' + HOOK + SLACK
    with receiver() as gone:
        pass
    with receiver() as to:
        environ = {"HOOK_URL": gone.url(), "HOOK_SECRET": SECRET, "SLACK_URL": to.url()}
        outcome = run("churn", alert_rules.parse(rules), tmp_path, environ=environ, now_us=HOUR_US)
    assert list(outcome.failed) == ["hook"]
    assert len(to.bodies) == 1


def test_a_version_that_is_no_longer_looked_at_no_longer_fires(tmp_path: Path) -> None:
    with receiver() as to:
        found(tmp_path, "drift")
        once(tmp_path, to)
        once(tmp_path, to, rules=RULES.replace('"drift"\nkind', '"other"\nkind') + HOOK, hour=2)
    assert sorted(told(to)) == ["firing", "firing", "resolved"]


def test_a_dry_run_tells_and_writes_nothing(tmp_path: Path) -> None:
    found(tmp_path, "drift")
    with receiver() as to:
        assert [event.event for event in once(tmp_path, to, dry=True).events] == ["firing"]
        assert to.bodies == []
        assert not (tmp_path / "alerts" / "churn.json").exists()
        assert checks.read(tmp_path, "alerts") == []


def test_no_secret_is_in_a_log_an_error_or_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    found(tmp_path, "drift")
    with receiver() as to:
        outcome = once(tmp_path, to, rules=RULES + HOOK + '[[deliver]]\nname = "log"\nkind = "log"')
        to.answers = [(500, {})] * 2
        found(tmp_path, "no drift", 2)
        outcome = once(tmp_path, to, hour=2)
    with pytest.raises(RulesRefused, match="HOOK_URL has no http") as refused:
        run("churn", alert_rules.parse(RULES + HOOK), tmp_path, environ={"HOOK_URL": f"ftp://{SECRET}"})
    with pytest.raises(RulesRefused, match="HOOK_URL is not set"):
        run("churn", alert_rules.parse(RULES + HOOK), tmp_path, environ={})
    printed = capsys.readouterr()
    assert json.loads(printed.err.splitlines()[0])["event"] == "firing"
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for text in (caplog.text, printed.err, printed.out, str(outcome), str(refused.value), files.decode()):
        assert SECRET not in text


def test_a_state_that_is_spoiled_is_named_not_guessed(tmp_path: Path) -> None:
    file = tmp_path / "alerts" / "churn.json"
    file.parent.mkdir(parents=True)
    for content, words in (("{", "churn.json"), ('{"format":2}', "of format 2"), ('{"fromat":1}', "fromat")):
        file.write_text(content)
        with pytest.raises(MonitoringError, match=words), receiver() as to:
            once(tmp_path, to)


def test_what_waits_is_bounded_and_what_is_given_up_is_counted() -> None:
    rules = alert_rules.parse(RULES + HOOK)
    event = Event("1", "firing", "churn", "drift", "drift", "warning", "version 1", "", 0, 0)
    state = State(waiting=tuple(Waiting(event, ("hook",), True) for _ in range(1005)))
    after, events = turn(state, [], rules, "churn", HOUR_US)
    assert (len(after.waiting), after.given_up, events) == (1000, 5, [])


@given(
    st.lists(
        st.tuples(
            st.floats(0, 30),
            st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from(["firing", "fine", "unknown"])),
        )
    )
)
def test_whatever_is_found_each_alert_begins_goes_on_and_ends_in_turn(
    looks: list[tuple[float, dict[str, Any]]],
) -> None:
    rules = alert_rules.parse(RULES + HOOK)
    state, hour, history = State(), 0.0, dict[str, list[str]]()
    for hours, states in looks:
        hour += hours
        found = [Finding(rules.rules[0], subject, word, "") for subject, word in states.items()]
        state, events = turn(state, found, rules, "churn", round(hour * HOUR_US))
        for event in events:
            history.setdefault(event.subject, []).append(event.event)
        firing = {one.event.subject for one in state.firing.values()}
        assert firing >= {subject for subject, word in states.items() if word == "firing"}
        assert not firing & {subject for subject, word in states.items() if word == "fine"}
        assert firing <= states.keys(), "what is not looked at does not fire"
        assert {subject for subject, told in history.items() if told[-1] != "resolved"} == firing
        assert turn(state, found, rules, "churn", round(hour * HOUR_US))[1] == []
    for told in history.values():
        assert re.fullmatch("(f(a*)r)*(f(a*))?", "".join(word[0] for word in told))
    ids = [one.event.id for one in state.waiting]
    assert len(set(ids)) == len(ids) == sum(map(len, history.values()))


RUN = """
import sys
from pathlib import Path
from monitoring import alert_rules, alerts
rules, folder, url = alert_rules.parse(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
print(alerts.run("churn", rules, folder, environ={"HOOK_URL": url, "HOOK_SECRET": "x"}, now_us=int(sys.argv[4])).waiting)
"""


def start(folder: Path, to: Receiver, hour: int = 1) -> subprocess.Popen[str]:
    rules = (RULES + HOOK).replace("timeout_s = 0.5", "timeout_s = 20")
    call = [sys.executable, "-c", RUN, rules, str(folder), to.url(), str(hour * HOUR_US)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_two_runs_at_once_tell_once(tmp_path: Path) -> None:
    found(tmp_path, "drift")
    with receiver() as to:
        to.slow_s = 0.3
        runs = [start(tmp_path, to) for _ in range(3)]
        assert [process.communicate(timeout=60)[0] for process in runs] == 3 * ["0\n"]
    assert told(to) == ["firing"]
    assert len(checks.read(tmp_path, "alerts")) == 1


def test_a_run_that_waited_too_long_for_another_says_so(tmp_path: Path) -> None:
    with hold(tmp_path, "churn", wait_s=0), receiver() as to, pytest.raises(Busy, match=r"churn\.lock"):
        once(tmp_path, to, lock_wait_s=0.1)


def test_killed_while_it_tells_nothing_is_lost_and_the_id_is_the_same(tmp_path: Path) -> None:
    found(tmp_path, "drift")
    with receiver() as to:
        to.slow_s = 30
        process = start(tmp_path, to)
        deadline = time.monotonic() + 60
        while not to.bodies:  # it was taken, and not yet answered
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        to.slow_s = 0
        assert once(tmp_path, to, hour=2).waiting == 0
        once(tmp_path, to, hour=3)
    first, second = (json.loads(body) for body in to.bodies)
    assert first == second
    assert len(checks.read(tmp_path, "alerts")) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from monitoring import alert_rules, alerts
rules, folders, url = alert_rules.parse(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir()), sys.argv[3]
environ = {"HOOK_SECRET": "x"}
for n, folder in enumerate(folders):
    environ["HOOK_URL"] = f"{url}/{n}"
    child = os.fork()
    if not child:
        left, sync = [n], os.fsync
        def dies(handle):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            sync(handle)
        os.fsync = dies
        alerts.run("churn", rules, folder, environ=environ)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), end=" ")
    for _ in range(2):
        alerts.run("churn", rules, folder, environ=environ)
"""


def test_killed_before_any_write_reaches_the_disk_nothing_is_lost_or_told_otherwise(tmp_path: Path) -> None:
    """kill -9 at the n-th fsync, for every n that a run has; the next run finishes what was begun."""
    folders = [tmp_path / f"{n:02}" for n in range(9)]
    for folder in folders:
        found(folder, "drift")
    with receiver() as to:
        call = [sys.executable, "-c", KILLED, RULES + HOOK, str(tmp_path), to.url("")]
        ran = subprocess.run(
            call, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True
        )
    assert ran.stdout.split() == 7 * ["-9"] + 2 * ["0"], (
        "what to tell, its line, that it is there, and that it was told"
    )
    for n, folder in enumerate(folders):
        bodies = [json.loads(body) for body, path in zip(to.bodies, to.paths, strict=True) if path == f"/{n}"]
        assert [body["event"] for body in bodies] in (["firing"], ["firing", "firing"]), n
        assert len({body["id"] for body in bodies}) == 1, n
        assert (len(bodies) == 2) == (n == 5), "killed between what was taken and that it was"
        assert [check.found["id"] for check in checks.read(folder, "alerts")] == [bodies[0]["id"]]
