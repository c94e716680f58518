"""Features looked up by entity: as if the client had sent them, on either path, while views come and go."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cases import MIXED, mixed_body, mixed_rows, publish_routes, train_mixed
from fakeredis import TcpFakeServer
from hypothesis import given
from hypothesis import strategies as st
from inprocess import InProcess
from lanes_of import logged
from running import Running

from compile import build_bundle
from compile.bundle import publish, read, write
from compile.errors import BundleRefused
from compile.summary import as_text
from serving.decoding import decoder
from serving.errors import RequestRefused
from serving.lookup import finder_of, looking_up
from training import view as views
from training import view_redis
from training.view import Facts, Lookup

JSON = {"content-type": "application/json"}
KINDS = {feature.name: feature.kind for feature in MIXED.features}
FACTS = Facts("people", "id", dict(reversed(KINDS.items())), "2024-04-01T00:00:00+00:00", 0)
PEOPLE = {f"p{n}": mixed_body(row) for n, row in enumerate(mixed_rows(20, 3))} | {"42": mixed_body(mixed_rows(1, 9)[0])}
LOOKUP = Lookup("people", "id", override=("visits", "plan"))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Release stores of the same model: without a look-up, with one, and with one that has a default."""
    folder, native = tmp_path_factory.mktemp("lookups"), train_mixed("xgboost", trees=3)
    defaulted = Lookup("people", "id", default={"age": 50.0, "plan": "plus"})
    made = {}
    for name, lookup in (("plain", None), ("looking", LOOKUP), ("defaulting", defaulted)):
        built = build_bundle(
            native, MIXED, mixed_rows(40, 1), folder / name / "built", name="mixed", version="1", lookup=lookup,
            cross_check=False,
        )  # fmt: skip
        made[name] = folder / name / "store"
        publish_routes(made[name], {"champion": publish(built, made[name])}, {"champion": 100})
    return made


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()


class Asking:
    """One server's request path over a folder of views, or Redis."""

    def __init__(self, store: Path, tmp_path: Path, views_at: str, **knobs: Any) -> None:
        self.inside = InProcess(store, "mixed", tmp_path / "traffic", views=views_at, **knobs)

    def __call__(self, body: Any, path: str = "/predict", by: str = "direct") -> tuple[int, dict[str, Any]]:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, answer = getattr(self.inside, by)(path, sent, JSON)
        return status, json.loads(re.sub(rb',"request_id":"[^"]*"', b"", answer))


@pytest.fixture
def asking(stores: dict[str, Path], tmp_path: Path) -> Iterator[Asking]:
    views.write(tmp_path / "views", FACTS, PEOPLE.items())
    asked = Asking(stores["looking"], tmp_path, str(tmp_path / "views"))
    yield asked
    asked.inside.finish()


def test_an_entity_is_scored_and_logged_as_its_features_are(asking: Asking, tmp_path: Path) -> None:
    for name, body in PEOPLE.items():
        for by in ("direct", "asgi"):
            assert asking({"entity": {"id": name}}, by=by) == asking(body, by=by)
    assert asking({"entity": {"id": 42}}) == asking(PEOPLE["42"])
    assert asking({"entity": {"id": "p1"}}, "/predict/ab") == asking(PEOPLE["p1"], "/predict/ab")
    asking.inside.finish()
    rows = sorted(logged(tmp_path / "traffic"), key=lambda row: row["seq"])
    assert len(rows) == 4 * len(PEOPLE) + 4
    for looked_up, sent in zip(rows[0::2], rows[1::2], strict=True):
        assert np.array_equal(looked_up["features"], sent["features"], equal_nan=True)
        assert looked_up["score"] == sent["score"]


def test_only_what_is_declared_may_be_given_beside_the_entity(asking: Asking) -> None:
    whole = json.loads(PEOPLE["p3"])
    changed = {"visits": 17, "plan": None}
    assert asking({"entity": {"id": "p3"}, **changed}) == asking(whole | changed)
    assert asking({"visits": 17, "entity": {"id": "p3"}, "note": [1, {"a": "b"}]}) == asking(whole | {"visits": 17})
    status, told = asking({"entity": {"id": "p3"}, "age": 30})
    assert (status, told["field"]) == (422, "age")
    assert "looked up by id" in told["error"]
    status, told = asking({"entity": {"id": "p3"}, "visits": "many"})
    assert (status, told["field"]) == (422, "visits")


