"""The Open Inference Protocol v2, as Triton's and KServe's clients speak it.

    GET  /v2/health/live, /v2/health/ready          as /healthz and /readyz
    GET  /v2, /v2/                                  the server, and the extensions that it has
    GET  /v2/models/{m}[/versions/{v}]              metadata; and .../ready, .../config, .../stats; /v2/models/stats
    POST /v2/models/{m}[/versions/{v}]/infer        tensors in, tensors out: `serving.oip_infer`
    POST /v2/repository/index                       the models that are served
    POST /v2/repository/models/{m}/load, unload     refused: the routes decide what is served

A model without a version is its champion; a version is an arm's that the routes name now. Every error is {"error": ...}.
Statistics count rows; times are not kept by version and are told as 0 (`/metrics` has them by worker).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from serving.answers import plain
from serving.exchange import alone, exchange, refuse_v2
from serving.live import Arm, Snapshot
from serving.oip_infer import LENGTH, inputs_of, reader, shape_of
from serving.predictions import outputs_of
from serving.responses import AnswerResponse
from serving.served import Served

EXTENSIONS = ["binary_tensor_data", "model_repository", "statistics", "model_configuration", "parameters"]
MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"
ROUTED = "the routes decide which models are served here: `coppice routes publish`, or the admin API"
HEALTH = ("/v2/health/live", "/v2/health/ready")

Ready = Callable[[], tuple[bool, dict[str, Any]]]
Counted = Callable[[], Mapping[str, tuple[int, int]]]
"""(rows, errors) of each `model/version/arm`, over all workers"""


def add_oip(app: FastAPI, served: Served, ready: Ready, counted: Counted) -> None:
    _add_server(app, served, ready)
    _add_repository(app, served)
    _add_statistics(app, served, counted)
    for path in (MODEL, VERSION):
        _add_model(app, path, served, ready)
        app.add_api_route(path + "/infer", _infer(served), methods=["POST"], tags=["v2"], summary="Score tensors")


def find(served: Served, request: Request) -> tuple[Snapshot, Arm]:
    """Who is asked. Raises HTTPException 404."""
    model, wanted = request.path_params["model"], request.path_params.get("version", "")
    if model not in served.models:
        raise HTTPException(404, f"Request for unknown model: '{model}' is not found")
    now = served.models[model].snapshot
    if not wanted:
        return now, now.champion
    for arm in now.arms:
        if arm.manifest.version == wanted:
            return now, alone(arm)
    raise HTTPException(404, f"Request for unknown model: '{model}' version {wanted} is not found")


def _infer(served: Served) -> Callable[[Request], Awaitable[Response]]:
    context = served.many

    async def infer(request: Request) -> Response:
        now, arm = find(served, request)
        read = reader(now, arm, request.headers.get(LENGTH), context.max_rows)
        return await exchange(context, request, now, arm, read, refuse_v2)

    return infer


def _add_server(app: FastAPI, served: Served, ready: Ready) -> None:
    about = {"name": "coppice", "version": _own_version(), "extensions": EXTENSIONS}

    @app.get("/v2/health/live", tags=["v2"], summary="The process is alive")
    async def live() -> Response:
        return AnswerResponse(plain(200, {"live": True}))

    @app.get("/v2/health/ready", tags=["v2"], summary="All models can be asked")
    async def server_ready() -> Response:
        if ready()[0] and served.models:
            return AnswerResponse(plain(200, {"live": True, "ready": True}))
        return AnswerResponse(plain(503, {"live": True, "ready": False, "error": "not ready; /readyz says why"}))

    @app.get("/v2", tags=["v2"], summary="The server")
    async def server() -> Response:
        return AnswerResponse(plain(200, about))

    app.add_api_route("/v2/", server, methods=["GET"], include_in_schema=False)


def _add_model(app: FastAPI, path: str, served: Served, ready: Ready) -> None:
    @app.get(path, tags=["v2"], summary="What a model takes and answers")
    async def metadata(request: Request) -> Response:
        now, arm = find(served, request)
        manifest = arm.manifest
        body = {
            "name": manifest.model,
            "versions": sorted({arm.manifest.version for arm in now.arms}),
            "platform": f"coppice_{manifest.task}",
            "inputs": [
                {"name": name, "datatype": datatype, "shape": shape}
                for name, datatype, shape in inputs_of(manifest.schema)
            ],
            "outputs": [
                {"name": output.name, "datatype": output.datatype, "shape": shape_of(output.columns)}
                for output in outputs_of(manifest)
            ],
            "properties": {"fingerprint": manifest.schema.fingerprint},
        }
        return AnswerResponse(plain(200, body))

    @app.get(path + "/ready", tags=["v2"], summary="A model can be asked")
    async def model_ready(request: Request) -> Response:
        _, arm = find(served, request)
        if ready()[0]:
            return AnswerResponse(plain(200, {"name": arm.manifest.model, "ready": True}))
        told = {"name": arm.manifest.model, "ready": False, "error": "not ready; /readyz says why"}
        return AnswerResponse(plain(503, told))

    @app.get(path + "/config", tags=["v2"], summary="A model's configuration, as Triton tells it")
    async def config(request: Request) -> Response:
        _, arm = find(served, request)
        manifest = arm.manifest
        body = {
            "name": manifest.model,
            "platform": f"coppice_{manifest.task}",
            "backend": "coppice",
            "max_batch_size": served.many.max_rows,
            "input": [
                {"name": name, "data_type": _config_type(datatype), "dims": shape[1:] or [1]}
                for name, datatype, shape in inputs_of(manifest.schema)
            ],
            "output": [
                {"name": o.name, "data_type": _config_type(o.datatype), "dims": [o.columns or 1]}
                for o in outputs_of(manifest)
            ],
        }
        return AnswerResponse(plain(200, body))


def _add_statistics(app: FastAPI, served: Served, counted: Counted) -> None:
    @app.get("/v2/models/stats", tags=["v2"], summary="Counts of all models")
    async def all_stats() -> Response:
        counts = counted()
        told = [_told(arm, counts) for live in served.models.values() for arm in live.snapshot.arms]
        return AnswerResponse(plain(200, {"model_stats": told}))

    for path in (MODEL, VERSION):

        @app.get(path + "/stats", tags=["v2"], summary="Counts of a model")
        async def stats(request: Request) -> Response:
            now, chosen = find(served, request)
            arms = [chosen] if "version" in request.path_params else now.arms
            counts = counted()
            return AnswerResponse(plain(200, {"model_stats": [_told(arm, counts) for arm in arms]}))


def _told(arm: Arm, counts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    manifest = arm.manifest
    rows, errors = counts.get(f"{manifest.model}/{manifest.version}/{arm.name}", (0, 0))
    durations = dict.fromkeys(
        ("queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"), _times(0)
    )
    return {
        "name": manifest.model,
        "version": manifest.version,
        "last_inference": 0,
        "inference_count": rows,
        "execution_count": rows,
        "inference_stats": {"success": _times(rows), "fail": _times(errors), **durations},
        "batch_stats": [],
    }


def _times(count: int) -> dict[str, int]:
    return {"count": count, "ns": 0}


def _add_repository(app: FastAPI, served: Served) -> None:
    @app.post("/v2/repository/index", tags=["v2"], summary="The models that are served")
    async def index() -> Response:
        told = [
            {"name": name, "version": arm.manifest.version, "state": "READY", "reason": ""}
            for name, live in sorted(served.models.items())
            for arm in live.snapshot.arms
        ]
        return AnswerResponse(plain(200, told))

    for verb in ("load", "unload"):

        @app.post("/v2/repository/models/{model}/" + verb, include_in_schema=False)
        async def refused() -> Response:
            return AnswerResponse(plain(400, {"error": ROUTED}))


def _config_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def _own_version() -> str:
    try:
        return version("coppice")
    except PackageNotFoundError:  # run from a folder that was not installed
        return "0"
