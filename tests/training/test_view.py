"""A materialised view: what was written is what is found, a file is replaced whole, and what is no view is named."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakeredis import TcpFakeServer

from serving.decoding import decoder
from training import view as views
from training import view_redis
from training.features import Feature, FeatureSchema, InputRefused, encode
from training.view import Facts, Lookup, ViewFile, ViewRefused

FACTS = Facts("churn", "customer_id", {"a": "number", "b": "category", "c": "boolean"}, "2024-04-01T00:00:00+00:00", 0)
SCHEMA = FeatureSchema(
    (
        Feature(name="b", kind="category", categories=("x", "y")),
        Feature(name="a", kind="number", infinity="missing"),
        Feature(name="c", kind="boolean"),
    )
)
VALUES = {
    "one": {"a": 0.1, "b": "x", "c": True},
    "7": {"a": math.nan, "b": None, "c": None},
    "é\n": {"a": math.inf, "b": 'quote " and é', "c": False},
    "low": {"a": -math.inf, "b": "y", "c": False},
}
ROWS = [(name, views.spell(FACTS.features, values)) for name, values in VALUES.items()]
GOLDEN = Path(__file__).parent.parent / "contracts" / "golden.view"


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()


def test_what_is_found_decodes_as_the_values_encode(tmp_path: Path) -> None:
    facts = views.write(tmp_path, FACTS, ROWS)
    view = ViewFile(views.path_of(tmp_path, "churn"))
    assert facts.rows == view.facts.rows == 4
    assert view.facts == facts
    assert list(view.entities()) == sorted(VALUES, key=lambda name: name.encode())
    decode = decoder(SCHEMA)
    for name, values in VALUES.items():
        found = view.find(name)
        assert found is not None
        assert decode(found) == encode(SCHEMA, [values])[0].tobytes()
    assert view.find("ONE") is None
    assert view.find("") is None


def test_the_golden_view_of_format_1_reads_as_it_was_written() -> None:
    view = ViewFile(GOLDEN)
    assert view.facts == Facts("churn", "customer_id", FACTS.features, FACTS.as_of, 4, 1)
    assert [view.find(name) for name in VALUES] == [row for _, row in ROWS]
    assert json.loads(view.find("one") or b"") == {"a": 0.1, "b": "x", "c": True}


def test_written_twice_it_is_the_same_and_who_reads_goes_on(tmp_path: Path) -> None:
    path = views.path_of(tmp_path, "churn")
    views.write(tmp_path, FACTS, ROWS)
    first, open_before = path.read_bytes(), ViewFile(path)
    views.write(tmp_path, FACTS, ROWS)
    assert path.read_bytes() == first
    views.write(tmp_path, FACTS, [("new", ROWS[0][1])])
    assert open_before.find("one") == ROWS[0][1]
    assert views.mark_of(path) != open_before.mark
    assert ViewFile(path).find("one") is None
    assert os.listdir(tmp_path) == ["churn.view"]


def test_a_writer_that_is_killed_leaves_the_old_view(tmp_path: Path) -> None:
    views.write(tmp_path, FACTS, ROWS)
    before = views.path_of(tmp_path, "churn").read_bytes()
    code = (
        "import os, sys, time; from pathlib import Path; from training.view import Facts, write\n"
        "def rows():\n"
        "    yield 'one', b'{}'\n"
        "    print('half-way', flush=True); time.sleep(60)\n"
        f"write(Path({str(tmp_path)!r}), Facts('churn', 'customer_id', {{'a': 'number'}}, '2025', 0), rows())"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half-way\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert views.path_of(tmp_path, "churn").read_bytes() == before
    assert [path.name for path in views.listed(tmp_path)] == ["churn.view"]
    (draft,) = tmp_path.glob(".draft-*")
    views.write(tmp_path, FACTS, ROWS)
    assert draft.exists()  # it may be of a writer that is still at it
    os.utime(draft, (0, 0))
    views.write(tmp_path, FACTS, ROWS)
    assert os.listdir(tmp_path) == ["churn.view"]


def test_rows_that_fail_leave_nothing_behind(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, bytes]]:
        yield ROWS[0]
        raise OSError("the store went away")

    with pytest.raises(OSError, match="went away"):
        views.write(tmp_path, FACTS, failing())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["no view", "cut", "other format", "nothing"])
def test_what_is_no_view_is_named(tmp_path: Path, damage: str) -> None:
    path = views.path_of(tmp_path, "churn")
    if damage == "other format":
        views.write(tmp_path, Facts("churn", "customer_id", FACTS.features, "2024", 0, format=99), ROWS)
    elif damage != "nothing":
        shutil.copy(GOLDEN, path)
        path.write_bytes(b"hello" * 1000 if damage == "no view" else path.read_bytes()[:5000])
    words = "format 99" if damage == "other format" else "No such file" if damage == "nothing" else "churn.view"
    with pytest.raises(ViewRefused, match=words):
        ViewFile(path).find("one")


def test_a_view_says_what_a_model_misses_in_it() -> None:
    assert FACTS.lacks(SCHEMA) == ""
    other = FeatureSchema((Feature(name="a", kind="boolean"),))
    assert FACTS.lacks(other) == "a (a number there, a boolean here)"
    assert FACTS.lacks(FeatureSchema((Feature(name="z", kind="number"),))) == "z (not there)"


@pytest.mark.parametrize(
    ("lookup", "words"),
    [
        (Lookup("churn", "id", override=("zz",)), "zz: lookup: is no feature"),
        (Lookup("churn", "id", default={"zz": 1.0}), "zz: lookup: is no feature"),
        (Lookup("churn", "id", default={"a": "text"}), "a: must be a number"),
        (Lookup("../churn", "id"), "lookup.view"),
        (Lookup("churn", ""), "lookup.entity"),
    ],
)
def test_a_lookup_that_does_not_fit_the_model_is_refused(lookup: Lookup, words: str) -> None:
    with pytest.raises(InputRefused, match=words):
        lookup.refuse_misfit(SCHEMA)


def test_in_redis_a_view_is_the_same_and_is_swapped_whole(redis: str) -> None:
    assert view_redis.present(redis, "churn") is None
    with pytest.raises(ViewRefused, match="no such view"):
        view_redis.RedisView(redis, "churn").find(["one"])
    written = view_redis.write(redis, FACTS, ROWS)
    reader = view_redis.RedisView(redis, "churn")
    assert reader.find(["one", "nobody", "é\n"]) == [ROWS[0][1], None, ROWS[2][1]]
    assert view_redis.present(redis, "churn") == written == reader.facts

    def failing() -> Iterator[tuple[str, bytes]]:
        yield "one", b"{}"
        raise OSError("the store went away")

    with pytest.raises(OSError, match="went away"):
        view_redis.write(redis, FACTS, failing())
    assert reader.find(["one"]) == [ROWS[0][1]]
    view_redis.write(redis, FACTS, [("new", ROWS[1][1])])
    assert reader.find(["one", "new"]) == [None, ROWS[1][1]]
    client = view_redis.connect(redis)
    left = client.keys("coppice:view:churn:*")
    present = view_redis.rows_of("churn", json.loads(client.get("coppice:view:churn"))["generation"]).encode()
    assert {name: client.ttl(name) > 0 for name in left} == {name: name != present for name in left}


def test_a_redis_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(ViewRefused, match=r"^churn: Redis: ") as refused:
        view_redis.write("redis://:secret@127.0.0.1:1/0", FACTS, ROWS)
    assert "secret" not in str(refused.value)