@pytest.mark.parametrize("by", ["direct", "asgi"])
@pytest.mark.parametrize(
    ("body", "status", "field", "words"),
    [
        ({"entity": {"id": "nobody"}}, 404, "id", "'nobody' is not in the view people"),
        ({"entity": {"id": ""}}, 404, "id", "'' is not in the view"),
        ({"entity": {}}, 422, "entity", '{"id": "..."}'),
        ({"entity": {"name": "p1"}}, 422, "entity", '{"id": "..."}'),
        ({"entity": {"id": "p1", "name": "x"}}, 422, "entity", '{"id": "..."}'),
        ({"entity": {"id": True}}, 422, "entity", "whole number"),
        ({"entity": {"id": 4.5}}, 422, "entity", "whole number"),
        ({"entity": {"id": None}}, 422, "entity", "whole number"),
        ({"entity": None}, 422, "entity", '{"id": "..."}'),
        ({"entity": "p1"}, 422, "entity", '{"id": "..."}'),
        ({"entity": {"id": "p" * 257}}, 422, "entity", "256 letters"),
        ({"plan": "basic"}, 422, "age", "the field is missing"),
        (b'{"entity": {"id": "p1"}', 400, None, "not JSON"),
        (b'{"entity": {"id": "\xff"}}', 400, None, "not UTF-8"),
        (b'{"entity": {"id": "p1"}, "x": ' + b"[" * 50 + b"]" * 50 + b"}", 400, None, "too deeply"),
        (b'{"entity": {"id": "\\ud800"}}', 400, None, "not JSON"),
        ({"entity": {"id": "p\0"}}, 404, "id", "is not in the view"),
        (b'["entity"]', 400, None, "one JSON object"),
        (b"", 400, None, "empty"),
    ],
)
def test_what_can_not_be_looked_up_is_refused_by_name(
    asking: Asking, by: str, body: Any, status: int, field: str | None, words: str
) -> None:
    got, told = asking(body, by=by)
    assert (got, told.get("field")) == (status, field)
    assert words in told["error"]


def test_a_declared_default_stands_in_for_the_unknown(stores: dict[str, Path], tmp_path: Path) -> None:
    views.write(tmp_path / "views", FACTS, PEOPLE.items())
    asked = Asking(stores["defaulting"], tmp_path, str(tmp_path / "views"))
    unknown = dict.fromkeys(KINDS, None) | {"age": 50.0, "plan": "plus"}
    assert asked({"entity": {"id": "nobody"}}) == asked(unknown)
    assert asked({"entity": {"id": "p2"}}) == asked(PEOPLE["p2"])
    asked.inside.finish()


NAMED = ("p1", "42", "nobody", "é", "")
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
KEYS = st.dictionaries(
    st.sampled_from(("id", "name", "entity")),
    st.one_of(st.sampled_from(NAMED), NUMBERS, st.booleans(), st.none()),
    max_size=2,
)


@given(named=st.one_of(KEYS, st.sampled_from((None, 1, "p1", [], [1], {"id": {"id": "p1"}}))), ascii_only=st.booleans())
def test_the_usual_body_is_read_as_one_with_more_in_it(named: Any, ascii_only: bool) -> None:
    class People:
        def find(self, entity: str) -> bytes | None:
            return PEOPLE.get(entity)

    decode = looking_up(decoder(MIXED), MIXED, LOOKUP, People())

    def result(body: dict[str, Any]) -> object:
        try:
            return decode(json.dumps(body, ensure_ascii=ascii_only, allow_nan=False).encode())
        except RequestRefused as refused:
            return type(refused), refused.message, refused.field

    assert result({"entity": named}) == result({"entity": named, "note": 1})


def test_many_entities_in_one_request(asking: Asking) -> None:
    names = [f"p{n % 20}" for n in range(300)]  # decoded by a thread
    status, by_entity = asking({"rows": [{"entity": {"id": name}} for name in names]}, "/predict/batch", "asgi")
    assert status == 200
    assert (status, by_entity) == asking(
        {"rows": [json.loads(PEOPLE[name]) for name in names]}, "/predict/batch", "asgi"
    )
    status, told = asking({"rows": [{"entity": {"id": "p1"}}, {"entity": {"id": "x"}}]}, "/predict/batch", "asgi")
    assert (status, told["row"], told["field"]) == (404, 1, "id")


