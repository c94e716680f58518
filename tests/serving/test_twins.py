"""The protocol's answers and FastAPI's are the same, byte for byte but for ids and times; and both are right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from bad_requests import BAD
from cases import MIXED, Release, mixed_body, mixed_rows
from running import Running

from serving.routes import read

IDS = re.compile(rb'"request_id":"[^"]*"')


def ask(server: Running, path: str, body: bytes | None, headers: dict[str, str], method: str | None) -> tuple[Any, ...]:
    status, got, answer = server.ask(path, body, headers, method)
    for changing in ("date", "x-request-id", "server-timing"):
        got.pop(changing, None)
    return status, got, IDS.sub(b"", answer)


def test_both_paths_answer_alike(release: Release, serve: Callable[..., Running]) -> None:
    direct, asgi = serve(release.store, http="direct"), serve(release.store, http="asgi")
    conversations: list[tuple[str, bytes | None, dict[str, str], str | None]] = [
        (path, mixed_body(row), {"x-unit": f"unit {n}"}, None)
        for n, row in enumerate(mixed_rows(60, 4))
        for path in ("/predict", "/predict/ab")
    ]
    conversations += [(path, body, headers, method) for method, path, body, headers, _, _ in BAD.values()]
    conversations += [
        (path, None, {}, None) for path in ("/v1/models", "/v1/models/mixed", "/v1/models/none", "/healthz")
    ]
    conversations += [("/predict", mixed_body(mixed_rows(1)[0]), {"x-request-id": "mine"}, None)]
    for conversation in conversations:
        assert ask(direct, *conversation) == ask(asgi, *conversation), conversation


def test_answers_are_the_native_librarys_and_the_split_is_the_routes(
    release: Release, serve: Callable[..., Running]
) -> None:
    import lightgbm
    import xgboost

    server = serve(release.store)
    rows = mixed_rows(300, 5)
    types = ["q", "q", "c", "c", "q", "q"]
    champion: xgboost.Booster = release.natives["champion"]
    challenger: lightgbm.Booster = release.natives["challenger"]
    expected = {
        "champion": champion.predict(xgboost.DMatrix(rows, feature_types=types, enable_categorical=True)),
        "challenger": challenger.predict(rows),
    }
    routed = read(release.store, "mixed")
    arms = set()
    for n, row in enumerate(rows):
        unit = f"customer-{n}"
        status, headers, answer = server.ask("/predict/ab", mixed_body(row), {"x-unit": unit})
        told = json.loads(answer)
        assert status == 200
        assert told["arm"] == headers["x-arm"] == routed.arm_for(unit.encode())
        assert headers["x-model-version"] == told["model_version"]
        assert headers["x-request-id"] == told["request_id"]
        assert abs(told["probability"] - expected[told["arm"]][n]) <= 1e-6
        assert told["prediction"] == ("yes" if told["probability"] > 0.5 else "no")
        arms.add(told["arm"])
        champion_told = json.loads(server.ask("/predict", mixed_body(row), {"x-unit": unit})[2])
        assert champion_told["arm"] == "champion"
        assert abs(champion_told["probability"] - expected["champion"][n]) <= 1e-6
    assert arms == {"champion", "challenger"}


def test_health_metrics_and_documentation(release: Release, serve: Callable[..., Running]) -> None:
    server = serve(release.store, workers=2)
    for row in mixed_rows(20, 6):
        server.ask("/predict", mixed_body(row))
    server.ask("/predict", b"{}")
    assert server.ask("/healthz")[0] == server.ask("/readyz")[0] == server.ask("/docs")[0] == 200
    text = server.ask("/metrics")[2].decode()
    counted = re.findall(r'^coppice_requests_total\{[^}]*outcome="(\w+)"[^}]*\} ([\d.]+)$', text, re.MULTILINE)
    assert {outcome: float(count) for outcome, count in counted}["2xx"] >= 20, text
    described = json.loads(server.ask("/openapi.json")[2])
    body = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(MIXED.names) <= set(json.dumps(body | described.get("components", {})).replace('"', " ").split())
    assert np.isfinite(
        float(server.ask("/predict", mixed_body(mixed_rows(1)[0]))[1]["server-timing"].split("dur=")[1][:5])
    )
