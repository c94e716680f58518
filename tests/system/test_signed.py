"""COPPICE_TRUST=signed on a real server: a signed release is flipped to, one that is not signed changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cases import Release, mixed_body, mixed_rows, publish_routes
from running import Running
from test_changes import wait_for

from compile import keys, signing
from serving import routes

BODY = mixed_body(mixed_rows(1)[0])


def test_only_what_is_signed_is_flipped_to(
    release: Release, serve: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store = Path(shutil.copytree(release.store, tmp_path / "store"))
    shutil.rmtree(store / "routes")
    champion, challenger = release.digest("champion"), release.digest("challenger")
    for name in ("ours", "theirs"):
        keys.new_key(tmp_path / "keys", name)
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    shutil.copy(tmp_path / "keys" / "ours.pub", trusted)
    signing.sign(store / "bundles" / champion, tmp_path / "keys" / "ours.key")
    publish_routes(store, {"champion": champion}, {"champion": 100})
    server = serve(store, trust=f"signed:{trusted}", workers=2, sync_s=0.05)

    def told() -> tuple[str, int]:
        status, headers, _ = server.ask("/predict", BODY)
        assert status == 200
        return headers["x-model-version"], int(headers["x-routes-generation"])

    def refused() -> str:
        return json.dumps(json.loads(server.ask("/readyz")[2])["sync"])

    assert told() == ("1", 1)
    publish_routes(store, {"champion": challenger}, {"champion": 100})  # not signed at all
    wait_for(lambda: "model.sig" in refused(), server)
    assert {told() for _ in range(20)} == {("1", 1)}
    assert server.ask("/readyz")[0] == 200

    signing.sign(store / "bundles" / challenger, tmp_path / "keys" / "theirs.key")
    now = routes.read(store, "mixed")
    routes.publish(store, msgspec.structs.replace(now, generation=3, note="signed by a stranger"))
    wait_for(lambda: "mixed 3" in refused(), server)
    assert {told() for _ in range(20)} == {("1", 1)}

    signing.sign(store / "bundles" / challenger, tmp_path / "keys" / "ours.key")
    routes.publish(store, msgspec.structs.replace(now, generation=4, note="signed"))
    wait_for(lambda: told() == ("2", 4), server)
    wait_for(lambda: {told() for _ in range(20)} == {("2", 4)}, server)