def test_a_new_view_serves_from_the_next_request_on_and_a_bad_one_never(asking: Asking, tmp_path: Path) -> None:
    folder = tmp_path / "views"
    assert asking({"entity": {"id": "p1"}}) == asking(PEOPLE["p1"])
    views.write(folder, FACTS, [("p1", PEOPLE["p2"]), ("late", PEOPLE["p3"])])
    assert asking({"entity": {"id": "p1"}}) == asking(PEOPLE["p2"])
    assert asking({"entity": {"id": "late"}}) == asking(PEOPLE["p3"])
    assert asking({"entity": {"id": "p5"}})[0] == 404
    lacking = Facts("people", "id", {name: kind for name, kind in KINDS.items() if name != "age"}, "2025", 0)
    other_entity = Facts("people", "user", KINDS, "2025", 0)
    for facts in (lacking, other_entity):
        views.write(folder, facts, [("p1", PEOPLE["p4"])])
        assert asking({"entity": {"id": "p1"}}) == asking(PEOPLE["p2"])
    draft = folder / "other"
    draft.write_bytes(b"no view at all")
    draft.replace(views.path_of(folder, "people"))
    assert asking({"entity": {"id": "p1"}}) == asking(PEOPLE["p2"])
    for name in ("p6", "p7", "p8"):  # the disk gives one the number that a refused one had
        views.write(folder, FACTS, [("p1", PEOPLE[name])])
        assert asking({"entity": {"id": "p1"}}) == asking(PEOPLE[name])


def test_views_may_be_replaced_while_requests_are_answered(asking: Asking, tmp_path: Path) -> None:
    """Each answer is of one whole view: both rows of a request of two are of the same writing or of neighbours."""
    stop = threading.Event()
    expected = [asking(PEOPLE[f"p{n}"])[1] for n in range(2)]

    def replace() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            views.write(tmp_path / "views", FACTS, [("one", PEOPLE[f"p{turn % 2}"])])

    asking({"entity": {"id": "p1"}})
    views.write(tmp_path / "views", FACTS, [("one", PEOPLE["p0"])])
    writer = threading.Thread(target=replace)
    writer.start()
    try:
        answers = [asking({"entity": {"id": "one"}}) for _ in range(300)]
    finally:
        stop.set()
        writer.join()
    assert {status for status, _ in answers} == {200}
    assert all(told in expected for _, told in answers)


