"""The load test: Locust's users, what they ask, and a service level that sets the exit code. A black box: HTTP is all it knows.

    locust -f loadtests/locustfile.py --headless --load-profile constant --host http://127.0.0.1:8000    (make load PROFILE=...)
    locust -f loadtests/locustfile.py --headless --users 50 --spawn-rate 50 --run-time 60s --rate 1000 --host ...

A profile (loadtests.profiles) says what is asked, how it arrives, how many connections there are, when the run ends and what
must hold. `OpenCaller` sends what is due by the schedule, whether or not earlier answers are there, and counts latencies
from when a request was due. `Caller` is a closed loop: a user waits for its answer, so at a server slower than the users
together can ask, the rate falls (and the gate says so) rather than the queue growing; and what it did not ask is in no figure.

Without a profile `Caller` asks `--path` at `--rate` until `--run-time` is over; what is measured begins when every user has
started. Exit code 1: a bound is broken; 2: the profile, the rows or the server can't be read.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust import FastHttpUser, User, events, task
from locust.exception import StopUser

from loadtests import gate, profiles, traffic
from loadtests.arrivals import Schedule
from loadtests.connection import AnswerFailed, Connection, header
from loadtests.shapes import Shape, Stage

HEADERS = {"content-type": "application/json"}
CATCH_UP_S = 2.0  # after the last request was due: for those that are late


class Run:
    """The one run of this process: what the users share."""

    def __init__(self, profile: profiles.Profile, asked: traffic.Traffic, path: str, users: int) -> None:
        self.profile, self.traffic, self.path, self.users = profile, asked, path, users
        self.book, self.generator, self.started = gate.Book(), gate.Generator(), Event()
        self.began, self.out = 0.0, 0
        self.requests, self.failures = 0, 0  # from the first on
        draw = random.Random(0) if profile.arrivals == "poisson" else None
        instants = profile.shape.instants(draw) if profile.is_open else ()
        self.schedule = Schedule(instants, profile.seconds, CATCH_UP_S) if profile.is_open else None

    def begin(self) -> None:
        gc.collect()
        gc.freeze()  # what is here stays; a collection that looked at all of it would be in somebody's latency
        self.generator.begin()
        self.book = gate.Book(reasons=self.book.reasons)  # what failed before counts, its times do not
        if self.schedule is not None:
            self.schedule.begin()
        self.began = time.perf_counter()
        self.started.set()

    def is_over(self) -> bool:
        return bool(self.began) and time.perf_counter() - self.began > self.profile.seconds

    def leave(self, environment: Any) -> None:
        """A user has nothing left to do; the last one ends the run."""
        self.out += 1
        if self.out == self.users:
            gevent.spawn(environment.runner.quit)
        raise StopUser


class Session:
    """Where the run stands while this module is loaded by Locust: once a process."""

    run: Run


session = Session()


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    ours = parser.add_argument_group("Coppice load test")
    ours.add_argument("--load-profile", default="", help="a shipped profile's name, or a TOML file")
    ours.add_argument("--rate", type=float, default=None, help="requests per second; default: the profile's, or 1000")
    ours.add_argument("--seconds", type=float, default=None, help="of a run by a profile; default: the profile's")
    ours.add_argument("--path", default="/predict/ab", help="endpoint to ask, without a profile")
    ours.add_argument("--model", default="", help="model whose schema rows are drawn from; default: the only one")
    ours.add_argument("--rows", default="", help="JSONL file of bodies to cycle through, instead of drawn rows")
    ours.add_argument("--slo-p95-ms", type=float, default=None, help="p95 must stay below this; without a profile 100")
    ours.add_argument("--slo-rate-share", type=float, default=None, help="share of the rate that must be achieved")
    ours.add_argument("--summary", default="", help="file for the figures, as JSON")
    ours.add_argument("--markdown", default="", help="file for the figures, as a page; it is added to")


@events.init.add_listener
def _prepare(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    try:
        profile = _profile(options)
        rows = traffic.rows_of(options.rows) if options.rows else traffic.drawn(environment.host, options.model)
    except (profiles.ProfileRefused, OSError, ValueError, LookupError) as refused:
        print(f"load: {refused}", file=sys.stderr)
        sys.exit(2)
    if options.load_profile:
        options.num_users = profile.connections
        options.spawn_rate = min(100.0, float(profile.connections))
    asked = traffic.Traffic(profile.traffic, rows, batch_rows=profile.batch_rows, feedback=profile.feedback)
    session.run = Run(profile, asked, "" if options.load_profile else options.path, options.num_users or 1)
    environment.user_classes[:] = [OpenCaller if profile.is_open else Caller]


def _profile(options: Any) -> profiles.Profile:
    given = {"p95_ms": options.slo_p95_ms, "achieved": options.slo_rate_share}
    bounds = {name: value for name, value in given.items() if value is not None}
    if options.load_profile:
        found = profiles.read(options.load_profile, rate=options.rate, seconds=options.seconds)
        return replace(found, bounds=replace(found.bounds, **bounds))
    told = {"traffic": "ab", "arrivals": "closed", "rate": options.rate or 1000.0, "warm_s": 0, "seconds": 604_800}
    return profiles.build("closed", "the command line", told | {"bounds": {"p95_ms": 100, "achieved": 0.98} | bounds})


@events.spawning_complete.add_listener
def _measure_from_here(**_: Any) -> None:
    session.run.begin()


class Caller(FastHttpUser):
    """One client with one connection, asking at its share of the rate: a closed loop."""

    connection_timeout = 5.0
    network_timeout = 5.0

    def on_start(self) -> None:
        run = session.run
        self.next_at = time.perf_counter() + random.uniform(0, run.users / run.profile.rate)  # no volleys
        time.sleep(self.next_at - time.perf_counter())  # gevent's: other users go on

    def wait_time(self) -> float:
        """Until its next turn; time that an answer took beyond that is not made up for."""
        run, now = session.run, time.perf_counter()
        rate = (run.profile.shape.rate(now - run.began) if run.began else 0.0) or run.profile.rate
        self.next_at = max(self.next_at + run.users / rate, now)
        return self.next_at - now

    @task
    def ask(self) -> None:
        run = session.run
        if run.is_over():
            run.leave(self.environment)
        request = run.traffic.next()
        path = run.path or request.path
        headers = HEADERS | ({"x-unit": request.unit} if request.unit and not run.path else {})
        sent = time.perf_counter()
        answer = self.client.post(path, data=request.body, headers=headers, name=path)
        good = bool(answer.ok) if run.path else traffic.succeeded(request, answer.status_code)
        if good:
            run.traffic.answered(request, str(answer.headers.get("x-request-id", "")) if answer.headers else "")
            run.book.answered(sent - run.began, 1e3 * (time.perf_counter() - sent))
        else:
            run.failures += 1
            run.book.failed(sent - run.began, f"{path} answered {answer.status_code}")  # 0: not at all
        run.requests += 1
        run.book.ended_s = time.perf_counter() - run.began


class OpenCaller(User):
    """One connection of an open loop: it sends the next request that is due, and waits for nothing but its answer."""

    def on_start(self) -> None:
        self.connection = Connection(self.environment.host)

    def on_stop(self) -> None:
        self.connection.close()

    @task
    def ask(self) -> None:
        run = session.run
        run.started.wait()
        assert run.schedule is not None
        while (taken := run.schedule.take()) is not None:
            self._send(run, *taken)
        run.leave(self.environment)

    def _send(self, run: Run, due: float, was_there: bool) -> None:
        request = run.traffic.next()
        if was_there:
            run.book.own_late_ms.append(1e3 * (time.perf_counter() - due))
        why, length, status, head = "", 0, 0, b""
        try:
            status, head, length = self.connection.ask(request.laid_out(self.connection.host))
        except AnswerFailed as failure:
            why = f"{request.path}: {failure}"
        took_ms = 1e3 * (time.perf_counter() - due)
        if not why and not traffic.succeeded(request, status):
            why = f"{request.path} answered {status}"
        if why:
            run.book.failed(due - run.began, why)
        else:
            run.traffic.answered(request, header(head, b"x-request-id").decode())
            run.book.answered(due - run.began, took_ms)
        run.requests += 1
        self.environment.events.request.fire(
            request_type="POST",
            name=request.path,
            response_time=took_ms,
            response_length=length,
            exception=AnswerFailed(why) if why else None,
            context={},
        )


@events.quitting.add_listener
def _judge(environment: Any, **_: Any) -> None:
    options, run = environment.parsed_options, session.run
    shape, profile = run.profile.shape, run.profile
    if run.schedule is not None and run.began:
        run.book.left_out(run.schedule.left())
    if not options.load_profile:
        shape = Shape((Stage(0.0, max(run.book.ended_s, 1e-3), profile.rate, profile.rate),))
    figures = gate.measured(run.book, shape, profile.warm_s, profile.bounds, run.generator.shares())
    if not profile.is_open:
        figures |= {"requests": run.requests, "failures": run.failures}
        figures["wanted_rate"] = shape.arrivals / shape.seconds  # of which the users may have asked less
    figures["rows_answered"], figures["outcomes_written"] = (
        dict(run.traffic.rows_answered),
        run.traffic.outcomes_written,
    )
    broken = gate.verdict(figures, profile.bounds)
    print(gate.line(figures))
    print(f"service level {'broken: ' + '; '.join(broken) if broken else 'held'}")
    if told := gate.limit(figures):
        print(told)
    if options.summary:
        _make(options.summary).write_text(json.dumps(figures | {"broken": broken}, indent=1), encoding="utf-8")
    if options.markdown:
        title = f"{profile.name}, {profile.traffic}, {profile.rate:g}/s"
        with _make(options.markdown).open("a", encoding="utf-8") as out:
            out.write(gate.page(title, figures, broken, profile.bounds))
    environment.process_exit_code = 1 if broken else 0


def _make(path: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path)
