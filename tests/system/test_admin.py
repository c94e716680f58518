"""The admin API: shut without keys, the same changes as the command line with one, and two that ask at once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cases import Release, mixed_body, mixed_rows
from running import Running

from serving import routes

KEY = "a-secret-of-the-test"
AT = "/v1/admin/routes/mixed"


@pytest.fixture
def store(release: Release, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release.store, tmp_path / "store"))


def ask(server: Running, path: str, change: dict[str, Any] | None = None, key: str = KEY) -> tuple[int, dict[str, Any]]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = None if change is None else json.dumps(change).encode()
    status, _, told = server.ask(path, body, headers)
    return status, json.loads(told)


def test_without_keys_there_is_no_admin_api(store: Path, serve: Callable[..., Running]) -> None:
    server = serve(store)
    for path, change in ((AT, None), (f"{AT}/promote", {}), (f"{AT}/publish", {"arms": {}})):
        assert ask(server, path, change)[0] == 404
    assert routes.history(store, "mixed") == [1]


def test_with_a_key_routes_are_changed_as_by_the_command_line(
    store: Path, serve: Callable[..., Running], tmp_path: Path
) -> None:
    keys = tmp_path / "admin.keys"
    keys.write_text(f"# who may\n{hashlib.sha256(KEY.encode()).hexdigest()} ops\n")
    server = serve(store, admin_keys=keys, sync_s=0.05, workers=2)
    assert ask(server, f"{AT}/promote", {}, "")[0] == ask(server, AT, None, "")[0] == 401
    for wrong in ("wrong", KEY + "x", hashlib.sha256(KEY.encode()).hexdigest()):
        assert ask(server, f"{AT}/promote", {}, wrong)[0] == 403
        assert ask(server, AT, None, wrong)[0] == 403
    assert ask(server, AT)[1]["generation"] == 1
    assert ask(server, "/v1/admin/routes/nothing")[0] == 404
    assert ask(server, f"{AT}/ramp", {"shares": {"challenger": 25}})[0] == 422
    status, told = ask(server, f"{AT}/publish", {"arms": {}, "plan": {"name": "x", "challengers": ["challenger"]}})[:2]
    assert (status, "coppice experiment start" in str(told)) == (422, True)
    assert ask(server, f"{AT}/ramp", {"share": 25})[0] == 400
    assert ask(server, f"{AT}/promote", {"note": "x" * 70_000})[0] == 413
    status, told = ask(server, f"{AT}/ramp", {"shares": {"challenger": 75}, "note": "going well"})
    assert (status, told["generation"], told["note"], told["by"]) == (200, 2, "going well", "admin key ops")
    assert ask(server, f"{AT}/promote", {"dry_run": True})[1]["generation"] == 3
    assert ask(server, f"{AT}/promote", {"generation": 1})[0] == 409
    assert routes.history(store, "mixed") == [1, 2]
    assert ask(server, f"{AT}/promote", {})[1]["arms"] == {"champion": told["arms"]["challenger"]}
    assert ask(server, f"{AT}/rollback", {"to": 1})[1]["slots"] == [[0, 5000, "champion"], [5000, 10000, "challenger"]]
    arms = routes.read(store, "mixed").arms
    assert ask(server, f"{AT}/publish", {"arms": arms, "split": {"champion": 9, "challenger": 1}})[0] == 200

    with ThreadPoolExecutor(2) as pool:
        asked = list(pool.map(lambda _: ask(server, f"{AT}/rollback", {"generation": 5})[0], range(2)))
    assert sorted(asked) == [200, 409]
    assert routes.history(store, "mixed") == [1, 2, 3, 4, 5, 6]

    keys.write_text(f"{hashlib.sha256(b'another').hexdigest()} ops\n")
    assert ask(server, AT)[0] == 403
    assert ask(server, AT, None, "another")[0] == 200
    keys.unlink()
    assert ask(server, AT, None, "another")[0] == 403
    text = server.ask("/metrics")[2].decode()
    assert 'coppice_admin_requests_total{outcome="refused"}' in text
    assert server.ask("/predict", mixed_body(mixed_rows(1)[0]))[0] == 200
    told_log = server.log.read_text(encoding="utf-8")
    assert "admin promote 'mixed' by ops: 200, generation 3" in told_log
    assert KEY not in told_log