def test_without_its_view_a_model_answers_whole_bodies_and_says_503_to_entities(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    asked = Asking(stores["looking"], tmp_path, str(tmp_path / "views"))
    status, told = asked({"entity": {"id": "p1"}})
    assert status == 503
    assert told["error"] == "the view people can't be read here just now"
    assert asked(PEOPLE["p1"])[0] == 200
    views.write(tmp_path / "views", FACTS, PEOPLE.items())
    assert asked({"entity": {"id": "p1"}}) == asked(PEOPLE["p1"])
    asked.inside.finish()


def test_a_model_without_a_lookup_has_its_plain_decoder(stores: dict[str, Path], tmp_path: Path) -> None:
    asked = Asking(stores["plain"], tmp_path, str(tmp_path / "views"))
    status, told = asked({"entity": {"id": "p1"}})
    assert (status, told["field"]) == (422, "age")
    assert asked.inside.live.snapshot.decode.__qualname__ == "decoder.<locals>.decode"
    assert "lookup" not in json.loads(asked.inside.asgi("/v1/models/mixed", None, {})[2])
    asked.inside.finish()
    (bundle,) = (stores["plain"] / "bundles").iterdir()
    assert b"lookup" not in (bundle / "manifest.json").read_bytes()


def test_the_entity_may_be_the_experiments_unit(stores: dict[str, Path], tmp_path: Path) -> None:
    views.write(tmp_path / "views", FACTS, PEOPLE.items())
    asked = Asking(stores["looking"], tmp_path, str(tmp_path / "views"), unit_field="id")
    bodies = [{"entity": {"id": "p1"}}, {"entity": {"id": 42}}, {"entity": {"id": "p2"}, "id": "other"}]
    for body in [*bodies, json.loads(PEOPLE["p1"])]:
        assert asked(body, "/predict/ab")[0] == 200
    assert asked({"entity": {"id": [1]}})[1]["field"] == "entity"
    asked.inside.finish()
    rows = sorted(logged(tmp_path / "traffic"), key=lambda row: row["seq"])
    assert [row["unit"] for row in rows] == ["p1", "42", "other", ""]


def test_the_documentation_offers_both_bodies(asking: Asking) -> None:
    document = json.loads(asking.inside.asgi("/openapi.json", None, {})[2])
    post = document["paths"]["/predict"]["post"]
    whole, by_entity = post["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert set(whole["required"]) == set(KINDS)
    assert by_entity["required"] == ["entity"]
    assert by_entity["properties"]["age"] is False
    assert by_entity["properties"]["visits"] == whole["properties"]["visits"]
    assert "404" in post["responses"]
    model = json.loads(asking.inside.asgi("/v1/models/mixed", None, {})[2])
    assert model["lookup"] == {"view": "people", "entity": "id", "override": ["visits", "plan"], "default": None}


def test_a_view_in_redis_answers_alike_and_is_swapped_whole(
    stores: dict[str, Path], tmp_path: Path, redis: str
) -> None:
    asked = Asking(stores["looking"], tmp_path, redis)
    assert asked({"entity": {"id": "p1"}})[0] == 503
    view_redis.write(redis, FACTS, PEOPLE.items())
    for name in ("p1", "p2", "42"):
        assert asked({"entity": {"id": name}}) == asked(PEOPLE[name])
    whole = json.loads(PEOPLE["p3"])
    assert asked({"entity": {"id": "p3"}, "visits": 17}) == asked(whole | {"visits": 17})
    assert asked({"entity": {"id": "nobody"}})[0] == 404
    assert asked({"entity": {"id": "p3"}, "visits": "many"})[0] == 422
    view_redis.write(redis, FACTS, [("p1", PEOPLE["p2"])])
    assert asked({"entity": {"id": "p1"}}) == asked(PEOPLE["p2"])
    status, told = asked({"rows": [{"entity": {"id": "p1"}}]}, "/predict/batch", "asgi")
    assert (status, told["row"]) == (400, 0)
    asked.inside.finish()
    rows = sorted(logged(tmp_path / "traffic"), key=lambda row: row["seq"])
    assert np.array_equal(rows[0]["features"], rows[1]["features"], equal_nan=True)


@pytest.mark.parametrize("http", ["direct", "asgi"])
def test_many_who_ask_redis_at_once_get_their_own_answers(
    stores: dict[str, Path], redis: str, serve: Callable[..., Running], http: str
) -> None:
    view_redis.write(redis, FACTS, PEOPLE.items())
    server = serve(stores["looking"], views=redis, http=http)
    expected = {name: json.loads(server.ask("/predict", body)[2])["probability"] for name, body in PEOPLE.items()}
    names = [f"p{n % 20}" for n in range(16)]

    def ask(name: str) -> float:
        status, _, answer = server.ask("/predict", json.dumps({"entity": {"id": name}}).encode())
        assert status == 200, answer
        return float(json.loads(answer)["probability"])

    with ThreadPoolExecutor(8) as asking:
        assert list(asking.map(ask, names)) == [expected[name] for name in names]


def test_the_thread_of_a_view_that_is_let_go_ends(redis: str) -> None:
    before = set(threading.enumerate())
    finder = finder_of(redis, MIXED, LOOKUP)
    (own,) = set(threading.enumerate()) - before
    del finder
    own.join(10)
    assert not own.is_alive()


def test_a_redis_that_does_not_answer_is_a_503(stores: dict[str, Path], tmp_path: Path) -> None:
    asked = Asking(stores["looking"], tmp_path, "redis://127.0.0.1:1/0")
    assert asked({"entity": {"id": "p1"}})[0] == 503
    assert asked(PEOPLE["p1"])[0] == 200
    asked.inside.finish()


def test_a_bundle_keeps_its_lookup_and_one_that_does_not_fit_is_refused(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    (bundle,) = (stores["looking"] / "bundles").iterdir()
    manifest = read(bundle)
    assert manifest.lookup == LOOKUP
    summary = as_text(bundle, manifest, None, None)
    assert "by id, in the view people" in summary
    assert "beside it: visits, plan; the unknown: a 404" in summary
    files = {name: (bundle / name).read_bytes() for name in manifest.files}
    misfit = msgspec.structs.replace(manifest, lookup=Lookup("people", "id", override=("nothing",)))
    written = write(tmp_path, misfit, files, None)
    with pytest.raises(BundleRefused, match="lookup: nothing: lookup: is no feature of this model"):
        read(written)
