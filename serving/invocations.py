"""The scoring protocol of MLflow's model server, and SageMaker's on the same paths, for the default model's champion.

    POST /invocations     application/json: one of `serving.frames`' formats; `params` are passed over, as MLflow does where
                          a model has none; or tensors: `serving.sagemaker`
                          application/vnd.apache.parquet; text/csv, with a header (MLflow) or without (SageMaker)
    GET  /ping, /health   200 "\\n" while the host is ready
    GET  /version         that of MLflow where it is installed, else the one whose protocol this is

The answer is {"predictions": [...]}: the plain numbers of `serving.predictions`, which are what `mlflow models serve` of
the registered model answers; or, with `accept: text/csv`, a line for each row. Features are sent as they are, categories
by name. Errors are {"error_code", "message"}, or {"error"} where tensors were sent; a content type that is not read is told
in plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response

from serving import oip_infer, sagemaker
from serving.answers import Answer, plain
from serving.batch_answers import marked
from serving.columns import rows_of_columns
from serving.exchange import exchange, refuse_v2
from serving.frames import parsed, rows_of_csv, rows_of_mlflow
from serving.lanes import Scores
from serving.live import Snapshot
from serving.many import Context, Many
from serving.predictions import plain_numbers
from serving.question import Question
from serving.responses import AnswerResponse, no_model
from serving.served import Served
from serving.tables import READERS

PROTOCOL = "3.17.2"
PARQUET = "application/vnd.apache.parquet"
TYPES = ["text/csv", "application/json", PARQUET]
CODES = {404: "RESOURCE_DOES_NOT_EXIST", 500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE"}
PINGS = ("/ping", "/health")

Ready = Callable[[], tuple[bool, dict[str, Any]]]


def add_invocations(app: FastAPI, served: Served, ready: Ready) -> None:
    context = served.many

    @app.post("/invocations", tags=["mlflow"], summary="Score what MLflow's and SageMaker's clients send")
    async def invocations(request: Request) -> Response:
        if served.default is None:
            return AnswerResponse(_refuse(404, no_model(""), b""))
        content_type = request.headers.get("content-type", "application/json")
        now = served.default.snapshot
        size = sagemaker.json_size(content_type)
        if size is not None:
            read = oip_infer.reader(now, now.champion, size, context.max_rows, sagemaker.head_of)
            return await exchange(context, request, now, now.champion, read, refuse_v2)
        if refused := refused_type(content_type):
            return Response(refused, 415, media_type="text/plain")
        asked = _Asked(context, now, content_type.split(";")[0].strip().lower(), _writer(now, request))
        return await exchange(context, request, now, now.champion, asked.read, asked.refuse)

    async def ping() -> Response:
        if served.default is None:
            return Response("\n", 404, media_type="application/json")
        return Response("\n", 200 if ready()[0] else 503, media_type="application/json")

    for path in PINGS:
        told: dict[int | str, dict[str, Any]] = {
            404: {"description": "no default model"},
            503: {"description": "not ready"},
        }
        app.add_api_route(
            path, ping, methods=["GET"], tags=["mlflow"], summary="The default model can be asked",
            response_class=Response, responses=told,
        )  # fmt: skip

    protocol = protocol_version()

    @app.get(
        "/version", tags=["mlflow"], summary="The version of MLflow whose protocol this is", response_class=Response
    )
    async def version() -> Response:
        return Response(protocol, 200, media_type="application/json")


def protocol_version() -> str:
    """MLflow's own where it is installed, though it is not loaded."""
    try:
        return metadata.version("mlflow")
    except metadata.PackageNotFoundError:
        return PROTOCOL


def refused_type(content_type: str) -> str:
    """Why a body of this type is not read; empty if it is.

    >>> refused_type("application/json; charset=latin-1")
    'The scoring server only supports UTF-8'
    """
    kind, *pairs = [part.strip() for part in content_type.split(";")]
    parameters = {name.lower(): value.lower() for name, _, value in (pair.partition("=") for pair in pairs)}
    if parameters.pop("charset", "utf-8") != "utf-8":
        return "The scoring server only supports UTF-8"
    if parameters:
        return f"Unrecognized content type parameters: {', '.join(parameters)}."
    if kind.lower() not in TYPES:
        return f"This predictor only supports the following content types: Types: {TYPES}. Got '{content_type}'."
    return ""


class _Asked:
    """One request, whose protocol is known when its body is parsed."""

    def __init__(self, context: Context, now: Snapshot, kind: str, write: Callable[[Many], Answer]) -> None:
        self._context, self._now, self._kind, self._write = context, now, kind, write
        self._is_v2 = False

    def read(self, body: bytes) -> Question:
        context, schema = self._context, self._now.champion.manifest.schema
        if self._kind == "text/csv":
            return Question(rows_of_csv(schema, body, context.max_rows, context.max_bytes), self._write)
        if self._kind == PARQUET:
            columns = READERS[PARQUET](schema, body, context.max_rows, context.max_bytes)
            return Question(rows_of_columns(schema, columns, context.max_rows), self._write)
        told = parsed(body)
        self._is_v2 = sagemaker.has_tensors(told)
        if self._is_v2:
            return oip_infer.reader(self._now, self._now.champion, None, context.max_rows, sagemaker.head_of)(body)
        return Question(rows_of_mlflow(schema, told, context.max_rows), self._write)

    def refuse(self, status: int, message: str, request_id: bytes) -> Answer:
        return (refuse_v2 if self._is_v2 else _refuse)(status, message, request_id)


def _writer(now: Snapshot, request: Request) -> Callable[[Many], Answer]:
    accepted = request.headers.get("accept", "").split(",")[0].partition(";")[0].strip().lower()

    def write(many: Many) -> Answer:
        numbers = plain_numbers(many)
        if accepted == "text/csv":
            return marked(now, now.champion, many, b"text/csv; charset=utf-8", _lines(numbers))
        body = msgspec.json.encode({"predictions": numbers})
        return marked(now, now.champion, many, b"application/json", body)

    return write


def _lines(numbers: Sequence[Scores]) -> bytes:
    rows = (row if isinstance(row, tuple) else (row,) for row in numbers)
    return "".join(",".join(map(repr, row)) + "\n" for row in rows).encode()


def _refuse(status: int, message: str, request_id: bytes) -> Answer:
    return plain(status, {"error_code": CODES.get(status, "BAD_REQUEST"), "message": message}, request_id)
