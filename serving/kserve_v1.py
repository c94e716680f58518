"""KServe's protocol v1: POST /v1/models/{model}:predict {"instances": [...]} -> {"predictions": [...]}, and GET /.

Instances are objects, or lists in the schema's order; predictions are the plain numbers of `serving.predictions`.
GET /v1/models and /v1/models/{model} are the server's own, whose answers have what this protocol asks for.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from serving.answers import Answer, plain
from serving.batch_answers import marked
from serving.errors import BodyMalformed
from serving.exchange import exchange, refuse_v2
from serving.frames import parsed, rows_of_instances
from serving.many import Many
from serving.predictions import plain_numbers
from serving.question import Question
from serving.responses import AnswerResponse, no_model
from serving.served import Served

PREDICT = "/v1/models/{model}:predict"


def add_kserve_v1(app: FastAPI, served: Served) -> None:
    context = served.many

    @app.get("/", tags=["health"], summary="The process is alive")
    async def root() -> Response:
        return AnswerResponse(plain(200, {"status": "alive"}))

    @app.post(PREDICT, tags=["v1"], summary="Score instances")
    async def predict(request: Request) -> Response:
        model = request.path_params["model"]
        if model not in served.models:
            raise HTTPException(404, no_model(model))
        now = served.models[model].snapshot

        def write(many: Many) -> Answer:
            body = msgspec.json.encode({"predictions": plain_numbers(many)})
            return marked(now, now.champion, many, b"application/json", body)

        def read(body: bytes) -> Question:
            told: Any = parsed(body)
            if not isinstance(told, dict) or "instances" not in told:
                raise BodyMalformed('send {"instances": [...]}')
            schema = now.champion.manifest.schema
            return Question(rows_of_instances(schema, told["instances"], context.max_rows), write)

        return await exchange(context, request, now, now.champion, read, refuse_v2)

    @app.get(PREDICT, include_in_schema=False)
    async def not_read() -> Response:
        raise HTTPException(405, headers={"Allow": "POST"})  # else `{model}:predict` would be asked for as a model
